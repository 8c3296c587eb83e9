"""What became of an experiment: its table as Markdown, CSV and JSON."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TypedDict

from neurocoder.runs.reproduce.command_lines import is_of_today
from neurocoder.runs.reproduce.experiment import Experiment, Row, read_rows


class Line(TypedDict):
    """What a setting came to over its seeds."""

    setting: str
    parameters: int
    parameters_in_paper: str
    seeds: int
    metric: str
    mean: float
    """Of the last checkpoints."""
    std: float | None
    """With n - 1; None for a single seed."""
    best: float
    """Of all checkpoints of all seeds."""
    in_paper: str
    minutes: float
    """Of one run."""
    data: list[str]
    """Where it comes from."""


def summary(experiment: Experiment, rows: Sequence[Row]) -> list[Line]:
    """Return a line for each setting that has rows."""
    lines = []
    metric = experiment.metric
    for setting in experiment.settings:
        own = sorted((row for row in rows if row["label"] == setting.label), key=lambda row: row["seed"])
        if not own:
            continue
        last = [metric.of(row)[-1] for row in own]
        lines.append(
            Line(
                setting=setting.label,
                parameters=own[0]["parameters"],
                parameters_in_paper=setting.published_parameters,
                seeds=len(own),
                metric=metric.name,
                mean=statistics.mean(last),
                std=statistics.stdev(last) if len(last) > 1 else None,
                best=metric.best(value for row in own for value in metric.of(row)),
                in_paper=setting.published,
                minutes=statistics.mean(row["minutes"] for row in own),
                data=sorted({row["data"] for row in own if row["data"]}),
            )
        )
    return lines


def markdown(experiment: Experiment, rows: Sequence[Row], folder: Path) -> str:
    """Return title, table, where the data comes from, and the verdict, as Markdown."""
    lines = summary(experiment, rows)
    if not lines:
        return f"# {experiment.title}\n\nNothing has been run yet.\n"
    show = experiment.metric.show
    name = experiment.metric.name
    table = [["setting", "parameters", "seeds", f"{name} at the end", "best of all", "paper", "minutes"]]
    table += [["---"] * len(table[0])]
    for line in lines:
        printed = f" ({line['parameters_in_paper']})" if line["parameters_in_paper"] else ""
        spread = "" if line["std"] is None else f" ± {show(line['std'])}"
        table.append(
            [
                line["setting"],
                f"{line['parameters']:,}{printed}",
                str(line["seeds"]),
                show(line["mean"]) + spread,
                show(line["best"]),
                line["in_paper"],
                f"{line['minutes']:.1f}",
            ]
        )
    parts = [f"# {experiment.title}", "\n".join("| " + " | ".join(cells) + " |" for cells in table)]
    if any(line["parameters_in_paper"] for line in lines):
        parts.append("Parameters in brackets: as printed in Table 6.")
    data = sorted({text for line in lines for text in line["data"]})
    parts += [f"Data: {'; '.join(data)}."] if data else []
    parts += _stale(experiment, rows)
    return "\n\n".join([*parts, experiment.verdict(rows, folder)]) + "\n"


def _stale(experiment: Experiment, rows: Sequence[Row]) -> list[str]:
    """Say which rows were trained with another command than the one that would train them now."""
    settings = {setting.label: setting for setting in experiment.settings}
    old = [
        f"{row['label']}, seed {row['seed']}"
        for row in rows
        if row["label"] in settings and not is_of_today(row, settings[row["label"]])
    ]
    if not old:
        return []
    return [
        f"Trained with another command than today's, which rows.jsonl has (take a row out, and its run, to train it anew): "
        f"{'; '.join(old)}."
    ]


def as_csv(rows: Sequence[Row]) -> str:
    """Return every evaluation of every run as CSV."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["setting", "seed", "agent_steps", "score", "loss"])
    for row in rows:
        for step, score, loss in zip_longest(row["steps"], row["scores"], row["losses"], fillvalue=""):
            writer.writerow([row["label"], row["seed"], step, score, loss])
    return out.getvalue()


def report(experiment: Experiment, folder: Path) -> str:
    """Write table, CSV, JSON and pictures of what is there into `folder`; return the table."""
    rows = read_rows(folder)
    if rows:
        experiment.figures(rows, folder)
    text = markdown(experiment, rows, folder)
    (folder / "table.md").write_text(text, "utf-8")
    (folder / "rows.csv").write_text(as_csv(rows), "utf-8")
    (folder / "summary.json").write_text(json.dumps(summary(experiment, rows), indent=1) + "\n", "utf-8")
    return text
