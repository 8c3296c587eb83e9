"""The tape: acting's forward passes, kept, so that learning computes only the backward pass.

An actor that learns from what it just did has computed its network already, step by step, with the parameters it
is about to differentiate. A tape keeps what the trunk (encoder and core) computed on the way; ``features`` gives
that back as one tensor, whose gradient one batched pass by hand (``backward_from`` of encoder and core) carries
into the parameters. The heads stay with autograd; while acting, one is asked that keeps what depends on its parameters only.

    tape = Tape(n_steps)
    for _ in range(n_steps):
        with torch.no_grad():
            logits, state = policy.act(observation, state, episode_start, tape)
    output, features, auxiliary = policy.evaluate(observations, initial_state, episode_starts, tape)

What makes it faster than a graph per step: one large product per weight instead of n_steps small ones, and memory
that is used again.

A tape runs in the parameters' precision, or, in place of autocast, in bfloat16: then it computes with a copy of the trunk that
it brings up to date at the first step of each rollout. Autocast would cast every weight at every step. What the core
remembers stays in float32, as do sums of gradients.

A learner that takes several steps from one rollout cannot learn from a tape, but can look back at it for what the network
thought when it acted, if only at its features: ``Tape(n_steps, differentiable=False)`` keeps nothing else.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neurocoder.errors import NeurocoderError, require
from neurocoder.policies.cores import Core, Kept, State
from neurocoder.policies.encoder_base import Encoder
from neurocoder.policies.heads.base import Head


class TapeError(NeurocoderError):
    """Raised when a tape does not hold the rollout that it is asked for, or cannot take a step."""

    exit_code = 1


class Tape:
    """What encoder and core computed in `n_steps` steps of one batch, in bfloat16 if `lowered`.

    Only their features are kept unless it is `differentiable`.

    The memory, [n_steps, B, ...] for everything kept, is allocated at the first step and used for every rollout:
    the step after the last one begins the next rollout. Until the backward pass of a rollout is done, its
    parameters must stay as they acted, and nothing may be recorded.

    Raises
    ------
    ConfigError
        n_steps < 1.
    """

    def __init__(self, n_steps: int, *, lowered: bool = False, differentiable: bool = True) -> None:
        require(n_steps >= 1, "n_steps", n_steps, ">= 1")
        self.n_steps = n_steps
        self.lowered = lowered
        self.differentiable = differentiable
        self._copy: tuple[Encoder, Core] | None = None
        """Of the trunk, in bfloat16."""
        self._head: Callable[[Tensor], Tensor] | None = None
        """The one that acts, prepared for this rollout's parameters."""
        self._length = 0
        self._kept: tuple[Tensor, ...] = ()
        self._n_encoder = 0
        """How many of the kept tensors are the encoder's; the core's follow, then its output."""

    def __len__(self) -> int:
        """Return the steps recorded in this rollout."""
        return self._length

    def clear(self) -> None:
        """Begin a new rollout, whether or not the last one is complete."""
        self._length = 0

    @staticmethod
    def can_record(encoder: Encoder, core: Core, *, lowered: bool = False) -> bool:
        """Return whether a tape can keep what this trunk computes: noise, for one, cannot be kept."""
        return encoder.repeatable and (not lowered or (encoder.lowerable and core.lowerable))

    @torch.no_grad()
    def record(
        self, encoder: Encoder, core: Core, observation: Tensor, state: State, episode_start: Tensor
    ) -> tuple[Tensor, State]:
        """Advance one step, observation [B, ...], and keep it; return features [B, F] and the next state.

        Raises
        ------
        TapeError
            Another batch size, or another network, than in the steps before; autocast is on, and the tape is not
            lowered; or the trunk cannot be.
        """
        device = observation.device.type
        if torch.is_autocast_enabled(device) and not self.lowered:
            raise TapeError(
                "autocast is on, in whose place stands a lowered tape: Tape(n_steps, lowered=True)"
            )
        with torch.autocast(device, enabled=False):
            if self.lowered:
                encoder, core = self._brought_up_to_date(encoder, core)
            if self.differentiable:
                features, kept = encoder.record(observation)
            else:
                features, kept = encoder(observation), ()
            output, state, core_kept = core.record(features, state, episode_start)
            output = output.float() if self.lowered else output
            self._keep(kept, core_kept if self.differentiable else (), output)
        return output, state

    def act(self, head: Head, features: Tensor) -> Tensor:
        """Return what `head` says of the features [B, F] that :meth:`record` has just returned; always the same head."""
        if self._head is None or self._length == 1:
            self._head = head.prepared()
        return self._head(features)

    def _brought_up_to_date(self, encoder: Encoder, core: Core) -> tuple[Encoder, Core]:
        """Return the copy of the trunk, with the trunk's numbers of when the rollout began."""
        if self._copy is None:
            if not self.can_record(encoder, core, lowered=True):
                raise TapeError(
                    f"{type(encoder).__name__} and {type(core).__name__} cannot be recorded in bfloat16; act and "
                    f"evaluate under autocast, without a tape"
                )
            self._copy = deepcopy(encoder).to(torch.bfloat16), deepcopy(core).to(torch.bfloat16)
        if self._length in (0, self.n_steps):
            for copied, module in zip(self._copy, (encoder, core), strict=True):
                for ours, theirs in zip(copied.parameters(), module.parameters(), strict=True):
                    ours.copy_(theirs)
        return self._copy

    def _keep(self, encoder_kept: Kept, core_kept: Kept, output: Tensor) -> None:
        step = (*encoder_kept, *core_kept, output)
        if not self._kept:
            self._kept = tuple(_memory(self.n_steps, part) for part in step)
            self._n_encoder = len(encoder_kept)
        shapes, expected = [part.shape for part in step], [part.shape[1:] for part in self._kept]
        if shapes != expected:
            raise TapeError(
                f"the tape was made by a batch of {expected[-1][0]} and features of {expected[-1][1]}, got a "
                f"batch of {shapes[-1][0]} and features of {shapes[-1][1]}, or another network; use a tape of "
                f"its own for each"
            )
        if self._length == self.n_steps:
            self.clear()
        for memory, part in zip(self._kept, step, strict=True):
            memory[self._length].copy_(part)
        self._length += 1

    def features(self, encoder: Encoder, core: Core, observation: Tensor) -> Tensor:
        """Return the recorded features [T, B, F], differentiable once in the parameters of both.

        `observation` [T, B, ...] is what was recorded: a tape keeps what came of it, not itself.

        Raises
        ------
        TapeError
            The rollout is not complete, or the observations are not of T steps of B games; or gradients are
            wanted of a tape that is not differentiable.
        """
        if torch.is_grad_enabled() and not self.differentiable:
            raise TapeError("the tape keeps features only, no gradients; look at them under torch.no_grad()")
        if self._length < self.n_steps:
            raise TapeError(
                f"the tape holds {self._length} of {self.n_steps} steps; record the others before learning"
            )
        recorded, shape = list(self._kept[-1].shape[:2]), list(observation.shape[:2])
        if shape != recorded:
            raise TapeError(
                f"the tape holds [steps, batch] = {recorded}, the rollout to learn from has {shape}"
            )
        if not self.differentiable:
            return self._kept[-1]
        modules = self._copy or (encoder, core)
        parameters = (*encoder.parameters(), *core.parameters())
        return _Recorded.apply(modules, self._n_encoder, observation, self._kept, *parameters)


def _memory(n_steps: int, part: Tensor) -> Tensor:
    """Return memory for `n_steps` of what looks like `part`, each laid out as densely in the same order."""
    strides = torch.empty_like(part).stride()
    return torch.empty_strided(
        (n_steps, *part.shape), (part.numel(), *strides), dtype=part.dtype, device=part.device
    )


class _Recorded(torch.autograd.Function):
    """The features of a tape; their gradient runs through its record into the parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        modules: tuple[Encoder, Core],
        n_encoder: int,
        observation: Tensor,
        kept: Kept,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.modules, ctx.n_encoder, ctx.n_kept = modules, n_encoder, len(kept)
        ctx.save_for_backward(observation, *kept, *parameters)  # checked for changes in place
        return kept[-1].detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_features_TBF: Tensor) -> tuple[Tensor | None, ...]:
        encoder, core = ctx.modules
        observation, *kept = ctx.saved_tensors[: 1 + ctx.n_kept]
        encoder_kept, core_kept = kept[: ctx.n_encoder], kept[ctx.n_encoder : -1]
        with torch.autocast(observation.device.type, enabled=False):
            grad_encoded_TBF, core_gradients = core.backward_from(tuple(core_kept), grad_features_TBF)
            encoder_gradients = encoder.backward_from(
                observation.flatten(0, 1),
                tuple(part.flatten(0, 1) for part in encoder_kept),
                grad_encoded_TBF.flatten(0, 1),
            )
        return None, None, None, None, *encoder_gradients, *core_gradients
