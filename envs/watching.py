"""One game at a time, for watching: what recorders play in."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from neurocoder.envs.atari import AtariEnvs, AtariProtocol
from neurocoder.envs.pictures import AtariCamera, PicturedGame
from neurocoder.envs.registry import EnvError
from neurocoder.envs.replayable import ReplayableEnvs
from neurocoder.envs.vector import EpisodeRecorder, make_vec


class WatchedGame(gym.vector.VectorWrapper):
    """One game as a batch of one, of which :meth:`take` returns the pictures.

    There is one of every state, also of an episode's last, although the batch begins the next one in the same step.
    Every episode begins with a reset that names its seed: the same seed and the same actions bring it back.
    """

    env: EpisodeRecorder

    def __init__(self, envs: EpisodeRecorder) -> None:
        super().__init__(envs)
        assert envs.num_envs == 1
        inner = envs.env
        self._camera: AtariCamera | None = None
        if isinstance(inner, AtariEnvs):
            self._camera = AtariCamera(inner.env_id, inner.protocol)
        self._pictures: list[np.ndarray] = []
        self.start_frames = 0
        """Emulator frames before the first observation of this episode; 0 if it is no Atari game."""
        self.faithful = True
        """Whether the second emulator, which takes the pictures, has so far shown the game that is played."""

    def take(self) -> list[np.ndarray]:
        """Return the pictures since the last call: of the reset, if there was one, and of each step."""
        pictures, self._pictures = self._pictures, []
        return pictures

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin the episode of `seed`, which must be given."""
        first = seed if isinstance(seed, int) or seed is None else seed[0]
        if first is None:
            raise EnvError("a watched game begins with a seed: reset(seed=…)")
        observation, info = self.env.reset(seed=[first], options=options)
        if self._camera is None:
            self._pictures = [self._pictured.take()]
        else:
            self.start_frames = int(info["episode_frame_number"][0])
            self._pictures = [self._camera.start(first, self.start_frames)]
        self.faithful = True
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the batch has it."""
        result = self.env.step(actions)
        if self._camera is None:
            self._pictures.append(self._pictured.take())
        else:
            self._pictures.append(self._camera.step(int(actions[0])))
            _, reward, _, _, info = result
            same = self._camera.reward == reward[0] and self._camera.over == info["_episode"][0]
            self.faithful = self.faithful and bool(same)
        return result

    @property
    def action_names(self) -> list[str] | None:
        """What the actions of an Atari game are called; None elsewhere."""
        return self._camera.action_names() if self._camera else None

    @property
    def _pictured(self) -> PicturedGame:
        assert isinstance(self.env.env, ReplayableEnvs)
        game = self.env.env.games[0].env
        assert isinstance(game, PicturedGame)
        return game


def make_watched(
    env_id: str,
    *,
    protocol: AtariProtocol | None = None,
    trust: bool = True,
    options: Mapping[str, Any] | None = None,
) -> WatchedGame:
    """Return one game of `env_id` for watching; Atari games on the native engine, under `protocol`.

    Raises
    ------
    EnvError, ConfigError
        As :func:`make_vec`.
    """
    return WatchedGame(make_vec(env_id, 1, protocol=protocol, trust=trust, pictured=True, options=options))
