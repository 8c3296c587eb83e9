"""Recorders: consumers of the stream of steps that a player yields."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Self

import numpy as np

from neurocoder.agents.player import GamePlayer, Step
from neurocoder.envs import WatchedGame
from neurocoder.runs.replay import programs
from neurocoder.runs.replay.episode import EpisodeInfo, checksums, write_info
from neurocoder.runs.replay.frames import FrameWriter
from neurocoder.runs.replay.spool import TraceSpool

PACKAGES = ("neurocoder", "ale-py", "gymnasium", "numpy", "torch")
MAX_INFO = 64
"""Numbers of one entry of ``info`` that are kept of every step."""


def rows_of(step: Step, *, full: bool = False) -> dict[str, np.ndarray]:
    """Return what is kept of a step of all games, by name (see :class:`episode.Trace`), each [B, ...]."""
    decision = step.decision
    rows: dict[str, np.ndarray] = {
        "action": step.action,
        "reward": np.asarray(step.reward, np.float32),
        "boundary": np.asarray((step.terminated | step.truncated) & ~step.info["_episode"], np.uint8),
    }
    for name in ("value", "logits", "action_values"):
        said = getattr(decision, name)
        if said is not None:
            rows[name] = said.float().cpu().numpy()
    rows |= programs.quantities(decision.traces, full=full)
    for name in ("target", "mask"):  # of a supervised task: the truth for the observation that was seen
        told = step.told.get(name)
        if isinstance(told, np.ndarray) and told.dtype.kind in "biuf" and told[0].size <= MAX_INFO:
            rows[f"info/{name}"] = told
    return rows


class EpisodeWriter:
    """Writes one episode: rows as they come, then what it was. Nothing of it shows before it is whole.

    Use as a context manager: leaving it by an exception, or without :meth:`finish`, leaves nothing behind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._part = folder.with_name(f".{folder.name}.part")
        if self._part.exists():
            shutil.rmtree(self._part)  # of a recording that was killed
        self._part.mkdir(parents=True)
        self.spool = TraceSpool(self._part / "spool")
        self.frames: FrameWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing of an episode that is not finished."""
        if self._part.exists():
            self.spool.close()
            shutil.rmtree(self._part)

    def add(self, rows: Mapping[str, np.ndarray], game: int) -> None:
        """Append what is kept of a step of `game`, a row of each of `rows`."""
        self.spool.add({name: row[game] for name, row in rows.items()})

    def add_frame(self, picture: np.ndarray) -> None:
        """Append a picture: one before each step, one after the last."""
        if self.frames is None:
            self.frames = FrameWriter(self._part / "frames")
        self.frames.add(picture)

    def drop_frames(self) -> None:
        """Forget all pictures."""
        self.frames = None
        shutil.rmtree(self._part / "frames", ignore_errors=True)

    def finish(self, info: EpisodeInfo) -> EpisodeInfo:
        """Write and return `info`, completed by length, return and checksums."""
        spool, frames = self.spool, self.frames
        info = replace(
            info,
            length=spool.length,
            raw_return=float(np.sum(spool["reward"], dtype=np.float64)),
            action_crcs=checksums(spool["action"]),
        )
        for name in programs.maps(spool.names)[:1]:
            info = replace(info, chapters=len(programs.chapters(programs.quantize(spool[name]).restore())))
        if frames is not None:
            frames.close()
            info = replace(info, frame_crcs=frames.crcs, frame_shape=frames.shape, per_strip=frames.per_strip)
        spool.pack(self._part / "trace.npz")
        write_info(self._part, info)
        spool.close()
        self._part.rename(self.folder)
        return info


@dataclass(frozen=True, slots=True)
class Recording:
    """How episodes are recorded."""

    stuck_after: int = 0
    """Agent steps without a reward or a lost life after which an episode is cut; 0: never."""
    full: bool = False
    """Keep every component's attention, not only the mean."""


def record_episode(
    player: GamePlayer, game: WatchedGame, folder: Path, info: EpisodeInfo, recording: Recording
) -> EpisodeInfo:
    """Play the episode of ``info.seed`` and write it into `folder`, which must not exist.

    `info` says what is known beforehand; it is returned with how the episode ended and what it came to.
    """
    with EpisodeWriter(folder) as writer:
        for step in player.play(game, [info.seed], stuck_after=recording.stuck_after):
            for picture in game.take():
                writer.add_frame(picture)
            writer.add(rows_of(step, full=recording.full), 0)
            ended = how_it_ended(step, 0)
            if ended:
                break
        info = replace(
            info,
            ended=ended,
            start_frames=game.start_frames,
            action_names=game.action_names,
            replayable=game.faithful,
        )
        return writer.finish(info)


def how_it_ended(step: Step, row: int) -> str:
    """Return how the episode of game `row` ended with this step; nothing if it goes on."""
    if step.info["_episode"][row]:
        return "truncated" if step.truncated[row] and not step.terminated[row] else "terminated"
    return "stuck" if step.stuck[row] else ""


def now() -> str:
    """Return the time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Return the versions on which an episode depends."""
    return {name: metadata.version(name) for name in PACKAGES}


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def free_name(parent: Path, name: str) -> Path:
    """Return ``parent/name``, or with -2, -3, … the first that does not exist."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path
