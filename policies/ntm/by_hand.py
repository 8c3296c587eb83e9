"""The heads' step on the memory, computed in few kernels and with its backward pass by hand.

What :func:`access` returns is what :mod:`addressing` says: reads and writes at M_{t-1}, weightings from eqs. 5-9.
Inside, the memory is [B, M, N]: rows lie side by side, so that sums over a row, and products with weightings, run
along memory. Per step of the backward pass only what depends on the step after is computed; slopes of activations,
logarithms and the like are computed before, for all steps at once (:func:`prepare`).

Suffixes are those of :mod:`addressing`; the gradient of x is grad_x.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from neurocoder.policies.ntm.addressing import EPSILON, SMALLEST, HeadSizes


class Access(NamedTuple):
    """What a step leaves: reads [B, R, M], memory [B, M, N], weightings [B, H, N]."""

    reads: Tensor
    memory: Tensor
    weighting: Tensor


class Kept(NamedTuple):
    """What the backward pass needs of a step; [T, B, ...] for a sequence."""

    squashed: Tensor
    opened: Tensor
    positive: Tensor
    shift: Tensor
    """In the raw numbers' order."""
    memory: Any
    """A tensor; of a sequence, it may be T tensors."""
    previous: Tensor
    inverse: Tensor
    """1 / √(|M(i)|² + ε²), [B, 1, N]."""
    scores: Tensor
    """β·K[k, M(i)]."""
    content: Tensor
    gated: Tensor
    shifted: Tensor
    """After the clamp of eq. 9."""
    weighting: Tensor


class Prepared(NamedTuple):
    """What :func:`retreat` needs of all steps, each [T, B, ...]."""

    memory: Any
    """A tensor; of a sequence, it may be T tensors."""
    unit_key: Tensor
    """k / √(|k|² + ε²), [H, M]."""
    scaled_key: Tensor
    """β times that: the scores are its products with the memory's directions."""
    key_slope: Tensor
    """β / √(|k|² + ε²), [H, 1]: how far a key moves the scaled key, across it."""
    gate: Tensor
    shift: Tensor
    reversed_shift: Tensor
    erase: Tensor
    add: Tensor
    inverse: Tensor
    squared_inverse: Tensor
    scores: Tensor
    content: Tensor
    weighting: Tensor
    moved: Tensor
    """content - previous: by how much the gate moves the weighting."""
    windows: Tensor
    logarithm: Tensor
    steepness: Tensor
    """γ / w̃, or 0 where w̃ was clamped."""
    slope: Tensor
    """Of the activations; ones for the shifts' softmax, which is no function of one number."""


def windows(x: Tensor, furthest: int) -> Tensor:
    """Return x [..., N] moved, circularly, by +furthest … -furthest entries: [..., S, N]."""
    if not furthest:
        return x.unsqueeze(-2)
    n_rows = x.shape[-1]
    return torch.cat((x[..., n_rows - furthest :], x, x[..., :furthest]), -1).unfold(-1, n_rows, 1)


def access(raw_BZ: Tensor, memory_BMN: Tensor, previous_BHN: Tensor, sizes: HeadSizes) -> tuple[Access, Kept]:
    """Return what the heads do, given the controller's numbers; without autograd."""
    n_reads, n_writes, width, furthest = sizes
    n_heads, n_written = n_reads + n_writes, n_writes * width
    squashed, opened, positive, shift = raw_BZ.split(sizes.parts, 1)
    squashed, opened, positive = torch.tanh(squashed), torch.sigmoid(opened), F.softplus(positive)
    shift = torch.softmax(shift.view(-1, n_heads, sizes.shifts), -1)
    key, add = squashed.split((n_heads * width, n_written), 1)
    erase, gate = opened.unsqueeze(-1).split((n_written, n_heads), 1)
    strength, sharpness = positive.unsqueeze(-1).split((n_heads, n_heads), 1)

    key = key.view(-1, n_heads, width)
    inverse = memory_BMN.square().sum(1, keepdim=True).add_(EPSILON**2).rsqrt_()
    scores = torch.bmm(key * strength * _inverse_norm(key), memory_BMN).mul_(inverse)
    content = torch.softmax(scores, -1)
    gated = torch.lerp(previous_BHN, content, gate)
    shifted = (windows(gated, furthest) * shift.unsqueeze(-1)).sum(-2).clamp_min_(SMALLEST)
    logarithm = shifted.log()
    weighting = torch.softmax(logarithm.addcmul_(logarithm, sharpness), -1)

    reading, writing = weighting.split((n_reads, n_writes), 1)
    reads = torch.bmm(reading, memory_BMN.transpose(1, 2))
    add = add.unsqueeze(-1)
    if n_writes == 1:
        # M (1 - w e) + w a = M + w (a - e M): two kernels.
        memory = torch.addcmul(memory_BMN, torch.addcmul(add, memory_BMN, erase, value=-1), writing)
    else:
        memory = memory_BMN * _kept_shares(erase.unflatten(1, (n_writes, width)), writing).prod(1)
        for head, added in enumerate(add.split(width, 1)):
            memory.addcmul_(added, writing[:, head, None])
    kept = Kept(
        squashed, opened, positive, shift, memory_BMN, previous_BHN,
        inverse, scores, content, gated, shifted, weighting,
    )  # fmt: skip
    return Access(reads, memory, weighting), kept


def _inverse_norm(x: Tensor) -> Tensor:
    return x.square().sum(-1, keepdim=True).add_(EPSILON**2).rsqrt_()


def _kept_shares(erase_BWM1: Tensor, writing_BWN: Tensor) -> Tensor:
    """Return 1 - e w(i) of each write head, [B, W, M, N]."""
    return torch.mul(erase_BWM1, writing_BWN.unsqueeze(-2)).neg_().add_(1)


def prepare(kept: Kept, sizes: HeadSizes) -> Prepared:
    """Return what does not depend on any later step, for all steps."""
    n_reads, n_writes, width, furthest = sizes
    n_heads, n_written = n_reads + n_writes, n_writes * width
    squashed, opened, positive = kept.squashed, kept.opened, kept.positive
    key = squashed[..., : n_heads * width].unflatten(-1, (n_heads, width))
    strength, inverse_norm = positive[..., :n_heads, None], _inverse_norm(key)
    unit_key = key * inverse_norm
    ones = kept.shift.new_ones(()).expand(*kept.shift.shape[:-2], n_heads * sizes.shifts)
    slope = torch.cat((1 - squashed.square(), opened * (1 - opened), -torch.expm1(-positive), ones), -1)
    steepness = (positive[..., n_heads:, None] + 1) / kept.shifted
    return Prepared(
        memory=kept.memory,
        unit_key=unit_key,
        scaled_key=unit_key * strength,
        key_slope=strength * inverse_norm,
        gate=opened[..., n_written:, None],
        shift=kept.shift,
        reversed_shift=kept.shift.flip(-1).unsqueeze(-1),
        erase=opened[..., :n_written].unflatten(-1, (n_writes, width)),
        add=squashed[..., n_heads * width :].unflatten(-1, (n_writes, width)),
        inverse=kept.inverse,
        squared_inverse=kept.inverse.square(),
        scores=kept.scores,
        content=kept.content,
        weighting=kept.weighting,
        moved=kept.content - kept.previous,
        windows=windows(kept.gated, furthest),
        logarithm=kept.shifted.log(),
        steepness=steepness.masked_fill_(kept.shifted <= SMALLEST, 0),
        slope=slope,
    )


def softmax_backward(grad: Tensor, output: Tensor) -> Tensor:
    """Return the gradient of what softmax (over the last dimension) was taken of."""
    product = grad * output
    return product.addcmul_(output, product.sum(-1, keepdim=True), value=-1)


def retreat(step: tuple[Any, ...], grad: Access, sizes: HeadSizes) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the controller's numbers [B, Z], the memory [B, M, N] and the weightings before.

    `step` is one step's :class:`Prepared`.
    """
    p = Prepared(*step)
    n_reads, n_writes, _, furthest = sizes
    grad_reads, grad_memory, grad_next = grad
    memory = p.memory
    memory_BNM = memory.transpose(1, 2)
    reading, writing = p.weighting.split((n_reads, n_writes), 1)

    # Eqs. 2-4.
    grad_add = torch.bmm(writing, grad_memory.transpose(1, 2))
    grad_share = grad_memory * memory
    grad_writing = torch.bmm(p.add, grad_memory)
    if n_writes == 1:
        less_erase = torch.bmm(writing, grad_share.transpose(1, 2))
        grad_writing = torch.baddbmm(grad_writing, p.erase, grad_share, alpha=-1)
        before = torch.addcmul(grad_memory, grad_memory * writing, p.erase.transpose(1, 2), value=-1)
    else:
        share, less_erase, less_writing = _several(p.erase, writing, grad_share)
        grad_writing -= less_writing
        before = share.mul_(grad_memory)
    grad_weighting = torch.cat((torch.bmm(grad_reads, memory), grad_writing), 1).add_(grad_next)

    # Eqs. 9, 8, 7.
    grad_powers = softmax_backward(grad_weighting, p.weighting)
    grad_sharpening = (grad_powers * p.logarithm).sum(-1)
    grad_shifted = grad_powers.mul_(p.steepness)
    grad_shift = softmax_backward((p.windows * grad_shifted.unsqueeze(-2)).sum(-1), p.shift)
    grad_gated = (windows(grad_shifted, furthest) * p.reversed_shift).sum(-2)
    grad_gate = (grad_gated * p.moved).sum(-1)
    grad_content = grad_gated * p.gate
    grad_previous = grad_gated - grad_content

    # Eqs. 5, 6.
    grad_scores = softmax_backward(grad_content, p.content)
    radial = (grad_scores * p.scores).sum(1, keepdim=True).mul_(p.squared_inverse)
    grad_products = grad_scores.mul_(p.inverse)
    grad_scaled = torch.bmm(grad_products, memory_BNM)
    grad_strength = (grad_scaled * p.unit_key).sum(-1)
    grad_key = grad_scaled.addcmul_(p.unit_key, grad_strength.unsqueeze(-1), value=-1).mul_(p.key_slope)
    left = torch.cat((grad_reads, p.scaled_key), 1).transpose(1, 2)
    before = torch.baddbmm(before, left, torch.cat((reading, grad_products), 1))
    before.addcmul_(radial, memory, value=-1)

    parts = (
        grad_key, grad_add, less_erase.neg_(), grad_gate,
        grad_strength, grad_sharpening, grad_shift,
    )  # fmt: skip
    return torch.cat([part.flatten(1) for part in parts], 1).mul_(p.slope), before, grad_previous


def _several(erase_BWM: Tensor, writing_BWN: Tensor, grad_share_BMN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the share that all heads keep [B, M, N] and minus the gradients of erase vectors and weightings."""
    shares = _kept_shares(erase_BWM.unsqueeze(-1), writing_BWN)
    others, whole = torch.empty_like(shares), torch.ones_like(grad_share_BMN)
    # A head's share is multiplied with those of all others; dividing by it would fail where it is zero.
    for head in range(shares.shape[1]):
        others[:, head] = whole
        whole = whole * shares[:, head]
    after = torch.ones_like(whole)
    for head in reversed(range(shares.shape[1])):
        others[:, head] *= after
        after = after * shares[:, head]
    seen = others.mul_(grad_share_BMN.unsqueeze(1))
    less_erase = (seen @ writing_BWN.unsqueeze(-1)).squeeze(-1)
    return whole, less_erase, (erase_BWM.unsqueeze(-2) @ seen).squeeze(-2)


class AccessFunction(torch.autograd.Function):
    """One :func:`access` for autograd: (raw, memory, previous) to (reads, memory, weighting)."""

    @staticmethod
    def forward(
        ctx: Any, raw_BZ: Tensor, memory_BMN: Tensor, previous_BHN: Tensor, sizes: HeadSizes
    ) -> tuple[Tensor, ...]:
        result, kept = access(raw_BZ, memory_BMN, previous_BHN, sizes)
        ctx.sizes = sizes
        ctx.save_for_backward(*kept)
        return tuple(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        prepared = prepare(Kept(*ctx.saved_tensors), ctx.sizes)
        return *retreat(prepared, Access(*grad), ctx.sizes), None
