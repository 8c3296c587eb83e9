"""The Player: plays episodes with a policy and owns the recurrent state while it does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from neurocoder.agents.a3c import Episode
from neurocoder.policies import Policy, PolicyOutput, PolicyTrace, to_env_action


@dataclass(frozen=True, slots=True)
class Step:
    """One step of all games: what was seen, what the policy said and did, what came of it."""

    observation: np.ndarray
    output: PolicyOutput
    trace: PolicyTrace
    action: Tensor
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: dict[str, Any]


class Player:
    """Plays a batch of games with `policy` (in evaluation mode), sampling actions unless `deterministic`."""

    def __init__(self, policy: Policy, *, deterministic: bool = False, seed: int = 0) -> None:
        self.policy = policy.eval()
        self.deterministic = deterministic
        self.device = next(policy.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def play(self, envs: gym.vector.VectorEnv, seeds: list[int]) -> Iterator[Step]:
        """Play for ever from games started with `seeds` (one per game), yielding every step."""
        observation, _ = envs.reset(seed=seeds)  # type: ignore[arg-type]  # one per game
        state = self.policy.initial_state(envs.num_envs)
        start = torch.ones(envs.num_envs, dtype=torch.bool)
        while True:
            with torch.no_grad():
                seen = torch.as_tensor(observation).to(self.device)
                output, state, trace = self.policy(seen, state, start.to(self.device))
                distribution = self.policy.distribution(output.logits)
                action = distribution.mode() if self.deterministic else distribution.sample(self.generator)
            following, reward, terminated, truncated, info = envs.step(
                to_env_action(envs.single_action_space, action)
            )
            yield Step(observation, output, trace, action, reward, terminated, truncated, info)
            observation = following
            start = torch.from_numpy(terminated | truncated)


def evaluate(player: Player, envs: gym.vector.VectorEnv, episodes: int, seed: int) -> list[Episode]:
    """Return `episodes` whole episodes with raw returns, in the order of their seeds.

    Every game of the batch plays the same number of episodes (the last round may be partial), so that short
    episodes are not favoured.
    """
    n_envs = envs.num_envs
    quota = np.full(n_envs, episodes // n_envs)
    quota[: episodes % n_envs] += 1
    seeds = np.random.SeedSequence(seed).generate_state(n_envs, np.uint32) >> 1
    played: list[list[Episode]] = [[] for _ in range(n_envs)]
    for step in player.play(envs, [int(s) for s in seeds]):
        ended = step.info["_episode"]
        for row in np.flatnonzero(ended):
            if len(played[row]) < quota[row]:
                result = step.info["episode"]
                played[row].append(Episode(float(result["r"][row]), int(result["l"][row])))
        if all(len(games) == n for games, n in zip(played, quota, strict=True)):
            break
    return [games[i] for i in range(int(quota.max())) for games in played if i < len(games)]
