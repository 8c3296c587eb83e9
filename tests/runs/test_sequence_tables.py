"""The Turing machine's tables: what is tested, how a sorted memory is recognised, and a table from end to end."""

from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

from neurocoder.envs.sequences import bayes_bits
from neurocoder.policies import Policy, PolicyConfig
from neurocoder.runs.reproduce import experiment as ex
from neurocoder.runs.reproduce import sequence_pictures, sequence_tables, trainings
from neurocoder.runs.reproduce.sequence_pictures import circular_fit
from neurocoder.runs.reproduce.sequence_tables import BASELINE, LSTM
from neurocoder.runs.reproduce.trained import Trained


def test_a_line_through_a_circle_is_found():
    x = np.linspace(-1, 1, 200)
    location = np.round(10 * x + 3).astype(int) % 128  # crosses row 0
    line = circular_fit(x, location, 128)
    assert line.r_squared > 0.99 and line.slope == pytest.approx(10, rel=0.02)
    assert (line.slope * 0 + line.intercept + line.origin) % 128 == pytest.approx(3, abs=0.1)
    noise = np.random.default_rng(0).integers(0, 128, 200)
    assert circular_fit(x, noise, 128).r_squared < 0.2
    assert circular_fit(x, np.full(200, 5), 128).r_squared == 0
    assert circular_fit(np.zeros(4), np.arange(4), 128).r_squared == 0


def test_ranges_at_their_upper_end():
    assert sequence_tables.longest({"min_length": 1, "max_length": 20}) == {
        "min_length": 20,
        "max_length": 20,
    }
    assert sequence_tables.longest({"items": 8}) == {}


class Told(torch.nn.Module):
    """A policy that predicts a constant probability of 1 for every bit."""

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
    test = sequence_tables.Test("five", {"min_length": 5, "max_length": 5})
    wrong = sequence_tables.bits(copy, test, coded=False)  # always says 1: half of 40 bits are wrong
    assert wrong == pytest.approx(20, abs=0.5)
    even = Trained(Told(0.5, 1), "neurocoder/DynamicNGrams-v0", {})
    assert sequence_tables.bits(even, sequence_tables.Test("all"), coded=True) == pytest.approx(200, abs=1e-3)
    best = sequence_tables.best_bits(even, bayes_bits)
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
    flat = sequence_pictures.order(trained, None)
    writing, reading = torch.zeros(11, 32, 2, 16), torch.zeros(11, 32, 1, 16)
    where = np.round(4 * seen.inputs[..., -2] + 14).astype(int) % 16
    for t in range(11):
        writing[t, :, 0, np.random.default_rng(t).integers(16)] = 1
        writing[t, np.arange(32), 1, where[t]] = 1
        reading[t, :, 0, (3 - t) % 16] = 1
    memory = seen.memory._replace(write_weighting=writing, read_weighting=reading)
    monkeypatch.setattr(sequence_pictures, "look", lambda trained, batch: seen._replace(memory=memory))
    monkeypatch.setattr(sequence_pictures, "MEASURED", 32)
    found = sequence_pictures.order(trained, tmp_path / "order.png")
    assert found["R² of row written by priority"] > 0.9
    assert found["R² of row read by rank"] == pytest.approx(1)
    assert found["R² of row written by priority"] > flat["R² of row written by priority"]
    assert (tmp_path / "order.png").stat().st_size > 1000


def test_a_machine_is_tested_with_more_rows_and_left_as_it_was():
    trained = Trained(machine(), "neurocoder/PrioritySort-v0", {"items": 6, "targets": 4})
    test = sequence_tables.Test("more", {"items": 7}, rows=40)
    larger = test.set_up(trained)
    assert larger.policy.core.rows == 40 and trained.policy.core.rows == 16
    assert larger.options == {"items": 7, "targets": 4}
    assert sequence_pictures.look(larger, 2).memory.memory.shape[-2] == 40
    assert 0 < sequence_tables.bits(trained, test, coded=False) <= 32


@pytest.mark.parametrize(
    ("written", "read", "words"),
    [(0.9, 0.95, "sorted by address"), (0.9, 0.1, "read in another way"), (0.3, 0.9, "no line")],
)
def test_what_a_memory_looks_like_is_said(written, read, words):
    done = {
        f"{LSTM}, seed 0": {sequence_pictures.WRITTEN: written - 0.05, sequence_pictures.READ: read},
        f"{LSTM}, seed 1": {sequence_pictures.WRITTEN: written + 0.05, sequence_pictures.READ: read},
        f"{BASELINE}, seed 0": {},
    }
    (sentence,) = sequence_tables.sorted_by_address(done)
    assert words in sentence and f"by priority {written:.2f}" in sentence


def test_a_table_from_training_to_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(sequence_tables, "TESTED", 64)
    small = replace(
        sequence_tables.SORT,
        networks={
            LSTM: {**sequence_tables.SORT.networks[LSTM], "policy.core_config.rows": 16},
            BASELINE: {**sequence_tables.SORT.networks[BASELINE], "policy.core_size": 8},
        },
        tests=(sequence_tables.Test("8 items", {"items": 8, "targets": 8}, 64.0),),
    )
    overrides = {"steps": 2 * 448, "checkpoint_every": 448, "evaluation.every": 448, "evaluation.episodes": 8}
    table = ex.Experiment(
        small.name, small.title, [s.with_overrides(**overrides) for s in small.settings()], {}, 1,
        small.metric, partial(sequence_tables.verdict, small), partial(sequence_tables.figures, small),
    )  # fmt: skip
    trainings.check(table)
    trainings.run_missing(table, tmp_path, seeds=1, jobs=2)
    text = ex.report(table, tmp_path)
    assert f"- {LSTM}, 8 items: best " in text and "of 1 seeds (target: below 64): met." in text
    assert f"| {BASELINE}, seed 0 |" in text and "R² of row written by priority" in text
    pictures = {file.name for file in tmp_path.glob("*.png")}
    assert {
        "curves.png",
        "ntm-lstm-controller-seed-0-memory.png",
        "ntm-lstm-controller-seed-0-order.png",
    } <= (pictures)
    assert "lstm-3-layers-seed-0-8-items.png" in pictures
    written = (tmp_path / sequence_tables.TESTS_FILE).stat().st_mtime_ns
    ex.report(table, tmp_path)
    assert (tmp_path / sequence_tables.TESTS_FILE).stat().st_mtime_ns == written  # nothing is tested twice
