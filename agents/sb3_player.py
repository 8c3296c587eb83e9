"""A player for policies of Stable-Baselines3."""

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.sac.policies import SACPolicy

from neurocoder.agents.player import Decision, GamePlayer


class SB3Player(GamePlayer):
    """Plays with an SB3 `policy`, recurrent ones included, sampling actions unless `deterministic`.

    SB3 draws from the process's own generators, which `seed` sets. Policies without a distribution (DQN, QR-DQN, TD3),
    whose exploration belongs to their algorithms, are always greedy: then ``deterministic`` is True.
    """

    def __init__(self, policy: BasePolicy, *, deterministic: bool = False, seed: int = 0) -> None:
        self.policy = policy
        self.deterministic = deterministic or not isinstance(policy, ActorCriticPolicy | SACPolicy)
        set_random_seed(seed % 2**32)

    def _begin(self, num_envs: int) -> None:
        self._state: tuple[np.ndarray, ...] | None = None

    def _decide(self, observation: np.ndarray, start: np.ndarray) -> Decision:
        action, self._state = self.policy.predict(
            observation, self._state, episode_start=start, deterministic=self.deterministic
        )
        return Decision(torch.as_tensor(action))
