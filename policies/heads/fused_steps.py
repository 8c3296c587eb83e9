"""The reads of NeurocoderLinear with several attention steps, forward and backward by hand.

What the controller says is given; here are eqs. 6-8 and 11-14. As in :mod:`fused`, attention is laid out batch last, lives
in scratch memory of the thread a part at a time, and is made again in the backward pass. Within a part all steps' content
attention c is there at once; the recurrence over steps j, for usage m, gate g and ℓ the lift of the least used slots,

    m_j = max(m_{j−1}, w_{j−1}),   ℓ_j = chosen(m_j)·(max m_j − m_j),   w_j = ℓ_j + g_j (c_j − ℓ_j),

runs over contiguous rows, and backwards

    dg = Σ dw (c − ℓ),   dc = g dw,   dℓ = (1 − g) dw where chosen,   dm = (Σ dℓ at the largest m) − dℓ.

Shape suffixes are those of :mod:`program_memory`, with M = 3 memories ordered U, V, S; b are the rows of a part.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from neurocoder.policies.heads.fused_parts import (
    LOG2_E,
    joined,
    parts_of,
    product,
    scratch,
    unit_backward,
    unit_vectors,
)

PART = 1 << 19
"""Numbers of the [M, P, R, b] attention that are made at a time (2 MiB in float32)."""

FEW_ROWS = 16
"""From here on this is faster than the equations: with 30 slots, 3 steps of 4 heads on one core, both passes take 2.0 ms
against 1.6 for one row, 2.2 against 2.4 for 16, 7.3 against 12.0 for 128 (5 steps of 3 heads)."""


class _Sizes(NamedTuple):
    heads: int
    least_used: int
    sharpness: float


class _Attention(NamedTuple):
    """What a part's rows attend to, in scratch memory; usage and lift begin with the second step."""

    content_MPRb: Tensor
    weights_MPRb: Tensor
    usage_JMPHb: Tensor
    lift_JMPHb: Tensor


def least_used(usage_MPHb: Tensor, count: int) -> Tensor:
    """Return 1 for the `count` slots of smallest usage in [0, 1], 0 for the others (eq. 13), in scratch memory.

    The bound is found by `count` minima, each above the one before: several times faster than sorting. Ties go to the
    lower index; where slots tie, too many are below the bound, and only there usage is sorted.
    """
    chosen, above = (scratch(place, usage_MPHb.shape, usage_MPHb) for place in ("chosen", "above"))
    bound = usage_MPHb.amin(1, keepdim=True)
    for _ in range(count - 1):
        torch.le(usage_MPHb, bound, out=chosen)
        bound = torch.add(usage_MPHb, chosen, alpha=2, out=above).amin(1, keepdim=True)
    torch.le(usage_MPHb, bound, out=chosen)
    memory, head, row = (chosen.sum(1) != count).nonzero(as_tuple=True)
    if len(memory):
        tied = usage_MPHb[memory, :, head, row]
        order = tied.argsort(dim=1, stable=True)[:, :count]
        chosen[memory, :, head, row] = torch.zeros_like(tied).scatter_(1, order, 1.0)
    return chosen


def _attend(key_MPK: Tensor, query_MKRb: Tensor, gate_MRb: Tensor, sizes: _Sizes) -> _Attention:
    """Eqs. 11-14 for unit keys and queries."""
    heads, count, sharpness = sizes
    n_memories, n_slots, key_size = key_MPK.shape
    n_components, rows = gate_MRb.shape[1:]
    shape = (n_memories, n_slots, n_components * rows)
    content = torch.bmm(
        key_MPK * (sharpness * LOG2_E),
        query_MKRb.reshape(n_memories, key_size, -1),
        out=scratch("content", shape, gate_MRb),
    )
    content = content.exp2_().view(n_memories, n_slots, n_components, rows)
    content /= content.sum(1, keepdim=True)
    weights = scratch("weights", content.shape, content)
    n_steps = n_components // heads
    later = (n_steps - 1, n_memories, n_slots, heads, rows)
    usage, lift = scratch("usage", later, content), scratch("lift", later, content)
    content_of, weights_of = (whole.split(heads, 2) for whole in (content, weights))
    gate_of = gate_MRb.unsqueeze(1).split(heads, 2)
    torch.mul(content_of[0], gate_of[0], out=weights_of[0])
    for step, (used, lifted) in enumerate(zip(usage, lift, strict=True), 1):
        if step == 1:
            used.copy_(weights_of[0])
        else:
            torch.maximum(usage[step - 2], weights_of[step - 1], out=used)
        torch.sub(used.amax(1, keepdim=True), used, out=lifted)
        lifted *= least_used(used, count)
        torch.lerp(lifted, content_of[step], gate_of[step].expand_as(lifted), out=weights_of[step])
    return _Attention(content, weights, usage, lift)


def _attend_backward(
    d_weights_MPRb: Tensor, attention: _Attention, gate_MRb: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of cos·sharpness [M, P, R, b], in place of the weights', and of the gates [M, R, b]."""
    content, weights, usage, lift = attention
    d_gate = torch.empty_like(gate_MRb)
    d_gate_of = d_gate.split(heads, 1)
    d_weights_of, content_of, weights_of = (
        whole.split(heads, 2) for whole in (d_weights_MPRb, content, weights)
    )
    gate_of = gate_MRb.unsqueeze(1).split(heads, 2)
    of_step = usage.shape[1:]
    d_usage = scratch("d_usage", of_step, usage).zero_()  # of the step after
    d_lift, mask = scratch("d_lift", of_step, usage), scratch("mask", of_step, usage)
    for step in range(len(usage), 0, -1):
        used, lifted, gate, d_weights = usage[step - 1], lift[step - 1], gate_of[step], d_weights_of[step]
        torch.ge(weights_of[step], used, out=mask)
        mask *= d_usage
        d_weights += mask
        d_usage -= mask
        torch.mul(d_weights, 1 - gate, out=d_lift)
        d_lift *= torch.gt(lifted, 0, out=mask)
        torch.sub(content_of[step], lifted, out=mask)
        torch.sum(mask.mul_(d_weights), 1, out=d_gate_of[step])
        torch.eq(used, used.amax(1, keepdim=True), out=mask)
        d_usage.addcmul_(mask, d_lift.sum(1, keepdim=True) / mask.sum(1, keepdim=True)).sub_(d_lift)
        d_weights *= gate
    if len(usage):
        d_weights_of[0].add_(d_usage)
    torch.sum(product(d_weights_of[0], content_of[0]), 1, out=d_gate_of[0])
    d_weights_of[0].mul_(gate_of[0])
    flow = product(d_weights_MPRb, content).sum(1, keepdim=True)
    return d_weights_MPRb.sub_(flow).mul_(content), d_gate


class _Part(NamedTuple):
    """What the backward pass needs of the rows in `rows`."""

    rows: slice
    projection_Rb: Tensor
    score_Rb: Tensor
    sigma_Rb: Tensor


class _Saved(NamedTuple):
    sizes: _Sizes
    gate_MRB: Tensor
    unit_query_MKRB: Tensor
    query_inverse: Tensor
    unit_key_MPK: Tensor
    key_inverse: Tensor
    parts: list[_Part]


def _forward(
    scores_PB: Tensor, readout: Tensor, key_MPK: Tensor, value_s_P: Tensor, sizes: _Sizes
) -> tuple[Tensor, Tensor, _Saved]:
    key_size, n_slots = key_MPK.shape[-1], key_MPK.shape[1]
    n_components, batch = readout.shape[2:]
    gate_MRB = readout[:, key_size].sigmoid()
    unit_query, query_inverse = unit_vectors(readout[:, :key_size], 1)
    unit_key, key_inverse = unit_vectors(key_MPK, -1)
    slots, smallest, parts = [], [], []
    for rows in parts_of(batch, 3 * n_slots * n_components, PART):
        attention = _attend(unit_key, unit_query[..., rows], gate_MRB[..., rows], sizes)
        weights_u, weights_v, weights_s = attention.weights_MPRb.unbind()
        projection = product(weights_u, scores_PB[:, None, rows]).sum(0)
        score = torch.mv(weights_s.view(n_slots, -1).t(), value_s_P).view_as(projection)
        sigma = F.softplus(score).flip(0).cumsum(0).flip(0)
        slots.append(product(weights_v, sigma * projection).sum(1))
        smallest.append(sigma[-1])
        parts.append(_Part(rows, projection, score, sigma))
    saved = _Saved(sizes, gate_MRB, unit_query, query_inverse, unit_key, key_inverse, parts)
    return joined(slots), joined(smallest), saved


def _backward(
    d_slots_PB: Tensor, d_smallest_B: Tensor, scores_PB: Tensor, value_s_P: Tensor, saved: _Saved
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of scores, readout, keys and values of S."""
    sizes, unit_key = saved.sizes, saved.unit_key_MPK
    n_slots, key_size = unit_key.shape[1:]
    d_scores, d_query, d_gate = [], [], []
    d_key, d_value = torch.zeros_like(unit_key.transpose(1, 2)), torch.zeros_like(value_s_P)
    for rows, projection, score, sigma in saved.parts:
        gate, query = saved.gate_MRB[..., rows], saved.unit_query_MKRB[..., rows]
        attention = _attend(unit_key, query, gate, sizes)
        weights_u, weights_v, weights_s = attention.weights_MPRb.unbind()
        value = torch.stack(
            (scores_PB[:, rows], d_slots_PB[:, rows], value_s_P[:, None].expand(-1, gate.shape[-1]))
        )
        d_coefficient = product(weights_v, value[1].unsqueeze(1)).sum(0)
        d_sigma = d_coefficient * projection
        d_sigma[-1] += d_smallest_B[rows]
        d_projection = d_coefficient * sigma
        d_score = d_sigma.cumsum(0) * score.sigmoid()
        d_scores.append(product(weights_u, d_projection).sum(1))
        d_value.addmv_(weights_s.view(n_slots, -1), d_score.view(-1))
        gain = torch.stack((d_projection, sigma * projection, d_score))
        d_weights = scratch("d_weights", attention.weights_MPRb.shape, gate)
        torch.mul(gain.unsqueeze(1), value.unsqueeze(2), out=d_weights)
        d_logits, d_gate_part = _attend_backward(d_weights, attention, gate, sizes.heads)
        d_gate.append(d_gate_part * gate * (1 - gate))
        d_logits = d_logits.view(3, n_slots, -1)
        d_query.append(torch.bmm(unit_key.transpose(1, 2), d_logits).view(query.shape))
        d_key.baddbmm_(query.reshape(3, key_size, -1), d_logits.transpose(1, 2))
    d_unit_query, d_unit_key = joined(d_query) * sizes.sharpness, d_key.transpose(1, 2) * sizes.sharpness
    d_readout = torch.cat(
        (
            unit_backward(d_unit_query, saved.unit_query_MKRB, saved.query_inverse, 1),
            joined(d_gate).unsqueeze(1),
        ),
        1,
    )
    return joined(d_scores), d_readout, unit_backward(d_unit_key, unit_key, saved.key_inverse, -1), d_value


class _FusedReads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sizes: _Sizes, scores_PB: Tensor, readout: Tensor, key_MPK: Tensor, value_s_P: Tensor
    ) -> tuple[Tensor, Tensor]:
        slots, smallest, ctx.saved = _forward(scores_PB, readout, key_MPK, value_s_P, sizes)
        ctx.save_for_backward(scores_PB, value_s_P)
        return slots, smallest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_slots_PB: Tensor, d_smallest_B: Tensor) -> tuple[Tensor | None, ...]:
        scores_PB, value_s_P = ctx.saved_tensors
        return None, *_backward(d_slots_PB, d_smallest_B, scores_PB, value_s_P, ctx.saved)


def fused_reads(
    scores_PB: Tensor,
    readout: Tensor,
    key_MPK: Tensor,
    value_s_P: Tensor,
    *,
    heads: int,
    least_used: int,
    sharpness: float,
) -> tuple[Tensor, Tensor]:
    """Return what multiplies the rows of M_V, [P, B], and the smallest singular values [B]. Differentiable once.

    Parameters
    ----------
    scores_PB
        M_U xᵀ.
    readout
        [M, K + 1, R, B]: queries and, last, the gates' logits; R = J·H components, step-major.
    key_MPK, value_s_P
        Keys of the three memories, and the column of M_S.
    heads, least_used, sharpness
        H; l_I of eq. 13; 0 < sharpness ≤ ``MAX_SHARPNESS``.
    """
    sizes = _Sizes(heads, least_used, sharpness)
    if not torch.is_grad_enabled():
        return _forward(scores_PB, readout, key_MPK, value_s_P, sizes)[:2]
    return _FusedReads.apply(sizes, scores_PB, readout, key_MPK, value_s_P)
