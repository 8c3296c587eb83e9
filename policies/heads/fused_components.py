"""The components of a working program from exponentials of logits, forward and backward by hand, for one attention step.

The weights are w = share ⊙ E, with E [M, P, H, B] the exponentials and ``share`` [M, H, B] what each sum over slots is
multiplied by afterwards: 1/Z for a softmax, Z = Σᵢ Eᵢ, or gate/Z. They enter only through sums over slots.

Backward, for E with read r = g/Z Σᵢ Eᵢ aᵢ: dEᵢ = (g dr / Z) aᵢ − (r dr) / Z, and the logits' gradient is Eᵢ dEᵢ. For
each memory ``gain`` is the factor of the values, ``flow`` is r dr, which is also the gradient of log g.

Shape suffixes are those of :mod:`program_memory`, with M = 3 memories ordered U, V, S.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from neurocoder.policies.heads.fused_parts import product, scratch


class Components(NamedTuple):
    """What the backward pass needs of the forward pass."""

    share_MHB: Tensor
    projection_HB: Tensor
    """uₙ·x."""
    score_HB: Tensor
    sigma_HB: Tensor
    coefficient_HB: Tensor
    """σₙ uₙ·x, with the share of V: what multiplies V's exponentials."""


class Gradients(NamedTuple):
    """What :func:`composed_backward` returns."""

    d_scores_PB: Tensor
    d_value_s_P: Tensor
    gain_MHB: Tensor
    """The factor of the values."""
    flow_MHB: Tensor
    """r dr."""
    value_MPB: Tensor
    """What the exponentials weigh: scores, the gradient of what multiplies M_V's rows, and the values of S."""

    def of_logits(self, attention_MPHB: Tensor, flow_share_MHB: Tensor) -> Tensor:
        """Return the logits' gradient, in scratch memory, for flow/Z."""
        d_logits = scratch("d_logits", attention_MPHB.shape, attention_MPHB)
        torch.mul(self.gain_MHB.unsqueeze(1), self.value_MPB.unsqueeze(2), out=d_logits)
        d_logits -= flow_share_MHB.unsqueeze(1)
        return d_logits.mul_(attention_MPHB)


def composed(
    attention_MPHB: Tensor, share_MHB: Tensor, scores_PB: Tensor, value_s_P: Tensor, *, rising: bool = False
) -> tuple[Tensor, Components]:
    """Return what multiplies the rows of M_V [P, B], and the components, for ``scores`` = M_U xᵀ.

    Singular values fall as in eq. 8, or are summed from the first component on (`rising`).
    """
    attention_u, attention_v, attention_s = attention_MPHB.unbind()
    share_u, share_v, share_s = share_MHB.unbind()
    projection = product(attention_u, scores_PB.unsqueeze(1)).sum(0) * share_u
    score = torch.mv(attention_s.view(len(value_s_P), -1).t(), value_s_P).view_as(share_s) * share_s
    sigma = F.softplus(score)
    sigma = sigma.cumsum(0) if rising else sigma.flip(0).cumsum(0).flip(0)
    coefficient = sigma * projection * share_v
    slots_PB = product(attention_v, coefficient).sum(1)
    return slots_PB, Components(share_MHB, projection, score, sigma, coefficient)


def composed_backward(
    attention_MPHB: Tensor,
    components: Components,
    scores_PB: Tensor,
    value_s_P: Tensor,
    d_slots_PB: Tensor,
    d_smallest_B: Tensor | None,
    *,
    rising: bool = False,
) -> Gradients:
    """Return the gradients of scores and values of S, and what that of the logits is made of.

    `d_smallest_B` is the gradient of the smallest singular value, if it is used.
    """
    share, projection, score, sigma, coefficient = components
    attention_u, attention_v, attention_s = attention_MPHB.unbind()
    share_u, share_v, share_s = share.unbind()
    value = torch.stack((scores_PB, d_slots_PB, value_s_P[:, None].expand(-1, sigma.shape[1])))
    d_coefficient = product(attention_v, value[1].unsqueeze(1)).sum(0)
    d_component = d_coefficient * share_v  # of σ·projection
    d_sigma = d_component * projection
    if d_smallest_B is not None:
        d_sigma[0 if rising else -1] += d_smallest_B
    d_projection = d_component * sigma
    d_softplus = d_sigma.flip(0).cumsum(0).flip(0) if rising else d_sigma.cumsum(0)
    d_score = d_softplus * score.sigmoid()
    gain = torch.stack((d_projection * share_u, coefficient, d_score * share_s))
    flow = torch.stack((d_projection * projection, d_coefficient * coefficient, d_score * score))
    return Gradients(
        d_scores_PB=product(attention_u, gain[0]).sum(1),
        d_value_s_P=torch.mv(attention_s.view(len(value_s_P), -1), gain[2].reshape(-1)),
        gain_MHB=gain,
        flow_MHB=flow,
        value_MPB=value,
    )
