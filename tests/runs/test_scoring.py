"""A score is of the saved agent, on the games of its seed, acting as it was told to."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from neurocoder.agents.player import Player, evaluate
from neurocoder.envs import make_vec
from neurocoder.envs.datasets import DATASETS
from neurocoder.policies import Policy
from neurocoder.runs.checkpoint import CheckpointError, Retention, save_checkpoint
from neurocoder.runs.config import EvaluationConfig, TrainConfig, resolve
from neurocoder.runs.preparation import environment_factory, prepare
from neurocoder.runs.scoring import (
    MAX_GAMES,
    Score,
    append_score,
    last_evaluated,
    provenance,
    score_checkpoint,
)

SMALL = {"policy.core": "none", "policy.head": "linear"}


@pytest.fixture
def config() -> TrainConfig:
    return prepare(resolve("CartPole-v1", None, SMALL, "test"))[0]


@pytest.fixture
def policy(config: TrainConfig) -> Policy:
    """An agent that neither balances nor falls over at once."""
    envs = make_vec(config.env, 1)
    policy = Policy(envs.single_observation_space, envs.single_action_space, config.policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("episodes", [1, MAX_GAMES + 4])
def test_a_score_is_what_the_player_gets(
    deterministic: bool, episodes: int, config: TrainConfig, policy: Policy, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path, 100, policy.state_dict(), {}, {}, Retention())
    played = evaluate(
        Player(policy, deterministic=deterministic, seed=7),
        make_vec(config.env, min(episodes, MAX_GAMES)),
        episodes,
        seed=7,
    )
    evaluation = EvaluationConfig(episodes=episodes, deterministic=deterministic)
    score, other = (
        score_checkpoint(path, config, evaluation, environment_factory(config), seed=seed, source="eval")
        for seed in (7, 8)
    )
    assert score["returns"] == [episode.raw_return for episode in played]
    assert score["lengths"] == [episode.length for episode in played] != other["lengths"]
    assert score["mean"] == pytest.approx(np.mean(score["returns"]))
    assert score["std"] == (pytest.approx(np.std(score["returns"], ddof=1)) if episodes > 1 else 0.0)


def test_half_a_line_makes_way_for_the_next_score(tmp_path: Path) -> None:
    score = Score(
        source="training", env="CartPole-v1", checkpoint=10, protocol_hash=None, deterministic=False, stuck_after=0,
        seed=1, mean=1.0, std=0.0, returns=[1.0], lengths=[1], stuck=0, truncated=0,
    )  # fmt: skip
    file = tmp_path / "evaluations.jsonl"
    assert last_evaluated(tmp_path, 100) == 0
    append_score(tmp_path, score)
    file.write_bytes(file.read_bytes() + b'{"source": "trai')
    assert last_evaluated(tmp_path, 100) == 10
    append_score(tmp_path, {**score, "checkpoint": 20})
    append_score(tmp_path, {**score, "checkpoint": 30, "source": "eval"})
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["checkpoint"] for line in lines] == [10, 20, 30]
    assert [last_evaluated(tmp_path, steps) for steps in (9, 19, 20, 99)] == [0, 10, 20, 20]


def test_where_data_come_from_is_said_of_both_splits(
    few_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve("neurocoder/MNIST-v0", None, {}, "test")
    source = DATASETS["mnist"]
    md5 = {
        name: hashlib.md5((few_images / "mnist" / name).read_bytes()).hexdigest()
        for name in source.files["test"]
    }
    monkeypatch.setitem(DATASETS, "mnist", replace(source, md5=md5))
    images, labels = source.files["train"]
    foreign = f"MNIST, local, not the official bytes ({images}, {labels})"
    assert provenance(config) == f"{foreign}; MNIST, official bytes"
    assert provenance(resolve("neurocoder/Digits-v0", None, {}, "test")) == "scikit-learn's digits"
    assert provenance(resolve("neurocoder/Copy-v0", None, {}, "test")) == ""


def test_a_checkpoint_of_another_network_is_refused(
    config: TrainConfig, policy: Policy, tmp_path: Path
) -> None:
    tensors = {f"other.{name}": tensor for name, tensor in policy.state_dict().items()}
    path = save_checkpoint(tmp_path, 100, tensors, {}, {}, Retention())
    with pytest.raises(CheckpointError, match=r"made for another network: missing .*unknown other\."):
        score_checkpoint(path, config, EvaluationConfig(), environment_factory(config), seed=0, source="eval")
