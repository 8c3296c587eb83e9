"""Episodes of Stable-Baselines3's models: what they say is recorded, and training does not notice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.utils import obs_as_tensor

from neurocoder.agents.sb3_player import SB3Player
from neurocoder.envs import make_vec
from neurocoder.envs.sb3 import make_atari
from neurocoder.errors import ConfigError
from neurocoder.policies.sb3 import (
    NeurocoderCnnPolicy,
    NeurocoderDQNPolicy,
    NeurocoderLstmPolicy,
    NeurocoderPolicy,
    NeurocoderQRDQNPolicy,
)
from neurocoder.runs.cli import main
from neurocoder.runs.replay.callback import ReplayCallback
from neurocoder.runs.replay.emulation import verify
from neurocoder.runs.replay.episode import RecordedEpisode, find_episodes, read_info

SMALL = {"head_kwargs": {"slots": 8}}


def explained(model, n_envs: int = 2, steps: int = 30):
    """Yield observation, starts and decision of some steps."""
    start = np.ones(n_envs, bool)
    player = SB3Player(model.policy, explain=True, seed=3)
    stream = player.play(make_vec("CartPole-v1", n_envs), list(range(n_envs)))
    for _ in range(steps):
        step = next(stream)
        yield step.observation, start, step.decision
        start = step.terminated | step.truncated


@pytest.mark.parametrize("policy", ["MlpPolicy", NeurocoderPolicy])
def test_an_actor_critic_says_what_sb3_computes(policy) -> None:
    kwargs = {} if policy == "MlpPolicy" else SMALL
    model = PPO(policy, "CartPole-v1", seed=0, policy_kwargs=kwargs)
    for observation, _, decision in explained(model):
        with torch.no_grad():
            seen = obs_as_tensor(observation, model.device)
            distribution = model.policy.get_distribution(seen).distribution
            torch.testing.assert_close(torch.softmax(decision.logits, -1), distribution.probs)
            torch.testing.assert_close(decision.value, model.policy.predict_values(seen).flatten())
    assert set(decision.traces) == (set() if policy == "MlpPolicy" else {"actor", "critic"})


@pytest.mark.parametrize(
    "kwargs", [{}, {"enable_critic_lstm": False}, {"enable_critic_lstm": False, "shared_lstm": True}]
)
def test_a_recurrent_critic_remembers(kwargs: dict) -> None:
    """Its value equals that of SB3's own forward pass, which carries both states."""
    kwargs = {**SMALL, **kwargs, "lstm_hidden_size": 8}
    model = RecurrentPPO(NeurocoderLstmPolicy, "CartPole-v1", seed=0, policy_kwargs=kwargs)
    policy = model.policy
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    zeros = torch.zeros(1, 2, 8)
    states = RNNStates((zeros, zeros), (zeros, zeros))
    for observation, start, decision in explained(model, steps=60):
        with torch.no_grad():
            _, values, _, states = policy.forward(
                obs_as_tensor(observation, model.device), states, torch.tensor(start, dtype=torch.float32)
            )
        torch.testing.assert_close(decision.value, values.flatten())


@pytest.mark.parametrize(
    ("algorithm", "policy", "role"),
    [(DQN, NeurocoderDQNPolicy, "q"), (QRDQN, NeurocoderQRDQNPolicy, "quantiles")],
)
def test_action_values_are_those_that_are_maximised(algorithm, policy, role: str) -> None:
    model = algorithm(policy, "CartPole-v1", seed=0, policy_kwargs=SMALL)
    for _, _, decision in explained(model):
        assert (decision.action == decision.action_values.argmax(-1)).all()
        torch.testing.assert_close(decision.value, decision.action_values.amax(-1))
        assert decision.logits is None
    assert set(decision.traces) == {role}


def test_other_policies_say_what_they_do() -> None:
    model = SAC("MlpPolicy", "Pendulum-v1", seed=0)
    player = SB3Player(model.policy, explain=True)
    step = next(player.play(make_vec("Pendulum-v1", 1), [1]))
    assert step.decision.logits is None and step.decision.value is None and not step.decision.traces


def test_explaining_changes_no_action() -> None:
    model = PPO(NeurocoderPolicy, "CartPole-v1", seed=0, policy_kwargs=SMALL)

    def actions(explain: bool) -> list[int]:
        stream = SB3Player(model.policy, explain=explain, seed=3).play(make_vec("CartPole-v1", 1), [1])
        return [int(next(stream).decision.action[0]) for _ in range(50)]

    assert actions(True) == actions(False)


def test_training_does_not_notice_that_it_is_recorded(tmp_path: Path) -> None:
    def trained(callback) -> torch.Tensor:
        model = A2C(NeurocoderPolicy, "CartPole-v1", seed=0, policy_kwargs=SMALL)
        model.learn(300, callback=callback)
        return torch.nn.utils.parameters_to_vector(model.policy.parameters())

    callback = ReplayCallback("CartPole-v1", every=100, logs=tmp_path, name="run", seed=4)
    torch.testing.assert_close(trained(callback), trained(None), rtol=0, atol=0)
    steps = [read_info(folder).source.checkpoint for folder in callback.episodes]
    assert steps == [0, 100, 200, 300]
    assert list(find_episodes(tmp_path)) == sorted(callback.episodes)
    for folder in callback.episodes:
        opened = RecordedEpisode.open(folder)
        assert opened.info.seed == 4 and opened.info.discount == 0.99
        assert {"value", "logits", "attention/actor/U"} <= set(opened.trace.names)
        assert verify(opened).startswith("exact")


def test_atari_policies_are_recorded_as_zips_too(tmp_path: Path, capsys) -> None:
    envs = make_atari("ALE/Pong-v5", 1, seed=0)
    model = PPO(NeurocoderCnnPolicy, envs, n_steps=8, batch_size=8, seed=0, policy_kwargs=SMALL)
    model.save(tmp_path / "model.zip")
    envs.close()
    flags = ["--env", "ALE/Pong-v5", "--logs", str(tmp_path / "logs"), "--stuck-after", "40", "--seed", "2"]
    assert main(["record", str(tmp_path / "model.zip"), *flags]) == 2
    assert "--trust" in capsys.readouterr().err
    assert main(["record", str(tmp_path / "model.zip"), "--trust", *flags]) == 0
    (folder,) = find_episodes(tmp_path / "logs")
    assert folder == tmp_path / "logs" / "ALE-Pong-v5" / "model" / "episodes" / "0-2"
    opened = RecordedEpisode.open(folder)
    assert opened.trace["attention/critic/V"].shape == (opened.info.length, 8)
    assert verify(opened).startswith("exact")


def test_what_the_callback_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every=0"):
        ReplayCallback("CartPole-v1", every=0)
    with pytest.raises(ConfigError, match="seed=-1"):
        ReplayCallback("CartPole-v1", seed=-1)
    with pytest.raises(ConfigError, match="is for Atari games"):
        ReplayCallback("CartPole-v1", preset="dqn2015")
    model = A2C("MlpPolicy", "CartPole-v1")
    with pytest.raises(ConfigError, match="its policy has observations"):
        model.learn(10, callback=ReplayCallback("Pendulum-v1", logs=tmp_path))
