"""Pictures of an episode: lossless WebP strips of consecutive frames, stacked vertically.

A strip compresses far better than its frames alone (neighbours are alike), decodes in one go, and is a file that any
browser shows.
"""

import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from neurocoder.runs.replay.episode import BLOCK, MAX_PICTURE, EpisodeInfo, ReplayError

MAX_HEIGHT = 16_383
"""Pixels that a WebP can be high."""
REMEDY = "neurocoder replay render makes it anew"


def strip_name(number: int) -> str:
    """Return the file name of a strip."""
    return f"{number:03d}.webp"


class FrameWriter:
    """Writes pictures [height, width, 3] into strips as they come, and sums them up block by block."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.count = 0
        self.shape: tuple[int, int] | None = None
        self.per_strip = 0
        self.crcs: list[int] = []
        self._strip: list[np.ndarray] = []

    def add(self, picture: np.ndarray) -> None:
        """Append a picture; all have the shape of the first.

        Raises
        ------
        ReplayError
            A picture that no strip holds.
        """
        height, width, _ = picture.shape
        if self.shape is None:
            if max(height, width) > MAX_PICTURE:
                raise ReplayError(
                    f"pictures of {height} × {width} pixels are too large, expected at most {MAX_PICTURE}"
                )
            self.shape = (height, width)
            self.per_strip = min(BLOCK, MAX_HEIGHT // height)
        if (height, width) != self.shape:
            raise ReplayError(f"a picture of {height} × {width} pixels after some of {self.shape}")
        if self.count % BLOCK == 0:
            self.crcs.append(0)
        self.crcs[-1] = zlib.crc32(picture.tobytes(), self.crcs[-1])
        self._strip.append(picture)
        self.count += 1
        if len(self._strip) == self.per_strip:
            self._flush()

    def close(self) -> None:
        """Write the last strip."""
        if self._strip:
            self._flush()

    def _flush(self) -> None:
        number = (self.count - 1) // self.per_strip
        encode_strip(np.concatenate(self._strip), self.folder / strip_name(number))
        self._strip.clear()


def encode_strip(strip: np.ndarray, file: Path) -> None:
    """Write pictures that stand on top of each other, [frames · height, width, 3], losslessly."""
    Image.fromarray(strip).save(file, "WEBP", lossless=True, quality=50, method=2)


def strip_bytes(folder: Path, info: EpisodeInfo, number: int) -> bytes:
    """Return the file of strip `number` as it is, if it says that it is a WebP of the right size.

    Raises
    ------
    ReplayError
        It is missing, no WebP, or claims another size than the episode's pictures have.
    """
    assert info.frame_shape is not None
    height, width = info.frame_shape
    height *= min(info.per_strip, info.n_frames - number * info.per_strip)
    file = folder / "frames" / strip_name(number)
    try:
        data = file.read_bytes()
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:  # reads the head only
            size = image.size
    except FileNotFoundError:
        raise ReplayError(f"{file}: missing; {REMEDY}") from None
    except Exception as error:  # Pillow has many ways to say that bytes are no picture
        raise ReplayError(f"{file}: damaged ({type(error).__name__}); {REMEDY}") from None
    if size != (width, height):
        raise ReplayError(
            f"{file}: claims {size[0]} × {size[1]} pixels, expected {width} × {height}; {REMEDY}"
        )
    return data


def read_strip(folder: Path, info: EpisodeInfo, number: int) -> np.ndarray:
    """Return the pictures of strip `number`, [frames, height, width, 3] uint8.

    Raises
    ------
    ReplayError
        See :func:`strip_bytes`: what claims another size is not decoded. Or its content is damaged.
    """
    data = strip_bytes(folder, info, number)
    assert info.frame_shape is not None
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:
        file = folder / "frames" / strip_name(number)
        raise ReplayError(f"{file}: damaged ({type(error).__name__}); {REMEDY}") from None
    return pixels.reshape(-1, *info.frame_shape, 3)
