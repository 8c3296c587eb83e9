"""Arrays that grow by one row a step, on disk: however long an episode, memory stays the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from neurocoder.runs.replay.programs import quantize

HALVED = ("components/", "sigma/", "gate/", "logits")
"""Stored in 16 bits."""
MAX_HALF = float(np.finfo(np.float16).max)


class _Column(NamedTuple):
    file: BinaryIO
    shape: tuple[int, ...]
    dtype: np.dtype


class TraceSpool:
    """Collects the rows of arrays in files of `folder`, and packs them into an npz at the end.

    Every array has the shape and dtype of its first row. Use :meth:`close` when done or when giving up.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._columns: dict[str, _Column] = {}
        self.length = 0
        """Steps so far."""

    def add(self, row: Mapping[str, np.ndarray]) -> None:
        """Append one step: the same names, shapes and dtypes every time."""
        for name, value in row.items():
            self._append(name, value)
        self.length += 1

    def add_state(self, name: str, value: np.ndarray) -> None:
        """Append to an array of states, of which there is one more than there are steps."""
        self._append(name, value)

    def _append(self, name: str, value: np.ndarray) -> None:
        column = self._columns.get(name)
        if column is None:
            file = (self.folder / f"{len(self._columns)}.rows").open("w+b")
            column = self._columns[name] = _Column(file, value.shape, value.dtype)
        assert (value.shape, value.dtype) == column[1:], (
            f"{name}: {value.dtype} {value.shape}, not {column[1:]}"
        )
        column.file.write(value.tobytes())

    def __getitem__(self, name: str) -> np.ndarray:
        """Return all rows so far, mapped from disk."""
        file, shape, dtype = self._columns[name]
        file.flush()
        rows = np.memmap(file, dtype, "r") if file.tell() else np.zeros(0, dtype)
        return rows.reshape(-1, *shape)

    @property
    def names(self) -> list[str]:
        """Of the arrays that there are."""
        return list(self._columns)

    def pack(self, file: Path) -> None:
        """Write all arrays into the npz `file`; ``attention/…`` in bytes (see :func:`quantize`), `HALVED` in 16 bits.

        Slot by slot, and not step by step: what a slot was read a step before is nearly what it is read now.
        """
        arrays: dict[str, np.ndarray] = {}
        for name in self._columns:
            if name.startswith("attention/"):
                codes, low, step = quantize(self[name])
                arrays |= {
                    f"{name}.codes": np.asfortranarray(codes),
                    f"{name}.low": low,
                    f"{name}.step": step,
                }
            elif name.startswith(HALVED):
                arrays[name] = self[name].clip(-MAX_HALF, MAX_HALF).astype(np.float16)
            else:
                arrays[name] = self[name]
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def close(self) -> None:
        """Delete what was spooled."""
        for file, *_ in self._columns.values():
            file.close()
        for path in self.folder.glob("*.rows"):
            path.unlink()
        self.folder.rmdir()
