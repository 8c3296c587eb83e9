"""The episodes below a folder: what can be asked for, and nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurocoder.runs.replay.episode import EpisodeInfo, RecordedEpisode, ReplayError, find_episodes, read_info

FILES = ("episode.json", "trace.npz")


@dataclass(frozen=True, slots=True)
class Entry:
    """An episode of the list, as it was when it was read."""

    folder: Path
    info: EpisodeInfo | None
    problem: str
    changed: float


class EpisodeIndex:
    """Finds episodes by key: their path below `root`, as the list of all has it.

    A key is looked up, never turned into a path: what is not in the list does not exist. Files that lead out of `root`
    by a link are not read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._entries: dict[str, Entry] = {}

    def scan(self) -> dict[str, Entry]:
        """Return all episodes by key; those that have not changed are not read again."""
        entries: dict[str, Entry] = {}
        for folder in find_episodes(self.root):
            key = folder.relative_to(self.root).as_posix()
            key = folder.name if key == "." else key
            try:
                changed = (folder / "episode.json").stat().st_mtime
            except OSError:  # it has gone meanwhile
                continue
            known = self._entries.get(key)
            entries[key] = known if known and known.changed == changed else self._read(folder, changed)
        self._entries = entries
        return entries

    def open(self, key: str) -> RecordedEpisode:
        """Return the episode of `key`.

        Raises
        ------
        ReplayError
            There is none, or it cannot be read.
        """
        entry = self._entries.get(key) or self.scan().get(key)
        if entry is None:
            raise ReplayError(f"there is no episode {key!r} in {self.root}")
        for name in FILES:
            self.require_inside(entry.folder / name)
        return RecordedEpisode.open(entry.folder)

    def require_inside(self, file: Path) -> None:
        """Raise a ReplayError if `file` leads out of the root by a link."""
        if not file.resolve().is_relative_to(self.root):
            raise ReplayError(f"{file} leads out of {self.root}: it is not shown")

    def _read(self, folder: Path, changed: float) -> Entry:
        try:
            self.require_inside(folder / "episode.json")
            return Entry(folder, read_info(folder), "", changed)
        except ReplayError as error:
            return Entry(folder, None, str(error), changed)


def listing(index: EpisodeIndex) -> dict[str, Any]:
    """Return the list of all episodes for the page, newest first, and what cannot be read."""
    episodes, problems = [], []
    for key, entry in index.scan().items():
        info = entry.info
        if info is None:
            problems.append({"path": key, "error": entry.problem})
            continue
        episodes.append(
            {
                "key": key,
                "env": info.env,
                "run": info.source.run,
                "checkpoint": info.source.checkpoint,
                "seed": info.seed,
                "return": info.raw_return,
                "length": info.length,
                "chapters": info.chapters,
                "ended": info.ended,
                "masked": info.masked or None,
                "picked": info.picked,
                "recorded": info.recorded,
                "thumbnail": f"/api/thumbnail/{key}" if info.frame_shape else None,
            }
        )
    episodes.sort(key=lambda episode: str(episode["recorded"]), reverse=True)
    return {"episodes": episodes, "problems": problems, "logs": str(index.root)}
