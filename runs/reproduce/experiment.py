"""Experiments: settings that are trained over seeds, one row for each run.

``reproduce.trainings`` makes the rows, ``reproduce.report`` a table of them.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from neurocoder.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of a table: what is trained, and what the paper prints for it."""

    label: str
    env: str
    recipe: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys of the configuration."""
    published: str = ""
    published_parameters: str = ""
    """As Table 6 has them, e.g. "1.7M"."""

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
    matrix: list[list[float]]
    """Of continual learning: accuracies of all tasks, before the first and after each. Empty for anything else."""
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
    shares_with: Sequence[str] = ()
    """Experiments some of whose runs are this one's, too."""


def named(settings: Sequence[Setting], texts: Sequence[str]) -> list[Setting]:
    """Return the settings that `texts` name: each the one that is called so, or else all whose name contains it.

    Raises
    ------
    ConfigError
        A text that names none.
    """
    labels: set[str] = set()
    for text in texts:
        called = {s.label for s in settings if s.label == text} or {
            s.label for s in settings if text in s.label
        }
        if not called:
            known = ", ".join(repr(setting.label) for setting in settings)
            raise ConfigError(f"--only {text}: no setting is called like that; known: {known}")
        labels |= called
    return [setting for setting in settings if setting.label in labels]


def slug(label: str) -> str:
    """Return `label` as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def read_rows(folder: Path) -> list[Row]:
    """Return the finished runs of an experiment's folder."""
    file = folder / "rows.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
