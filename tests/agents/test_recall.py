"""The Turing machine in the A3C trainer, by reward alone: it recalls what an agent without memory can only guess."""

import numpy as np

from neurocoder.agents.player import Player, evaluate
from neurocoder.envs import make_vec
from neurocoder.runs.config import resolve
from neurocoder.runs.preparation import prepare
from neurocoder.runs.run import Run
from neurocoder.runs.training import run_training

ID, OPTIONS = "neurocoder/Copy-v0", {"bits": 1, "min_length": 2, "max_length": 2}


def wrong_bits(tmp_path, core: str, **core_config: int) -> float:
    """Return the wrong bits per sequence, of two, after training."""
    settings = {
        "agent": "a3c",
        "steps": 60_000,
        "a3c.workers": 1,
        "a3c.envs_per_worker": 32,
        "a3c.learning_rate": 3e-3,
        "policy.core": core,
        "policy.core_size": 32,
        "policy.core_config": core_config,
        "env_options": OPTIONS,
    }
    config, policy = prepare(resolve(ID, None, settings, "test"))
    with Run.create(tmp_path, config) as run:
        run_training(config, policy, run)
    played = evaluate(Player(policy, deterministic=True), make_vec(ID, 16, options=OPTIONS), 256, seed=1)
    return -float(np.mean([episode.raw_return for episode in played]))


def test_a_machine_recalls_by_reward_what_no_memory_can(tmp_path):
    assert wrong_bits(tmp_path / "none", "none") > 0.8  # guessing: 1
    assert (
        wrong_bits(tmp_path / "ntm", "ntm", rows=8, width=4) < 0.4
    )  # 0, or 0.21: on some processors it ends with one sequence of four half wrong
