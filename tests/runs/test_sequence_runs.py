"""A3C on games one after the other: scores of all after each, penalties that hold, growth, and going on where it was."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from refusals import assert_refused
from safetensors.torch import load_file

from neurocoder.agents.importance import Network, Penalty, quadratic_penalty
from neurocoder.policies import Policy, PolicyConfig
from neurocoder.runs.checkpoint import saved_steps
from neurocoder.runs.cli import main
from neurocoder.runs.run import find_runs
from neurocoder.runs.sequence_session import in_one_unit

ID = "neurocoder/ContinualAtari-v0"
HEAD = "{slots = 6, attention_heads = 2, key_size = 3, least_used = 2, openness = true}"
SMALL = [
    "--steps", "1280", "--set", 'env_options.games=["Pong", "Boxing"]', "--set", "a3c.workers=1",
    "--set", "a3c.envs_per_worker=4", "--set", "a3c.n_steps=20", "--set", "a3c.minibatches=2",
    "--set", "calibration_steps=64", "--set", "checkpoint_every=320", "--set", "log_every=80",
    "--set", "protocol.max_frames=160", "--set", "evaluation.episodes=2", "--set", "continual.fisher_samples=16",
    "--set", "keep_checkpoints=9",
]  # fmt: skip


def trained(tmp_path, *more):
    assert main(["train", ID, "--logs", str(tmp_path), *SMALL, *more]) == 0
    (run,) = find_runs(tmp_path)
    return run


def matrix_of(run) -> np.ndarray:
    with (run.path / "matrix.csv").open(newline="") as file:
        return np.array([float(row["score"]) for row in csv.DictReader(file)]).reshape(-1, 2)


def test_all_games_are_scored_after_each(tmp_path, capsys):
    run = trained(tmp_path, "--head", "linear")
    config = run.config()
    assert config.protocol.full_action_space and config.agent == "a3c"
    assert matrix_of(run).shape == (3, 2)
    scores = [json.loads(line) for line in (run.path / "evaluations.jsonl").read_text().splitlines()]
    assert [score["returns"] for score in scores] == matrix_of(run)[1:].tolist()
    steps = saved_steps(run.checkpoints)
    assert steps == [0, 320, 640, 960, 1280]
    state = json.loads((run.checkpoints / "640" / "state.json").read_text())
    assert state["sequence"]["task"] == 1
    # Pong: random -20.7, human 14.6
    lost = (matrix_of(run)[1, 0] - matrix_of(run)[2, 0]) / 35.3 * 100
    told = f"human-normalised, in per cent: BWT {0 - lost:.2f}, forgetting {lost:.2f}"
    assert told in capsys.readouterr().out
    assert main(["eval", str(run.path), "--episodes", "1", "--task", "1"]) == 0
    assert "ALE/Boxing-v5" in capsys.readouterr().out
    assert main(["record", str(run.path), "--task", "1"]) == 0
    (episode,) = (run.path / "episodes").iterdir()
    assert main(["replay", "verify", str(episode)]) == 0
    assert "exact" in capsys.readouterr().out
    assert main(["eval", str(run.path), "--task", "2"]) == 2
    assert "there are 2 games" in capsys.readouterr().err


def test_a_run_cut_in_two_counts_right_and_remembers(tmp_path):
    """Cut within the second game: the penalty of the first is there again, and no game is played twice."""
    strength = ["--set", "continual.method=online-ewc", "--set", "continual.strength=10.0"]
    run = trained(tmp_path, "--head", "linear", *strength)
    whole = matrix_of(run)
    for step in (960, 1280):
        shutil.rmtree(run.checkpoints / str(step))
    kept = load_file(run.checkpoints / "640" / "workers.safetensors")
    importance = [value for name, value in kept.items() if "/importance/" in name and "actor" in name]
    assert importance and all(value.min() >= 0 for value in importance)
    assert any(value.max() > 0 for value in importance)
    assert main(["train", "--resume", str(run.path)]) == 0
    again = matrix_of(run)
    assert again.shape == (3, 2) and again[:2].tolist() == whole[:2].tolist()
    assert saved_steps(run.checkpoints)[-1] == 1280
    with run.progress_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    second = [float(row["penalty"]) for row in rows if int(row["agent_steps"]) > 640]
    assert len(second) >= 4 and all(value >= 0 for value in second) and max(second) > 0


def test_a_memory_grows_with_every_game(tmp_path):
    run = trained(tmp_path, "--set", f"policy.head_config={HEAD}", "--set", "continual.grow=3")
    shapes = {
        step: load_file(run.checkpoints / str(step) / "model.safetensors")["actor.memory_s"].shape[0]
        for step in saved_steps(run.checkpoints)
    }
    assert shapes == {0: 6, 320: 6, 640: 9, 960: 9, 1280: 9}
    shutil.rmtree(run.checkpoints / "1280")
    assert main(["train", "--resume", str(run.path)]) == 0
    assert load_file(run.checkpoints / "1280" / "model.safetensors")["actor.memory_s"].shape[0] == 9


def test_recoded_layers_grow_on_their_own(tmp_path):
    """Layers of the encoder and the heads have sizes of their own, and workers are told of both."""
    layers = HEAD.replace("slots = 6", "slots = 4")
    encoder = f'{{hidden = [4], layers_head = "neurocoder", layers_head_config = {layers}}}'
    run = trained(
        tmp_path, "--encoder", "mlp", "--set", f"policy.encoder_config={encoder}",
        "--set", f"policy.head_config={HEAD}", "--set", "continual.grow=3", "--set", "a3c.lr_schedule=linear",
        "--set", "a3c.extra_sticky=0.4",
    )  # fmt: skip
    model = load_file(run.checkpoints / "1280" / "model.safetensors")
    sizes = {name: len(tensor) for name, tensor in model.items() if name.endswith("memory_s")}
    assert sizes == {"encoder.layers.0.memory_s": 7, "actor.memory_s": 9, "critic.memory_s": 9}
    with run.progress_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("learning_rate", "extra_sticky"):  # one line down to zero at the end of the last game
        numbers = [float(row[name]) for row in rows]
        assert numbers == sorted(numbers, reverse=True) and numbers[0] > 4 * numbers[-1], name


def test_the_penalty_pulls_towards_what_was_remembered():
    import gymnasium as gym

    config = PolicyConfig(encoder="mlp", core="none", head="linear", encoder_config={"hidden": [4]})
    policy = Policy(gym.spaces.Box(-1, 1, (3,), np.float32), gym.spaces.Discrete(2), config)
    network = Network(policy)
    anchor = network.copied()
    importance = {name: torch.rand_like(p) for name, p in anchor.items()}
    penalty = Penalty(2.5, [(importance, anchor), (importance, anchor)])
    assert penalty(network).item() == 0
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5)
    found = penalty(network)
    assert found.item() == pytest.approx(
        2.5 * 2 * quadratic_penalty(network.learned(), anchor, importance).item()
    )
    found.backward()
    for name, parameter in network.learned().items():
        torch.testing.assert_close(parameter.grad, 2.5 * 2 * 2 * 0.5 * importance[name], rtol=1e-4, atol=1e-5)


def test_games_are_compared_in_one_unit():
    raw = np.array([[-20.7, 0.1], [14.6, 6.1], [-20.7, 12.1]])
    scores, unit = in_one_unit(["Pong", "Boxing"], raw)
    np.testing.assert_allclose(scores, [[0, 0], [100, 50], [0, 100]], atol=1e-9)
    assert unit == "human-normalised, in per cent"
    # neither a game with its switches turned nor one that no tester played has anchors
    for games in (["Pong:1", "Boxing"], ["Pong", "Adventure"]):
        scores, unit = in_one_unit(games, raw)
        assert scores is raw and unit == "raw scores"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "continual.method=si", "--set", "continual.strength=1.0"], "continual.method='si'"),
        (["--set", "env_options.task=1"], "env_options.task"),
        (["--set", 'env_options.games=["Pong", "Boxin"]'], "did you mean"),
        (["--set", 'env_options.games=["Pong", "Freeway:3"]'], "vectorization 'sync'"),
        (
            ["--set", 'env_options.games=["Pong", "Freeway:99"]', "--set", "vectorization=sync"],
            "mode 99: ALE/Freeway-v5 has",
        ),
        (["--agent", "continual"], "agent='continual': games are learned by reward"),
        (["--set", "continual.grow=3", "--set", "continual.own_slots=true"], "continual.own_slots"),
        (["--set", "evaluation.every=100"], "evaluation.every"),
        (["--head", "linear", "--set", "continual.grow=3"], "no program memory"),
        (["--set", "continual.grow=3"], "openness=true"),
        (
            ["--set", f"policy.head_config={HEAD}", "--set", "continual.grow=10000000000"],
            "this machine has",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    assert_refused(tmp_path, capsys, [ID, *SMALL, *arguments], message)
