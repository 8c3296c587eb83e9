"""What a matrix of accuracies says about forgetting and transfer, and whether two methods differ.

Of T tasks: R[0, j] is the accuracy on task j of the untrained network, R[i, j] after the first i tasks; tasks j are counted
from 0 here, so that R[j + 1, j] is the accuracy on a task when it has just been learned. All are in the accuracies' unit.
"""

from typing import Any, NamedTuple

import numpy as np

from neurocoder.errors import ConfigError


def _checked(matrix: np.ndarray) -> np.ndarray:
    """Return the matrix, which must be whole: [1 + T, T]."""
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or not matrix.size or matrix.shape[0] != matrix.shape[1] + 1:
        raise ConfigError(
            f"a matrix of shape {matrix.shape}: expected [1 + tasks, tasks], a row before the first task and one after "
            f"each"
        )
    return matrix


def _mean(values: np.ndarray) -> float:
    """Return the mean, NaN where there is nothing: of a single task nothing can be forgotten."""
    return float(values.mean()) if values.size else float("nan")


def just_learned(matrix: np.ndarray) -> np.ndarray:
    """Return the accuracy on each task right after it was learned, [T]."""
    return np.diagonal(_checked(matrix), offset=-1)


def acc(matrix: np.ndarray) -> float:
    """Lopez-Paz & Ranzato 2017, eq. 2. Return the mean accuracy over all tasks after the last: Σ_j R[T, j] / T."""
    return _mean(_checked(matrix)[-1])


def bwt(matrix: np.ndarray) -> float:
    """Lopez-Paz & Ranzato 2017, eq. 3. Backward transfer: mean of R[T, j] - R[j + 1, j] over all tasks but the last."""
    return _mean((_checked(matrix)[-1] - just_learned(matrix))[:-1])


def fwt(matrix: np.ndarray) -> float:
    """Lopez-Paz & Ranzato 2017, eq. 4. Forward transfer: mean of R[j, j] - R[0, j] over all tasks but the first."""
    matrix = _checked(matrix)
    return _mean((np.diagonal(matrix) - matrix[0])[1:])


def forgetting_max(matrix: np.ndarray) -> float:
    """Chaudhry et al. 2018, eqs. 2-3. Mean of max_i R[i, j] - R[T, j], 1 <= i < T, over all tasks but the last."""
    matrix = _checked(matrix)
    if matrix.shape[1] == 1:
        return float("nan")
    return _mean((matrix[1:-1].max(axis=0) - matrix[-1])[:-1])


def forgetting_first(matrix: np.ndarray) -> float:
    """Mean of R[j + 1, j] - R[T, j] over all tasks but the last: from when a task was learned; -BWT."""
    return -bwt(matrix)


METRICS = {
    "acc": acc,
    "bwt": bwt,
    "fwt": fwt,
    "forgetting_max": forgetting_max,
    "forgetting_first": forgetting_first,
}


def summary(matrix: np.ndarray) -> dict[str, float]:
    """Return all metrics of one seed's matrix, by name."""
    return {name: metric(matrix) for name, metric in METRICS.items()}


def matrix_rows(matrix: np.ndarray) -> list[dict[str, Any]]:
    """Return the matrix as rows for a file: after how many tasks, which task (from 0), and its accuracy."""
    return [
        {"after": after, "task": task, "accuracy": float(value)}
        for after, row in enumerate(_checked(matrix))
        for task, value in enumerate(row)
    ]


class Paired(NamedTuple):
    """How `a` differs from `b`, seed by seed."""

    n: int
    mean: float
    """Of a - b."""
    std: float
    """Of a - b, with n - 1."""
    t_p: float
    """Two-sided p of Student's paired t-test."""
    wilcoxon_p: float
    """Two-sided p of Wilcoxon's signed ranks. With n seeds it is at least 2^(1 - n): 0.03 for six."""


def paired_test(a: Any, b: Any) -> Paired:
    """Return how the scores `a` [n] differ from `b` [n], which have the same seeds in the same order.

    Raises
    ------
    ConfigError
        Not two rows of the same length >= 2.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ConfigError(
            f"scores of shapes {first.shape} and {second.shape}: expected two rows of the same n >= 2"
        )
    from scipy import stats  # slow to import

    difference = first - second
    mean, std = float(difference.mean()), float(difference.std(ddof=1))
    if not difference.any():
        return Paired(len(first), mean, std, 1.0, 1.0)
    t_p = float(stats.ttest_rel(first, second).pvalue) if std else 0.0
    return Paired(len(first), mean, std, t_p, float(stats.wilcoxon(difference).pvalue))
