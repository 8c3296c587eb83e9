"""Rates measured in rounds: everything once in each, so that what slows the machine slows all alike."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

WARM_UP = 20
"""Pieces of work done before anything counts: the first touch of memory, optimisers' state."""

Work = Callable[[], int]
"""Does one piece of work, and returns how many things that was."""


class Compared(NamedTuple):
    """What is measured, and the name of what it is compared with (its own: nothing)."""

    work: Work
    other: str


class Row(NamedTuple):
    """Things per second: the median, slowest and fastest round; and over what it is compared with."""

    name: str
    rate: float
    low: float
    high: float
    ratio: float
    other: str


def measure(works: Mapping[str, Compared], repeats: int, seconds: float) -> Iterator[tuple[str, float]]:
    """Yield (name, things per second), everything once in each round."""
    for compared in works.values():
        for _ in range(WARM_UP):
            compared.work()
    for _ in range(repeats):
        for name, compared in works.items():
            done, began = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - began) < seconds:
                done += compared.work()
            yield name, done / elapsed


def summarize(works: Mapping[str, Compared], rates: Mapping[str, Sequence[float]]) -> list[Row]:
    """Return a row for each of `works`."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return [
        Row(
            name,
            medians[name],
            min(rates[name]),
            max(rates[name]),
            medians[name] / medians[compared.other],
            compared.other,
        )
        for name, compared in works.items()
    ]
