"""Recorded episodes as a Minari data set: what the agent saw, did and was paid, for offline learning.

Observations are not stored in an episode: they are brought back from seed and actions, exactly.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurocoder.envs import AtariProtocol, WatchedGame, make_watched
from neurocoder.errors import ConfigError
from neurocoder.runs.replay.emulation import ReplayMismatch
from neurocoder.runs.replay.episode import EpisodeInfo, RecordedEpisode, ReplayError

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer

ROOT = "MINARI_DATASETS_PATH"
"""Environment variable that says where Minari keeps data sets."""


def export_dataset(
    name: str, episodes: Iterable[RecordedEpisode], root: Path | None, *, trust: bool = False
) -> int:
    """Write `episodes` as Minari data set `name` (e.g. ``pong/a3c-v0``) below `root`; return how many steps it has.

    Raises
    ------
    ConfigError
        Minari is not installed, the name is no name of a data set, or there is one already.
    ReplayError, EnvError
        An episode cannot be played again, brings other rewards, or is of another environment than the first.
    """
    try:
        import minari
        from minari.dataset.minari_dataset import parse_dataset_id
    except ImportError:
        raise ConfigError('Minari is not installed: pip install "neurocoder[minari]"') from None
    try:
        parse_dataset_id(name)
    except ValueError:
        raise ConfigError(f"{name}: expected the name of a data set, e.g. pong/a3c-v0") from None
    opened = list(episodes)
    first = opened[0].info
    for episode in opened:
        if _played(episode.info) != _played(first):
            raise ReplayError(
                f"{episode.folder}: is of another environment, protocol or options than {opened[0].folder}"
            )
    with _root(root):
        if name in minari.list_local_datasets():
            raise ConfigError(
                f"{name}: there is a data set of that name already; choose another, or delete it"
            )
        buffers = [_buffer(number, episode, trust) for number, episode in enumerate(opened)]
        with closing(_game(first, trust)) as game:
            data = minari.create_dataset_from_buffers(
                name,
                buffers,
                env=None if first.protocol is not None else first.env,
                observation_space=game.single_observation_space,
                action_space=game.single_action_space,
                algorithm_name=f"neurocoder {first.source.run}, checkpoint {first.source.checkpoint}",
                description=_description(first),
            )
        return int(data.total_steps)


def _played(info: EpisodeInfo) -> tuple[str, str, str]:
    return info.env, json.dumps(info.protocol, sort_keys=True), json.dumps(info.options, sort_keys=True)


def _game(info: EpisodeInfo, trust: bool) -> WatchedGame:
    protocol = None if info.protocol is None else AtariProtocol(**info.protocol)
    return make_watched(info.env, protocol=protocol, trust=trust, options=info.options)


def _buffer(number: int, episode: RecordedEpisode, trust: bool) -> "EpisodeBuffer":
    """Return an episode played again: observations [T + 1], actions, rewards and endings [T]."""
    from minari.data_collector import EpisodeBuffer

    info, actions, rewards = episode.info, episode.trace["action"], episode.trace["reward"]
    with closing(_game(info, trust)) as game:
        observation, _ = game.reset(seed=info.seed)
        seen = [np.array(observation[0])]
        for step, action in enumerate(actions):
            observation, reward, _, _, told = game.step(action[None])
            if np.float32(reward[0]) != rewards[step]:
                raise ReplayMismatch(
                    f"{episode.folder}: step {step} brings a reward of {reward[0]:g} when it is played again, "
                    f"{rewards[step]:g} when it was recorded"
                )
            over = step == len(actions) - 1 and info.ended != "stuck"
            if bool(told["_episode"][0]) != over:
                raise ReplayMismatch(
                    f"{episode.folder}: played again, it does not end as it did when it was recorded"
                )
            seen.append(np.array(told["final_obs"][0] if told["_episode"][0] else observation[0]))
    ends = np.zeros(len(actions), dtype=bool)
    ends[-1] = True
    terminated = info.ended == "terminated"
    return EpisodeBuffer(
        id=number,
        seed=info.seed,
        observations=list(seen),
        actions=list(actions),
        rewards=rewards.tolist(),
        terminations=list(ends & terminated),
        truncations=list(ends & (not terminated)),
    )


def _description(info: EpisodeInfo) -> str:
    actions = "most probable" if info.deterministic else "sampled"
    parts = [f"{info.env}, {actions} actions, recorded by Neurocoder"]
    if info.protocol is not None:
        parts.append(f"Atari protocol {json.dumps(info.protocol)}")
    return "; ".join(parts)


@contextmanager
def _root(root: Path | None) -> Iterator[None]:
    """Have Minari keep its data sets in `root` for the while."""
    before = os.environ.get(ROOT)
    if root is not None:
        os.environ[ROOT] = str(root)
    try:
        yield
    finally:
        if root is not None:
            if before is None:
                del os.environ[ROOT]
            else:
                os.environ[ROOT] = before
