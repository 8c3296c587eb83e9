"""What rows say, in sentences: which of two settings is better, by how much, and with how many seeds."""

import math
import statistics
from collections.abc import Sequence

from neurocoder.runs.reproduce.experiment import Metric, Row


def ends(rows: Sequence[Row], label: str, metric: Metric, until: float = math.inf) -> dict[int, float]:
    """Return what the runs of setting `label` came to with their last checkpoint (`until` that agent step), by seed."""
    return {
        row["seed"]: [
            value for step, value in zip(row["steps"], metric.of(row), strict=True) if step <= until
        ][-1]
        for row in rows
        if row["label"] == label
    }


def against(rows: Sequence[Row], ours: str, other: str, metric: Metric, until: float = math.inf) -> str:
    """Return a sentence that compares setting `ours` with `other` seed by seed; nothing where one has no rows.

    It is called better, or worse, only if that is so with every one of at least three seeds. Later checkpoints than
    `until` do not count.
    """
    first, second = ends(rows, ours, metric, until), ends(rows, other, metric, until)
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return ""
    sign = 1 if metric.higher else -1
    gains = [sign * (first[seed] - second[seed]) for seed in seeds]
    wins = sum(gain > 0 for gain in gains)
    numbers = f"{statistics.mean(first.values()):.5g} against {statistics.mean(second.values()):.5g}"
    score = f"better with {wins} of {len(seeds)} seeds"
    if len(seeds) < 3:
        word = "too few seeds to say"
    elif wins == len(seeds):
        word = "better"
    elif not any(gains):
        word = "the same"
    elif all(gain < 0 for gain in gains):
        word = "worse"
    else:
        word = "no clear difference"
    return f"{ours} against {other}: {numbers}, {score}: {word}."
