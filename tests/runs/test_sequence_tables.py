"""The Turing machine's tables: what is tested, how a sorted memory is recognised, and a table from end to end."""

from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

from neurocoder.envs import make_tasks
from neurocoder.envs.sequences import bayes_bits
from neurocoder.policies import Policy, PolicyConfig
from neurocoder.runs.reproduce import experiment as ex
from neurocoder.runs.reproduce import (
    sequence_pictures,
    sequence_tables,
    sequence_tests,
    sorted_memory,
    trainings,
)
from neurocoder.runs.reproduce.report import report
from neurocoder.runs.reproduce.sequence_tables import BASELINE, LSTM
from neurocoder.runs.reproduce.sorted_memory import circular_fit, circular_mean
from neurocoder.runs.reproduce.trained import Trained


def test_the_mean_of_a_circle_is_the_nearest_to_all():
    rng = np.random.default_rng(0)
    everywhere = np.linspace(0, 16, 1601)
    for n in range(1, 30):
        points = rng.integers(0, 16, n)
        cost = [np.square(np.minimum((points - c) % 16, (c - points) % 16)).sum() for c in everywhere]
        mean = circular_mean(points, 16)
        assert 0 <= mean < 16
        assert np.square(np.minimum((points - mean) % 16, (mean - points) % 16)).sum() <= min(cost) + 1e-9
    assert circular_mean(np.array([15, 1, 1, 15]), 16) == pytest.approx(0)


def test_a_line_through_a_circle_is_found():
    x = np.linspace(-1, 1, 200)
    location = np.round(10 * x + 3).astype(int) % 128  # crosses row 0
    line = circular_fit(x, location, 128)
    assert line.r_squared > 0.99 and line.slope == pytest.approx(10, rel=0.02)
    assert line.intercept == pytest.approx(3, abs=0.1)
    falling = circular_fit(x, np.round(-60 * x + 3).astype(int) % 128, 128)
    assert falling.r_squared > 0.99 and falling.slope == pytest.approx(-60, rel=0.01)
    noise = np.random.default_rng(0).integers(0, 128, 200)
    assert circular_fit(x, noise, 128).r_squared < 0.2
    assert circular_fit(x, np.full(200, 5), 128).r_squared == 0
    assert circular_fit(np.zeros(4), np.arange(4), 128).r_squared == 0


def test_r_squared_is_that_of_a_line_where_nothing_goes_round():
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, 400)
    y = 5 * x + 60 + rng.normal(0, 2, 400)
    assert circular_fit(x, y, 128).r_squared == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, abs=1e-6)


def test_points_far_from_a_line_do_not_make_another():
    """Where a circle is cut open beside them, ten strays turn a falling line into a steep rising one."""
    rank = np.repeat(np.arange(8), 128)
    location = np.round(-rank + np.random.default_rng(0).normal(0, 0.5, 1024)).astype(int)
    straight = circular_fit(rank, location % 128, 128)
    location[:10] = 72
    strayed = circular_fit(rank, location % 128, 128)
    assert straight.slope == pytest.approx(-1, abs=0.02) and straight.r_squared > 0.9
    assert -1 < strayed.slope < 0 and strayed.r_squared < straight.r_squared


def test_ranges_at_their_upper_end():
    assert sequence_tests.longest({"min_length": 1, "max_length": 20}) == {
        "min_length": 20,
        "max_length": 20,
    }
    assert sequence_tests.longest({"items": 8}) == {}


class Told(torch.nn.Module):
    """A policy that predicts a constant probability of 1 for every bit."""

    core = None

    def __init__(self, probability: float, n_bits: int) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.full((n_bits,), probability).logit())

    def initial_state(self, batch: int) -> tuple:
        return ()

    def evaluate(self, observation, state, start):
        from neurocoder.policies.policy import PolicyOutput

        return PolicyOutput(self.logit.expand(*start.shape, -1), None), None, torch.zeros(())


def test_bits_are_those_of_the_definition():
    copy = Trained(Told(0.7, 8), "neurocoder/Copy-v0", {})
    test = sequence_tests.Test("five", {"min_length": 5, "max_length": 5})
    wrong = sequence_tests.bits(copy, test, 1024, coded=False)  # always says 1: half of 40 bits are wrong
    assert wrong == pytest.approx(20, abs=0.5)
    even = Trained(Told(0.5, 1), "neurocoder/DynamicNGrams-v0", {})
    assert sequence_tests.bits(even, sequence_tests.Test("all"), 1024, coded=True) == pytest.approx(
        200, abs=1e-3
    )
    best = sequence_tests.best_bits(even, bayes_bits, 1024)
    assert 130 < best < 136


def machine(**options) -> Policy:
    torch.manual_seed(0)
    config = PolicyConfig(
        encoder="mlp", encoder_config={"hidden": []}, core="ntm", core_size=16, head="linear",
        core_config={"rows": 16, "width": 6, **options}, critic=False,
    )  # fmt: skip
    space = gym.spaces.Box(-1, 1, (10,), np.float32)
    return Policy(space, gym.spaces.MultiBinary(8), config).eval()


def test_a_sorted_memory_is_recognised(monkeypatch, tmp_path):
    """A trace whose second write head writes by priority, and whose reads go through memory row by row."""
    trained = Trained(machine(write_heads=2), "neurocoder/PrioritySort-v0", {"items": 6, "targets": 4})
    seen = sequence_pictures.look(trained, 32)
    flat = sorted_memory.order(trained, None)
    writing, reading = torch.zeros(11, 32, 2, 16), torch.zeros(11, 32, 1, 16)
    where = np.round(4 * seen.inputs[..., -2] + 14).astype(int) % 16
    for t in range(11):
        writing[t, :, 0, np.random.default_rng(t).integers(16)] = 1
        writing[t, np.arange(32), 1, where[t]] = 1
        reading[t, :, 0, (3 - t) % 16] = 1
    memory = seen.memory._replace(write_weighting=writing, read_weighting=reading)
    monkeypatch.setattr(sorted_memory, "look", lambda trained, batch: seen._replace(memory=memory))
    monkeypatch.setattr(sorted_memory, "MEASURED", 32)
    found = sorted_memory.order(trained, tmp_path / "order.png")
    assert found["R² of row written by priority"] > 0.9
    assert found["R² of row read by rank"] == pytest.approx(1)
    assert found["R² of row written by priority"] > flat["R² of row written by priority"]
    assert (tmp_path / "order.png").stat().st_size > 1000


def test_a_machine_is_tested_with_more_rows_and_left_as_it_was():
    trained = Trained(machine(), "neurocoder/PrioritySort-v0", {"items": 6, "targets": 4})
    test = sequence_tests.Test("more", {"items": 7}, rows=40)
    larger = test.set_up(trained)
    assert larger.policy.core.rows == 40 and trained.policy.core.rows == 16
    assert larger.options == {"items": 7, "targets": 4}
    assert sequence_pictures.look(larger, 2).memory.memory.shape[-2] == 40
    assert sequence_tests.Test("the paper's").set_up(trained).policy.core.rows == 128
    assert 0 < sequence_tests.bits(trained, test, 1024, coded=False) <= 32


@pytest.mark.parametrize(
    ("written", "read", "words"),
    [(0.9, 0.95, "sorted by address"), (0.9, 0.1, "read in another way"), (0.3, 0.9, "no line")],
)
def test_what_a_memory_looks_like_is_said(written, read, words):
    done = {
        f"{LSTM}, seed 0": {sorted_memory.WRITTEN: written - 0.05, sorted_memory.READ: read},
        f"{LSTM}, seed 1": {sorted_memory.WRITTEN: written + 0.05, sorted_memory.READ: read},
        f"{BASELINE}, seed 0": {},
    }
    (sentence,) = sorted_memory.sorted_by_address(done, (LSTM,))
    assert words in sentence and f"by priority {written:.2f}" in sentence


def test_a_table_from_training_to_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(sequence_tables, "TESTED", 64)
    small = replace(
        sequence_tables.SORT,
        networks={
            LSTM: {**sequence_tables.SORT.networks[LSTM], "policy.core_config.rows": 16},
            BASELINE: {**sequence_tables.SORT.networks[BASELINE], "policy.core_size": 8},
        },
        tests=(sequence_tests.Test("8 items", {"items": 8, "targets": 8}, 64.0),),
    )
    overrides = {"steps": 2 * 448, "checkpoint_every": 448, "evaluation.every": 448, "evaluation.episodes": 8}
    table = ex.Experiment(
        small.name, small.title, [s.with_overrides(**overrides) for s in small.settings()], {}, 1,
        small.metric, partial(sequence_tables.verdict, small), partial(sequence_tables.figures, small),
    )  # fmt: skip
    trainings.check(table)
    trainings.run_missing(table, tmp_path, seeds=1, jobs=2)
    text = report(table, tmp_path)
    assert f"- {LSTM}, 8 items: best " in text and "of 1 seeds (target: below 64): met." in text
    assert f"| {BASELINE}, seed 0 |" in text and "R² of row written by priority" in text
    pictures = {file.name for file in tmp_path.glob("*.png")}
    assert {
        "curves.png",
        "ntm-lstm-controller-seed-0-memory.png",
        "ntm-lstm-controller-seed-0-order.png",
    } <= (pictures)
    assert "lstm-3-layers-seed-0-8-items.png" in pictures
    tests = tmp_path / sequence_tests.TESTS_FILE
    written = tests.stat().st_mtime_ns
    report(table, tmp_path)
    assert tests.stat().st_mtime_ns == written  # nothing is tested twice


def test_what_was_tested_is_of_the_row_that_is_there(tmp_path):
    row = {"label": "a", "seed": 0, "run": "runs/a-seed0/1"}
    sweeps = [sequence_tests.Sweep("length", 20, (1, 20))]
    tests = {
        "run": "runs/a-seed0/1",
        "results": {"50": 1.0},
        "sweeps": {"length": {"1": 0.0, "20": 2.0}},
    }
    assert sequence_tests.are_of(tests, row, ["50"], sweeps)
    assert not sequence_tests.are_of(None, row, ["50"], sweeps)
    assert not sequence_tests.are_of(tests, {**row, "run": "runs/a-seed0/2"}, ["50"], sweeps)
    assert not sequence_tests.are_of(tests, row, ["50", "120"], sweeps)
    assert not sequence_tests.are_of({**tests, "sweeps": {}}, row, ["50"], sweeps)
    assert not sequence_tests.are_of(tests, row, ["50"], [sequence_tests.Sweep("length", 20, (1, 30))])
    folder = tmp_path / "committed"  # only a table: what its runs were is not there
    folder.mkdir()
    sequence_tests.write_tests(folder, {"a, seed 0": tests, "a, seed 1": tests})
    kept = [{**row, "steps": [1], "scores": [0.0], "losses": [], "data": ""}]
    sequence_tables.figures(replace(sequence_tables.COPY, sweeps=sweeps), kept, folder)
    assert "a, seed 0: " not in sequence_tables.verdict(
        sequence_tables.COPY, kept, folder
    )  # judged are machines
    assert (folder / "errors.png").stat().st_size > 1000


def test_errors_are_measured_at_every_length():
    copy = Trained(Told(0.7, 8), "neurocoder/Copy-v0", {})
    found = sequence_tests.swept(copy, [sequence_tests.Sweep("length", 20, (1, 7))])
    assert found["length"]["1"] == pytest.approx(4, abs=0.4) and found["length"]["7"] == pytest.approx(
        28, abs=1
    )
    for table in (sequence_tables.COPY, sequence_tables.REPEAT_COPY, sequence_tables.RECALL):
        assert table.sweeps
        for sweep in table.sweeps:
            assert sweep.learned in sweep.values and sweep.values[-1] > sweep.learned
            make_tasks(table.env, 1, sweep.tests()[-1].options).close()
