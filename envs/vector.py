"""One way to make any environment that an agent can step: a batch with one set of conventions."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from neurocoder.envs.atari import AtariEnvs, AtariProtocol
from neurocoder.envs.registry import EnvError, env_spec, is_atari

MAX_FLAT_SIZE = 4096
"""Largest vector that Dict, Tuple and Discrete observations are flattened into; images do not belong there."""


class EpisodeRecorder(gym.vector.VectorWrapper):
    """Count raw returns and lengths of whole episodes, and make ``final_obs`` one array.

    ============================ ================ ==================================================
    info["episode"]["r"], ["l"]  [num_envs]       raw return and agent steps of the episodes ended
    info["_episode"]             [num_envs] bool  where an episode ended (Atari: the game, not a life)
    info["final_obs"]            [num_envs, ...]  last observation of the episodes ended
    info["_final_obs"]           [num_envs] bool  where `final_obs` is valid
    ============================ ================ ==================================================

    The first two are there on every step, the last two only when an episode ended.
    """

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        super().__init__(env)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._returns[:] = 0
        self._lengths[:] = 0
        return self.env.reset(**kwargs)

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(actions)
        self._returns += reward
        self._lengths += 1
        over = info["game_over"] if isinstance(self.env, AtariEnvs) else terminated | truncated
        info["episode"] = {"r": self._returns.copy(), "l": self._lengths.copy()}
        info["_episode"] = over
        self._returns[over] = 0
        self._lengths[over] = 0
        final = info.get("final_obs")
        if final is not None and final.dtype == object:  # Gymnasium's own vector environments
            dense = np.zeros_like(observation)
            for row in np.flatnonzero(info["_final_obs"]):
                dense[row] = final[row]
            info["final_obs"] = dense
        return observation, reward, terminated, truncated, info


class ChannelsFirst(gym.ObservationWrapper):
    """Turn images [height, width, channels] into [channels, height, width]."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gym.spaces.Box)
        low, high = (np.moveaxis(bound, -1, 0) for bound in (space.low, space.high))
        self.observation_space = gym.spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.moveaxis(observation, -1, 0)


def adapt_observation(env: gym.Env) -> gym.Env:
    """Return `env` with observations that a policy can encode.

    Box observations stay (images become channels-first); Discrete, MultiDiscrete, MultiBinary and Dicts and
    Tuples of them and of small Boxes are flattened into one vector, discrete parts one-hot.

    Raises
    ------
    EnvError
        The space cannot be flattened, or only into something that is no longer a small vector.
    """
    space = env.observation_space
    if isinstance(space, gym.spaces.Box):
        is_hwc = len(space.shape) == 3 and space.shape[-1] in (1, 3, 4) and space.shape[0] > 4
        return ChannelsFirst(env) if is_hwc else env
    hint = "wrap the environment so that it returns a Box, and register it under an id of its own"
    try:
        flat = gym.spaces.utils.flatdim(space)
    except (ValueError, NotImplementedError):
        raise EnvError(f"observation space {space} has no fixed size; {hint}") from None
    if flat > MAX_FLAT_SIZE:
        raise EnvError(f"observation space {space} flattens to {flat} > {MAX_FLAT_SIZE} numbers; {hint}")
    return gym.wrappers.FlattenObservation(env)


def make_vec(
    env_id: str,
    num_envs: int,
    *,
    protocol: AtariProtocol | None = None,
    num_threads: int = 1,
    trust: bool = True,
) -> gym.vector.VectorEnv:
    """Return `num_envs` environments of `env_id` as one batch that resets in the same step.

    Atari ids are played under `protocol` on the native vector path with `num_threads` emulator threads; what
    their id says of frame skip and sticky actions gives way to the protocol. All other ids are stepped one
    after the other. See :class:`EpisodeRecorder` for what ``info`` holds.

    Raises
    ------
    EnvError
        The id is unknown, cannot be made, or has observations that no policy takes.
    """
    spec = env_spec(env_id, trust=trust)
    if is_atari(spec):
        return EpisodeRecorder(AtariEnvs(spec.id, protocol or AtariProtocol(), num_envs, num_threads))
    try:
        envs = gym.make_vec(
            spec,
            num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
            wrappers=[adapt_observation],  # type: ignore[list-item]  # may return the environment itself
        )
    except EnvError:
        raise
    except Exception as error:  # whatever a stranger's environment raises while it is built
        raise EnvError(f"environment {env_id!r} cannot be made: {type(error).__name__}: {error}") from error
    return EpisodeRecorder(envs)
