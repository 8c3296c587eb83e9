"""What tests hand to worker processes, which import it by this module's name; and what watches those."""

from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from neurocoder.agents import denormals
from neurocoder.agents.a3c import A3CConfig
from neurocoder.agents.hogwild import SharedModel
from neurocoder.agents.worker import TrainSpec
from neurocoder.envs import make_vec
from neurocoder.policies import Policy, PolicyConfig


def cartpole(total_steps: int = 64, make_envs=None, **a3c) -> tuple[TrainSpec, SharedModel]:
    """Return what trains a tiny agent, on CartPole unless other environments are given."""
    config = A3CConfig(**(dict(workers=1, envs_per_worker=2, n_steps=4, reward_clip=0.0) | a3c))
    make_envs = make_envs or partial(make_vec, "CartPole-v1")
    envs = make_envs(1)
    policy_config = PolicyConfig(core="lstm", core_size=8)
    torch.manual_seed(0)
    policy = Policy(envs.single_observation_space, envs.single_action_space, policy_config)
    spec = TrainSpec(
        make_envs=make_envs,
        observation_space=envs.single_observation_space,
        action_space=envs.single_action_space,
        policy=policy_config,
        a3c=config,
        total_steps=total_steps,
        seed=0,
    )
    return spec, SharedModel(policy, config)


class Quits(gym.Env):
    """Raises at its hundredth step."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 100:
            raise RuntimeError("the game broke")
        return np.zeros(2, np.float32), 0.0, False, False, {}


def make_quitting(num_envs):
    """Return environments that raise; registered in whatever process makes them."""
    if "Quits-v0" not in gym.registry:
        gym.register("Quits-v0", Quits)
    return make_vec("Quits-v0", num_envs)


class Denormals(gym.Env):
    """Games of one step, that return 1 where numbers of 1e-39 count as 0 in the process that plays them."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), float(denormals.are_zero()), True, False, {}


def make_telling_denormals(num_envs):
    """Return such games; registered in whatever process makes them."""
    if "Denormals-v0" not in gym.registry:
        gym.register("Denormals-v0", Denormals)
    return make_vec("Denormals-v0", num_envs)


def processes_of(session: int) -> dict[int, int]:
    """Return the processes of a session that have not ended, and the parent of each."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(number) == session and state != "Z":
            found[int(folder.name)] = int(parent)
    return found
