"""One way to make any environment that an agent can step: a batch with one set of conventions."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from neurocoder.envs.atari import ENGINES, AtariEnvs, AtariProtocol, make_atari
from neurocoder.envs.continual_atari import make_sequence
from neurocoder.envs.pictures import PicturedGame, can_render
from neurocoder.envs.registry import EnvError, env_spec, is_atari, is_game_sequence
from neurocoder.envs.replayable import GameState, ReplayableEnvs
from neurocoder.errors import lookup

MAX_FLAT_SIZE = 4096
"""Largest vector that Dict, Tuple and Discrete observations are flattened into; images do not belong there."""


class EpisodeRecorder(gym.vector.VectorWrapper):
    """Count raw returns and lengths of whole episodes. What :func:`make_vec` returns.

    ============================ ================ ==================================================
    info["episode"]["r"], ["l"]  [num_envs]       raw return and agent steps of the episodes ended
    info["_episode"]             [num_envs] bool  where an episode ended (Atari: the game, not a life)
    info["final_obs"]            [num_envs, ...]  last observation of the episodes ended
    info["_final_obs"]           [num_envs] bool  where `final_obs` is valid
    ============================ ================ ==================================================

    The first two are there on every step, the last two only when an episode ended.

    ``step`` is ``step_async`` and ``step_wait``; on the native path the emulators run between the two.
    """

    env: AtariEnvs | ReplayableEnvs

    def __init__(self, env: AtariEnvs | ReplayableEnvs) -> None:
        super().__init__(env)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        rows = (kwargs.get("options") or {}).get("reset_mask", slice(None))
        self._returns[rows] = 0
        self._lengths[rows] = 0
        return self.env.reset(**kwargs)

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step of all environments with `actions` [num_envs, ...]."""
        self.env.step_async(actions)

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Return the results of the step begun."""
        observation, reward, terminated, truncated, info = self.env.step_wait()
        self._returns += reward
        self._lengths += 1
        over = info["game_over"]
        info["episode"] = {"r": self._returns.copy(), "l": self._lengths.copy()}
        info["_episode"] = over
        self._returns[over] = 0
        self._lengths[over] = 0
        return observation, reward, terminated, truncated, info

    @property
    def exactly_resumable(self) -> bool:
        """Whether :meth:`get_state` and :meth:`set_state` work: everywhere but on the native Atari path."""
        return self.env.exactly_resumable

    def get_state(self) -> list[GameState]:
        """Return the state of every environment, between two steps: integers and arrays, to be stored."""
        return self._replayable().get_state()

    def set_state(self, states: Sequence[GameState], beat: Callable[[], None] = lambda: None) -> np.ndarray:
        """Bring every environment to its state, returns and lengths included; return their observations.

        No reset before or after it. Episodes are played again, which takes about as long as they took: `beat` is called
        every hundred steps.

        Raises
        ------
        EnvError
            The states are of other environments, or an environment is not deterministic given its seed and
            its actions; :meth:`reset` then starts anew.
        """
        envs = self._replayable()
        observation = envs.set_state(states, beat)
        self._returns[:] = [game.episode_return for game in envs.games]
        self._lengths[:] = [game.episode_length for game in envs.games]
        return observation

    def _replayable(self) -> ReplayableEnvs:
        if isinstance(self.env, ReplayableEnvs):
            return self.env
        raise EnvError(
            "the native vector environment has no state that can be stored; use vectorization 'sync' for "
            "games that a resumed run goes on with"
        )


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
    vectorization: str = "native",
    trust: bool = True,
    pictured: bool = False,
    options: Mapping[str, Any] | None = None,
) -> EpisodeRecorder:
    """Return `num_envs` environments of `env_id` as one batch that resets in the same step.

    Atari ids are played under `protocol`; what their id says of frame skip and sticky actions gives way to
    it; so are sequences of games (``envs.continual_atari``), whose `options` are games and task. `vectorization`
    ``native`` is ale-py's vector environment with `num_threads` emulator threads; ``sync`` is Gymnasium's
    wrappers, one game after the other: slower, but their state can be stored and brought back exactly. All other ids are always ``sync``, made with `options` (keyword arguments), and are each a
    :class:`PicturedGame` if `pictured`. See :class:`EpisodeRecorder` for what ``info`` holds.

    Raises
    ------
    EnvError
        The id is unknown, cannot be made, has observations or actions that no policy takes, or `protocol`
        needs the native path.
    ConfigError
        `vectorization` is neither of the two.
    """
    spec = env_spec(env_id, trust=trust)
    lookup(ENGINES, vectorization, "vectorization")
    if is_atari(spec):
        if options:
            raise EnvError(f"{spec.id}: an Atari game has a protocol, not the options {dict(options)}")
        protocol = protocol or AtariProtocol()
        if vectorization == "native":
            return EpisodeRecorder(AtariEnvs(spec.id, protocol, num_envs, num_threads))
        return EpisodeRecorder(ReplayableEnvs(partial(make_atari, spec.id, protocol), num_envs))
    if is_game_sequence(spec.id):
        chosen, rules = dict(options or {}), protocol or AtariProtocol()
        native = vectorization == "native"
        return EpisodeRecorder(make_sequence(chosen, rules, num_envs, num_threads, native=native))
    try:
        envs = ReplayableEnvs(lambda: _make_game(spec, pictured, options or {}), num_envs)
    except EnvError:
        raise
    except Exception as error:  # whatever a stranger's environment raises while it is built
        raise EnvError(f"environment {env_id!r} cannot be made: {type(error).__name__}: {error}") from error
    return EpisodeRecorder(envs)


def _make_game(spec: gym.envs.registration.EnvSpec, pictured: bool, options: Mapping[str, Any]) -> gym.Env:
    if not pictured:
        return adapt_observation(gym.make(spec, **options))
    if can_render(spec):
        options = {**options, "render_mode": "rgb_array"}
    return PicturedGame(adapt_observation(gym.make(spec, **options)))
