"""The program memory of Neurocoder: one equation of the paper, one pure function.

Source: H. Le and S. Venkatesh, "Neurocoder: Learning General-Purpose Computation Using Stored Neural
Programs", 2020 (arXiv 2009.11443). Equation numbers are the paper's. A *program* is a matrix of low rank,
stored as singular vectors and values in the slots of three memories (U, V, S); a *working program* is
composed for each input by attention over the slots.

Shape suffixes used in this module:

====== ==========================================================
B      batch
J, H   attention steps, heads per step
R      components of the working program, R = J·H, ordered j-major
P      slots of the program memory
K      width of keys and queries
D      width of a memory's rows (I, O or 1)
I, O   inputs, outputs of the layer
====== ==========================================================

Two readings that the text leaves open are fixed here. Eq. 12 is circular as printed (the usage at step j
needs the weights of step j); the usage at step j therefore covers the steps before j and is zero at the
first. Eq. 13's ties are broken by slot index, so that exactly ``least_used`` slots are considered.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

SMALLEST_NORM = 1e-12
"""Least norm that a vector is divided by."""


def working_program(
    u_BRI: Float[Tensor, "B R I"], sigma_BR: Float[Tensor, "B R"], v_BRO: Float[Tensor, "B R O"]
) -> Float[Tensor, "B I O"]:
    """Eqs. 1, 3, 4. The working program P = U diag(σ) Vᵀ = Σₙ σₙ uₙ vₙᵀ, materialised."""
    return torch.einsum("bri,br,bro->bio", u_BRI, sigma_BR, v_BRO)


def total_loss(task: Tensor, orthogonal: Tensor, coefficient: float) -> Tensor:
    """Eq. 2. L = L_task + a·L_o."""
    return task + coefficient * orthogonal


def orthogonal_loss(memory_PD: Float[Tensor, "P D"]) -> Float[Tensor, ""]:
    """Eq. 5, for one memory: ‖M Mᵀ − I‖²_F / P.

    The paper does not say which norm; the square is taken because its gradient vanishes at the minimum, and
    the division by P makes the coefficient comparable across sizes. Both forms below are equal; the smaller
    Gram matrix is used: ‖M Mᵀ − I_P‖² = ‖Mᵀ M − I_D‖² + P − D.
    """
    n_slots, width = memory_PD.shape
    if n_slots <= width:
        gram = memory_PD @ memory_PD.T
        offset = 0
    else:
        gram = memory_PD.T @ memory_PD
        offset = n_slots - width
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return ((gram - identity).square().sum() + offset) / n_slots


def orthogonal_loss_floor(slots: int, in_features: int, out_features: int) -> float:
    """The smallest L_o that any memory of this shape can reach: more than D rows in R^D cannot be orthonormal."""
    return (max(0, slots - in_features) + max(0, slots - out_features)) / slots


def read(weights_BRP: Float[Tensor, "B R P"], memory_PD: Float[Tensor, "P D"]) -> Float[Tensor, "B R D"]:
    """Eqs. 6, 7. Attention-weighted sums of memory rows: uₙ = Σᵢ w_ni M(i)."""
    return weights_BRP @ memory_PD


def singular_values(score_BR: Float[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    """Eq. 8. Strictly decreasing, positive values: σ_R = softplus(s_R), σₙ = σₙ₊₁ + softplus(sₙ)."""
    return F.softplus(score_BR).flip(-1).cumsum(-1).flip(-1)


def open_slots(raw_P: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
    """Return ρ = max(0, raw), with the gradient of raw: a slot that has closed can open again.

    Not in the paper. ρ multiplies a slot's attention, so that a slot added with ρ = 0 changes nothing and yet
    learns: dL/dρ is not zero there.
    """
    return raw_P + (raw_P.clamp_min(0) - raw_P).detach()


def unit(v: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
    """Return v / max(‖v‖, δ) of vectors along the last dimension: ``F.normalize``, several times faster for short ones."""
    if v.dtype == torch.float16:  # which has no room for squares
        return F.normalize(v, dim=-1)
    return v * v.square().sum(dim=-1, keepdim=True).clamp_min(SMALLEST_NORM**2).rsqrt()


def content_attention(
    query_BHK: Float[Tensor, "*M B H K"],
    key_PK: Float[Tensor, "*M P K"],
    sharpness: float | Tensor = 1.0,
    openness_P: Float[Tensor, "P"] | None = None,
) -> Float[Tensor, "*M B H P"]:
    """Eq. 11. softmax over slots of sharpness · cos(query, key). The paper prints no sharpness, i.e. 1.

    With openness ρ: cᵢ = ρᵢ eᵢ / Σ ρⱼ eⱼ for e = exp(sharpness · cos).
    """
    query = unit(query_BHK)
    key = unit(key_PK)
    cosine = query.flatten(-3, -2) @ key.transpose(-1, -2)  # one product of [*M, B·H, K] and [*M, K, P]
    cosine = cosine.view((*query.shape[:-1], key.shape[-2]))
    if isinstance(sharpness, Tensor) or sharpness != 1.0:  # saves a pass over the largest tensor
        cosine = sharpness * cosine
    if openness_P is None:
        return torch.softmax(cosine, dim=-1)
    share = openness_P * torch.exp(cosine - cosine.detach().amax(dim=-1, keepdim=True))
    return share / share.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)


def claimed_keys(
    query_BHK: Float[Tensor, "*M B H K"], class_B: Int[Tensor, "B"], n_slots: int
) -> Float[Tensor, "*M {n_slots} K"]:
    """Return keys for `n_slots` slots that are to be read by inputs like these: mean directions of what they ask for.

    Not in the paper. Slots take turns: with C classes among the inputs, slot i is for the inputs of the (i mod C)-th of them
    and for head (i div C) mod H, and its key is the mean of their queries' directions.
    """
    query = unit(query_BHK)
    classes = class_B.unique()  # sorted
    means = torch.stack([query[..., class_B == own, :, :].mean(dim=-3) for own in classes], dim=-2)
    keys = means.flatten(-3, -2)  # [*M, H·C, K]: head by head, class by class
    turns = torch.arange(n_slots, device=keys.device) % keys.shape[-2]
    return keys[..., turns, :]


def usage(
    previous_BHP: Float[Tensor, "*M B H P"], weights_BHP: Float[Tensor, "*M B H P"]
) -> Float[Tensor, "*M B H P"]:
    """Eq. 12. Each slot's largest attention so far, per head: m_j = max(m_{j−1}, w_j)."""
    return torch.maximum(previous_BHP, weights_BHP)


def least_used_attention(
    usage_BHP: Float[Tensor, "*M B H P"], least_used: int, openness_P: Float[Tensor, "P"] | None = None
) -> Float[Tensor, "*M B H P"]:
    """Eq. 13. max(m) − mᵢ on the `least_used` slots of smallest usage, 0 elsewhere (not normalised).

    Which slots are chosen is piecewise constant and gets no gradient; ties go to the lower index. With openness
    ρ, slots are ranked by mᵢ/ρᵢ² (m itself is proportional to ρ, so that a slot that is nearly closed counts as
    used and one that is closed is never chosen) and lifted by ρᵢ(max(m) − mᵢ).
    """
    rank = usage_BHP.detach()
    if openness_P is not None:
        rank = torch.where(openness_P > 0, rank / openness_P.detach().square(), torch.inf)
    order = rank.argsort(dim=-1, stable=True)
    chosen = torch.zeros_like(usage_BHP).scatter_(-1, order[..., :least_used], 1.0)
    if openness_P is not None:
        chosen = chosen * openness_P
    return chosen * (usage_BHP.amax(dim=-1, keepdim=True) - usage_BHP)


def gated_attention(
    gate_BH: Float[Tensor, "*M B H"],
    content_BHP: Float[Tensor, "*M B H P"],
    least_used_BHP: Float[Tensor, "*M B H P"],
) -> Float[Tensor, "*M B H P"]:
    """Eq. 14. w = sigmoid(g)·c + (1 − sigmoid(g))·l. Not a distribution in general: only c sums to one."""
    share = torch.sigmoid(gate_BH).unsqueeze(-1)
    return share * content_BHP + (1 - share) * least_used_BHP


def integrate(
    program_BIO: Float[Tensor, "B I O"],
    gate_B: Float[Tensor, "B"],
    smallest_sigma_B: Float[Tensor, "B"],
    residual_IO: Float[Tensor, "I O"],
) -> Float[Tensor, "B I O"]:
    """Eq. 15. W = P + sigmoid(f_φ(x))·σ_R·R, with `gate_B` the sigmoid already taken."""
    return program_BIO + (gate_B * smallest_sigma_B)[:, None, None] * residual_IO


def slots_put_out(
    score_BP: Float[Tensor, "B P"],
    weights_u_BRP: Float[Tensor, "B R P"],
    weights_v_BRP: Float[Tensor, "B R P"],
    sigma_BR: Float[Tensor, "B R"],
) -> Float[Tensor, "B P"]:
    """Return how much of each row of M_V is put out, (σ ⊙ w_u s) w_v, for ``score`` s = M_U x."""
    projection_BR = (weights_u_BRP @ score_BP.unsqueeze(-1)).squeeze(-1)
    return ((sigma_BR * projection_BR).unsqueeze(-2) @ weights_v_BRP).squeeze(-2)


def apply_program(
    x_BI: Float[Tensor, "B I"],
    weights_u_BRP: Float[Tensor, "B R P"],
    weights_v_BRP: Float[Tensor, "B R P"],
    sigma_BR: Float[Tensor, "B R"],
    memory_u_PI: Float[Tensor, "P I"],
    memory_v_PO: Float[Tensor, "P O"],
) -> Float[Tensor, "B O"]:
    """Eqs. 1, 3, 4, 6, 7 applied to x without building P: y = ((σ ⊙ w_u (M_U x)) w_v) M_V.

    Costs B·P·(I + O + 2R) multiplications where the materialised program costs B·R·(P·(I + O) + I·O).
    """
    return slots_put_out(x_BI @ memory_u_PI.T, weights_u_BRP, weights_v_BRP, sigma_BR) @ memory_v_PO
