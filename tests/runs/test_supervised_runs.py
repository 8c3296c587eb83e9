"""Supervised runs through the commands: the same folder, resume, scores and recordings as all other runs."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import assert_refused

from neurocoder.envs import make_watched
from neurocoder.runs.checkpoint import find_checkpoint, load_checkpoint, saved_steps
from neurocoder.runs.cli import main
from neurocoder.runs.config import resolve
from neurocoder.runs.preparation import prepare
from neurocoder.runs.replay.episode import RecordedEpisode
from neurocoder.runs.run import Run, find_runs

ID = "neurocoder/Digits-v0"
SMALL = [
    "--set",
    "policy.encoder_config.hidden=[16]",
    "--set",
    "checkpoint_every=2560",
    "--set",
    "evaluation.every=5120",
]
SMALL += ["--set", "log_every=1280"]


def train(logs: Path, *arguments: str, env: str = ID) -> Run:
    assert main(["train", env, "--logs", str(logs), *SMALL, *arguments]) == 0
    return find_runs(logs)[-1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("logs"), "--steps", "10240", "--head", "neurocoder")


def test_a_run_has_checkpoints_rows_and_scores(trained: Run) -> None:
    config = trained.config()
    assert config.agent == "supervised" and not config.policy.critic and config.precision == "fp32"
    assert saved_steps(trained.checkpoints) == [0, 5120, 7680, 10240]
    scores = [json.loads(line) for line in (trained.path / "evaluations.jsonl").read_text().splitlines()]
    scores = [score for score in scores if score["source"] == "training"]
    assert [score["checkpoint"] for score in scores] == [5120, 10240]
    assert all(score["scored"] == 355 and len(score["returns"]) == 1 for score in scores)
    assert json.loads((trained.checkpoints / "10240" / "evaluation.json").read_text()) == scores[-1]
    header = trained.progress_file.read_text().splitlines()[0].split(",")
    assert {"loss", "auxiliary_loss", "mean_return", "actor/attention_entropy"} <= set(header)


def test_a_run_cut_in_two_is_the_same_run(trained: Run, tmp_path: Path) -> None:
    copy = tmp_path / "logs" / "neurocoder-Digits-v0" / "half"
    shutil.copytree(trained.path, copy)
    for step in (7680, 10240):
        shutil.rmtree(copy / "checkpoints" / str(step))
    assert main(["train", "--resume", str(copy)]) == 0
    for name in ("model", "optimizer"):
        file = f"checkpoints/10240/{name}.safetensors"
        assert (copy / file).read_bytes() == (trained.path / file).read_bytes()
    last = [
        json.loads((run / "checkpoints/10240/evaluation.json").read_text()) for run in (trained.path, copy)
    ]
    assert last[0]["mean"] == last[1]["mean"] and last[0]["loss"] == last[1]["loss"]


def test_eval_prints_what_it_means(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(trained.path), "--checkpoint", "best"]) == 0
    out = capsys.readouterr().out
    assert "% of 355, cross-entropy" in out and "scikit-learn's digits" in out


def test_recordings_hold_the_truth_for_what_was_seen(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", str(trained.path), "--seed", "5", "--deterministic"]) == 0
    (folder,) = (trained.path / "episodes").iterdir()
    episode = RecordedEpisode.open(folder)
    target, action = episode.trace["info/target"], episode.trace["action"]
    assert episode.info.length == 100 and episode.info.raw_return == (action == target).sum()
    assert episode.info.options["split"] == "test" and "value" not in episode.trace
    game = make_watched(ID, options=episode.info.options)
    _, info = game.reset(seed=5)
    for step in range(100):
        assert info["target"][0] == target[step]
        *_, info = game.step(action[step][None])
    game.close()
    assert main(["replay", "verify", str(folder)]) == 0
    assert "exact: 100 steps, 101 pictures" in capsys.readouterr().out


def test_sequences_are_trained_and_scored_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--steps",
        "6400",
        "--set",
        "env_options={length = 20, chunks = 2}",
        "--set",
        "supervised.batch_size=16",
    ]
    small = ["--set", "core_size=4", "--set", "checkpoint_every=3200", "--set", "evaluation.every=3200"]
    small += ["--set", "evaluation.episodes=40"]
    small[1] = "policy.core_size=4"
    assert main(["train", "neurocoder/Polynomial-v0", "--logs", str(tmp_path), *options, *small]) == 0
    out = capsys.readouterr().out
    assert "mlp → gru → neurocoder head" in out and "mean squared error" in out
    (run,) = find_runs(tmp_path)
    score = json.loads((run.path / "evaluations.jsonl").read_text().splitlines()[-1])
    assert len(score["returns"]) == 48 and score["scored"] == 48 * 20  # whole batches of 16
    assert np.mean(score["returns"]) == pytest.approx(-20 * score["loss"], rel=1e-4)
    assert main(["record", str(run.path), "--deterministic"]) == 0
    (folder,) = (run.path / "episodes").iterdir()
    episode = RecordedEpisode.open(folder)
    error = np.square(episode.trace["action"] - episode.trace["info/target"]).sum()
    assert episode.info.length == 20 and -episode.info.raw_return == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CartPole-v1", "--agent", "supervised"], "no supervised task: its info has no targets"),
        ([ID, "--set", "env_options.wings=2"], "cannot be made: TypeError"),
        ([ID, "--set", "env_options.split=half"], "unknown split 'half'"),
        ([ID, "--agent", "a3c", "--set", "policy.critic=false"], "policy.critic=False must be true"),
        ([ID, "--set", "supervised.batch_size=0"], "supervised.batch_size=0 must be >= 1"),
        ([ID, "--set", "supervised.momentm=0.5"], "did you mean 'momentum'"),
        ([ID, "--encoder", "lenett"], "unknown encoder 'lenett'; did you mean 'lenet'"),
        ([ID, "--preset", "dqn2015"], "a protocol preset applies to Atari games only"),
        (["ALE/Pong-v5", "--set", "env_options.mode=1"], "an Atari game has a protocol, not the options"),
        ([ID, "--agent", "supervized"], "agent='supervized' must be one of"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert_refused(tmp_path, capsys, arguments, message)


def test_a_loss_that_explodes_keeps_the_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--steps",
        "100000",
        "--set",
        "supervised.optimizer=sgd",
        "--set",
        "supervised.learning_rate=1e38",
    ]
    assert main(["train", ID, "--logs", str(tmp_path), *SMALL, *options]) == 1
    error = capsys.readouterr().err
    assert "the loss is" in error and "the last good checkpoint is kept" in error


@pytest.mark.parametrize(
    ("env", "agent", "recipe"),
    [
        (ID, None, "supervised"),
        ("neurocoder/Polynomial-v0", None, "supervised"),
        (ID, "a3c", "a3c"),
        ("CartPole-v1", None, "a3c"),
    ],
)
def test_an_environment_alone_says_how_it_is_learned(env: str, agent: str | None, recipe: str) -> None:
    config = resolve(env, None, {} if agent is None else {"agent": agent}, "test")
    assert config.agent == recipe and (config.a3c.gamma == 0) == (agent == "a3c")
    assert (config.policy.core == "gru") == ("Polynomial" in env)


def test_options_of_a_recipe_are_for_the_parts_that_it_names() -> None:
    config = resolve(ID, None, {"policy.encoder": "lenet", "policy.head": "linear"}, "test")
    assert config.policy.encoder_config == config.policy.head_config == {}
    same = resolve(ID, None, {"policy.encoder": "mlp", "policy.encoder_config.activation": "tanh"}, "test")
    assert same.policy.encoder_config == {"hidden": [400, 400], "activation": "tanh"}
    changed = {"policy.head": "lowrank", "policy.head_config.rank": 3, "policy.core": "lstm"}
    config = resolve("neurocoder/Polynomial-v0", None, changed, "test")
    assert config.policy.head_config == {"rank": 3} and config.policy.core_size == 32
    assert prepare(resolve("neurocoder/Copy-v0", None, {"policy.core": "lstm"}, "test"))


def test_what_learns_by_reward_is_scored_on_images_that_it_has_not_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["a3c.workers=1", "a3c.envs_per_worker=2", "steps=64", "policy.encoder_config={hidden = [8]}"]
    options = [part for setting in small for part in ("--set", setting)]
    assert main(["train", ID, "--agent", "a3c", "--logs", str(tmp_path), *options]) == 0
    (run,) = find_runs(tmp_path)
    assert run.config().evaluation_options == {"split": "test"} and run.config().env_options == {}
    capsys.readouterr()
    assert main(["eval", str(run.path), "--episodes", "1"]) == 0
    assert "\ndata: scikit-learn's digits\n" in capsys.readouterr().out
    sequences = resolve("neurocoder/Copy-v0", None, {"agent": "a3c"}, "test")
    assert sequences.evaluation_options == {}


def test_a_recording_of_a_turing_machine_shows_its_memory(tmp_path: Path) -> None:
    options = [
        "--steps",
        "3000",
        "--set",
        "core_size=8",
        "--set",
        "policy.core_config={rows = 16, read_heads = 2}",
    ]
    options[3] = "policy.core_size=8"
    small = [
        "--set",
        "checkpoint_every=3000",
        "--set",
        "evaluation.every=0",
        "--set",
        "env_options={max_length = 6}",
    ]
    small += ["--set", "evaluation.env_options={min_length = 6, max_length = 6}"]
    assert main(["train", "neurocoder/Copy-v0", "--logs", str(tmp_path), *options, *small]) == 0
    (run,) = find_runs(tmp_path)
    assert main(["record", str(run.path), "--seed", "2", "--deterministic"]) == 0
    (folder,) = (run.path / "episodes").iterdir()
    episode = RecordedEpisode.open(folder)
    assert episode.info.length == 13  # six vectors, a delimiter, six answers
    names = [f"attention/core/{name}" for name in ("content", "read1", "read2", "write1")]
    assert [name for name in episode.trace.names if name.startswith("attention/core")] == names

    config = run.config()
    saved = load_checkpoint(find_checkpoint(run.checkpoints), with_optimizer=False)
    _, policy = prepare(config, saved)
    game = make_watched(config.env, options=config.evaluation_options)
    observation, _ = game.reset(seed=2)
    seen = [torch.from_numpy(observation)]
    for action in episode.trace["action"][:-1]:
        seen.append(torch.from_numpy(game.step(action[None])[0]))
    game.close()
    start = torch.zeros(13, 1, dtype=torch.bool)
    start[0] = True
    with torch.no_grad():
        _, _, trace = policy.core.forward_with_trace(torch.stack(seen), policy.initial_state(1), start)
    for name, expected in (
        ("read2", trace.read_weighting[:, 0, 1]),
        ("write1", trace.write_weighting[:, 0, 0]),
    ):
        np.testing.assert_allclose(episode.trace[f"attention/core/{name}"], expected, atol=3e-3)  # 8 bits
    np.testing.assert_allclose(episode.trace["attention/core/read1"].sum(-1), 1, atol=2e-2)
    out = tmp_path / "episode.html"
    assert (
        main(["replay", "export", str(folder), str(out)]) == 0 and "attention/core/read1" in out.read_text()
    )


def test_a_run_is_tested_on_longer_sequences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["steps=1600", "checkpoint_every=1600", "evaluation.every=0", "policy.core_size=8"]
    small += ["policy.core_config={rows = 16}", "env_options={max_length = 6}"]
    options = [part for setting in small for part in ("--set", setting)]
    assert main(["train", "neurocoder/Copy-v0", "--logs", str(tmp_path), *options]) == 0
    (run,) = find_runs(tmp_path)
    longer = ["--set", "env_options.min_length=30", "--set", "env_options.max_length=30"]
    longer += ["--set", "policy.core_config.rows=40", "--episodes", "16"]
    capsys.readouterr()
    assert main(["eval", str(run.path), *longer]) == 0
    out = capsys.readouterr().out
    assert "with env_options.min_length=30, env_options.max_length=30, policy.core_config.rows=40" in out
    wrong = float(re.search(r"([\d.]+) wrong bits", out)[1])  # about half of 240; of six vectors there are 48
    assert 60 < wrong <= 240
    assert not (run.path / "evaluations.jsonl").exists()  # it is another test than the run's own
    assert main(["eval", str(run.path)]) == 0 and (run.path / "evaluations.jsonl").exists()
    for setting, message in (
        ("env_options.max_lenght=9", "max_lenght"),
        ("policy.core_config.rows=2", "rows=2 must be >= 3"),
        ("policy.core_size=9", "may change env_options.NAME and policy.core_config.rows, nothing else"),
        ("env_options.max_length", "expected KEY=VALUE"),
    ):
        capsys.readouterr()
        assert main(["eval", str(run.path), "--set", setting]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
