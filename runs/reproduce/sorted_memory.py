"""Is a sorting machine's memory sorted by address? Lines through locations that go round (figure 17 of the paper)."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from neurocoder.runs.reproduce.sequence_pictures import look
from neurocoder.runs.reproduce.trained import Trained

MEASURED = 256
"""Sequences whose order is measured."""
WRITTEN, READ = "R² of row written by priority", "R² of row read by rank"
LINEAR = 0.8
"""R² from which on a line is said to be there."""


class Line(NamedTuple):
    """A line on a circle: location = slope · x + intercept, mod rows."""

    slope: float
    intercept: float
    r_squared: float


def arcs(location: np.ndarray, rows: int) -> np.ndarray:
    """Return the shorter way round from 0 to each location, in [-rows / 2, rows / 2)."""
    return (location + rows / 2) % rows - rows / 2


def circular_mean(location: np.ndarray, rows: int) -> float:
    """Return the point of the circle with the least sum of squared arcs to all of `location` (their Fréchet mean).

    It is the mean of the locations as they lie once the circle is cut open between some two of them.
    """
    y = np.sort(location % rows)
    n = len(y)
    moved = np.arange(n)  # how many of the lowest lie beyond the cut, one round further on
    mean = y.mean() + rows * moved / n
    squares = np.square(y).sum() + np.concatenate(([0.0], np.cumsum(2 * rows * y[:-1] + rows**2)))
    return float(mean[np.argmin(squares - n * np.square(mean))] % rows)


def circular_fit(x: np.ndarray, location: np.ndarray, rows: int) -> Line:
    """Return the line with the least sum of squared arcs to `location`, of those that go round once at most.

    R² is 1 - that sum / the sum for the best line of slope 0. Distances are measured on the circle, so that no choice of
    a row to count from can make a line out of points that are not on one.
    """
    spread = float(np.square(arcs(location - circular_mean(location, rows), rows)).sum())
    width = float(np.ptp(x))
    if width == 0 or spread == 0:
        return Line(0.0, circular_mean(location, rows), 0.0)
    best, least = Line(0.0, circular_mean(location, rows), 0.0), spread
    for slope in np.linspace(-rows / width, rows / width, 4 * rows + 1):
        rest = location - slope * x
        intercept = circular_mean(rest, rows)
        residual = arcs(rest - intercept, rows)
        tilt, offset = np.polyfit(x, residual, 1)  # the slopes that are tried are not all that there are
        if abs(slope + tilt) * width <= rows:
            slope, intercept = slope + tilt, intercept + offset
            residual = arcs(location - slope * x - intercept, rows)
        total = float(np.square(residual).sum())
        if total < least:
            best, least = Line(float(slope), float(intercept % rows), 1 - total / spread), total
    return best


def order(trained: Trained, picture: Path | None) -> dict[str, float]:
    """Return how linear a sorting machine's addresses are, by its best heads, and draw that into `picture`.

    R² of where it writes an item, against the item's priority; and R² of where it reads, against the rank of what it says.
    """
    seen = look(trained, MEASURED)
    assert seen.memory is not None
    rows = seen.memory.write_weighting.shape[-1]
    said = seen.mask[:, 0]
    items = int(np.flatnonzero(said)[0]) - 1  # a delimiter is between them
    priority = seen.inputs[:items, :, -2].ravel()
    rank = np.repeat(np.arange(said.sum()), MEASURED)
    written = [w.argmax(-1)[:items].numpy().ravel() for w in seen.memory.write_weighting.unbind(2)]
    read = [
        r.argmax(-1)[torch.from_numpy(said)].numpy().ravel() for r in seen.memory.read_weighting.unbind(2)
    ]
    writes = [circular_fit(priority, where, rows) for where in written]
    reads = [circular_fit(rank, where, rows) for where in read]
    write = int(np.argmax([line.r_squared for line in writes]))
    read_head = int(np.argmax([line.r_squared for line in reads]))
    if picture is not None:
        _draw_lines(
            [
                ("priority", f"row written, head {write + 1}", priority, written[write], writes[write]),
                ("rank said", f"row read, head {read_head + 1}", rank, read[read_head], reads[read_head]),
            ],
            rows,
            picture,
        )
    return {
        WRITTEN: writes[write].r_squared,
        READ: reads[read_head].r_squared,
    }


def _draw_lines(
    panels: list[tuple[str, str, np.ndarray, np.ndarray, Line]], rows: int, picture: Path
) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(8, 3.6), layout="constrained")
    for axis, (x_name, y_name, x, location, line) in zip(axes, panels, strict=True):
        fitted = line.slope * x + line.intercept
        axis.plot(x, fitted + arcs(location - fitted, rows), "k.", markersize=2, alpha=0.3)
        ends = np.array([x.min(), x.max()])
        axis.plot(ends, line.slope * ends + line.intercept, "C1", label=f"R² = {line.r_squared:.2f}")
        axis.set(xlabel=x_name, ylabel=f"{y_name} (mod {rows})")
        axis.legend(fontsize=8)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def sorted_by_address(done: Mapping[str, Mapping[str, float]], labels: tuple[str, ...]) -> list[str]:
    """Say of the machines' memories whether items lie in it along a line in their priority, or as in a heap.

    A heap's array is in no linear order of priority, and its items are not read one row after the other.
    """
    sentences = []
    for label in labels:
        own = [
            results
            for key, results in done.items()
            if key.startswith(f"{label}, seed") and WRITTEN in results
        ]
        if not own:
            continue
        written, read = (statistics.mean(results[name] for results in own) for name in (WRITTEN, READ))
        if written >= LINEAR and read >= LINEAR:
            word = "an array sorted by address; nothing of a heap"
        elif written >= LINEAR:
            word = "written along a line in priority, read in another way"
        else:
            word = "no line: neither a sorted array nor, by this measure, anything else is shown"
        sentences.append(
            f"- {label}: R² of the row written by priority {written:.2f}, of the row read by rank {read:.2f}: {word}."
        )
    return sentences
