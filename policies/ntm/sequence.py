"""A machine with linear heads over a sequence, with its backward pass by hand.

A step computes the controller's units, what they tell the heads, and :mod:`by_hand`'s access to the memory. Going
back, only what is carried from step to step is done step by step: the gradient of every weight is one product over
all steps.

Suffixes are those of :mod:`addressing` and :mod:`controllers`, and O for the output [h; r], F for features.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from neurocoder.policies.ntm import by_hand
from neurocoder.policies.ntm.addressing import HeadSizes
from neurocoder.policies.ntm.by_hand import Access
from neurocoder.policies.ntm.controllers import Controller, Kept

Inner = tuple[Tensor, ...]
"""A state as sequences are computed: memory [B, M, N], weightings, output [h; r] [B, C + R·M], and an LSTM's cell."""


def any_start(episode_start_TB: Tensor) -> list[bool]:
    """Return for each step whether any episode starts there; compilers, which cannot ask, hear always."""
    if torch.compiler.is_compiling():
        return [True] * len(episode_start_TB)
    return episode_start_TB.any(1).tolist()


def started(inner: Inner, start: Inner, episode_start_B: Tensor) -> Inner:
    """Return `inner` with `start` in the rows whose episode starts."""
    return tuple(
        torch.where(episode_start_B.view(-1, *[1] * (part.ndim - 1)), new, part)
        for part, new in zip(inner, start, strict=True)
    )


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


def advance(
    controller: Controller, sizes: HeadSizes, weights: Weights, projected_BG: Tensor, inner: Inner
) -> tuple[Inner, Kept]:
    """Return the next state and what :func:`backward` needs; `projected` is the input's share."""
    memory, weighting, output, *cell = inner
    fed_back = controller.fed_back(output)
    preactivation = torch.addmm(projected_BG, fed_back, weights.feedback.t())
    hidden, next_cell, controlled = controller.advance(preactivation, tuple(cell))
    raw = torch.addmm(weights.head_bias, hidden, weights.head.t())
    (reads, memory, weighting), kept = by_hand.access(raw, memory, weighting, sizes)
    output = torch.cat((hidden, reads.flatten(1)), -1)
    after = (memory, weighting, output, *next_cell)
    return after, (fed_back, hidden, *controlled, *kept)


def backward(
    controller: Controller,
    sizes: HeadSizes,
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
    fed_back_TBD, hidden_TBC, *rest = kept
    slopes = controller.slopes(tuple(rest[: controller.n_kept]))
    prepared = by_hand.prepare(by_hand.Kept(*rest[controller.n_kept :]), sizes)
    per_step = list(
        zip(
            zip(*(_steps_of(part) for part in slopes), strict=True),
            zip(*(_steps_of(part) for part in prepared), strict=True),
            grad_output_TBO.unbind(),
            episode_start_TB.unbind(),
            any_start(episode_start_TB),
            strict=True,
        )
    )
    grad_start: list[Tensor | None] = [None] * len(grad_last)
    grad_raw, grad_preactivation = [], []
    grads = grad_last
    for slope, step, grad_output, start_B, anew in reversed(per_step):
        grad_memory, grad_weighting, carried, *grad_cell = grads
        grad_hidden, grad_reads = (grad_output + carried).split(
            (controller.size, carried.shape[1] - controller.size), 1
        )
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


class Sequence(torch.autograd.Function):
    """A machine with linear heads over [T, B, F]: what :func:`advance` does, for all steps."""

    @staticmethod
    def forward(
        ctx: Any,
        controller: Controller,
        sizes: HeadSizes,
        features_TBF: Tensor,
        episode_start_TB: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        weights, rest = Weights(*rest[:5]), rest[5:]
        start, inner = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        projected = F.linear(features_TBF, weights.input, weights.bias)
        outputs, steps = [], []
        for projected_BG, start_B, anew in zip(
            projected.unbind(), episode_start_TB.unbind(), any_start(episode_start_TB), strict=True
        ):
            if anew:
                inner = started(inner, start, start_B)
            inner, kept = advance(controller, sizes, weights, projected_BG, inner)
            outputs.append(inner[2])
            steps.append(kept)
        columns: list[Any] = list(zip(*steps, strict=True))
        # The memories are large and wanted one by one: not copied into one tensor.
        at = 2 + controller.n_kept + by_hand.Kept._fields.index("memory")
        memories = columns.pop(at)
        ctx.controller, ctx.sizes, ctx.at, ctx.n_state = controller, sizes, at, len(inner)
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
        needed = ctx.needs_input_grad[9 : 9 + ctx.n_state]
        learned = [k for k, wanted in enumerate(needed) if wanted]
        gradients = backward(
            ctx.controller,
            ctx.sizes,
            weights,
            features,
            episode_start,
            tuple(kept),
            grad_output,
            grad_state,
            learned,
        )
        return None, None, gradients.features, None, *gradients.weights, *gradients.start, *gradients.state
