"""What users of Stable-Baselines3 and the RL Zoo do with the command line: score a zip, train and watch by a file."""

import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from sb3_contrib import ARS, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from neurocoder.envs.sb3 import make_atari
from neurocoder.policies.sb3 import (
    NeurocoderCnnPolicy,
    NeurocoderDQNPolicy,
    NeurocoderLstmPolicy,
    NeurocoderPolicy,
)
from neurocoder.runs.cli import main

Capture = pytest.CaptureFixture[str]
SMALL = dict(head="neurocoder", head_kwargs=dict(slots=8, attention_heads=2))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = PPO(NeurocoderPolicy, "CartPole-v1", n_steps=64, seed=0, policy_kwargs=dict(SMALL))
    model.learn(64)
    model.save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


def refused(capsys: Capture, *arguments: str) -> str:
    assert main(["eval", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("algorithm", "policy", "kwargs", "env"),
    [
        (A2C, NeurocoderPolicy, {}, "CartPole-v1"),
        (PPO, "MlpPolicy", dict(n_steps=64), "CartPole-v1"),
        (RecurrentPPO, NeurocoderLstmPolicy, dict(n_steps=64), "CartPole-v1"),
        (DQN, NeurocoderDQNPolicy, {}, "CartPole-v1"),
        (SAC, "MlpPolicy", {}, "Pendulum-v1"),
    ],
)
def test_a_zip_is_played_whatever_algorithm_saved_it(
    algorithm: Any, policy: Any, kwargs: dict[str, Any], env: str, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "any.zip"
    model = algorithm(
        policy, env, seed=0, policy_kwargs=dict(SMALL) if isinstance(policy, type) else None, **kwargs
    )
    model.save(file)
    for _ in range(2):
        assert main(["eval", str(file), "--env", env, "--trust", "--episodes", "2", "--deterministic"]) == 0
    first, second = (
        text.split("agent steps in")[0] for text in capsys.readouterr().out.split(f"{env}  ")[1:]
    )
    assert first == second and "raw return" in first and "actions most probable" in first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["any.zip"]


def test_an_atari_zip_is_played_under_a_protocol(tmp_path: Path, capsys: Capture) -> None:
    model = PPO(NeurocoderCnnPolicy, make_atari("ALE/Pong-v5", 1), policy_kwargs=dict(SMALL))
    model.save(tmp_path / "pong.zip")
    arguments = ["eval", str(tmp_path / "pong.zip"), "--env", "ALE/Pong-v5", "--trust", "--episodes", "1"]
    assert main([*arguments, "--preset", "dqn2015"]) == 0
    out = capsys.readouterr().out
    assert "protocol dqn2015 [" in out and re.search(r"raw return -(1\d|2[01])\.00 ± 0\.00", out)


def test_the_score_of_a_perfect_policy_is_the_whole_game(saved: Path, capsys: Capture) -> None:
    """CartPole's angle and its velocity, summed, say where to push: planted into the linear control."""
    import torch

    model = PPO("MlpPolicy", "CartPole-v1", policy_kwargs=dict(net_arch=[]))
    with torch.no_grad():
        model.policy.action_net.weight.copy_(torch.tensor([[0.0] * 4, [0.1, 0.3, 10.0, 3.0]]))
        model.policy.action_net.bias.zero_()
    model.save(saved)
    assert main(["eval", str(saved), "--env", "CartPole-v1", "--trust", "--deterministic"]) == 0
    assert "raw return 500.00 ± 0.00 (mean ± std of 5 episodes)" in capsys.readouterr().out


def test_what_a_policy_cannot_do_is_said(tmp_path: Path, capsys: Capture) -> None:
    DQN(NeurocoderDQNPolicy, "CartPole-v1", policy_kwargs=dict(SMALL)).save(tmp_path / "dqn.zip")
    assert (
        main(["eval", str(tmp_path / "dqn.zip"), "--env", "CartPole-v1", "--trust", "--episodes", "1"]) == 0
    )
    assert "actions most probable" in capsys.readouterr().out  # it has no distribution to sample from
    ARS("LinearPolicy", "CartPole-v1").save(tmp_path / "ars.zip")
    error = refused(capsys, str(tmp_path / "ars.zip"), "--trust", "--env", "CartPole-v1")
    assert "not readable as a zip of Stable-Baselines3" in error
    envs = VecNormalize(make_vec_env("CartPole-v1", 1))
    PPO("MlpPolicy", envs, n_steps=16, batch_size=16).learn(16).save(tmp_path / "normalized.zip")
    error = refused(capsys, str(tmp_path / "normalized.zip"), "--trust", "--env", "CartPole-v1")
    assert "trained with VecNormalize, whose statistics are not in the zip" in error


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_without_trust_nothing_in_a_zip_is_run(tmp_path: Path, capsys: Capture) -> None:
    import base64

    import cloudpickle

    fired = tmp_path / "fired"
    pickled = base64.b64encode(cloudpickle.dumps(Bomb(fired))).decode()
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {":type:": "x", ":serialized:": pickled}}))
    arguments = [str(tmp_path / "evil.zip"), "--env", "CartPole-v1"]
    assert "holds pickles, which run code when they are read; give --trust" in refused(capsys, *arguments)
    assert not fired.exists()
    assert "no model saved by Stable-Baselines3" in refused(capsys, *arguments, "--trust")
    assert fired.exists()  # the file is what it claims: with --trust, it would have run


def test_wrong_input_with_a_zip_is_one_line(saved: Path, tmp_path: Path, capsys: Capture) -> None:
    zipped = str(saved)
    assert "no such file" in refused(capsys, str(tmp_path / "none.zip"), "--trust")
    assert "give --env ID" in refused(capsys, zipped, "--trust")
    assert "unknown environment" in refused(capsys, zipped, "--trust", "--env", "CartPol-v1")
    assert "--preset is for Atari" in refused(
        capsys, zipped, "--trust", "--env", "CartPole-v1", "--preset", "dqn2015"
    )
    assert "its policy has observations" in refused(capsys, zipped, "--trust", "--env", "Acrobot-v1")
    assert "holds one model" in refused(capsys, zipped, "--trust", "--checkpoint", "best")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(saved.read_bytes()[:-200])
    assert "no model saved by" in refused(capsys, str(broken), "--trust", "--env", "CartPole-v1")
    assert "a run knows its own" in refused(capsys, "some-run", "--env", "CartPole-v1")


# ------------------------------------------------------------------------------------------ RL Zoo


def zoo(command: str, folder: Path, *arguments: str) -> str:
    """Run a command of the real RL Zoo in `folder`; return what it printed."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", f"rl_zoo3.{command}", "-f", str(folder / "logs"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def listed(capsys: Capture) -> dict[str, str]:
    assert main(["list", "zoo"]) == 0
    return dict(line.split(": ") for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("algorithm", ["a2c", "dqn", "ppo", "ppo_lstm"])
def test_the_zoo_trains_and_plays_from_our_file(algorithm: str, tmp_path: Path, capsys: Capture) -> None:
    file = listed(capsys)[algorithm]
    common = ["--algo", algorithm, "--env", "CartPole-v1"]
    short = {"ppo": ["n_epochs:1"], "ppo_lstm": ["n_epochs:1"], "dqn": ["gradient_steps:2"], "a2c": []}[
        algorithm
    ]
    out = zoo(
        "train", tmp_path, *common, "--conf-file", file, "-n", "1300", "--eval-freq", "-1", "--verbose", "1",
        *(["-params", *short] if short else []),
    )  # fmt: skip
    assert "neurocoder.policies.sb3" in out
    steps = "510"  # an episode of CartPole ends by itself after 500 at the latest
    out = zoo("enjoy", tmp_path, *common, "-n", steps, "--no-render", "--exp-id", "1")
    assert "Episode Reward" in out or "Mean reward" in out


@pytest.mark.parametrize("algorithm", ["a2c", "dqn", "ppo", "ppo_lstm"])
def test_our_zoo_files_name_policies_that_there_are(algorithm: str) -> None:
    import yaml

    import neurocoder.policies.sb3 as policies

    text = (resources.files("neurocoder.runs.zoo") / f"{algorithm}.yml").read_text("utf-8")
    hyperparameters = yaml.safe_load(text)
    assert {"atari", "CartPole-v1"} <= hyperparameters.keys()
    for environment in hyperparameters.values():
        module, _, name = environment["policy"].rpartition(".")
        assert module == "neurocoder.policies.sb3" and name in policies.__all__


SHORT = {
    "a2c": ["n_envs:1"],
    "dqn": ["buffer_size:100", "learning_starts:20"],
    "ppo": ["n_envs:1", "n_steps:32", "batch_size:32", "n_epochs:1"],
    "ppo_lstm": ["n_envs:1", "n_steps:32", "batch_size:32", "n_epochs:1"],
}


@pytest.mark.parametrize("algorithm", SHORT)
def test_the_zoo_trains_an_atari_game_from_our_file(algorithm: str, tmp_path: Path, capsys: Capture) -> None:
    out = zoo(
        "train", tmp_path, "--algo", algorithm, "--env", "PongNoFrameskip-v4",
        "--conf-file", listed(capsys)[algorithm], "-n", "64", "--eval-freq", "-1", "-params", *SHORT[algorithm],
    )  # fmt: skip
    assert "neurocoder.policies.sb3" in out or "NeurocoderCnn" in out
