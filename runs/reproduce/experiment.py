"""Experiments: settings trained over seeds with the toolkit's own command, one row for each run, and a table of them.

A finished run is a line of ``rows.jsonl`` and is never run again; one that was interrupted goes on from its last
checkpoint (``neurocoder train --resume``).
"""

import csv
import io
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import tomli_w

from neurocoder.agents.continual_metrics import summary as summary_of_matrix
from neurocoder.errors import NeurocoderError
from neurocoder.runs.checkpoint import saved_steps
from neurocoder.runs.config import parse_override, resolve
from neurocoder.runs.run import find_runs

PACKAGES = ("neurocoder", "torch", "numpy", "gymnasium")


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of a table: what is trained, and what the paper prints for it."""

    label: str
    env: str
    recipe: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys of the configuration."""
    published: str = ""

    def with_overrides(self, **more: Any) -> "Setting":
        """Return the setting with more overrides; their dots are written ``__``."""
        changes = {name.replace("__", "."): value for name, value in more.items()}
        return replace(self, overrides={**self.overrides, **changes})


class Row(TypedDict):
    """One run. Scores are raw returns: accuracies in percent, or minus summed errors."""

    label: str
    seed: int
    parameters: int
    steps: list[int]
    """Agent steps of the evaluations."""
    scores: list[float]
    losses: list[float]
    """Empty where only accuracies are known."""
    measures: dict[str, float]
    """Of continual learning: see ``agents.continual_metrics``."""
    scored: int
    """Predictions of each evaluation; 0 where that is not known."""
    data: str
    minutes: float
    run: str
    """Its folder, below the experiment's."""
    command: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a row came to, for a table: `factor` times its "scores" or "losses"."""

    name: str
    key: Literal["scores", "losses"]
    higher: bool
    """Whether more is better."""
    digits: int
    factor: float = 1.0

    def of(self, row: Row) -> list[float]:
        """Return the values of a row's checkpoints."""
        return [self.factor * value + 0.0 for value in row[self.key]]  # no minus zero

    def best(self, values: Iterable[float]) -> float:
        """Return the best of `values`."""
        return max(values) if self.higher else min(values)

    def show(self, value: float) -> str:
        """Return `value` as it is printed."""
        return f"{value:.{self.digits}f}"


ACCURACY = Metric("accuracy", "scores", higher=True, digits=2)
LOSS = Metric("loss", "losses", higher=False, digits=5)
WRONG_BITS = Metric("wrong bits", "scores", higher=False, digits=3, factor=-1.0)


@dataclass(frozen=True, slots=True)
class Experiment:
    """A table or a figure of the paper."""

    name: str
    title: str
    settings: Sequence[Setting]
    quick: Mapping[str, Any]
    """Overrides for a look in a few minutes."""
    seeds: int
    metric: Metric
    verdict: Callable[[Sequence[Row], Path], str]
    """What the rows, and the files that `figures` left in the experiment's folder, say: in sentences."""
    figures: Callable[[Sequence[Row], Path], None]
    """Draws pictures into the experiment's folder, from the rows and the runs in it."""
    prepare: Callable[[], None] = lambda: None
    """Makes what all runs need, unless it is there."""


def command_of(setting: Setting, seed: int, logs: Path) -> list[str]:
    """Return the arguments of ``neurocoder`` that train `setting`."""
    arguments = ["train", setting.env, "--recipe", setting.recipe, "--seed", str(seed), "--logs", str(logs)]
    for name, value in setting.overrides.items():
        arguments += ["--set", f"{name}={_toml(value)}"]
    return arguments


def _toml(value: Any) -> str:
    """Return `value` as TOML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    text = tomli_w.dumps({"value": value}).removeprefix("value = ")
    return " ".join(text.split())


def train(setting: Setting, seed: int, folder: Path) -> Row:
    """Train `setting` with `seed`, or what is left of it, in one thread; return its row.

    Raises
    ------
    NeurocoderError
        The training failed; its last words are repeated.
    """
    logs = folder / "runs" / f"{slug(setting.label)}-seed{seed}"
    found = find_runs(logs)
    arguments = command_of(setting, seed, logs)
    began = time.monotonic()
    if found and saved_steps(found[0].checkpoints):
        _neurocoder(["train", "--resume", str(found[0].path)])
    else:
        _neurocoder(arguments)
    (run,) = find_runs(logs)
    scores = [json.loads(line) for line in (run.path / "evaluations.jsonl").read_text("utf-8").splitlines()]
    last = {score["checkpoint"]: score for score in scores}  # a resumed run may have scored one twice
    kept = [last[step] for step in sorted(last)]
    state = json.loads(
        (run.checkpoints / str(saved_steps(run.checkpoints)[-1]) / "state.json").read_text("utf-8")
    )
    minutes = max(time.monotonic() - began, float(state["seconds"])) / 60
    shown = ["neurocoder", *(part.replace(str(folder), "logs") for part in arguments)]
    return Row(
        label=setting.label,
        seed=seed,
        parameters=_count(run.path),
        steps=[score["checkpoint"] for score in kept],
        scores=[round(score["mean"], 4) for score in kept],
        losses=[round(score["loss"], 6) for score in kept if "loss" in score],
        measures=_measures(run.path / "matrix.csv"),
        scored=kept[-1].get("scored", 0),
        data=kept[-1]["data"],
        minutes=round(minutes, 2),
        run=str(run.path.relative_to(folder)),
        command=shlex.join(shown),
        versions={name: metadata.version(name) for name in PACKAGES},
    )


def _measures(matrix: Path) -> dict[str, float]:
    """Return the metrics of a run that learned tasks one after the other; none of another."""
    if not matrix.exists():
        return {}
    with matrix.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    n_tasks = 1 + max(int(line["task"]) for line in lines)
    accuracies = np.array([float(line.get("accuracy") or line["score"]) for line in lines]).reshape(
        -1, n_tasks
    )
    return {name: round(value, 4) for name, value in summary_of_matrix(accuracies).items()}


def _neurocoder(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "neurocoder.runs.cli", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise NeurocoderError(f"neurocoder {shlex.join(arguments)} failed: {done.stderr.strip()[-500:]}")


def _count(run: Path) -> int:
    from safetensors import safe_open

    newest = saved_steps(run / "checkpoints")[-1]
    with safe_open(run / "checkpoints" / str(newest) / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118  # no mapping


def slug(label: str) -> str:
    """Return `label` as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def read_rows(folder: Path) -> list[Row]:
    """Return the finished runs of an experiment's folder."""
    file = folder / "rows.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def check(experiment: Experiment) -> None:
    """Raise a ConfigError if a setting of `experiment` is not one that could be trained."""
    for setting in experiment.settings:
        overrides = dict(parse_override(text) for text in command_of(setting, 0, Path())[9::2])
        resolve(setting.env, setting.recipe, overrides, setting.label)


def run_missing(experiment: Experiment, folder: Path, seeds: int, jobs: int, only: str | None = None) -> None:
    """Train what is not there yet, `jobs` runs side by side, adding each finished one to ``rows.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    have = {(row["label"], row["seed"]) for row in read_rows(folder)}
    missing = [
        (setting, seed)
        for seed in range(seeds)
        for setting in experiment.settings
        if (setting.label, seed) not in have and (only is None or only in setting.label)
    ]
    began = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train, setting, seed, folder) for setting, seed in missing]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                row = future.result()
                with (folder / "rows.jsonl").open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(row) + "\n")
                left = (time.monotonic() - began) / number * (len(missing) - number) / 60
                print(
                    f"{number}/{len(missing)}  {row['label']}, seed {row['seed']}: "
                    f"{experiment.metric.show(experiment.metric.of(row)[-1])} ({row['minutes']:.1f} min; {left:.0f} min left)",
                    flush=True,
                )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# ------------------------------------------------------------------------------------------- the table


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
    return "\n\n".join([*parts, experiment.verdict(rows, folder)]) + "\n"


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
