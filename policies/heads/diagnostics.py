"""What conditional weights do, in numbers: is the attention selective, does W depend on the input at all?"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

NUMBERS_AT_ONCE = 1 << 22
"""How many entries of materialised programs are held at a time."""


def attention_entropy(weights: Float[Tensor, "*B P"]) -> Float[Tensor, ""]:
    """Mean entropy of the (renormalised) attention as a share of log P: 1 is uniform, 0 is one slot."""
    share = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return _entropy(share).mean() / math.log(max(2, weights.shape[-1]))


def slot_usage(weights: Float[Tensor, "*B P"]) -> Float[Tensor, ""]:
    """Perplexity of the mean attention as a share of P: 1 if all slots are used alike, 1/P if only one is."""
    mean = weights.reshape(-1, weights.shape[-1]).mean(0)
    return _entropy(mean / mean.sum().clamp_min(1e-12)).exp() / len(mean)


def effective_rank(matrix: Float[Tensor, "I O"]) -> Float[Tensor, ""]:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007, eq. 4)."""
    values = torch.linalg.svdvals(matrix.float() if matrix.dtype == torch.bfloat16 else matrix)
    return _entropy(values / values.sum().clamp_min(1e-12)).exp()


def mean_and_variance_share(
    program: Callable[[Tensor], Tensor], x_BF: Float[Tensor, "B F"]
) -> tuple[Float[Tensor, "I O"], float]:
    """Return E[W] and E‖W − E[W]‖² / E‖W‖² over the rows of x, holding few programs at a time."""
    first = program(x_BF[:1])
    rows = max(1, NUMBERS_AT_ONCE // first[0].numel())
    total, square = torch.zeros_like(first[0]), 0.0
    for part in x_BF.split(rows):
        programs = program(part)
        total += programs.sum(0)
        square += float(programs.double().square().sum())
    mean = total / len(x_BF)
    if square == 0.0:
        return mean, 0.0
    return mean, max(0.0, 1.0 - float(mean.double().square().sum()) * len(x_BF) / square)


def _entropy(share: Tensor) -> Tensor:
    return -torch.xlogy(share, share).sum(dim=-1)
