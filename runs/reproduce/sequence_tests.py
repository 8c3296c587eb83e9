"""Trained networks on other sequences than those that they learned from, and with other memories; kept in ``tests.json``."""

import copy
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np

from neurocoder.agents.supervised import batches, evaluate_predictions
from neurocoder.envs import make_tasks
from neurocoder.policies.ntm import NTMCore
from neurocoder.runs.reproduce.experiment import Row
from neurocoder.runs.reproduce.trained import Trained

TESTED, SWEPT, TEST_BATCH, TEST_SEED = 1024, 256, 32, 20141020
"""Sequences of each test and of each point of a sweep, how many of them have one length, and their seed."""
TESTS_FILE = "tests.json"


@dataclass(frozen=True, slots=True)
class Test:
    """Sequences that a trained network is tried on: options of the environment, and what was to be reached."""

    name: str
    options: Mapping[str, int] = field(default_factory=dict)
    target: float | None = None
    """Bits per sequence that the best and the median seed of the machine should stay below."""
    rows: int = 128
    """Of a machine's memory, whatever it was trained with; the paper's unless said."""

    def set_up(self, trained: Trained) -> Trained:
        """Return `trained` with the test's options, and its memory."""
        if isinstance(trained.policy.core, NTMCore):
            trained = trained._replace(policy=copy.deepcopy(trained.policy))
            core = trained.policy.core
            assert isinstance(core, NTMCore)
            core.resize(self.rows)
        return trained._replace(options={**trained.options, **self.options})


@dataclass(frozen=True, slots=True)
class Sweep:
    """Tests along one range of the environment, e.g. length: the picture of errors by length."""

    name: str
    learned: int
    """The upper end in training."""
    values: Sequence[int]
    others: Mapping[str, int] = field(default_factory=dict)
    """The environment's other options."""

    def tests(self) -> list[Test]:
        """Return a test for each value."""
        return [Test(f"{self.name} {n}", {**self.others, **exactly(**{self.name: n})}) for n in self.values]


class Tested(TypedDict):
    """What the tests of one run found: bits per sequence, wrong or as predictions cost."""

    run: str
    """Its folder, as in the row."""
    results: dict[str, float]
    """By name of the test."""
    sweeps: dict[str, dict[str, float]]
    """By name of the sweep, by value."""


def exactly(**ranges: int) -> dict[str, int]:
    """Return ranges that are one value each: length=50 is min_length=50, max_length=50."""
    return {f"{end}_{name}": value for name, value in ranges.items() for end in ("min", "max")}


def longest(options: Mapping[str, int]) -> dict[str, int]:
    """Return options whose every range is at its upper end."""
    tops = {name.removeprefix("max_"): value for name, value in options.items() if name.startswith("max_")}
    return exactly(**tops)


def bits(trained: Trained, test: Test, n: int, *, coded: bool) -> float:
    """Return the wrong bits per sequence of `n`, or what their predictions cost in bits (-log2 p)."""
    trained = test.set_up(trained)
    envs = make_tasks(trained.env, TEST_BATCH, trained.options)
    found = evaluate_predictions(trained.policy, envs, n // TEST_BATCH, TEST_SEED)
    if coded:
        return found.loss * found.scored / n / math.log(2)
    return 0.0 - statistics.mean(found.returns)


def best_bits(trained: Trained, optimum: Callable[[np.ndarray], np.ndarray], n: int) -> float:
    """Return what the best predictor's predictions cost in bits, for the `n` sequences of :func:`bits`."""
    envs = make_tasks(trained.env, TEST_BATCH, trained.options)
    source = batches(envs, *envs.reset(seed=TEST_SEED))
    costs = [optimum(next(source).target[..., 0].numpy()) for _ in range(n // TEST_BATCH)]
    return float(np.mean(costs))


def swept(trained: Trained, sweeps: Sequence[Sweep]) -> dict[str, dict[str, float]]:
    """Return the wrong bits per sequence at every value of every sweep."""
    return {
        sweep.name: {
            str(n): round(bits(trained, test, SWEPT, coded=False), 5)
            for n, test in zip(sweep.values, sweep.tests(), strict=True)
        }
        for sweep in sweeps
    }


# ------------------------------------------------------------------------------------------- what is kept


def key_of(row: Row) -> str:
    """Return what a run is called in ``tests.json``."""
    return f"{row['label']}, seed {row['seed']}"


def read_tests(folder: Path) -> dict[str, Tested]:
    """Return the tests that are kept in an experiment's folder, by run."""
    file = folder / TESTS_FILE
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def write_tests(folder: Path, tests: Mapping[str, Tested]) -> None:
    """Keep `tests`."""
    (folder / TESTS_FILE).write_text(json.dumps(tests, indent=1) + "\n", "utf-8")


def are_of(tests: Tested | None, row: Row, names: Sequence[str], sweeps: Sequence[Sweep]) -> bool:
    """Whether `tests` are those of the row's training, and all of them."""
    return (
        tests is not None
        and tests.get("run") == row["run"]
        and set(names) <= tests["results"].keys()
        and all(tests["sweeps"].get(s.name, {}).keys() >= set(map(str, s.values)) for s in sweeps)
    )
