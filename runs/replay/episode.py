"""A recorded episode on disk, and how it is read back from files that nobody vouches for.

::

    <step>-<seed>/
        episode.json   what was played, how it ended, and checksums: the truth is seed + actions
        trace.npz      what the network said and what came of it, step by step
        frames/        000.webp …: pictures, lossless, stacked in strips of `per_strip`; a cache

Everything is data: JSON against a typed schema, arrays without pickles, pictures whose size is checked before they are
decoded. Every size must agree with ``length``, and none may be unreasonable, before anything is allocated.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.lib import format as npy

from neurocoder.errors import NeurocoderError
from neurocoder.runs.replay.programs import Quantized

SCHEMA = 1
MAX_JSON = 16 << 20
MAX_STEPS = 1_000_000
MAX_ARRAY = 1 << 29
"""Bytes of one array, unpacked: half a gibibyte is more than the fullest trace of the longest game."""
BLOCK = 64
"""Steps between two checksums; a strip has at most as many pictures."""
MAX_PICTURE = 4096
"""Pixels of a picture, height or width."""
ENDINGS = ("terminated", "truncated", "stuck")


class ReplayError(NeurocoderError):
    """Raised when an episode's files are missing, damaged, of another version, or not what was recorded."""


@dataclass(frozen=True, slots=True)
class Source:
    """Whose episode it is: a run's folder and checkpoint, or a file."""

    run: str
    checkpoint: int | None
    """Agent steps; None of models that do not say."""
    sha256: str
    """Of the model's file."""


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """The content of episode.json."""

    env: str
    seed: int
    """Of the environment and of the actions' draws: this episode's own."""
    source: Source
    deterministic: bool
    """Whether the most probable action was taken."""
    length: int = 0
    """T, agent steps."""
    raw_return: float = 0.0
    ended: str = ""
    """terminated, truncated (frame cap, time limit) or stuck (cut by the recorder)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments that the environment was made with."""
    start_frames: int = 0
    """Emulator frames before the first observation (Atari)."""
    protocol: dict[str, Any] | None = None
    """All fields of the Atari protocol."""
    protocol_hash: str | None = None
    action_names: list[str] | None = None
    discount: float | None = None
    """γ that the agent was trained with: for the return to go."""
    masked: list[str] = field(default_factory=list)
    """Slots that the agent had to do without, e.g. actor:17."""
    chapters: int | None = None
    """Of the actor's first memory; None if it has none."""
    picked: str | None = None
    """best, median or worst of an evaluation."""
    replayable: bool = True
    """Whether seed and actions brought the same episode back when it was recorded."""
    recorded: str = ""
    """UTC, ISO 8601."""
    versions: dict[str, str] = field(default_factory=dict)
    rom_md5: str | None = None
    block: Literal[64] = 64
    action_crcs: list[int] = field(default_factory=list)
    """CRC-32 of the actions of each block of steps, as little-endian bytes."""
    frame_crcs: list[int] = field(default_factory=list)
    """CRC-32 of the pictures of each block, as RGB bytes; empty if there are none."""
    frame_shape: tuple[int, int] | None = None
    """Height and width of a picture."""
    per_strip: int = 0
    schema: int = SCHEMA

    @property
    def n_frames(self) -> int:
        """Pictures: one before each step, and the last."""
        return self.length + 1 if self.frame_shape else 0

    def validate(self) -> None:
        """Raise a ReplayError unless the numbers of a whole episode fit together."""
        height, width = self.frame_shape or (1, 1)
        blocks, frame_blocks = -(-self.length // self.block), -(-self.n_frames // self.block)
        for condition, what in (
            (1 <= self.length <= MAX_STEPS, f"length {self.length}, expected 1 to {MAX_STEPS:,}"),
            (self.ended in ENDINGS, f"ended {self.ended!r}, expected one of {ENDINGS}"),
            (len(self.action_crcs) == blocks, f"{len(self.action_crcs)} action checksums, expected {blocks}"),
            (min(height, width) > 0 and max(height, width) <= MAX_PICTURE, f"frame_shape {height} × {width}"),
            (self.frame_shape is None or 0 < self.per_strip <= BLOCK, f"per_strip {self.per_strip}"),
            (
                len(self.frame_crcs) == frame_blocks,
                f"{len(self.frame_crcs)} frame checksums, expected {frame_blocks}",
            ),
        ):
            if not condition:
                raise ReplayError(what)


# Made once, not in the threads that the viewer answers in: it parses source, and of two threads that do so at a time one may fail in
# CPython 3.11 ("AST constructor recursion depth mismatch").
_EPISODE_INFO = pydantic.TypeAdapter(EpisodeInfo)


def checksums(rows: np.ndarray, block: int = BLOCK) -> list[int]:
    """Return the CRC-32 of each `block` rows of an array, as little-endian bytes."""
    little = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    return [zlib.crc32(little[start : start + block].tobytes()) for start in range(0, len(rows), block)]


def write_info(folder: Path, info: EpisodeInfo) -> None:
    """Write episode.json."""
    (folder / "episode.json").write_text(json.dumps(asdict(info), indent=1) + "\n", "utf-8")


def read_info(folder: Path) -> EpisodeInfo:
    """Return the content of ``folder/episode.json``.

    Raises
    ------
    ReplayError
        It is missing, too large, no JSON, of another schema, or says something impossible.
    """
    file = folder / "episode.json"
    try:
        if file.stat().st_size > MAX_JSON:
            raise ReplayError(f"{file}: larger than {MAX_JSON >> 20} MiB, no episode of ours")
        values = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ReplayError(f"{folder}: not a recorded episode (no episode.json there)") from None
    except OSError as error:
        raise ReplayError(f"{file}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ReplayError(f"{file}: damaged, no JSON; record the episode again") from None
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise ReplayError(
            f"{file}: schema {schema!r}, this version reads {SCHEMA}; use the version that recorded it"
        )
    try:
        info = _EPISODE_INFO.validate_python(values)
        info.validate()
    except ReplayError as error:
        raise ReplayError(f"{file}: damaged: {error}") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ReplayError(f"{file}: damaged: {name}: {first['msg'].lower()}") from None
    return info


# -------------------------------------------------------------------------------------------- trace


class Trace:
    """The arrays of an episode, each read and checked when it is asked for.

    ================================ ========== ==================================================================
    action                           [T, ...]   in the action space's own dtype
    reward                           [T]        raw
    value, logits, action_values     [T], [T, A]  as far as the policy has them
    lives                            [T + 1]    Atari
    boundary                         [T]        1: a life was lost, and with it a training episode, after this step
    attention/<head>/<memory>        [T, P]     bytes on disk (``….codes``, ``….low``, ``….step``), slot by slot
    sigma/<head>, gate/<head>        [T, R], [T]
    components/<head>/<memory>       [T, R, P]  where everything was kept (``--trace full``)
    info/<name>                      [T, ...]   numbers that the environment tells: target, …
    ================================ ========== ==================================================================
    """

    def __init__(self, file: Path, length: int) -> None:
        self.file, self.length = file, length
        try:
            with zipfile.ZipFile(file) as archive:
                self._members = {info.filename: info for info in archive.infolist()}
        except FileNotFoundError:
            raise ReplayError(f"{file}: missing; record the episode again") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise ReplayError(f"{file}: damaged ({error}); record the episode again") from None

    @property
    def names(self) -> list[str]:
        """What can be asked for."""
        stored = (name.removesuffix(".npy") for name in self._members if name.endswith(".npy"))
        names = {name.removesuffix(".codes") for name in stored if not name.endswith((".low", ".step"))}
        return sorted(names)

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self._members or f"{name}.codes.npy" in self._members

    def __getitem__(self, name: str) -> np.ndarray:
        """Return an array; attention as float32."""
        if f"{name}.codes.npy" in self._members:
            return self.quantized(name).restore()
        rows = self.length + 1 if name == "lives" else self.length
        return self._read(name, rows)

    def get(self, name: str) -> np.ndarray | None:
        """Return an array, or None if the episode has none of this name."""
        if name not in self:
            return None
        return self[name]

    def quantized(self, name: str) -> Quantized:
        """Return attention as it is stored, codes [T, P]."""
        codes = self._read(f"{name}.codes", self.length)
        if codes.ndim != 2 or codes.dtype != np.uint8:
            raise self._damaged(f"{name}.codes", f"{codes.dtype} {list(codes.shape)}")
        low, step = (self._read(f"{name}.{part}", codes.shape[1]) for part in ("low", "step"))
        return Quantized(codes, low, step)

    def _read(self, name: str, rows: int) -> np.ndarray:
        member = self._members.get(f"{name}.npy")
        if member is None:
            raise ReplayError(f"{self.file}: holds no {name!r}; record the episode again")
        try:
            with zipfile.ZipFile(self.file) as archive, archive.open(member) as stream:
                version = npy.read_magic(stream)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, fortran, dtype = read(stream)
                if dtype.kind not in "biuf" or dtype.itemsize > 8:
                    raise self._damaged(name, f"dtype {dtype}")
                size = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
                if not shape or shape[0] != rows or size > MAX_ARRAY:
                    raise self._damaged(name, f"{dtype} {list(shape)}, expected {rows} rows")
                data = stream.read(size + 1)
        except ReplayError:
            raise
        except Exception as error:  # zipfile, zlib and numpy each have their own for damaged bytes
            raise self._damaged(name, f"{type(error).__name__}: {error}") from None
        if len(data) != size:
            raise self._damaged(name, f"{len(data)} bytes, expected {size}")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

    def _damaged(self, name: str, what: str) -> ReplayError:
        return ReplayError(f"{self.file}: {name} is damaged ({what}); record the episode again")


@dataclass(frozen=True, slots=True)
class RecordedEpisode:
    """An episode's folder and what is in it."""

    folder: Path
    info: EpisodeInfo
    trace: Trace

    @classmethod
    def open(cls, folder: Path) -> "RecordedEpisode":
        """Read what an episode is; arrays and pictures are read when they are asked for.

        Raises
        ------
        ReplayError
            See :func:`read_info` and :class:`Trace`.
        """
        info = read_info(folder)
        return cls(folder, info, Trace(folder / "trace.npz", info.length))


def find_episodes(logs: Path) -> Iterator[Path]:
    """Yield the folders of all recorded episodes at or below `logs`, sorted; links are not followed."""
    for root, folders, files in os.walk(logs):
        folders.sort()
        if "episode.json" in files:
            folders.clear()
            yield Path(root)
        else:
            folders[:] = [name for name in folders if not name.startswith(".") and name != "checkpoints"]
