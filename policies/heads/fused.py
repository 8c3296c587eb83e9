"""NeurocoderLinear with one attention step, forward and backward by hand.

With J = 1 there is no usage (eq. 12), and the weights w = sigmoid(g)·softmax(β cos) enter only through three
weighted sums. Three rearrangements make those cheap; the result is that of :mod:`program_memory` up to rounding:

* |cos| ≤ 1, so exp(β cos) cannot overflow for β ≤ ``MAX_SHARPNESS``: no maximum is subtracted, and the softmax's
  denominator divides the sums, not the [3, P, H, B] attention. Of that tensor only E = exp(β cos) is ever made.
* It is laid out batch last, so that sums over slots and over heads run along contiguous rows.
* It lives in scratch memory that the thread keeps, ``PART`` numbers at a time, and is made again in the backward
  pass: fresh large tensors cost more in page faults than in arithmetic, and memory does not grow with the batch.

Shape suffixes are those of :mod:`program_memory`, with M = 3 memories ordered U, V, S and C controller units.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neurocoder.policies.heads.fused_components import Components, composed, composed_backward
from neurocoder.policies.heads.fused_parts import (
    LOG2_E,
    joined,
    matrix_product,
    parts_of,
    scratch,
    unit_backward,
    unit_vectors,
)

PART = 1 << 21
"""Numbers of the [M, P, H, B] attention that are made at a time (8 MiB in float32)."""


class Weights(NamedTuple):
    """The layer's parameters, in the order in which they are given to the function."""

    memory_u_PI: Tensor
    memory_v_PO: Tensor
    memory_s_P1: Tensor
    key_u_weight_KI: Tensor
    key_u_bias_K: Tensor
    key_v_weight_KO: Tensor
    key_v_bias_K: Tensor
    key_s_PK: Tensor
    input_weight_CI: Tensor
    """Rows: input gate, output gate, candidate."""
    input_bias_C: Tensor
    readout_weight: Tensor
    """Rows: memory, then key components and gate, then head."""
    readout_bias: Tensor
    residual_IO: Tensor | None
    gate_weight_1I: Tensor | None
    gate_bias_1: Tensor | None


def _attention(unit_key_MPK: Tensor, query_MKN: Tensor, heads: int, sharpness: float) -> Tensor:
    """Return exp(β cos(query, key)) [M, P, H, B], in scratch memory; N = H·B."""
    n_memories, n_slots, _ = unit_key_MPK.shape
    shape = (n_memories, n_slots, query_MKN.shape[2])
    key = unit_key_MPK * (sharpness * LOG2_E)
    logits = torch.bmm(key, query_MKN, out=scratch("attention", shape, query_MKN))
    return logits.exp2_().view(n_memories, n_slots, heads, -1)


class _Reads(NamedTuple):
    """Forward results of :func:`_read`, which its backward uses."""

    slots_PB: Tensor
    """Σ over components of σ·projection·attention_v: what multiplies the rows of M_V."""
    smallest_sigma_B: Tensor
    gate_MHB: Tensor
    unit_query_MKHB: Tensor
    query_inverse: Tensor
    unit_key_MPK: Tensor
    key_inverse: Tensor
    parts: list[tuple[slice, Tensor, Components]]
    """Of rows of the batch, part by part: 1/Z, and the components."""


def _read(
    scores_PB: Tensor,
    readout: Tensor,
    unit_key_MPK: Tensor,
    key_inverse: Tensor,
    value_s_P: Tensor,
    sharpness: float,
) -> _Reads:
    """Eqs. 6-8, 11, 14 for ``scores`` = M_U xᵀ and the controller's ``readout`` [M, K + 1, H, B]."""
    key_size = unit_key_MPK.shape[-1]
    n_slots, batch = scores_PB.shape
    heads = readout.shape[2]
    gate_MHB = readout[:, key_size].sigmoid()
    unit_query, query_inverse = unit_vectors(readout[:, :key_size], 1)
    slots, smallest, parts = [], [], []
    all_rows = parts_of(batch, 3 * n_slots * heads, PART)
    for rows in all_rows:
        query = unit_query[..., rows].reshape(3, key_size, -1)
        attention = _attention(unit_key_MPK, query, heads, sharpness)
        inverse = attention.sum(1).reciprocal_()
        share = gate_MHB[..., rows] * inverse
        slots_PB, components = composed(attention, share, scores_PB[:, rows], value_s_P)
        slots.append(slots_PB)
        smallest.append(components.sigma_HB[-1])
        parts.append((rows, inverse, components))
    return _Reads(
        joined(slots), joined(smallest), gate_MHB, unit_query, query_inverse, unit_key_MPK, key_inverse, parts
    )


def _read_backward(
    d_slots_PB: Tensor,
    d_smallest_B: Tensor | None,
    scores_PB: Tensor,
    value_s_P: Tensor,
    reads: _Reads,
    sharpness: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of scores [P, B], readout [M, K + 1, H, B], keys [M, P, K] and values of S [P]."""
    unit_key, unit_query = reads.unit_key_MPK, reads.unit_query_MKHB
    n_slots, key_size = unit_key.shape[1:]
    key_t = unit_key.transpose(1, 2)
    d_scores, d_query, d_gate = [], [], []
    d_key, d_value = torch.zeros_like(unit_key.transpose(1, 2)), torch.zeros_like(value_s_P)
    for rows, inverse, components in reads.parts:
        gate = reads.gate_MHB[..., rows]
        query = unit_query[..., rows].reshape(3, key_size, -1)
        attention = _attention(unit_key, query, gate.shape[1], sharpness)
        back = composed_backward(
            attention,
            components,
            scores_PB[:, rows],
            value_s_P,
            d_slots_PB[:, rows],
            None if d_smallest_B is None else d_smallest_B[rows],
        )
        d_scores.append(back.d_scores_PB)
        d_value += back.d_value_s_P
        d_gate.append(back.flow_MHB * (1 - gate))
        d_logits = back.of_logits(attention, back.flow_MHB * inverse)
        d_logits = d_logits.view(3, n_slots, -1)
        d_query.append(torch.bmm(key_t, d_logits).view(3, key_size, gate.shape[1], -1))
        d_key.baddbmm_(query, d_logits.transpose(1, 2))
    d_unit_query = joined(d_query)
    d_unit_key = d_key.transpose(1, 2)
    if sharpness != 1.0:
        d_unit_query, d_unit_key = d_unit_query * sharpness, d_unit_key * sharpness
    d_readout = torch.cat(
        (
            unit_backward(d_unit_query, unit_query, reads.query_inverse, 1),
            joined(d_gate).unsqueeze(1),
        ),
        1,
    )
    d_keys = unit_backward(d_unit_key, unit_key, reads.key_inverse, -1)
    return joined(d_scores), d_readout, d_keys, d_value


class _FromX(NamedTuple):
    """The products with x: all that the layer asks of it."""

    controller_CB: Tensor
    """Input gate, output gate, candidate, before their nonlinearities."""
    scores_PB: Tensor
    """M_U xᵀ."""
    residual_OB: Tensor | None
    gate_B: Tensor | None
    """Of the residual program, before its sigmoid."""


class Prepared(NamedTuple):
    """What depends on the layer's parameters only, for passes without gradients: made by :func:`prepare`."""

    from_x_NI: Tensor
    """All that x is multiplied by, one below the other."""
    bias_N1: Tensor
    sizes: list[int]
    """Of the parts of both."""
    unit_key_MPK: Tensor
    key_inverse: Tensor


def prepare(w: Weights) -> Prepared:
    """Return what :func:`fused_linear` need not compute again while the parameters stay as they are.

    One product with x in place of four; but copying what it is multiplied by pays only if it is used often.
    """
    parts = [w.input_weight_CI, w.memory_u_PI]
    biases = [w.input_bias_C, w.memory_u_PI.new_zeros(len(w.memory_u_PI))]
    if w.residual_IO is not None:
        assert w.gate_weight_1I is not None and w.gate_bias_1 is not None
        parts += [w.residual_IO.t(), w.gate_weight_1I]
        biases += [w.residual_IO.new_zeros(w.residual_IO.shape[1]), w.gate_bias_1]
    sizes = [len(part) for part in parts]
    return Prepared(torch.cat(parts), torch.cat(biases).unsqueeze(1), sizes, *_unit_keys(w))


def _unit_keys(w: Weights) -> tuple[Tensor, Tensor]:
    """Eq. 10. Return the directions [M, P, K] of the keys, and one over their lengths."""
    key_u = torch.addmm(w.key_u_bias_K, w.memory_u_PI, w.key_u_weight_KI.t())
    key_v = torch.addmm(w.key_v_bias_K, w.memory_v_PO, w.key_v_weight_KO.t())
    return unit_vectors(torch.stack((key_u, key_v, w.key_s_PK)), -1)


def _from_x(x_BI: Tensor, w: Weights, prepared: Prepared | None) -> _FromX:
    if prepared is not None:
        from_x_NB = torch.addmm(prepared.bias_N1, prepared.from_x_NI, x_BI.t())
        controller, scores, *rest = from_x_NB.split(prepared.sizes)
        residual, gate = rest or (None, None)
        return _FromX(controller, scores, residual, None if gate is None else gate.squeeze(0))
    controller = torch.addmm(w.input_bias_C.unsqueeze(1), w.input_weight_CI, x_BI.t())
    scores = torch.mm(w.memory_u_PI, x_BI.t())
    if w.residual_IO is None:
        return _FromX(controller, scores, None, None)
    assert w.gate_weight_1I is not None and w.gate_bias_1 is not None
    gate = torch.addmv(w.gate_bias_1, x_BI, w.gate_weight_1I.view(-1))
    return _FromX(controller, scores, matrix_product(x_BI, w.residual_IO).t(), gate)


class _Saved(NamedTuple):
    """What the forward pass leaves to the backward pass."""

    in_out_gates: Tensor
    candidate: Tensor
    tanh_cell: Tensor
    hidden: Tensor
    scores_PB: Tensor
    reads: _Reads
    residual_gate_B: Tensor | None
    x_residual_OB: Tensor | None
    residual_factor_B: Tensor | None


def _forward(
    x_BI: Tensor, w: Weights, heads: int, sharpness: float, prepared: Prepared | None = None
) -> tuple[Tensor, _Saved]:
    size, batch, key_size = w.readout_weight.shape[1], len(x_BI), w.key_s_PK.shape[1]
    from_x = _from_x(x_BI, w, prepared)
    in_out_gates = from_x.controller_CB[: 2 * size].sigmoid()
    candidate = from_x.controller_CB[2 * size :].tanh()
    tanh_cell = (in_out_gates[:size] * candidate).tanh_()
    hidden = in_out_gates[size:] * tanh_cell
    readout = torch.addmm(w.readout_bias.unsqueeze(1), w.readout_weight, hidden)
    reads = _read(
        from_x.scores_PB,
        readout.view(3, key_size + 1, heads, batch),
        *(_unit_keys(w) if prepared is None else (prepared.unit_key_MPK, prepared.key_inverse)),
        w.memory_s_P1.view(-1),
        sharpness,
    )
    y = matrix_product(reads.slots_PB.t(), w.memory_v_PO)
    gate, x_residual, factor = None, from_x.residual_OB, None
    if x_residual is not None:
        assert from_x.gate_B is not None
        gate = from_x.gate_B.sigmoid()
        factor = gate * reads.smallest_sigma_B
        y.addcmul_(factor.unsqueeze(1), x_residual.t())
    return y, _Saved(
        in_out_gates, candidate, tanh_cell, hidden, from_x.scores_PB, reads, gate, x_residual, factor
    )


def _backward(
    dy_BO: Tensor, x_BI: Tensor, w: Weights, saved: _Saved, sharpness: float, wants_x: bool
) -> tuple[Tensor | None, Weights]:
    in_out_gates, candidate, tanh_cell, hidden, scores, reads, gate, x_residual, factor = saved
    size = len(hidden)
    d_smallest = d_residual = d_gate_weight = d_gate_bias = d_gate = d_x_residual = None
    if w.residual_IO is not None:
        assert gate is not None and x_residual is not None and factor is not None
        d_factor = (dy_BO * x_residual.t()).sum(1)
        d_smallest = d_factor * gate
        d_gate = (d_smallest * reads.smallest_sigma_B * (1 - gate)).unsqueeze(1)
        d_x_residual = factor.unsqueeze(1) * dy_BO
        d_residual = matrix_product(x_BI.t(), d_x_residual)
        d_gate_weight = torch.mm(d_gate.t(), x_BI)
        d_gate_bias = d_gate.sum(0)

    d_slots = torch.mm(w.memory_v_PO, dy_BO.t())
    d_scores, d_readout, d_key, d_value_s = _read_backward(
        d_slots, d_smallest, scores, w.memory_s_P1.view(-1), reads, sharpness
    )
    d_key_u, d_key_v, d_key_s = d_key.unbind()
    d_memory_u = matrix_product(d_scores, x_BI).addmm_(d_key_u, w.key_u_weight_KI)
    d_memory_v = matrix_product(reads.slots_PB, dy_BO).addmm_(d_key_v, w.key_v_weight_KO)

    d_readout = d_readout.view(-1, len(x_BI))
    d_hidden = torch.mm(w.readout_weight.t(), d_readout)
    d_tanh_cell = d_hidden * in_out_gates[size:]
    d_cell = d_tanh_cell - d_tanh_cell * tanh_cell.square()
    d_gates = torch.cat((d_cell * candidate, d_hidden * tanh_cell)) * in_out_gates * (1 - in_out_gates)
    d_candidate = d_cell * in_out_gates[:size] * (1 - candidate.square())
    d_controller = torch.cat((d_gates, d_candidate))

    dx = None
    if wants_x:
        dx = torch.mm(d_scores.t(), w.memory_u_PI).addmm_(d_controller.t(), w.input_weight_CI)
        if w.residual_IO is not None:
            assert d_gate is not None and d_x_residual is not None and w.gate_weight_1I is not None
            dx.addmm_(d_x_residual, w.residual_IO.t()).addmm_(d_gate, w.gate_weight_1I)
    return dx, Weights(
        d_memory_u,
        d_memory_v,
        d_value_s.unsqueeze(1),
        torch.mm(d_key_u.t(), w.memory_u_PI),
        d_key_u.sum(0),
        torch.mm(d_key_v.t(), w.memory_v_PO),
        d_key_v.sum(0),
        d_key_s,
        matrix_product(d_controller, x_BI),
        d_controller.sum(1),
        matrix_product(d_readout, hidden.t()),
        d_readout.sum(1),
        d_residual,
        d_gate_weight,
        d_gate_bias,
    )


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: int, sharpness: float, x_BI: Tensor, *weights: Any) -> Tensor:
        y, saved = _forward(x_BI, Weights(*weights), heads, sharpness)
        ctx.save_for_backward(x_BI, *weights)  # checked for changes in place
        ctx.saved, ctx.sharpness = saved, sharpness
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BO: Tensor) -> tuple[Tensor | None, ...]:
        x_BI, *weights = ctx.saved_tensors
        wants_x = ctx.needs_input_grad[2]
        dx, d_weights = _backward(dy_BO, x_BI, Weights(*weights), ctx.saved, ctx.sharpness, wants_x)
        return None, None, dx, *d_weights


def fused_linear(
    x_BI: Tensor, weights: Weights, heads: int, sharpness: float, prepared: Prepared | None = None
) -> Tensor:
    """Return y [B, O] of a layer with one attention step, at least one row and 0 < sharpness ≤ ``MAX_SHARPNESS``.

    Differentiable once with respect to x and all weights. Where no gradients are wanted, what is `prepared` of these weights
    is not computed again.
    """
    if not torch.is_grad_enabled():
        return _forward(x_BI, weights, heads, sharpness, prepared)[0]
    return _FusedLinear.apply(heads, sharpness, x_BI, *weights)
