"""Pictures of a machine with a memory at work on one sequence, and of the order in which it sorts.

Shape suffixes: T time, B batch, H heads, N rows of the memory.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from neurocoder.envs import make_tasks
from neurocoder.policies.ntm.core import NTMTrace
from neurocoder.runs.reproduce.trained import Trained

SEED = 7
"""Of the sequence that is drawn."""
MEASURED = 256
"""Sequences whose order is measured."""
WRITTEN, READ = "R² of row written by priority", "R² of row read by rank"


class Seen(NamedTuple):
    """A network on sequences of one length: inputs, targets and outputs in [0, 1] are [T, B, ...], mask [T, B]."""

    inputs: np.ndarray
    targets: np.ndarray
    outputs: np.ndarray
    mask: np.ndarray
    memory: NTMTrace | None


@torch.no_grad()
def look(trained: Trained, batch: int) -> Seen:
    """Run `trained` on `batch` sequences."""
    drawn = make_tasks(trained.env, batch, trained.options).task.draw(SEED, 0, batch)
    assert drawn.mask is not None
    start = torch.zeros(drawn.mask.shape, dtype=torch.bool)
    start[0] = True
    policy = trained.policy
    output, _, trace = policy(torch.from_numpy(drawn.inputs), policy.initial_state(batch), start)
    return Seen(drawn.inputs, drawn.targets, output.logits.sigmoid().numpy(), drawn.mask, trace.core)


def draw_strips(trained: Trained, file: Path, title: str) -> None:
    """Draw input, target, output and error of one sequence, as in figures 4, 7 and 10 of the paper."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    seen = look(trained, 1)
    shown = seen.mask[:, 0, None]
    strips = {
        "input": seen.inputs[:, 0],
        "target": np.where(shown, seen.targets[:, 0], 0.0),
        "output": np.where(shown, seen.outputs[:, 0], 0.0),
        "error": np.where(shown, np.abs(seen.outputs[:, 0] - seen.targets[:, 0]), 0.0),
    }
    figure, axes = plt.subplots(4, 1, figsize=(8, 5), sharex=True, layout="constrained")
    for axis, (name, strip) in zip(axes, strips.items(), strict=True):
        axis.imshow(strip.T, aspect="auto", cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axis.set(ylabel=name, yticks=[])
    axes[-1].set(xlabel="step")
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_memory(trained: Trained, file: Path, title: str) -> None:
    """Draw where each head writes and reads over one sequence, as in figures 6 and 12 of the paper."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    memory = look(trained, 1).memory
    assert memory is not None
    heads = [(f"write {h + 1}", w) for h, w in enumerate(_by_head(memory.write_weighting))]
    heads += [(f"read {h + 1}", w) for h, w in enumerate(_by_head(memory.read_weighting))]
    used = np.flatnonzero(sum(w.max(axis=0) for _, w in heads) > 0.05)
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, heads[0][1].shape[1])
    columns = min(2, len(heads))
    lines = -(-len(heads) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(8, 3 * lines), squeeze=False, sharex=True, layout="constrained"
    )
    for axis, (name, weighting) in zip(axes.flat, heads, strict=False):
        extent = (-0.5, len(weighting) - 0.5, high - 0.5, low - 0.5)
        axis.imshow(weighting[:, low:high].T, aspect="auto", cmap="magma", extent=extent, vmin=0, vmax=1)
        axis.set(title=name, xlabel="step", ylabel="row of the memory")
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _by_head(weighting_TBHN: torch.Tensor) -> list[np.ndarray]:
    """Return the weightings [T, N] of every head over the first sequence."""
    return list(weighting_TBHN[:, 0].permute(1, 0, 2).numpy())


# ------------------------------------------------------------------------------- is it sorted by address?


class Line(NamedTuple):
    """A least-squares line through locations that go round: location = slope · x + intercept, mod rows."""

    slope: float
    intercept: float
    r_squared: float
    origin: int
    """The row that the locations are counted from."""


def circular_fit(x: np.ndarray, location: np.ndarray, rows: int) -> Line:
    """Return the line of the highest R² over all rows that the circle of locations may be cut open at."""
    best = Line(0.0, 0.0, 0.0, 0)
    if np.ptp(x) == 0:
        return best
    for origin in range(rows):
        y = (location - origin) % rows
        spread = float(np.square(y - y.mean()).sum())
        if spread == 0:
            continue
        slope, intercept = np.polyfit(x, y, 1)
        r_squared = 1 - float(np.square(y - slope * x - intercept).sum()) / spread
        if r_squared > best.r_squared:
            best = Line(float(slope), float(intercept), r_squared, origin)
    return best


def order(trained: Trained, picture: Path | None) -> dict[str, float]:
    """Return how linear a sorting machine's addresses are, by its best heads, and draw that into `picture`.

    R² of where it writes an item, against the item's priority (figure 17 of the paper); and R² of where it reads, against
    the rank of what it says.
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
        axis.plot(x, (location - line.origin) % rows, "k.", markersize=2, alpha=0.3)
        ends = np.array([x.min(), x.max()])
        axis.plot(ends, line.slope * ends + line.intercept, "C1", label=f"R² = {line.r_squared:.2f}")
        axis.set(xlabel=x_name, ylabel=f"{y_name} (from row {line.origin})")
        axis.legend(fontsize=8)
    figure.savefig(picture, dpi=110)
    plt.close(figure)
