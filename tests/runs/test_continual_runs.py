"""Continual runs through the commands: a matrix of accuracies, presets by scenario, and going on where they were."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from refusals import assert_refused
from safetensors.torch import load_file

from neurocoder.errors import ConfigError
from neurocoder.runs.checkpoint import saved_steps
from neurocoder.runs.cli import main
from neurocoder.runs.config import resolve
from neurocoder.runs.run import Run, find_runs

ID = "neurocoder/SplitDigits-v0"
OPEN = "{slots = 6, key_size = 3, least_used = 2, openness = true}"
GROWN = ["--set", "continual.grow=10000000000"]
SMALL = ["--head", "linear", "--set", "policy.encoder_config.hidden=[32]", "--set", "continual.batch_size=32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    logs = tmp_path_factory.mktemp("logs")
    arguments = [*SMALL, "--set", "continual.method=si", "--set", "env_options.scenario=task"]
    assert main(["train", ID, "--logs", str(logs), *arguments]) == 0
    (run,) = find_runs(logs)
    return run


def matrix_of(run: Run) -> np.ndarray:
    with (run.path / "matrix.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([float(row["accuracy"]) for row in rows]).reshape(-1, 5)


def test_a_run_tests_all_tasks_after_each(trained: Run) -> None:
    config = trained.config()
    assert config.agent == "continual" and config.continual.strength == 300  # of scenario task
    assert config.policy.task_heads == 5  # one for each
    matrix = matrix_of(trained)
    assert matrix.shape == (6, 5)
    assert matrix[range(1, 6), range(5)].mean() > 75  # of two classes
    scores = [json.loads(line) for line in (trained.path / "evaluations.jsonl").read_text().splitlines()]
    assert [score["returns"] for score in scores] == matrix[1:].tolist()
    assert scores[2]["mean"] == pytest.approx(matrix[3, :3].mean())
    assert saved_steps(trained.checkpoints)[-1] == config.steps == scores[-1]["checkpoint"]


def test_a_run_cut_in_two_is_the_same_run(trained: Run, tmp_path: Path) -> None:
    copy = tmp_path / "logs" / "neurocoder-SplitDigits-v0" / "half"
    shutil.copytree(trained.path, copy)
    *_, before, last = saved_steps(trained.checkpoints)
    shutil.rmtree(copy / "checkpoints" / str(last))
    assert before > 0 and main(["train", "--resume", str(copy)]) == 0
    for name in ("model", "optimizer"):
        file = f"checkpoints/{last}/{name}.safetensors"
        assert (copy / file).read_bytes() == (trained.path / file).read_bytes()
    assert (copy / "matrix.csv").read_text() == (trained.path / "matrix.csv").read_text()


def test_a_memory_that_has_grown_is_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "{slots = 6, attention_heads = 2, key_size = 3, least_used = 2, openness = true}"
    arguments = ["--set", f"policy.head_config={head}", "--set", "policy.encoder_config.hidden=[16]"]
    arguments += ["--set", "continual.grow=2", "--set", "continual.passes=1"]
    assert main(["train", ID, "--logs", str(tmp_path), *arguments]) == 0
    (run,) = find_runs(tmp_path)
    *_, before, last = saved_steps(run.checkpoints)
    file = run.checkpoints / str(last) / "model.safetensors"
    whole = file.read_bytes()
    assert load_file(file)["actor.memory_u"].shape == (6 + 4 * 2, 16)
    shutil.rmtree(file.parent)
    assert before > 0 and main(["train", "--resume", str(run.path)]) == 0
    assert file.read_bytes() == whole
    capsys.readouterr()
    assert main(["record", str(run.path), "--logs", str(tmp_path)]) == 0
    assert "100 steps" in capsys.readouterr().out


@pytest.mark.parametrize(("scenario", "strength"), [("task", 100), ("domain", 100), ("class", 600)])
def test_a_method_without_its_coefficient_takes_the_scenarios(scenario: str, strength: float) -> None:
    config = resolve(ID, None, {"continual.method": "ewc", "env_options.scenario": scenario}, "test")
    assert config.continual.strength == strength
    given = resolve(ID, None, {"continual.method": "ewc", "continual.strength": 7.0}, "test")
    assert given.continual.strength == 7
    with pytest.raises(ConfigError, match=r"continual\.strength=0\.0 must be > 0: method 'ewc' needs"):
        resolve("neurocoder/ContinualAtari-v0", None, {"continual.method": "ewc"}, "test")


@pytest.mark.parametrize(
    ("name", "rate"), [("sgd", 0.01), ("adagrad", 0.01), ("adam", 1e-3), ("rmsprop", 1e-3)]
)
def test_an_optimiser_without_its_rate_takes_the_protocols(name: str, rate: float) -> None:
    config = resolve(ID, None, {"continual.optimizer": name}, "test")
    assert config.continual.learning_rate == rate
    given = resolve(ID, None, {"continual.optimizer": name, "continual.learning_rate": 0.5}, "test")
    assert given.continual.learning_rate == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([ID, "--set", "continual.method=ewk"], "did you mean 'ewc'"),
        ([ID, "--set", "env_options.tasks=9"], "tasks"),
        ([ID, "--set", "env_options.tasks=2.5"], "tasks=2.5 must be a whole number"),
        ([ID, "--set", "env_options.task=2"], "env_options.task"),
        ([ID, "--set", "env_options.split=test"], "env_options.split='test'"),
        ([ID, "--set", "evaluation.env_options.scenario=class"], "different tasks"),
        ([ID, "--set", "env_options.classes_per_task=1"], "nothing to tell apart"),
        ([ID, "--set", "continual.method=replay", "--set", "continual.memory_size=3"], "one image a task"),
        ([ID, "--core", "lstm"], "policy.core"),
        (["neurocoder/Digits-v0", "--agent", "continual"], "no tasks one after the other"),
        ([ID, "--set", "continual.strength=-1"], "continual.strength=-1"),
        ([ID, "--set", "continual.grow=2"], "openness=true"),
        ([ID, "--head", "linear", "--set", "continual.grow=2"], "no program memory"),
        ([ID, "--set", f"policy.head_config={OPEN}", *GROWN], "this machine has"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert_refused(tmp_path, capsys, arguments, message)


def test_eval_says_where_the_matrix_is(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(trained.path)]) == 2
    assert "matrix.csv" in capsys.readouterr().err
