"""Episodes brought back from seed and actions: to check what was recorded, and to make its pictures anew."""

import shutil
import zlib
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

import numpy as np

from neurocoder.envs import AtariCamera, AtariProtocol, make_watched
from neurocoder.errors import ConfigError
from neurocoder.runs.replay.episode import EpisodeInfo, RecordedEpisode, ReplayError, checksums
from neurocoder.runs.replay.frames import FrameWriter, read_strip


class ReplayMismatch(ReplayError):
    """Raised when an episode is readable but not what was recorded."""

    exit_code = 1


class Moment(NamedTuple):
    """What a step of the emulation showed; of the first one, the start of the episode, only the picture is new."""

    picture: np.ndarray
    reward: float = 0.0
    over: bool = False


def emulate(info: EpisodeInfo, actions: np.ndarray, *, trust: bool = False) -> Iterator[Moment]:
    """Yield the start and what comes of each of `actions` [T, ...], with `info`'s seed.

    Raises
    ------
    ReplayError
        The protocol is not one of this version.
    EnvError
        The environment is not installed; or its id would import a module, which needs `trust`.
    """
    if info.protocol is not None:
        try:
            protocol = AtariProtocol(**info.protocol)
        except (TypeError, ConfigError) as error:
            raise ReplayError(f"the episode's protocol is not one of this version: {error}") from None
        camera = AtariCamera(info.env, protocol)
        yield Moment(camera.start(info.seed, info.start_frames))
        n_actions = len(camera.action_names())
        for action in actions.tolist():
            if not 0 <= action < n_actions:
                raise ReplayError(f"action {action} is not one of the {n_actions} of {info.env}")
            yield Moment(camera.step(action), camera.reward, camera.over)
        return
    game = make_watched(info.env, trust=trust, options=info.options)
    try:
        game.reset(seed=info.seed)
        yield Moment(game.take()[0])
        for action in actions:
            _, reward, _, _, told = game.step(action[None])
            yield Moment(game.take()[0], float(reward[0]), bool(told["_episode"][0]))
    finally:
        game.close()


def verify(episode: RecordedEpisode, *, trust: bool = False) -> str:
    """Check an episode's actions and pictures, and play it again; return what was found right, in one line.

    Raises
    ------
    ReplayMismatch
        Naming the first block of actions or of pictures that is not what was recorded.
    ReplayError, EnvError
        Something is missing or damaged, or see :func:`emulate`.
    """
    info = episode.info
    actions, rewards = episode.trace["action"], episode.trace["reward"]
    for block, (found, recorded) in enumerate(
        zip(checksums(actions, info.block), info.action_crcs, strict=True)
    ):
        if found != recorded:
            raise ReplayMismatch(
                f"{episode.folder}: block {block} ({_steps(info, block)}): its actions are not those recorded"
            )
    if info.frame_shape:
        for block, found in enumerate(_stored_crcs(episode)):
            if found != info.frame_crcs[block]:
                raise ReplayMismatch(
                    f"{episode.folder}: block {block} ({_steps(info, block)}): its pictures are not those recorded; "
                    f"neurocoder replay render makes them anew"
                )
    if not info.replayable:
        return (
            f"{info.length:,} steps as recorded; {info.env} is not deterministic and cannot be played again"
        )
    frames = _Sums(info.block)
    for step, moment in enumerate(emulate(info, actions, trust=trust)):
        frames.add(moment.picture)
        if info.frame_shape and (step + 1 in (info.n_frames, len(frames.crcs) * info.block)):
            block = step // info.block
            if frames.crcs[block] != info.frame_crcs[block]:
                raise ReplayMismatch(
                    f"{episode.folder}: block {block} ({_steps(info, block)}): played again, it looks otherwise than "
                    f"when it was recorded{_versions(info)}"
                )
        if step and np.float32(moment.reward) != rewards[step - 1]:
            raise ReplayMismatch(
                f"{episode.folder}: block {(step - 1) // info.block}: step {step - 1} brings a reward of {moment.reward:g} "
                f"when it is played again, {rewards[step - 1]:g} when it was recorded{_versions(info)}"
            )
    if not moment.over and info.ended != "stuck":
        raise ReplayMismatch(f"{episode.folder}: played again, it does not end after {info.length:,} steps")
    blocks = len(info.action_crcs)
    return f"exact: {info.length:,} steps, {info.n_frames:,} pictures, {blocks} blocks, return {info.raw_return:g}"


def render(episode: RecordedEpisode, *, trust: bool = False) -> int:
    """Make the pictures of an episode anew from seed and actions; return how many.

    Raises
    ------
    ReplayMismatch
        They are not what was recorded: those on disk are left as they are.
    """
    info = episode.info
    if info.frame_shape is None or not info.replayable:
        raise ReplayError(f"{episode.folder}: its pictures cannot be made from seed and actions")
    part = episode.folder / ".frames.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        writer = FrameWriter(part)
        for moment in emulate(info, episode.trace["action"], trust=trust):
            writer.add(moment.picture)
        writer.close()
        for block, (found, recorded) in enumerate(zip(writer.crcs, info.frame_crcs, strict=True)):
            if found != recorded:
                raise ReplayMismatch(
                    f"{episode.folder}: block {block} ({_steps(info, block)}) looks otherwise than when it was "
                    f"recorded{_versions(info)}"
                )
        shutil.rmtree(episode.folder / "frames", ignore_errors=True)
        part.rename(episode.folder / "frames")
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return writer.count


class _Sums:
    """Checksums of pictures, block by block, without writing them."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.crcs: list[int] = []
        self._count = 0

    def add(self, picture: np.ndarray) -> None:
        if self._count % self.block == 0:
            self.crcs.append(0)
        self.crcs[-1] = zlib.crc32(picture.tobytes(), self.crcs[-1])
        self._count += 1


def _stored_crcs(episode: RecordedEpisode) -> list[int]:
    info = episode.info
    sums = _Sums(info.block)
    for number in range(-(-info.n_frames // info.per_strip)):
        for picture in read_strip(episode.folder, info, number):
            sums.add(picture)
    return sums.crcs


def _steps(info: EpisodeInfo, block: int) -> str:
    start = block * info.block
    return f"steps {start}–{min(start + info.block, info.length) - 1}"


def _versions(info: EpisodeInfo) -> str:
    """Return what differs between then and now, as an explanation."""
    package = "ale-py" if info.protocol is not None else "gymnasium"
    now, then = metadata.version(package), info.versions.get(package, "unknown")
    return "" if now == then else f" (recorded with {package} {then}, this is {now})"
