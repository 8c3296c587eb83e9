"""What a machine begins with: what is in its memory when an episode starts, and what its heads do before they have learned."""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurocoder.errors import ConfigError, lookup
from neurocoder.policies.ntm.addressing import HeadSizes

CONSTANT = 1e-6
"""In every cell of a memory initialised with "constant"; "learned" starts there."""

ADDRESS_BITS = 7
"""Of a row's number that a memory initialised with "binary" shows: 128 rows differ, of a larger memory those far apart do not."""

MEMORY_INITS = ("binary", "constant", "learned", "positions", "random")

FIRST_HEADS = {
    "strength": (0.0, math.inf),
    "gate": (0.0, 1.0),
    "stay": (0.0, 1.0),
    "sharpening": (1.0, math.inf),
    "erase": (0.0, 1.0),
}
"""What can be said of heads before they have learned, and between which numbers it lies, ends excluded.

Names are those of :class:`HeadParameters`; *stay* is the weight of the shift by 0.
"""


def first_biases(heads: Mapping[str, Any], sizes: HeadSizes) -> Tensor:
    """Return the numbers [Z] that make every head do what `heads` says, and 0 where it says nothing.

    The inverse of :func:`addressing.head_parameters` for keys and add vectors of 0.

    Raises
    ------
    ConfigError
        An unknown name, a value outside its range, or *stay* where heads cannot move.
    """
    for name, value in heads.items():
        low, high = lookup(FIRST_HEADS, name, "first_heads")
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
            raise ConfigError(
                f"first_heads.{name}={value!r} must be a number above {low:g} and below {high:g}"
            )
    if "stay" in heads and not sizes.shift_range:
        raise ConfigError("first_heads.stay has no meaning with shift_range=0: heads do not move")
    raw = torch.zeros(sum(sizes.parts))
    _, opened, positive, shifts = raw.split(sizes.parts)
    n_written = sizes.write_heads * sizes.width
    if "erase" in heads:
        opened[:n_written] = _logit(heads["erase"])
    if "gate" in heads:
        opened[n_written:] = _logit(heads["gate"])
    if "strength" in heads:
        positive[: sizes.heads] = _inverse_softplus(heads["strength"])
    if "sharpening" in heads:
        positive[sizes.heads :] = _inverse_softplus(heads["sharpening"] - 1)
    if "stay" in heads:
        others = sizes.shifts - 1
        shifts.view(sizes.heads, sizes.shifts)[:, sizes.shift_range] = _logit(heads["stay"]) + math.log(
            others
        )
    return raw


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def _inverse_softplus(y: float) -> float:
    return y + math.log(-math.expm1(-y))


@lru_cache(maxsize=4)
def _random_memory(rows: int, width: int) -> np.ndarray:
    """Return [rows, width]; a larger memory begins with the rows of a smaller one."""
    return 0.5 * np.random.default_rng(0).standard_normal((rows, width))


@lru_cache(maxsize=4)
def _positions(rows: int, width: int) -> np.ndarray:
    """Return [rows, width] with sin(n / 10000^(2k / width)) in column 2k and the cosine in 2k + 1, times 1/√2."""
    column = np.arange(width)
    angle = np.arange(rows)[:, None] / 10000 ** ((column - column % 2) / width)
    return np.where(column % 2, np.cos(angle), np.sin(angle)) / math.sqrt(2)


@lru_cache(maxsize=4)
def _binary(rows: int, width: int) -> np.ndarray:
    """Return [rows, width] with the lowest bits of n as -0.5 and 0.5, of numbers below 2 ** ``ADDRESS_BITS``."""
    memory = np.zeros((rows, width))
    bits = min(width, ADDRESS_BITS)
    memory[:, :bits] = (np.arange(rows)[:, None] >> np.arange(bits) & 1) - 0.5
    return memory


FIXED_MEMORIES: dict[str, Callable[[int, int], np.ndarray]] = {
    "binary": _binary,
    "random": _random_memory,
    "positions": _positions,
}
