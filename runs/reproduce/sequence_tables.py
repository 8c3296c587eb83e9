"""The Neural Turing Machine's five tasks (Graves, Wayne and Danihelka 2014, section 4), and what becomes of longer sequences.

Networks are the paper's: controllers of 100 units with one read and one write head and a memory of 128 × 20 unless said,
LSTMs of three layers. Learning is not: Adam at 1e-3 down to 0 (a cosine), batches of 16 sequences of one length, where the
paper has RMSProp and single sequences. N-grams are learned at 3e-3 and begin with two contexts, repeat copy begins with one
repeat, copying with a feed-forward machine with two vectors, sorting with an LSTM with one item to say. What is tested is the
last checkpoint, with 128 rows whatever was trained: no parameter depends on their number, and a sequence that would all but
fill them is tested with more of them, too. A wrong bit is an output on the wrong side of one half; a sequence counts all of
its wrong bits.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neurocoder.envs.sequences import bayes_bits
from neurocoder.policies.ntm import NTMCore
from neurocoder.runs.reproduce.experiment import LOSS, WRONG_BITS, Experiment, Metric, Row, Setting, slug
from neurocoder.runs.reproduce.pictures import curves
from neurocoder.runs.reproduce.sequence_pictures import draw_errors, draw_memory, draw_strips
from neurocoder.runs.reproduce.sequence_tests import (
    TESTED,
    Sweep,
    Test,
    Tested,
    are_of,
    best_bits,
    bits,
    exactly,
    key_of,
    longest,
    read_tests,
    swept,
    write_tests,
)
from neurocoder.runs.reproduce.sorted_memory import order, sorted_by_address
from neurocoder.runs.reproduce.trained import Trained, open_row
from neurocoder.runs.reproduce.verdicts import against

BATCH = 16
"""Sequences of an update, as the recipes have it. With 32 the feed-forward machine does not learn to copy in the same time."""
LSTM, FEEDFORWARD, BASELINE = "NTM, LSTM controller", "NTM, feed-forward controller", "LSTM, 3 layers"


@dataclass(frozen=True, slots=True)
class Table:
    """One of the paper's tasks."""

    name: str
    title: str
    env: str
    recipe: str
    updates: int
    mean_steps: float
    """Of a training sequence."""
    tests: Sequence[Test]
    networks: Mapping[str, Mapping[str, Any]]
    """Overrides of the recipe's policy."""
    common: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)
    """What the paper's curves show of each network, in words."""
    coded: bool = False
    """Whether what counts is the bits that the predictions cost, not how many of them are wrong."""
    sweeps: Sequence[Sweep] = ()
    """What the errors are drawn over."""
    optimum: Callable[[np.ndarray], np.ndarray] | None = None
    """The bits that the best predictor's predictions cost, [B] for targets [T, B]."""
    measure: Callable[[Trained, Path | None], dict[str, float]] | None = None
    """What else a machine is asked, and where that is drawn."""

    claims: Callable[[Mapping[str, Mapping[str, float]]], list[str]] = lambda done: []
    """What the tests and measures of all runs say of claims about the machine, in sentences."""

    @property
    def metric(self) -> Metric:
        """What the training's evaluations are read by."""
        return LOSS if self.coded else WRONG_BITS

    def settings(self) -> list[Setting]:
        """Return the lines of the table."""
        steps = round(self.updates * self.mean_steps) * BATCH
        every = math.ceil(steps / 20)
        overrides = {
            "steps": 20 * every,
            "checkpoint_every": every,
            "evaluation.every": every,
            "keep_checkpoints": 1,
            "milestone_every": 0,
            **self.common,
        }
        return [
            Setting(label, self.env, self.recipe, {**overrides, **network}, self.published.get(label, ""))
            for label, network in self.networks.items()
        ]


def figures(table: Table, rows: Sequence[Row], folder: Path) -> None:
    """Test what has not been tested yet, and draw the paper's pictures."""
    kept = {key_of(row): row for row in rows}
    tested = read_tests(folder)
    done = {
        key: tests for key, tests in tested.items() if key in kept and tests.get("run") == kept[key]["run"]
    }
    for key, row in kept.items():
        names = [test.name for test in table.tests]
        if are_of(done.get(key), row, names, table.sweeps) or (trained := open_row(folder, row)) is None:
            continue
        results = {test.name: bits(trained, test, TESTED, coded=table.coded) for test in table.tests}
        if table.optimum is not None:
            results["optimum"] = best_bits(trained, table.optimum, TESTED)
        if table.measure is not None and row["label"] != BASELINE:
            picture = folder / f"{slug(key)}-order.png" if row["seed"] == 0 else None
            results |= table.measure(trained, picture)
        if row["seed"] == 0:
            _draw(table, trained, key, folder)
        done[key] = Tested(
            run=row["run"],
            results={name: round(value, 5) for name, value in results.items()},
            sweeps=swept(trained, table.sweeps),
        )
        write_tests(folder, done)
    curves(
        rows,
        folder / "curves.png",
        table.metric,
        per_unit=1e6,
        unit="million steps of sequences",
        title=table.title,
    )
    by_run = {
        key: {
            name: {int(n): wrong for n, wrong in points.items()} for name, points in tests["sweeps"].items()
        }
        for key, tests in done.items()
        if tests["sweeps"]
    }
    if by_run:
        draw_errors(by_run, {sweep.name: sweep.learned for sweep in table.sweeps}, folder / "errors.png")


def _draw(table: Table, trained: Trained, key: str, folder: Path) -> None:
    for test in table.tests:
        shown = test.set_up(trained)
        shown = shown._replace(options={**shown.options, **longest(test.options)})
        draw_strips(shown, folder / f"{slug(key)}-{slug(test.name)}.png", f"{key}: {test.name}")
        if test is table.tests[0] and isinstance(trained.policy.core, NTMCore):
            draw_memory(shown, folder / f"{slug(key)}-memory.png", f"{key}: {test.name}")


def verdict(table: Table, rows: Sequence[Row], folder: Path) -> str:
    """Return the tests of every seed as a table, whether the targets are met, and which network is better."""
    done = {key: tests["results"] for key, tests in read_tests(folder).items()}
    if not done:
        return ""
    names = list(dict.fromkeys(name for results in done.values() for name in results))
    unit = "bits that predictions cost" if table.coded else "wrong bits"
    lines = [f"Tests, {unit} per sequence ({TESTED:,} sequences each):", ""]
    lines += ["| run | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for key in sorted(done):
        cells = (f"{done[key][name]:.4g}" if name in done[key] else "" for name in names)
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    lines.append("")
    for label in table.networks:
        for test in table.tests:
            if label != BASELINE and (sentence := _judged(test, label, done)):
                lines.append(sentence)
    pairs = [(LSTM, BASELINE), (FEEDFORWARD, BASELINE), (LSTM, FEEDFORWARD)]
    sentences = (against(rows, ours, other, table.metric) for ours, other in pairs)
    lines += [f"- At the end of training: {sentence}" for sentence in sentences if sentence]
    lines += table.claims(done)
    return "\n".join(lines)


def _judged(test: Test, label: str, done: Mapping[str, Mapping[str, float]]) -> str:
    """Say whether a machine's seeds met the test's target; nothing where there is none."""
    values = sorted(results[test.name] for key, results in done.items() if key.startswith(f"{label}, seed"))
    if test.target is None or not values:
        return ""
    median = statistics.median(values)
    if median < test.target:
        word = "met"
    elif values[0] < test.target:
        word = "met by the best seed only"
    else:
        word = "missed"
    return (
        f"- {label}, {test.name}: best {values[0]:.4g}, median {median:.4g} of {len(values)} seeds "
        f"(target: below {test.target:g}): {word}."
    )


# --------------------------------------------------------------------------------------------- the five


def _ntm(controller: str = "lstm", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"policy.core": "ntm", "policy.core_config": {}}
    found["policy.core_config.controller"] = controller
    return found | {f"policy.{name.replace('__', '.')}": value for name, value in more.items()}


def _baseline(size: int) -> dict[str, Any]:
    return {
        "policy.core": "lstm",
        "policy.core_size": size,
        "policy.core_config": {},
        "policy.core_config.layers": 3,
    }


FAR: dict[str, Any] = {
    "policy.core_config.first_heads": {"sharpening": 3.0, "gate": 0.05},
    "policy.core_config.memory_init": "learned",
    "supervised.max_grad_norm": 0.05,
    "supervised.learning_rate": 5e-4,
    "supervised.memory_rows": [24, 128],
    "supervised.curriculum.start.max_length": 2,
    "supervised.curriculum.end.max_length": 20,
    "supervised.curriculum.updates": 10_000,
}
"""How a feed-forward machine comes to copy six times as many vectors as it has learned: three of six seeds, of which
the table has the first three. Trained like the LSTM's, all copy 20, and none 120.

It remembers nothing but what it has read: in a row of the memory, where its heads are. So they begin by moving from row to
row instead of looking for contents, and sharp: with the 1.69 that zeros make, the write head attended to its row by 0.17 at
the 120th. A vector of zeros looks to it like the time to answer, unless an unwritten row looks like no vector: one of 256
vectors is such, and short sequences, with which it begins, hold few others to hide it. Adam adapts to gradients as short as
0.01: the few as long as 35 that such vectors make later let it forget for good, unless each is cut to what is usual. A
memory of 24 rows, every other batch, is nearly full by then, as one of 128 is in the tests; half the rate is what this needs.
"""
COPY = Table(
    "ntm-copy",
    "Copy",
    "neurocoder/Copy-v0",
    "ntm-copy",
    updates=20_000,
    mean_steps=22,
    tests=(
        Test("lengths 1 to 20", {"min_length": 1, "max_length": 20}, 0.01),
        Test("length 30", exactly(length=30)),
        Test("length 50", exactly(length=50), 0.1),
        Test("length 120", exactly(length=120), 1.0),
        Test("length 120, 256 rows", exactly(length=120), 1.0, rows=256),
    ),
    sweeps=(Sweep("length", 20, (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120)),),
    networks={
        LSTM: _ntm(),
        FEEDFORWARD: {**_ntm("feedforward"), **FAR},
        BASELINE: _baseline(256),
    },
    published={LSTM: "near 0", FEEDFORWARD: "near 0", BASELINE: "slower; breaks past 20"},
)
REPEAT_COPY = Table(
    "ntm-repeat-copy",
    "Repeat copy",
    "neurocoder/RepeatCopy-v0",
    "ntm-repeat-copy",
    updates=12_000,
    mean_steps=37.75,
    tests=(
        Test(
            "lengths and repeats 1 to 10",
            {"min_length": 1, "max_length": 10, "min_repeats": 1, "max_repeats": 10},
            0.1,
        ),
        Test("length 20, 10 repeats", exactly(length=20, repeats=10)),
        Test("length 10, 20 repeats", exactly(length=10, repeats=20)),
    ),
    sweeps=(
        Sweep("length", 10, (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20), exactly(repeats=10)),
        Sweep("repeats", 10, (1, 2, 4, 6, 8, 10, 11, 12, 14, 16, 18, 20), exactly(length=10)),
    ),
    networks={LSTM: _ntm(), FEEDFORWARD: _ntm("feedforward"), BASELINE: _baseline(512)},
    published={LSTM: "near 0", FEEDFORWARD: "near 0", BASELINE: "near 0, later"},
)
RECALL = Table(
    "ntm-recall",
    "Associative recall",
    "neurocoder/AssociativeRecall-v0",
    "ntm-recall",
    updates=8_000,
    mean_steps=24,
    tests=(
        Test("6 items", exactly(items=6), 0.1),
        Test("10 items", exactly(items=10)),
        Test("12 items", exactly(items=12)),
        Test("15 items", exactly(items=15), 1.0),
    ),
    sweeps=(Sweep("items", 6, (2, 3, 4, 5, 6, 8, 10, 12, 15, 20)),),
    networks={
        LSTM: _ntm(),
        FEEDFORWARD: _ntm(
            "feedforward", core_size=256, core_config__read_heads=4, core_config__write_heads=4
        ),
        BASELINE: _baseline(256),
    },
    published={LSTM: "near 0", FEEDFORWARD: "near 0 after 30,000 sequences", BASELINE: "not near 0"},
)
COUNTING: dict[str, Any] = {
    "core_config__memory_init": "binary",
    "core_config__first_heads": {"strength": 10.0, "gate": 0.95, "stay": 0.95, "erase": 0.02},
}
"""Rows with addresses that last, looked up by content: what was seen after each context may be kept in a row of its own."""
NGRAMS = Table(
    "ntm-ngrams",
    "Dynamic 6-grams",
    "neurocoder/DynamicNGrams-v0",
    "ntm-ngrams",
    updates=4_500,
    mean_steps=200,
    tests=(Test("200 bits"),),
    networks={
        LSTM: _ntm(**COUNTING),
        FEEDFORWARD: _ntm("feedforward", **COUNTING),
        BASELINE: _baseline(128),
    },
    published={LSTM: "a little below the LSTM", FEEDFORWARD: "a little below the LSTM"},
    coded=True,
    optimum=bayes_bits,
)
SORTING: dict[str, Any] = {
    "core_config__read_heads": 4,
    "core_config__write_heads": 4,
    "core_config__memory_init": "positions",
}
"""Rows that know their places can be addressed by content: an item may go to where its priority belongs."""
MORE_AND_MORE = {
    "supervised.curriculum.start.targets": 1,
    "supervised.curriculum.end.targets": 8,
    "supervised.curriculum.updates": 6_000,
}
"""With all 8 from the start, an LSTM stays for thousands of updates with what it can say without sorting."""
SORT = Table(
    "ntm-sort",
    "Priority sort, all of 8",
    "neurocoder/PrioritySort-v0",
    "ntm-sort-small",
    updates=22_000,
    mean_steps=17,
    tests=(Test("8 items", {"items": 8, "targets": 8}),),
    networks={
        LSTM: {**_ntm(**SORTING), **MORE_AND_MORE},
        FEEDFORWARD: _ntm("feedforward", core_size=256, **SORTING),
        BASELINE: {**_baseline(128), **MORE_AND_MORE},
    },
    published={LSTM: "below the LSTM (8 heads, 16 of 20)", FEEDFORWARD: "below the LSTM (8 heads, 16 of 20)"},
    measure=order,
    claims=partial(sorted_by_address, labels=(LSTM, FEEDFORWARD)),
)


def _experiment(table: Table) -> Experiment:
    steps = round(100 * table.mean_steps) * BATCH
    quick = {
        "steps": 2 * steps,
        "checkpoint_every": steps,
        "evaluation.every": steps,
        "evaluation.episodes": 64,
    }
    return Experiment(
        table.name,
        table.title,
        table.settings(),
        quick=quick,
        seeds=3,
        metric=table.metric,
        verdict=partial(verdict, table),
        figures=partial(figures, table),
    )


NTM_COPY = _experiment(COPY)
NTM_REPEAT_COPY = _experiment(REPEAT_COPY)
NTM_RECALL = _experiment(RECALL)
NTM_NGRAMS = _experiment(NGRAMS)
NTM_SORT = _experiment(SORT)
