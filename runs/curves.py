"""Learning curves as runs keep them, and which runs are replications of one another.

A curve comes from evaluations.jsonl (whole games of a checkpoint) or from progress.csv (the running mean over the
last training games). Both hold raw, full-game returns over agent steps.
"""

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurocoder.errors import NeurocoderError
from neurocoder.runs.config import TrainConfig, flat
from neurocoder.runs.run import Run

Metric = Literal["evaluation", "training"]

NOT_LEARNING = (
    "seed",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "milestone_every",
    "max_restarts",
    "worker_timeout",
)
"""Keys of a configuration that change nothing about what is learned: runs that differ in these are replications."""


class CompareError(NeurocoderError):
    """Raised when runs cannot be compared, or a file that holds their scores is damaged."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Raw scores [n] at agent steps [n], which increase."""

    agent_steps: np.ndarray
    scores: np.ndarray
    deterministic: bool | None = None
    """Whether evaluated games took the most probable actions; None for training games."""


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """A run and its learning curve."""

    path: Path
    config: TrainConfig
    protocol: dict[str, Any]
    """What protocol.json holds."""
    curve: Curve

    @property
    def meaning(self) -> str:
        """What its scores mean: the protocol's hash and, of evaluated games, how actions were chosen."""
        actions = {None: "", False: ", sampled actions", True: ", most probable actions"}
        return (self.config.protocol_hash or "no protocol") + actions[self.curve.deterministic]

    @property
    def settings(self) -> dict[str, Any]:
        """What makes this run what it is, by dotted name, without the environment and the seed."""
        config = dataclasses.asdict(self.config)
        for key in ("env", "protocol", "vectorization", "evaluation", *NOT_LEARNING):
            del config[key]
        settings = {"protocol": self.config.protocol_hash, **flat(config)}  # its hash covers the engine
        if self.curve.deterministic is not None:
            settings["evaluation.deterministic"] = self.curve.deterministic
            settings["evaluation.stuck_after"] = self.config.evaluation.stuck_after
        return settings


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in their seeds only; `label` says what sets them apart from the other groups."""

    label: str
    env: str
    runs: tuple[ScoredRun, ...]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs, sorted, each once: the same seed twice is no second replication."""
        return sorted({run.config.seed for run in self.runs})

    @property
    def curves(self) -> list[Curve]:
        return [run.curve for run in self.runs]

    @property
    def meaning(self) -> str:
        """What the scores of all of them mean, see ``ScoredRun.meaning``."""
        return self.runs[0].meaning


# ------------------------------------------------------------------------------------- reading runs


def find(texts: Sequence[str], logs: Path) -> list[Run]:
    """Return the runs that `texts` name, each once: run folders, or folders of runs (one or two levels down)."""
    found: dict[Path, Run] = {}
    for text in texts:
        for run in _below(text, logs) or [Run.open(text, logs)]:
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def _below(text: str, logs: Path) -> list[Run]:
    for folder in (Path(text), logs / text):
        if not (folder / "config.toml").is_file():
            files = sorted([*folder.glob("*/config.toml"), *folder.glob("*/*/config.toml")])
            if files:
                return [Run(file.parent) for file in files]
    return []


def read(runs: Sequence[Run], metric: Metric | None = None) -> tuple[Metric, list[ScoredRun]]:
    """Return which metric was read, and the runs with their curves.

    Without a `metric` it is evaluation if all runs were evaluated while they trained, training otherwise.

    Raises
    ------
    CompareError
        A run has no scores of that kind yet, or a file of it is damaged: names file and line.
    """
    configs = [run.config() for run in runs]
    protocols = [_read_protocol(run, config) for run, config in zip(runs, configs, strict=True)]
    curves: list[Curve] = []
    if metric != "training":
        lines = [
            read_evaluations(run, config.protocol_hash) for run, config in zip(runs, configs, strict=True)
        ]
        if metric is None:
            during = all(any(line.get("source") == "training" for line in of_run) for of_run in lines)
            metric = "evaluation" if during else "training"
        if metric == "evaluation":
            curves = [evaluation_curve(run, of_run) for run, of_run in zip(runs, lines, strict=True)]
    if metric == "training":
        curves = [read_progress(run.progress_file) for run in runs]
    return metric, [
        ScoredRun(run.path, config, record, curve)
        for run, config, record, curve in zip(runs, configs, protocols, curves, strict=True)
    ]


def _read_protocol(run: Run, config: TrainConfig) -> dict[str, Any]:
    """Return protocol.json, which must be about the environment and protocol of `config`."""
    file = run.path / "protocol.json"
    try:
        record = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise CompareError(f"{file}: no such file; without it nobody knows what the scores mean") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CompareError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(record, dict):
        raise CompareError(f"{file}: expected a table, got {str(record)[:60]!r}")
    expected = (config.env, config.protocol_hash)
    found = (record.get("env"), record.get("hash"))
    if found != expected:
        raise CompareError(
            f"{file}: environment {found[0]} and protocol {found[1]}, but config.toml has {expected[0]} and "
            f"{expected[1]}: one of the two files was changed, or written by another version of neurocoder"
        )
    return record


def read_evaluations(run: Run, protocol_hash: str | None) -> list[dict[str, Any]]:
    """Return the checked lines of evaluations.jsonl, none if the file is not there."""
    file = run.path / "evaluations.jsonl"
    try:
        texts = file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise CompareError(f"{file}: not readable: {error}") from None
    lines = []
    for number, text in enumerate(texts, 1):
        line = _evaluation(text)
        if line is None:
            raise CompareError(f"{file}:{number}: damaged: expected an evaluation as JSON, got {text[:60]!r}")
        if line["protocol_hash"] != protocol_hash:
            raise CompareError(
                f"{file}:{number}: scored under protocol {line['protocol_hash']}, but the run has {protocol_hash}"
            )
        lines.append(line)
    return lines


def _evaluation(text: str) -> dict[str, Any] | None:
    """Return a parsed line of evaluations.jsonl, None if it is none."""
    try:
        line = json.loads(text)
        steps, mean, deterministic = line["checkpoint"], line["mean"], line["deterministic"]
        known = "protocol_hash" in line and isinstance(deterministic, bool) and math.isfinite(mean)
        return line if known and type(steps) is int and 0 <= steps < 2**63 else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def evaluation_curve(run: Run, lines: list[dict[str, Any]]) -> Curve:
    """Return the curve of evaluations while training; without any, of those that ``neurocoder eval`` made.

    Among the latter, games with sampled actions come first. The newest evaluation of a checkpoint counts.
    """
    if not lines:
        raise CompareError(
            f"{run.path / 'evaluations.jsonl'}: no evaluation in it; use --metric training, or neurocoder eval"
        )
    lines = [line for line in lines if line.get("source") == "training"] or lines
    lines = [line for line in lines if not line["deterministic"]] or lines
    score = {line["checkpoint"]: float(line["mean"]) for line in lines}
    steps = sorted(score)
    return Curve(np.array(steps), np.array([score[step] for step in steps]), lines[0]["deterministic"])


def read_progress(file: Path) -> Curve:
    """Return agent steps and mean returns in progress.csv, from the first episode that ended."""
    steps: list[int] = []
    scores: list[float] = []
    previous = -1
    try:
        with file.open(newline="", encoding="utf-8") as text:
            reader = csv.DictReader(text)
            for row in reader:
                line = f"{file}:{reader.line_num}"
                try:
                    step, score = int(row["agent_steps"]), row["mean_return"]
                    number = float(score) if score != "" else None
                except (KeyError, TypeError, ValueError):
                    raise CompareError(
                        f"{line}: damaged: expected numbers in the columns agent_steps and mean_return"
                    ) from None
                whole = previous < step < 2**63 and None not in row
                if not whole or (number is not None and not math.isfinite(number)):
                    raise CompareError(f"{line}: damaged: expected more agent steps than before and a score")
                previous = step
                if number is not None:  # no episode had ended before
                    steps.append(step)
                    scores.append(number)
    except FileNotFoundError:
        raise CompareError(f"{file}: no such file; this run has no scores yet") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CompareError(f"{file}: not readable as CSV: {error}") from None
    if not steps:
        raise CompareError(f"{file}: no episode has ended in this run, so it has no score yet")
    return Curve(np.array(steps), np.array(scores))


# ------------------------------------------------------------------------------------ grouping runs


def refuse_mixture(runs: Sequence[ScoredRun], normalisable: set[str]) -> None:
    """Raise unless the scores of all runs mean the same.

    Scores under different protocols never do; those of several environments do where all of them are
    `normalisable`, by human and random players.
    """
    hint = "--mixed-protocols shows them side by side"
    examples: dict[str, list[ScoredRun]] = {}
    for run in runs:
        examples.setdefault(run.meaning, []).append(run)
    if len(examples) > 1:
        named = "; ".join(f"{meaning}: {_names(group)}" for meaning, group in examples.items())
        raise CompareError(f"these scores are of different protocols ({named}); {hint}")
    envs = list(dict.fromkeys(run.config.env for run in runs))
    if len(envs) > 1 and (foreign := [env for env in envs if env not in normalisable]):
        raise CompareError(
            f"raw scores of different environments ({', '.join(envs)}) have no common scale, and "
            f"{', '.join(foreign)} has no human score to make one; {hint}"
        )


def _names(runs: Sequence[ScoredRun]) -> str:
    return str(runs[0].path) + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")


def group(runs: Sequence[ScoredRun]) -> list[Group]:
    """Return the runs, replications together: same environment, same protocol, same settings."""
    members: dict[tuple[str, str], list[ScoredRun]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        key = json.dumps(run.settings, sort_keys=True, default=str)
        settings[key] = run.settings
        members.setdefault((run.config.env, key), []).append(run)
    labels = dict(zip(settings, label(list(settings.values())), strict=True))
    ordered = [
        Group(labels[key], env, tuple(sorted(group, key=lambda run: run.config.seed)))
        for (env, key), group in members.items()
    ]
    return sorted(ordered, key=lambda group: group.env)


def label(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return a name for each of several settings: what differs between them.

    An option that only some of them have (as a head's own) is named only if nothing else tells them apart, and
    is ``default`` where it is not given. A single one is named by its head.
    """
    keys = list(dict.fromkeys(key for each in settings for key in each))
    differing = [key for key in keys if len({repr(each.get(key)) for each in settings}) > 1]
    shared = [key for key in differing if all(key in each for each in settings)]
    for chosen in (shared, differing):
        last = [key.rpartition(".")[2] for key in chosen]
        names = {key: name if last.count(name) == 1 else key for key, name in zip(chosen, last, strict=True)}
        labels = [
            ", ".join(f"{names[key]}={each.get(key, 'default')}" for key in chosen) for each in settings
        ]
        if chosen and len(set(labels)) == len(settings):
            return labels
    return [f"head={each['policy.head']}" for each in settings]
