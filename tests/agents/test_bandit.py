"""The tasks by reward alone: what was right is paid, what would have been right is not said."""

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from neurocoder.agents.player import Player, evaluate
from neurocoder.envs import make_vec
from neurocoder.policies.sb3 import NeurocoderPolicy
from neurocoder.runs.config import resolve
from neurocoder.runs.preparation import prepare
from neurocoder.runs.run import Run
from neurocoder.runs.training import run_training

ID = "neurocoder/Digits-v0"


def test_a3c_learns_digits_by_reward(tmp_path):
    settings = {"agent": "a3c", "steps": 40_000, "a3c.workers": 1, "a3c.envs_per_worker": 32}
    config, policy = prepare(resolve(ID, None, settings, "test"))
    assert config.a3c.gamma == 0
    with Run.create(tmp_path, config) as run:
        run_training(config, policy, run)
    played = evaluate(
        Player(policy, deterministic=True), make_vec(ID, 4, options={"split": "test"}), 8, seed=1
    )
    assert [episode.length for episode in played] == [100] * 8
    assert np.mean([episode.raw_return for episode in played]) > 60  # percent; chance: 10


@pytest.mark.filterwarnings("ignore:.*is an image")
def test_sb3_learns_digits_by_reward():
    envs = make_vec_env(ID, 16, seed=0)
    model = PPO(
        NeurocoderPolicy,
        envs,
        n_steps=64,
        batch_size=256,
        n_epochs=4,
        learning_rate=1e-3,
        gamma=0.0,
        seed=0,
        device="cpu",
    )
    model.learn(40_000)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    assert np.mean(returns) > 60
