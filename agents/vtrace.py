"""V-trace: learning from what an older policy did (Espeholt et al. 2018, "IMPALA", arXiv 1802.01561, section 4).

Shape suffixes: T time, B batch.
"""

import torch
from torch import Tensor


def vtrace(
    log_ratio_TB: Tensor,
    reward_TB: Tensor,
    value_TB: Tensor,
    next_value_TB: Tensor,
    terminated_TB: Tensor,
    truncated_TB: Tensor,
    gamma: float,
    gae_lambda: float,
    max_ratio: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return advantages Âₜ and value targets vₜ, each [T, B].

    With ρₜ = min(ρ̄, π/μ), cₜ = λ·min(1, π/μ) (remark 2) and δₜ = ρₜ(rₜ + γV(sₜ₊₁) − V(sₜ)):

        vₜ = V(sₜ) + δₜ + γcₜ(vₜ₊₁ − V(sₜ₊₁))                                        (eq. 1 and remark 1)
        Âₜ = ρₜ(rₜ + γV(sₜ₊₁) + γλ(vₜ₊₁ − V(sₜ₊₁)) − V(sₜ))                          (section 4.2)

    where λ in Âₜ mixes vₜ₊₁ with V(sₜ₊₁), so that π = μ gives the generalised advantage (λ = 1: the paper's).

    ============== ===== =======================================================================
    log_ratio_TB   T, B  log π(aₜ|sₜ) − log μ(aₜ|sₜ): the policy that learns over the one that acted
    reward_TB      T, B  rₜ, paid for the action at t
    value_TB       T, B  V(sₜ)
    next_value_TB  T, B  V of the state that this step led to; where truncated, of the last one
    terminated_TB  T, B  bool: that state is final and worth nothing
    truncated_TB   T, B  bool: the episode was cut there, its value counts, the sum ends
    max_ratio            ρ̄
    ============== ===== =======================================================================
    """
    ratio_TB = log_ratio_TB.exp()
    rho_TB = ratio_TB.clamp(max=max_ratio)
    c_TB = gae_lambda * ratio_TB.clamp(max=1.0)
    alive = (~terminated_TB).to(reward_TB.dtype)
    same_episode = (~(terminated_TB | truncated_TB)).to(reward_TB.dtype)
    error_TB = reward_TB + gamma * alive * next_value_TB - value_TB
    advantage_TB, target_TB = torch.empty_like(value_TB), torch.empty_like(value_TB)
    excess_B = torch.zeros_like(value_TB[0])  # vₜ₊₁ − V(sₜ₊₁)
    for t in reversed(range(len(value_TB))):
        ahead_B = gamma * same_episode[t] * excess_B
        advantage_TB[t] = rho_TB[t] * (error_TB[t] + gae_lambda * ahead_B)
        excess_B = rho_TB[t] * error_TB[t] + c_TB[t] * ahead_B
        target_TB[t] = value_TB[t] + excess_B
    return advantage_TB, target_TB
