"""Programs planted in a problem are found: y = x W_task(x), with matrices that share rank-1 pieces.

Program t is u_(t mod 3) v_tᵀ: twelve programs of three left and twelve right vectors. Which one acts is told by
twelve of the inputs, a one-hot cue. A network that multiplies its inputs by composed weights needs one slot per
vector; one with fixed weights has to approximate the product of cue and features.
"""

import copy
import math

import torch
from sklearn.metrics import adjusted_mutual_info_score
from torch import nn

from neurocoder.policies import NeurocoderLinear

PROGRAMS, LEFT, FEATURES = 12, 3, 48
STEPS, BATCH = 2000, 128


class Problem:
    """Draws (x [B, 60], y [B, 12], program [B])."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.left = self._orthonormal(FEATURES, LEFT)
        self.right = self._orthonormal(PROGRAMS, PROGRAMS) * math.sqrt(PROGRAMS)  # y has unit variance

    def _orthonormal(self, width: int, n: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(width, n, generator=self.generator))[0].T

    def sample(self, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        program = torch.randint(PROGRAMS, (n,), generator=self.generator)
        features = torch.randn(n, FEATURES, generator=self.generator)
        y = (features * self.left[program % LEFT]).sum(1, keepdim=True) * self.right[program]
        return torch.cat((2 * torch.eye(PROGRAMS)[program], features), 1), y, program


def train(model: nn.Module, problem: Problem, learning_rate: float) -> float:
    """Train with Adam, its rate falling to zero; return the mean squared error on fresh samples."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        x, y, _ = problem.sample(BATCH)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        x, y, _ = problem.sample(2000)
        return float((model(x) - y).square().mean())


def test_planted_programs_are_found_and_each_has_its_slot():
    torch.manual_seed(2)
    layer = NeurocoderLinear(
        FEATURES + PROGRAMS,
        PROGRAMS,
        slots=16,
        attention_heads=4,
        key_size=6,
        controller_size=8,
        sharpness="learnable",
        residual=False,
    )
    n_parameters = sum(p.numel() for p in layer.parameters())
    hidden = math.ceil((n_parameters - PROGRAMS) / (FEATURES + 2 * PROGRAMS + 1))
    mlp = nn.Sequential(
        nn.Linear(FEATURES + PROGRAMS, hidden), nn.ReLU(), nn.Linear(hidden, PROGRAMS)
    )  # at least as many parameters
    problem = Problem(seed=2)
    ours = train(layer, problem, 2e-2)
    start = copy.deepcopy(mlp.state_dict())
    theirs = []
    for learning_rate in (1e-2, 3e-2):
        mlp.load_state_dict(start)
        theirs.append(train(mlp, problem, learning_rate))
    assert ours < 0.1 * min(theirs)

    x, _, program = problem.sample(2000)
    trace = layer.trace(x)
    best_slots = zip(
        trace.attention_u.argmax(-1).unbind(1), trace.attention_v.argmax(-1).unbind(1), strict=True
    )
    agreement = max(adjusted_mutual_info_score(program, u * layer.slots + v) for u, v in best_slots)
    assert agreement >= 0.9
