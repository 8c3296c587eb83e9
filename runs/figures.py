"""Learning curves as a picture (PNG, by matplotlib) and as text for a terminal."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.text import Text

from neurocoder.runs.compare import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOFTWARE = "neurocoder compare"
"""Written into the picture's metadata, so that a later call knows its own files."""
COLORS = ("blue", "red", "green", "magenta", "cyan", "yellow")
"""Of a terminal's lines, again from the first after the last."""
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""Unicode's bit of each of the 4 × 2 dots in a braille character."""
BRAILLE = 0x2800


class Panel(NamedTuple):
    """Curves that share their axes."""

    title: str
    y_label: str
    summaries: Sequence[Summary]


def terminal_chart(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]], width: int = 60, height: int = 12
) -> Text:
    """Return lines, label to (x [n], y [n]), drawn with braille dots in `width` × `height` characters.

    Axes name their ends; each label stands at the right, in the row of its line's last value.
    """
    x_low, x_high = _ends([x for x, _ in lines.values()])
    y_low, y_high = _ends([y for _, y in lines.values()])
    owner = np.zeros((4 * height, 2 * width), dtype=int)  # 0: no dot; k: a dot of the k-th line
    labels: list[list[tuple[str, str]]] = [[] for _ in range(height)]
    for number, (label, (x, y)) in enumerate(lines.items(), 1):
        to_column = (2 * width - 1) / (x_high - x_low)
        first, last = np.rint((x[[0, -1]] - x_low) * to_column).astype(int)
        columns = np.arange(first, last + 1)
        values = np.interp(columns / to_column + x_low, x, y)
        rows = np.rint((y_high - values) / (y_high - y_low) * (4 * height - 1)).astype(int)
        previous = np.concatenate([rows[:1], rows[:-1]])
        for column, row, before in zip(columns, rows, previous, strict=True):
            owner[min(row, before + 1) : max(row, before - 1) + 1, column] = number  # no gap in steep lines
        labels[rows[-1] // 4].append((label, COLORS[(number - 1) % len(COLORS)]))

    cells = owner.reshape(height, 4, width, 2)
    codes = BRAILLE + ((cells > 0) * DOTS[:, None, :]).sum(axis=(1, 3))
    owners = cells.max(axis=(1, 3))
    ticks = {0: f"{y_high:,.6g}", height - 1: f"{y_low:,.6g}"}
    margin = max(len(tick) for tick in ticks.values())
    chart = Text(no_wrap=True)
    for row in range(height):
        chart.append(f"{ticks.get(row, ''):>{margin}} {'┤' if row in ticks else '│'}")
        for code, number in zip(codes[row], owners[row], strict=True):
            chart.append(chr(code), COLORS[(number - 1) % len(COLORS)] if number else "")
        for label, color in labels[row]:
            chart.append(f"  {label}", color)
        chart.append("\n")
    chart.append(f"{'':{margin}} └{'─' * width}\n")
    left, right = f"{x_low:,.0f}", f"{x_high:,.0f}"
    chart.append(f"{'':{margin}}  {left}{right:>{width - len(left)}}")
    return chart


def _ends(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the smallest and the largest of `values`, apart by something."""
    low, high = float(min(v.min() for v in values)), float(max(v.max() for v in values))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def png(panels: Sequence[Panel], x_label: str) -> bytes:
    """Return the picture of :func:`curves` as a PNG file."""
    buffer = io.BytesIO()
    curves(panels, x_label).savefig(buffer, format="png", metadata={"Software": SOFTWARE})
    return buffer.getvalue()


def curves(panels: Sequence[Panel], x_label: str) -> "Figure":
    """Return a picture of `panels`: a line of IQMs in its band of intervals for each summary.

    A panel is 6 × 4 inches at 100 dots an inch, two panels a row. Steps are told as 500k and 1.5M.
    """
    from matplotlib.figure import Figure  # slow to import, and the only command that needs it
    from matplotlib.ticker import EngFormatter

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6 * columns, 4 * rows), dpi=100, layout="constrained")
    labels = dict.fromkeys(summary.label for panel in panels for summary in panel.summaries)
    colors = {label: f"C{k}" for k, label in enumerate(labels)}
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(places, panels, strict=False):
        for summary in panel.summaries:
            x, curve, color = summary.agent_steps, summary.curve, colors[summary.label]
            marker = "o" if len(x) == 1 else None
            axes.plot(x, curve.value, color=color, marker=marker, label=_legend(summary))
            if curve.low is not None and curve.high is not None:
                axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)
        axes.set(title=panel.title, xlabel=x_label, ylabel=panel.y_label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    return figure


def _legend(summary: Summary) -> str:
    n_runs = sum(len(group.runs) for group in summary.groups)
    return f"{summary.label} ({n_runs} run{'s' if n_runs > 1 else ''})"
