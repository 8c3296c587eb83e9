"""What became of an experiment: its table as Markdown, CSV and JSON."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from neurocoder.runs.reproduce.command_lines import is_of_today
from neurocoder.runs.reproduce.experiment import Experiment, Row, read_rows


def summary(experiment: Experiment, rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return a line for each setting that has rows: the score of its last checkpoints, and of the best of all."""
    lines = []
    for setting in experiment.settings:
        own = sorted((row for row in rows if row["label"] == setting.label), key=lambda row: row["seed"])
        if not own:
            continue
        metric = experiment.metric
        last = [metric.of(row)[-1] for row in own]
        best = metric.best(value for row in own for value in metric.of(row))
        spread = f" ± {metric.show(statistics.stdev(last))}" if len(last) > 1 else ""
        lines.append(
            {
                "setting": setting.label,
                "parameters": f"{own[0]['parameters']:,}",
                "seeds": str(len(own)),
                f"{metric.name} at the end": metric.show(statistics.mean(last)) + spread,
                "best of all": metric.show(best),
                "paper": setting.published,
                "minutes": f"{statistics.mean(row['minutes'] for row in own):.1f}",
            }
        )
    return lines


def markdown(experiment: Experiment, rows: Sequence[Row], folder: Path) -> str:
    """Return title, table, where the data comes from, and the verdict, as Markdown."""
    lines = summary(experiment, rows)
    if not lines:
        return f"# {experiment.title}\n\nNothing has been run yet.\n"
    header = list(lines[0])
    table = [header, ["---"] * len(header), *([line[name] for name in header] for line in lines)]
    data = sorted({row["data"] for row in rows if row["data"]})
    parts = [f"# {experiment.title}", "\n".join("| " + " | ".join(cells) + " |" for cells in table)]
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
