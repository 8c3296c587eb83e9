"""Pictures that several experiments draw from their rows."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurocoder.envs.datasets import LOCAL
from neurocoder.runs.reproduce.experiment import Metric, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def labels_of(rows: Sequence[Row]) -> list[str]:
    """Return the settings that have rows, in their order."""
    return list(dict.fromkeys(row["label"] for row in rows))


def save(figure: "Figure", file: Path, rows: Sequence[Row], *, dpi: int = 110) -> None:
    """Write `figure`, which shows `rows`, to `file`; below it stands which data are not known to be the official bytes."""
    import matplotlib.pyplot as plt

    if foreign := sorted({row["data"] for row in rows if LOCAL in row["data"]}):
        figure.supxlabel("\n".join(textwrap.wrap(f"Data: {'; '.join(foreign)}", 100)), fontsize=7)
    figure.savefig(file, dpi=dpi)
    plt.close(figure)


def bars(rows: Sequence[Row], file: Path, title: str) -> None:
    """Draw a bar for each setting's mean score, and a dot for each of its seeds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    labels = labels_of(rows)
    scores = [[row["scores"][-1] for row in rows if row["label"] == label] for label in labels]
    figure, axis = plt.subplots(figsize=(7, 0.4 * len(labels) + 1), layout="constrained")
    axis.barh(labels, [np.mean(values) for values in scores], color="C0", alpha=0.35)
    for place, values in enumerate(scores):
        axis.plot(values, [place] * len(values), "k.", markersize=5)
    low = min(min(values) for values in scores)
    axis.set(xlabel=title, xlim=(max(0, low - 5), None))
    axis.invert_yaxis()
    save(figure, file, rows)


def curves(
    rows: Sequence[Row],
    file: Path,
    metric: Metric,
    *,
    per_unit: float,
    unit: str = "updates",
    title: str = "",
    logarithmic: bool = False,
) -> None:
    """Draw each setting's `metric` while it was trained: the mean over its seeds, and a band from the lowest to the highest.

    `unit` is what stands below the curves; one is `per_unit` agent steps.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for number, label in enumerate(labels_of(rows)):
        own = [row for row in rows if row["label"] == label]
        length = min(len(row["steps"]) for row in own)
        x = np.array(own[0]["steps"][:length]) / per_unit
        y = np.array([metric.of(row)[:length] for row in own])
        seeds = f"{len(own)} seed{'s' * (len(own) > 1)}"
        axis.plot(x, y.mean(axis=0), color=f"C{number}", label=f"{label} ({seeds})")
        axis.fill_between(x, y.min(axis=0), y.max(axis=0), color=f"C{number}", alpha=0.2, linewidth=0)
    axis.set(xlabel=unit, ylabel=metric.name, title=title, yscale="log" if logarithmic else "linear")
    axis.legend(fontsize=8)
    save(figure, file, rows)
