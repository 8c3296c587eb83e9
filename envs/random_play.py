"""What environments look like before anything is learned: observations of random play."""

import math
from collections.abc import Callable

import numpy as np

from neurocoder.envs.vector import EpisodeRecorder

GAMES = 8
"""Games played side by side."""

KEPT = 256
"""Observations that are returned at most: neighbours in time say little that is new."""


def random_observations(make_envs: Callable[[int], EpisodeRecorder], n_steps: int, seed: int) -> np.ndarray:
    """Return observations [N, ...] spread evenly over `n_steps` environment steps of uniformly random actions."""
    envs = make_envs(GAMES)
    try:
        envs.action_space.seed(seed)
        envs.reset(seed=[seed + row for row in range(GAMES)])
        n_rounds = max(1, n_steps // GAMES)
        every = math.ceil(n_rounds * GAMES / KEPT)
        seen = []
        for step in range(n_rounds):
            observation, *_ = envs.step(envs.action_space.sample())
            if step % every == 0:
                seen.append(np.array(observation))
        return np.concatenate(seen)
    finally:
        envs.close()
