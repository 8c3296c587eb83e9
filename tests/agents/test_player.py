"""The player: explicit state, and evaluation that favours no episode length."""

import gymnasium as gym
import numpy as np
import torch

from neurocoder.agents.player import Player, evaluate
from neurocoder.envs import make_vec
from neurocoder.policies import Policy, PolicyConfig


class RandomLength(gym.Env):
    """Each episode lasts 1 or 20 steps, with equal chance; the return is its length."""

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 1 if self.np_random.random() < 0.5 else 20
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(1, np.float32), 1.0, self.left == 0, False, {}


gym.register("RandomLength-v0", RandomLength)


def player(**options):
    space = gym.spaces.Box(0, 100, (1,), np.float32)
    return Player(Policy(space, gym.spaces.Discrete(2), PolicyConfig(core="gru", core_size=4)), **options)


def test_evaluation_plays_exactly_the_episodes_asked_for():
    for episodes, games in ((1, 1), (5, 3), (7, 7)):
        played = evaluate(player(), make_vec("RandomLength-v0", games), episodes, seed=0)
        assert len(played) == episodes
        assert all(e.raw_return == e.length and e.length in (1, 20) for e in played)


def test_short_episodes_are_not_favoured():
    played = evaluate(player(), make_vec("RandomLength-v0", 16), 320, seed=1)
    mean = np.mean([e.length for e in played])
    assert abs(mean - 10.5) < 3 * 9.5 / np.sqrt(320)


def test_equal_seeds_play_equal_games_and_deterministic_takes_the_mode():
    envs = make_vec("CartPole-v1", 4)
    torch.manual_seed(1)
    policy = Policy(envs.single_observation_space, envs.single_action_space, PolicyConfig(core="none"))
    with torch.no_grad():
        policy.actor.residual.add_(torch.randn_like(policy.actor.residual))

    def games(seed, deterministic=False):
        return evaluate(Player(policy, seed=seed, deterministic=deterministic), envs, 8, seed)

    assert games(3) == games(3)
    assert games(3) != games(4)
    step = next(Player(policy, deterministic=True).play(envs, [1, 2, 3, 4]))
    assert (step.action == step.output.logits.argmax(-1)).all()
