"""The whole learner learns: CartPole with Neurocoder heads, and a continuous action that hits a target."""

import gymnasium as gym
import numpy as np
import torch

from neurocoder.agents.a3c import A3CConfig, loss_and_metrics
from neurocoder.agents.player import Player, evaluate
from neurocoder.agents.rollout import rollouts
from neurocoder.envs import make_vec
from neurocoder.policies import Policy, PolicyConfig
from neurocoder.runs.config import resolve
from neurocoder.runs.preparation import prepare
from neurocoder.runs.run import Run
from neurocoder.runs.training import run_training


def test_cartpole_is_solved_with_neurocoder_heads(tmp_path):
    config, policy = prepare(resolve("CartPole-v1", None, {"steps": 120_000, "a3c.workers": 1}, "test"))
    with Run.create(tmp_path, config) as run:
        run_training(config, policy, run)
    played = evaluate(Player(policy, deterministic=True), make_vec("CartPole-v1", 16), 50, seed=1)
    assert np.mean([episode.raw_return for episode in played]) >= 475


class Target(gym.Env):
    """One step: the closer the two-dimensional action is to the observed target, the better."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.target = self.np_random.uniform(-0.8, 0.8, 2).astype(np.float32)
        return self.target.copy(), {}

    def step(self, action):
        return self.target.copy(), -float(np.square(action - self.target).sum()), True, False, {}


gym.register("Target-v0", Target)


def test_box_actions_hit_the_target():
    config = A3CConfig(n_steps=8, reward_clip=0.0, entropy_coefficient=0.0)
    envs = make_vec("Target-v0", 32)
    policy = Policy(envs.single_observation_space, envs.single_action_space, PolicyConfig(core="none"))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    stream = rollouts(policy, envs, config.n_steps, list(range(32)), torch.Generator().manual_seed(0))

    def score():
        played = evaluate(Player(policy, deterministic=True), make_vec("Target-v0", 32), 128, seed=9)
        return np.mean([episode.raw_return for episode in played])

    before = score()
    for _ in range(800):
        optimizer.zero_grad()
        loss_and_metrics(policy, next(stream), config)[0].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    assert before < -0.3
    assert score() > -0.02
