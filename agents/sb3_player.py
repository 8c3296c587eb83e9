"""A player for policies of Stable-Baselines3."""

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import set_random_seed

from neurocoder.agents.player import Decision, GamePlayer


class SB3Player(GamePlayer):
    """Plays with an SB3 `policy`, recurrent ones included, sampling actions unless `deterministic`.

    SB3 draws from the process's own generators, which `seed` sets. DQN's exploration belongs to the algorithm: its
    policy alone is always greedy.
    """

    def __init__(self, policy: BasePolicy, *, deterministic: bool = False, seed: int = 0) -> None:
        self.policy, self.deterministic = policy, deterministic
        set_random_seed(seed % 2**32)

    def _begin(self, num_envs: int) -> None:
        self._state: tuple[np.ndarray, ...] | None = None

    def _decide(self, observation: np.ndarray, start: np.ndarray) -> Decision:
        action, self._state = self.policy.predict(
            observation, self._state, episode_start=start, deterministic=self.deterministic
        )
        return Decision(torch.as_tensor(action))
