"""The single read of ReleasedNeurocoderLinear, forward and backward by hand: :mod:`fused` with the release's cosine.

That is s = q·k / d, d = K a b + δ with a = ‖q‖ + δ, b = ‖k‖ + δ, whose last δ keeps d from being a product: it is made beside
E = exp(s), in scratch memory, and again in the backward pass. |s| < 1/K, so that no maximum is subtracted.

Backward, for the gradient ds of s: the product q·k gets ds/d, d gets −s ds/d, and a b gets K times that, which goes on
to a, times b and summed over slots, and to b, times a and summed over queries.

Shape suffixes are those of :mod:`program_memory`, with M = 3 memories ordered U, V, S, and N = H·B queries.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neurocoder.policies.heads.fused_components import Components, composed, composed_backward
from neurocoder.policies.heads.fused_parts import LOG2_E, joined, parts_of, scratch

PART = 1 << 21
"""Numbers of the [M, P, H, B] attention that are made at a time (8 MiB in float32, and four such tensors)."""


class _Attention(NamedTuple):
    """What :func:`_attend` leaves in scratch memory, all [M, P, N]."""

    exponentials: Tensor
    logits: Tensor
    """log₂ e times the cosine."""
    denominators: Tensor


class _Saved(NamedTuple):
    query_MKHB: Tensor
    query_norm_MHB: Tensor
    key_MPK: Tensor
    key_norm_MP: Tensor
    offset: float
    parts: list[tuple[slice, Components]]
    """Of rows of the batch, part by part."""


def _attend(saved: _Saved, rows: slice) -> _Attention:
    query_norm_MN = (saved.query_norm_MHB[..., rows] + saved.offset).flatten(1)
    key_size, n_slots = saved.key_MPK.shape[2], saved.key_MPK.shape[1]
    shape = (3, n_slots, query_norm_MN.shape[1])
    one = torch.ones_like(query_norm_MN)
    key_norm_MP = key_size * (saved.key_norm_MP + saved.offset)
    denominators = torch.bmm(
        torch.stack((key_norm_MP, torch.full_like(key_norm_MP, saved.offset)), 2),
        torch.stack((query_norm_MN, one), 1),
        out=scratch("denominators", shape, one),
    )
    query = saved.query_MKHB[..., rows].flatten(2)
    logits = torch.bmm(saved.key_MPK * LOG2_E, query, out=scratch("logits", shape, one)).div_(denominators)
    return _Attention(torch.exp2(logits, out=scratch("attention", shape, one)), logits, denominators)


def _forward(
    scores_PB: Tensor, query_MKHB: Tensor, key_MPK: Tensor, value_s_P: Tensor, offset: float
) -> tuple[Tensor, Tensor, _Saved]:
    n_slots, (heads, batch) = len(value_s_P), query_MKHB.shape[2:]
    saved = _Saved(query_MKHB, _norm(query_MKHB, 1), key_MPK, _norm(key_MPK, 2), offset, [])
    slots, smallest = [], []
    for rows in parts_of(batch, 3 * n_slots * heads, PART):
        attention = _attend(saved, rows).exponentials.view(3, n_slots, heads, -1)
        slots_PB, components = composed(
            attention, attention.sum(1).reciprocal_(), scores_PB[:, rows], value_s_P, rising=True
        )
        slots.append(slots_PB)
        smallest.append(components.sigma_HB[0])
        saved.parts.append((rows, components))
    return joined(slots), joined(smallest), saved


def _backward(
    d_slots_PB: Tensor, d_smallest_B: Tensor, scores_PB: Tensor, value_s_P: Tensor, saved: _Saved
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of scores, queries, keys and values of S."""
    key, query_norm, key_norm, offset = saved.key_MPK, saved.query_norm_MHB, saved.key_norm_MP, saved.offset
    n_slots, key_size = key.shape[1:]
    d_scores, d_query = [], []
    d_key, d_key_norm, d_value = (
        torch.zeros_like(key),
        torch.zeros_like(key_norm),
        torch.zeros_like(value_s_P),
    )
    for rows, components in saved.parts:
        attention = _attend(saved, rows)
        exponentials = attention.exponentials.view(3, n_slots, query_norm.shape[1], -1)
        back = composed_backward(
            exponentials,
            components,
            scores_PB[:, rows],
            value_s_P,
            d_slots_PB[:, rows],
            d_smallest_B[rows],
            rising=True,
        )
        d_scores.append(back.d_scores_PB)
        d_value += back.d_value_s_P
        d_logits = back.of_logits(exponentials, back.flow_MHB * components.share_MHB)
        d_product = d_logits.view_as(attention.logits).div_(attention.denominators)
        query, norm = saved.query_MKHB[..., rows], query_norm[..., rows]
        d_key.baddbmm_(d_product, query.flatten(2).transpose(1, 2))
        d_part = torch.bmm(key.transpose(1, 2), d_product).view_as(query)
        d_norms = attention.logits.mul_(d_product).mul_(-key_size / LOG2_E)
        # as a row times a matrix: a matrix times a column takes five times as long
        d_key_norm += torch.bmm((norm + offset).flatten(1).unsqueeze(1), d_norms.transpose(1, 2)).squeeze(1)
        d_norm = torch.bmm((key_norm + offset).unsqueeze(1), d_norms).view_as(norm)
        d_query.append(d_part + _slope(d_norm, norm).unsqueeze(1) * query)
    d_key += _slope(d_key_norm, key_norm).unsqueeze(2) * key
    return joined(d_scores), joined(d_query), d_key, d_value


def _norm(v: Tensor, dim: int) -> Tensor:
    """Return ‖v‖ along `dim`; torch's own takes ten times as long over a few numbers."""
    return v.square().sum(dim).sqrt_()


def _slope(d_norm: Tensor, norm: Tensor) -> Tensor:
    """Return f so that f v is the gradient of v, for that of ‖v‖; 0 for v = 0."""
    return torch.where(norm > 0, d_norm / norm, 0)


class _FusedRead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, offset: float, scores_PB: Tensor, query_MKHB: Tensor, key_MPK: Tensor, value_s_P: Tensor
    ) -> tuple[Tensor, Tensor]:
        slots, smallest, ctx.saved = _forward(scores_PB, query_MKHB, key_MPK, value_s_P, offset)
        ctx.save_for_backward(scores_PB, value_s_P)
        return slots, smallest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_slots_PB: Tensor, d_smallest_B: Tensor) -> tuple[Tensor | None, ...]:
        scores_PB, value_s_P = ctx.saved_tensors
        return None, *_backward(d_slots_PB, d_smallest_B, scores_PB, value_s_P, ctx.saved)


def fused_released_read(
    scores_PB: Tensor, query_MKHB: Tensor, key_MPK: Tensor, value_s_P: Tensor, *, offset: float
) -> tuple[Tensor, Tensor]:
    """Return what multiplies the rows of M_V, [P, B], and the smallest singular values [B]. Differentiable once.

    Parameters
    ----------
    scores_PB
        M_U xᵀ.
    query_MKHB
        Queries of the three memories.
    key_MPK, value_s_P
        Keys of the three memories, and the column of M_S.
    offset
        δ.
    """
    if not torch.is_grad_enabled():
        return _forward(scores_PB, query_MKHB, key_MPK, value_s_P, offset)[:2]
    return _FusedRead.apply(offset, scores_PB, query_MKHB, key_MPK, value_s_P)
