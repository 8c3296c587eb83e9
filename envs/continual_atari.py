"""Atari games one after the other over the one set of 18 actions: continual learning by reward.

    gymnasium.make("neurocoder/ContinualAtari-v0", games=["Pong", "Boxing"], task=1)

A game is a name, or a name with mode and difficulty: ``Freeway:3`` or ``Freeway:3:1``, so that a sequence may also be one
game that changes. ale-py's native vector environment knows neither; with them games are stepped one by one
(vectorization "sync"). ``info["task"]`` says which game it is. Everything else is ``envs.atari``'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from neurocoder.envs.atari import AtariEnvs, AtariProtocol, check_switches, make_atari
from neurocoder.envs.registry import EnvError, env_spec
from neurocoder.envs.replayable import ReplayableEnvs

GAMES = ("Pong", "Boxing", "Freeway")


@dataclass(frozen=True, slots=True)
class Game:
    """One game of a sequence. Mode and difficulty are the cartridge's switches; None: as it is delivered."""

    env_id: str
    mode: int | None = None
    difficulty: int | None = None

    @property
    def switched(self) -> bool:
        """Whether it is anything but the game as it is delivered."""
        return self.mode is not None or self.difficulty is not None


def parse_games(games: Sequence[str]) -> tuple[Game, ...]:
    """Return the games that `games` names.

    Raises
    ------
    EnvError
        There are none, one is not known (near names are offered), or it is not written like that.
    """
    if isinstance(games, str) or not games:
        raise EnvError(f"games={games!r} must be a list of names, e.g. {list(GAMES)}")
    return tuple(map(_parse, games))


def _parse(text: str) -> Game:
    name, *switches = str(text).split(":")
    if len(switches) > 2 or not all(switch.isdecimal() for switch in switches):
        raise EnvError(f"game {text!r}: expected NAME, NAME:MODE or NAME:MODE:DIFFICULTY")
    env_spec(f"ALE/{name}-v5")
    return Game(f"ALE/{name}-v5", *map(int, switches))


def choose(games: Sequence[str], task: int) -> Game:
    """Return game number `task`."""
    known = parse_games(games)
    if isinstance(task, bool) or not isinstance(task, int) or not 0 <= task < len(known):
        raise EnvError(f"task={task!r} must be in [0, {len(known)}): there are {len(known)} games")
    return known[task]


def check_games(games: Sequence[str], *, native: bool) -> None:
    """Raise an EnvError unless every one of `games` can be made, natively or one by one.

    It looks at their switches only: what a name says is :func:`parse_games`'s.
    """
    for text, game in zip(games, parse_games(games), strict=True):
        if game.switched and native:
            raise EnvError(
                f"game {text!r}: ale-py's native vector environment knows no modes; use vectorization 'sync'"
            )
        if game.switched:
            check_switches(game.env_id, game.mode, game.difficulty)


def shared_actions(protocol: AtariProtocol) -> AtariProtocol:
    """Return `protocol` with the actions that all games have."""
    return replace(protocol, full_action_space=True)


class TellsTask(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Adds ``info["task"]``."""

    def __init__(self, env: gym.Env, task: int) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, task=task)
        gym.Wrapper.__init__(self, env)
        self.task = task

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return observation, {**info, "task": self.task}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, "task": self.task}


class ContinualAtariEnvs(AtariEnvs):
    """:class:`AtariEnvs` of one game of a sequence; ``info["task"]`` is [num_envs]."""

    def __init__(
        self, games: Sequence[str], task: int, protocol: AtariProtocol, num_envs: int, num_threads: int = 1
    ) -> None:
        game = choose(games, task)
        check_games([games[task]], native=True)
        super().__init__(game.env_id, shared_actions(protocol), num_envs, num_threads)
        self.task = task

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        return observation, info | self._told()

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        *outcome, info = super().step_wait()
        return *outcome, info | self._told()  # type: ignore[return-value]

    def _told(self) -> dict[str, Any]:
        return {"task": np.full(self.num_envs, self.task)}


def continual_atari_env(
    games: Sequence[str] = GAMES,
    task: int = 0,
    *,
    protocol: AtariProtocol | None = None,
    render_mode: str | None = None,
) -> gym.Env:
    """Return game number `task` behind Gymnasium's wrappers."""
    game = choose(games, task)
    env = make_atari(
        game.env_id,
        shared_actions(protocol or AtariProtocol()),
        render_mode=render_mode,
        mode=game.mode,
        difficulty=game.difficulty,
    )
    return TellsTask(env, task)


def continual_atari_vector_env(
    num_envs: int = 1,
    games: Sequence[str] = GAMES,
    task: int = 0,
    *,
    protocol: AtariProtocol | None = None,
    num_threads: int = 1,
) -> AtariEnvs:
    """Return `num_envs` of them as one batch, emulated natively."""
    return ContinualAtariEnvs(games, task, protocol or AtariProtocol(), num_envs, num_threads)


def make_sequence(
    options: dict[str, Any], protocol: AtariProtocol, num_envs: int, num_threads: int, *, native: bool
) -> AtariEnvs | ReplayableEnvs:
    """Return one game of a sequence, natively or one after the other; `options` are games and task.

    Raises
    ------
    EnvError
        An option that there is not, or see :func:`choose`.
    """
    if unknown := options.keys() - {"games", "task"}:
        raise EnvError(f"neurocoder/ContinualAtari-v0 has no option {min(unknown)!r}, only games and task")
    chosen = {"games": GAMES, "task": 0, **options}
    if native:
        return ContinualAtariEnvs(chosen["games"], chosen["task"], protocol, num_envs, num_threads)
    choose(chosen["games"], chosen["task"])
    return ReplayableEnvs(partial(continual_atari_env, **chosen, protocol=protocol), num_envs)
