"""The player of SB3's policies carries their LSTM's state, and draws by its seed."""

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO

from neurocoder.agents.sb3_player import SB3Player
from neurocoder.envs import make_vec
from neurocoder.policies.sb3 import NeurocoderLstmPolicy


@pytest.fixture
def policy():
    kwargs = dict(lstm_hidden_size=16, net_arch=[], head="linear")
    model = RecurrentPPO(NeurocoderLstmPolicy, "CartPole-v1", seed=0, policy_kwargs=kwargs)
    with torch.no_grad():  # its actions depend on what was long ago
        for parameter in model.policy.lstm_actor.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model.policy


def test_the_state_goes_on_and_ends_with_its_game(policy):
    player = SB3Player(policy, deterministic=True)
    stream = player.play(make_vec("CartPole-v1", 3), [1, 2, 3])
    state, start = None, np.ones(3, dtype=bool)
    ended = 0
    for _ in range(80):
        step = next(stream)
        expected, state = policy.predict(step.observation, state, episode_start=start, deterministic=True)
        np.testing.assert_array_equal(step.decision.action.numpy(), expected)
        for mine, theirs in zip(player._state, state, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        _, alone = policy.predict(step.observation, None, np.ones(3, dtype=bool), deterministic=True)
        forgotten = (state[1] == alone[1]).all(
            axis=(0, 2)
        )  # the cell of a game's first step, and of no other
        np.testing.assert_array_equal(forgotten, start)
        start = step.terminated | step.truncated
        ended += start.sum()
    assert ended > 3


def test_actions_are_drawn_by_the_seed(policy):
    def actions(seed):
        player = SB3Player(policy, seed=seed)
        stream = player.play(make_vec("CartPole-v1", 2), [1, 2])
        return np.array([next(stream).decision.action.numpy() for _ in range(40)])

    np.testing.assert_array_equal(actions(3), actions(3))
    assert (actions(3) != actions(4)).any()
