"""V-trace against the paper's sum, and against the generalised advantage where the policies are the same."""

import numpy as np
import pytest
import torch

from neurocoder.agents.a3c import generalized_advantage
from neurocoder.agents.vtrace import vtrace


def example(steps=9, batch=4, seed=0):
    rng = np.random.default_rng(seed)
    log_ratio, reward, value, next_value = rng.normal(size=(4, steps, batch))
    ends = rng.integers(0, 5, (steps, batch))
    return log_ratio, reward, value, next_value, ends == 0, ends == 1


def vtrace_by_loops(log_ratio, reward, value, next_value, terminated, truncated, gamma, lam, rho_bar):
    """Eq. 1: v_s = V(x_s) + Σ_t γ^(t−s) (Π_{i<t} c_i) δ_t V, and the advantage of section 4.2."""
    steps, batch = reward.shape
    ratio = np.exp(log_ratio)
    target, advantage = np.zeros_like(value), np.zeros_like(value)

    def temporal_difference(t, b):
        worth = 0.0 if terminated[t, b] else next_value[t, b]
        return reward[t, b] + gamma * worth - value[t, b]

    for b in range(batch):
        for s in range(steps):
            total, weight = 0.0, 1.0
            for t in range(s, steps):
                total += weight * min(rho_bar, ratio[t, b]) * temporal_difference(t, b)
                if terminated[t, b] or truncated[t, b]:
                    break
                weight *= gamma * lam * min(1.0, ratio[t, b])
            target[s, b] = value[s, b] + total
    for b in range(batch):
        for s in range(steps):
            goes_on = s + 1 < steps and not (terminated[s, b] or truncated[s, b])
            excess = target[s + 1, b] - value[s + 1, b] if goes_on else 0.0
            q = temporal_difference(s, b) + gamma * lam * excess
            advantage[s, b] = min(rho_bar, ratio[s, b]) * q
    return advantage, target


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("rho_bar", [0.7, 1.0, 2.0])
def test_vtrace_agrees_with_the_sum_of_the_paper(lam, rho_bar):
    arrays = example()
    made = vtrace(*(torch.from_numpy(a) for a in arrays), 0.9, lam, rho_bar)
    for result, expected in zip(made, vtrace_by_loops(*arrays, 0.9, lam, rho_bar), strict=True):
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)


def test_the_same_policy_gives_the_generalised_advantage():
    _, *course = (torch.from_numpy(a) for a in example())
    advantage, target = vtrace(torch.zeros(9, 4, dtype=torch.float64), *course, 0.9, 0.95)
    expected = generalized_advantage(*course, 0.9, 0.95)
    torch.testing.assert_close(advantage, expected)
    torch.testing.assert_close(target, expected + course[1])


def test_vtrace_by_hand():
    two = torch.tensor([[np.log(0.5)], [np.log(4.0)]])
    reward, value = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[0.5], [0.25]]).double()
    following = torch.tensor([[0.25], [4.0]]).double()
    no = torch.tensor([[False], [False]])
    advantage, target = vtrace(two, reward, value, following, no, no, 0.5, 1.0)
    # δ/ρ = 0.625 and 3.75; ρ = ½ and min(1, 4) = 1; c₀ = ½
    assert target.flatten().tolist() == [0.5 + 0.5 * 0.625 + 0.5 * 0.5 * 3.75, 0.25 + 3.75]
    assert advantage.flatten().tolist() == [0.5 * (0.625 + 0.5 * 3.75), 3.75]
