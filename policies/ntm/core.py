"""NTMCore: a controller with a memory that it reads and writes, as the core of a policy.

The order of a step is fixed here, since the paper leaves it open: the controller sees the input and what was read
in the step before; all heads address the memory as the step before left it; reads come first, then writes; the
output is [h_t; r_t]. The numbers that the controller sends to its heads are computed by any of the package's heads
(``make_head``): ``linear`` is the Neural Turing Machine, ``nsm`` the Neural Universal Turing Machine of Le, Tran and
Venkatesh (ICLR 2020).

At the start of an episode every head attends to row 0, an LSTM's state and what was read are learned, and the memory
is what `memory_init` says. The paper learns the first weightings, too, which ties the number of parameters to the
number of rows; with a fixed one, no parameter depends on it, and a trained machine runs with any memory.

    state (memory [B, N, M], weightings [B, H, N], reads [B, R, M], and with an LSTM hidden [B, C], cell [B, C])
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from neurocoder.errors import ConfigError, lookup
from neurocoder.policies.cores import Core, Kept, State
from neurocoder.policies.heads import make_head
from neurocoder.policies.heads.base import Head
from neurocoder.policies.heads.linear import LinearHead
from neurocoder.policies.ntm import addressing, by_hand
from neurocoder.policies.ntm.addressing import HeadParameters, HeadSizes, head_parameters
from neurocoder.policies.ntm.by_hand import Access, AccessFunction
from neurocoder.policies.ntm.controllers import CONTROLLERS, Controller

CONSTANT = 1e-6
"""In every cell of a memory initialised with "constant"; "learned" starts there."""

MEMORY_INITS = ("constant", "learned", "random")

Inner = tuple[Tensor, ...]
"""A state as sequences are computed: memory [B, M, N], weightings, output [h; r] [B, C + R·M], and an LSTM's cell."""


class NTMTrace(NamedTuple):
    """What the machine did: [T, B, ...], or [B, ...] for a single step.

    ================ ================ ====================================================
    read_weighting   [.., R, N]       where the read heads attended
    write_weighting  [.., W, N]       where the write heads attended
    reads            [.., R, M]       what was read, before the step's writes
    memory           [.., N, M]       after the step's writes
    heads            HeadParameters   what the heads were told; read heads come first
    ================ ================ ====================================================
    """

    read_weighting: Tensor
    write_weighting: Tensor
    reads: Tensor
    memory: Tensor
    heads: HeadParameters


class NTMCore(Core):
    """A Neural Turing Machine; the output [h; r] has ``size + read_heads * width`` features.

    Parameters
    ----------
    in_features, size
        Inputs and units of the controller.
    rows, width
        N and M of the memory. No parameter depends on N: :meth:`resize` changes it at any time.
    read_heads, write_heads
        R and W, at least one each.
    controller
        ``"lstm"`` or ``"feedforward"``.
    shift_range
        A head moves by at most so many rows in a step.
    memory_init
        What is in the memory when an episode starts. ``"constant"``: 1e-6 everywhere, not learned; ``"learned"``:
        the same learned vector in every row; ``"random"``: normal numbers of deviation 0.5, always the same ones.
    head, head_config
        Name and options of the layer that maps the controller's units to what its heads do.

    Sequences have a backward pass by hand, differentiable once; set ``core.by_hand = False`` where second
    derivatives are wanted. Autocast does not reach inside: addressing needs full precision.

    Raises
    ------
    ConfigError
        An unknown name or option, a size below 1, or a memory with fewer rows than a head has shifts.
    """

    by_hand = True

    def __init__(
        self,
        in_features: int,
        size: int,
        *,
        rows: int = 128,
        width: int = 20,
        read_heads: int = 1,
        write_heads: int = 1,
        controller: str = "lstm",
        shift_range: int = 1,
        memory_init: str = "constant",
        head: str = "linear",
        head_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_features)
        for name, value, least in (
            ("size", size, 1),
            ("width", width, 1),
            ("read_heads", read_heads, 1),
            ("write_heads", write_heads, 1),
            ("shift_range", shift_range, 0),
        ):
            _require_integer(name, value, least)
        lookup(dict.fromkeys(MEMORY_INITS), memory_init, "memory_init")
        self.size = size
        self.sizes = HeadSizes(read_heads, write_heads, width, shift_range)
        self.memory_init = memory_init
        self.resize(rows)
        self.out_features = size + read_heads * width
        self.controller: Controller = lookup(CONTROLLERS, controller, "controller")(
            in_features, size, read_heads * width
        )
        self.head = make_head(head, size, sum(self.sizes.parts), **(head_config or {}))
        self.start_reads = nn.Parameter(torch.zeros(read_heads * width))
        learned = memory_init == "learned"
        self.start_memory = nn.Parameter(torch.full((width,), CONSTANT)) if learned else None

    def resize(self, rows: int) -> None:
        """Give memories of `rows` rows to the states that are made from now on."""
        _require_integer("rows", rows, 1)
        shifts = self.sizes.shifts
        if rows < shifts:
            raise ConfigError(f"rows={rows} must be >= {shifts}, the shifts of shift_range={shifts // 2}")
        self.rows = rows

    # ------------------------------------------------------------------------------------------- state

    @torch.no_grad()
    def initial_state(self, batch_size: int) -> State:
        """Return the state at the start of an episode, for `batch_size` rows, without a gradient.

        What is learned of it gets its gradient in ``forward``, where `episode_start` says that an episode starts.
        """
        start = self._start(self.rows)
        return self._outer(tuple(part.repeat(batch_size, *[1] * (part.ndim - 1)) for part in start))

    def reset(self, state: State, episode_start: Tensor) -> State:
        return self._outer(_started(self._inner(state), self._start(state[0].shape[1]), episode_start))

    def _start(self, rows: int) -> Inner:
        """Return the state at the start of an episode, one row."""
        like = self.start_reads
        if self.start_memory is not None:
            memory = self.start_memory[None, :, None].expand(1, self.sizes.width, rows)
        elif self.memory_init == "random":
            memory = torch.from_numpy(_random_memory(rows, self.sizes.width)).to(like).t()[None]
        else:
            memory = like.new_full((1, self.sizes.width, rows), CONSTANT)
        weighting = like.new_zeros(1, self.sizes.heads, rows)
        weighting[..., 0] = 1
        reads = torch.tanh(like)[None]
        own = self.controller.start()
        hidden = own[0] if own else like.new_zeros(1, self.size)
        return memory, weighting, torch.cat((hidden, reads), -1), *own[1:]

    def _inner(self, state: State) -> Inner:
        memory, weighting, reads, *own = state
        hidden = own[0] if own else reads.new_zeros(reads.shape[0], self.size)
        return (
            memory.transpose(1, 2).contiguous(),
            weighting,
            torch.cat((hidden, reads.flatten(1)), -1),
            *own[1:],
        )

    def _outer(self, inner: Inner) -> State:
        memory, weighting, output, *cell = inner
        hidden, reads = output.split((self.size, output.shape[-1] - self.size), -1)
        outer = (memory.transpose(1, 2), weighting, reads.unflatten(-1, (-1, self.sizes.width)))
        return (*outer, hidden, *cell) if cell else outer

    # ----------------------------------------------------------------------------------------- forward

    def forward(self, features: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        device = features.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self(features.to(self.start_reads.dtype), state, episode_start)
        if features.ndim == 2:
            output, state = self(features[None], state, episode_start[None])
            return output[0], state
        if not self.by_hand or torch.compiler.is_compiling():
            return self._unroll(features, state, episode_start, plain_access)
        if not isinstance(self.head, LinearHead):
            return self._unroll(features, state, episode_start, self._access_by_hand)
        inner, start = self._inner(state), self._start(state[0].shape[1])
        output, *last = _Sequence.apply(self, features, episode_start, *self._weights(), *start, *inner)
        return output, self._outer(tuple(last))

    def forward_with_trace(
        self, features: Tensor, state: State, episode_start: Tensor
    ) -> tuple[Tensor, State, NTMTrace]:
        """Return output and next state as :meth:`forward` does, and what the machine did."""
        single = features.ndim == 2
        if single:
            features, episode_start = features[None], episode_start[None]
        steps = list(self._steps(features, state, episode_start, plain_access))
        output = torch.stack([step.output for step in steps])
        memory, weighting = (torch.stack([step.state[k] for step in steps]) for k in range(2))
        heads = head_parameters(torch.stack([step.raw for step in steps]), self.sizes)
        if single:
            output, memory, weighting = output[0], memory[0], weighting[0]
            heads = HeadParameters(*(part[0] for part in heads))
        read_weighting, write_weighting = weighting.split(self.sizes[:2], -2)
        trace = NTMTrace(
            read_weighting=read_weighting,
            write_weighting=write_weighting,
            reads=output[..., self.size :].unflatten(-1, (-1, self.sizes.width)),
            memory=memory.transpose(-1, -2),
            heads=heads,
        )
        return output, self._outer(steps[-1].state), trace

    def _unroll(
        self, features: Tensor, state: State, episode_start: Tensor, access: "AccessBy"
    ) -> tuple[Tensor, State]:
        outputs = []
        for step in self._steps(features, state, episode_start, access):
            outputs.append(step.output)
        return torch.stack(outputs), self._outer(step.state)

    def _steps(
        self, features: Tensor, state: State, episode_start: Tensor, access: "AccessBy"
    ) -> Iterator["_Step"]:
        """Yield what each step leaves."""
        inner, start = self._inner(state), self._start(state[0].shape[1])
        projected = self.controller.input(features)
        for preactivation, start_B, anew in zip(
            projected.unbind(), episode_start.unbind(), _any_start(episode_start), strict=True
        ):
            memory, weighting, output, *cell = _started(inner, start, start_B) if anew else inner
            fed_back = self.controller.feedback(self.controller.fed_back(output))
            hidden, after, _ = self.controller.advance(preactivation + fed_back, tuple(cell))
            raw = self.head(hidden)
            reads, memory, weighting = access(raw, memory, weighting, self.sizes)
            output = torch.cat((hidden, reads.flatten(1)), -1)
            inner = (memory, weighting, output, *after)
            yield _Step(output, raw, inner)

    @staticmethod
    def _access_by_hand(raw: Tensor, memory: Tensor, previous: Tensor, sizes: HeadSizes) -> Access:
        return Access(*AccessFunction.apply(raw, memory, previous, sizes))

    # ------------------------------------------------------------------------------- for learners

    def aux_loss(self, output: Tensor) -> Tensor:
        """Return the auxiliary loss of the layer in front of the heads, for this batch's output [..., out]."""
        if type(self.head).forward_with_aux is Head.forward_with_aux:
            return self.head.aux_loss()
        return self.head.forward_with_aux(output[..., : self.size])[1]

    def record(self, features: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State, Kept]:
        if not isinstance(self.head, LinearHead):
            return super().record(features, state, episode_start)
        weights, inner = self._weights(), self._inner(state)
        if _any_start(episode_start[None])[0]:
            inner = _started(inner, self._start(state[0].shape[1]), episode_start)
        projected = F.linear(features, weights.input, weights.bias)
        inner, kept = _advance(self, weights, projected, inner)
        return inner[2], self._outer(inner), (features, episode_start, *kept)

    def backward_from(self, kept: Kept, grad_output: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not isinstance(self.head, LinearHead):
            return super().backward_from(kept, grad_output)
        features, episode_start, *rest = kept
        weights = self._weights()
        with torch.enable_grad():
            start = self._start(rest[-1].shape[-1])
        learned = [k for k, part in enumerate(start) if part.requires_grad]
        nothing = tuple(
            torch.zeros_like(part).expand(grad_output.shape[1], -1, *part.shape[2:]) for part in start
        )
        gradients = _backward(
            self, weights, features, episode_start, tuple(rest), grad_output, nothing, learned
        )
        known = dict(zip(map(id, weights), gradients.weights, strict=True))
        starts = [p for p in self.parameters() if id(p) not in known]
        known |= zip(
            map(id, starts),
            torch.autograd.grad([start[k] for k in learned], starts, [gradients.start[k] for k in learned]),
            strict=True,
        )
        return gradients.features, tuple(known[id(parameter)] for parameter in self.parameters())

    def _weights(self) -> "Weights":
        assert isinstance(self.head, LinearHead)
        controller, layer = self.controller, self.head.layer
        return Weights(
            controller.input.weight,
            controller.input.bias,
            controller.feedback.weight,
            layer.weight,
            layer.bias,
        )

    def extra_repr(self) -> str:
        return (
            f"rows={self.rows}, width={self.sizes.width}, read_heads={self.sizes.read_heads}, "
            f"write_heads={self.sizes.write_heads}, shift_range={self.sizes.shift_range}, "
            f"memory_init={self.memory_init!r}"
        )


AccessBy = Callable[[Tensor, Tensor, Tensor, HeadSizes], Access]


class _Step(NamedTuple):
    """What a step leaves: output [B, C + R·M], the controller's numbers [B, Z], state."""

    output: Tensor
    raw: Tensor
    state: Inner


def plain_access(raw_BZ: Tensor, memory_BMN: Tensor, previous_BHN: Tensor, sizes: HeadSizes) -> Access:
    """Return what the heads do, by the equations as they are printed."""
    parameters, memory_BNM = head_parameters(raw_BZ, sizes), memory_BMN.transpose(1, 2)
    weighting = addressing.address(parameters, memory_BNM, previous_BHN)
    reading, writing = weighting.split(sizes[:2], 1)
    written = addressing.write(memory_BNM, writing, parameters.erase, parameters.add)
    return Access(addressing.read(reading, memory_BNM), written.transpose(1, 2), weighting)


def _require_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} must be an integer >= {least}")


@lru_cache(maxsize=4)
def _random_memory(rows: int, width: int) -> np.ndarray:
    """Return [rows, width]; a larger memory begins with the rows of a smaller one."""
    return 0.5 * np.random.default_rng(0).standard_normal((rows, width))


def _any_start(episode_start_TB: Tensor) -> list[bool]:
    """Return for each step whether any episode starts there; compilers, which cannot ask, hear always."""
    if torch.compiler.is_compiling():
        return [True] * len(episode_start_TB)
    return episode_start_TB.any(1).tolist()


def _started(inner: Inner, start: Inner, episode_start_B: Tensor) -> Inner:
    """Return `inner` with `start` in the rows whose episode starts."""
    return tuple(
        torch.where(episode_start_B.view(-1, *[1] * (part.ndim - 1)), new, part)
        for part, new in zip(inner, start, strict=True)
    )


# --------------------------------------------------------------------------------- sequences, by hand


class Weights(NamedTuple):
    """The parameters that every step uses."""

    input: Tensor
    bias: Tensor
    feedback: Tensor
    head: Tensor
    head_bias: Tensor


class Gradients(NamedTuple):
    """Of everything that a sequence is a function of; `start` is None where nothing is learned."""

    features: Tensor
    weights: Weights
    start: list[Tensor | None]
    state: Inner


def _advance(core: NTMCore, weights: Weights, projected_BG: Tensor, inner: Inner) -> tuple[Inner, Kept]:
    """Return the next state and what :func:`_backward` needs; `projected` is the input's share."""
    memory, weighting, output, *cell = inner
    fed_back = core.controller.fed_back(output)
    preactivation = torch.addmm(projected_BG, fed_back, weights.feedback.t())
    hidden, next_cell, controlled = core.controller.advance(preactivation, tuple(cell))
    raw = torch.addmm(weights.head_bias, hidden, weights.head.t())
    (reads, memory, weighting), kept = by_hand.access(raw, memory, weighting, core.sizes)
    output = torch.cat((hidden, reads.flatten(1)), -1)
    after = (memory, weighting, output, *next_cell)
    return after, (fed_back, hidden, *controlled, *kept)


def _backward(
    core: NTMCore,
    weights: Weights,
    features_TBF: Tensor,
    episode_start_TB: Tensor,
    kept: tuple[Any, ...],
    grad_output_TBO: Tensor,
    grad_last: Inner,
    learned: list[int],
) -> Gradients:
    """Carry the gradients of outputs and last state through time; `learned` are the parts of the start that
    need theirs.
    """
    controller, sizes, size = core.controller, core.sizes, core.size
    fed_back_TBD, hidden_TBC, *rest = kept
    slopes = controller.slopes(tuple(rest[: controller.n_kept]))
    prepared = by_hand.prepare(by_hand.Kept(*rest[controller.n_kept :]), sizes)
    per_step = list(
        zip(
            zip(*(_steps_of(part) for part in slopes), strict=True),
            zip(*(_steps_of(part) for part in prepared), strict=True),
            grad_output_TBO.unbind(),
            episode_start_TB.unbind(),
            _any_start(episode_start_TB),
            strict=True,
        )
    )
    grad_start: list[Tensor | None] = [None] * len(grad_last)
    grad_raw, grad_preactivation = [], []
    grads = grad_last
    for slope, step, grad_output, start_B, anew in reversed(per_step):
        grad_memory, grad_weighting, carried, *grad_cell = grads
        grad_hidden, grad_reads = (grad_output + carried).split((size, carried.shape[1] - size), 1)
        grad_reads = grad_reads.unflatten(1, (-1, sizes.width))
        raw, grad_memory, grad_weighting = by_hand.retreat(
            step, Access(grad_reads, grad_memory, grad_weighting), sizes
        )
        grad_hidden = torch.addmm(grad_hidden, raw, weights.head)
        preactivation, before = controller.retreat(slope, grad_hidden, tuple(grad_cell))
        carried = controller.from_fed_back(preactivation @ weights.feedback)
        grads = (grad_memory, grad_weighting, carried, *before)
        if anew:
            for k in learned:
                of_start = grads[k][start_B].sum(0, keepdim=True)
                known = grad_start[k]
                grad_start[k] = of_start if known is None else known + of_start
            grads = tuple(g.masked_fill(start_B.view(-1, *[1] * (g.ndim - 1)), 0) for g in grads)
        grad_raw.append(raw)
        grad_preactivation.append(preactivation)
    grad_raw_NZ = torch.stack(grad_raw[::-1]).flatten(0, 1)
    grad_NG = torch.stack(grad_preactivation[::-1]).flatten(0, 1)
    for k in learned:
        if grad_start[k] is None:
            grad_start[k] = torch.zeros_like(grads[k][:1])
    return Gradients(
        (grad_NG @ weights.input).view_as(features_TBF),
        Weights(
            grad_NG.t() @ features_TBF.flatten(0, 1),
            grad_NG.sum(0),
            grad_NG.t() @ fed_back_TBD.flatten(0, 1),
            grad_raw_NZ.t() @ hidden_TBC.flatten(0, 1),
            grad_raw_NZ.sum(0),
        ),
        grad_start,
        grads,
    )


def _steps_of(part: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return part if isinstance(part, tuple) else part.unbind()


class _Sequence(torch.autograd.Function):
    """A machine with linear heads over [T, B, F]: what ``record`` does, for all steps."""

    @staticmethod
    def forward(
        ctx: Any, core: NTMCore, features_TBF: Tensor, episode_start_TB: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        weights, rest = Weights(*rest[:5]), rest[5:]
        start, inner = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        projected = F.linear(features_TBF, weights.input, weights.bias)
        outputs, steps = [], []
        for projected_BG, start_B, anew in zip(
            projected.unbind(), episode_start_TB.unbind(), _any_start(episode_start_TB), strict=True
        ):
            if anew:
                inner = _started(inner, start, start_B)
            inner, kept = _advance(core, weights, projected_BG, inner)
            outputs.append(inner[2])
            steps.append(kept)
        columns: list[Any] = list(zip(*steps, strict=True))
        # The memories are large and wanted one by one: not copied into one tensor.
        at = 2 + core.controller.n_kept + by_hand.Kept._fields.index("memory")
        memories = columns.pop(at)
        ctx.core, ctx.at, ctx.n_state = core, at, len(inner)
        stacked = [torch.stack(column) for column in columns]
        ctx.save_for_backward(*weights, features_TBF, episode_start_TB, *stacked, *memories)
        ctx.n_stacked = len(stacked)
        # The last state is the next call's, or nobody's: its output is a copy of the last step's.
        return torch.stack(outputs), *inner

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *grad_state: Tensor) -> tuple[Tensor | None, ...]:
        weights, (features, episode_start) = Weights(*ctx.saved_tensors[:5]), ctx.saved_tensors[5:7]
        kept: list[Any] = list(ctx.saved_tensors[7 : 7 + ctx.n_stacked])
        kept.insert(ctx.at, tuple(ctx.saved_tensors[7 + ctx.n_stacked :]))
        needed = ctx.needs_input_grad[8 : 8 + ctx.n_state]
        learned = [k for k, wanted in enumerate(needed) if wanted]
        gradients = _backward(
            ctx.core, weights, features, episode_start, tuple(kept), grad_output, grad_state, learned
        )
        return None, gradients.features, None, *gradients.weights, *gradients.start, *gradients.state
