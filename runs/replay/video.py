"""Episodes as films: the game, and beside it what the network said, drawn into every frame and streamed to ffmpeg."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import imageio_ffmpeg
import numpy as np

from neurocoder.runs.replay import programs
from neurocoder.runs.replay.episode import RecordedEpisode, ReplayError
from neurocoder.runs.replay.frames import read_strip
from neurocoder.runs.replay.page import softmax

HEIGHT = 420
"""Pixels of a film, about: pictures are enlarged by a whole number."""
PANEL = 260
"""Pixels of the panel beside the game."""
FPS = {".mp4": 15, ".gif": 12.5}
"""Of Atari games 15 is real time; browsers show a GIF's frames for whole hundredths of a second."""
GIF_FILTER = "split[a][b];[a]palettegen=stats_mode=diff[p];[b][p]paletteuse=dither=none:diff_mode=rectangle"
"""One palette for the whole film; no dithering, which no lossless compression survives."""
INK, FAINT, BARS = (235, 235, 235), (120, 120, 120), (90, 170, 250)
FONT = cv2.FONT_HERSHEY_SIMPLEX


def export_video(episode: RecordedEpisode, out: Path) -> int:
    """Write an episode as MP4 (H.264) or GIF, by the ending of `out`; return its size in bytes.

    Frames go to the encoder one by one: memory does not grow with the episode.

    Raises
    ------
    ReplayError
        The episode has no pictures, or is damaged.
    """
    if episode.info.frame_shape is None:
        raise ReplayError(f"{episode.folder}: has no pictures; export it as .html")
    frames = draw(episode)
    first = next(frames)
    height, width = first.shape[:2]
    kinds: dict[str, dict[str, Any]] = {
        ".mp4": {"codec": "libx264", "quality": 7, "pix_fmt_out": "yuv420p", "macro_block_size": 2},
        ".gif": {
            "codec": "gif",
            "pix_fmt_out": "pal8",
            "macro_block_size": 1,
            "output_params": ["-filter_complex", GIF_FILTER],
        },
    }
    part = out.with_name(f".{out.stem}.part{out.suffix}")
    options = kinds[out.suffix]
    try:
        encoder = imageio_ffmpeg.write_frames(
            str(part), (width, height), fps=FPS[out.suffix], ffmpeg_log_level="error", **options
        )
        encoder.send(None)
        encoder.send(first)
        for frame in frames:
            encoder.send(frame)
        encoder.close()
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return out.stat().st_size


def draw(episode: RecordedEpisode) -> Iterator[np.ndarray]:
    """Yield the film's frames, RGB uint8 of even height and width; one for each picture."""
    info = episode.info
    assert info.frame_shape is not None
    factor = max(1, HEIGHT // info.frame_shape[0])
    height, width = (side * factor for side in info.frame_shape)
    canvas = np.zeros((max(height, HEIGHT) // 2 * 2 + 2, (width + PANEL) // 2 * 2, 3), np.uint8)
    panel = _Panel(episode)
    for number in range(-(-info.n_frames // info.per_strip)):
        for row, picture in enumerate(read_strip(episode.folder, info, number)):
            step = number * info.per_strip + row
            canvas[:] = 16
            canvas[:height, :width] = picture.repeat(factor, 0).repeat(factor, 1)
            panel.draw(canvas[:, width:], step)
            yield np.ascontiguousarray(canvas)


class _Panel:
    """Texts and bars of each step."""

    def __init__(self, episode: RecordedEpisode) -> None:
        info, trace = episode.info, episode.trace
        self.info = info
        self.score = np.concatenate([[0.0], np.cumsum(trace["reward"], dtype=np.float64)])
        self.action = trace["action"]
        self.value = trace.get("value")
        logits = trace.get("logits")
        discrete = self.action.ndim == 1 and self.action.dtype.kind in "iu"
        self.probabilities = softmax(logits) if discrete and logits is not None else None
        self.slot = np.full(info.length, -1)
        self.subject = ""
        for name in programs.maps(trace.names)[:1]:
            self.subject = " ".join(name.split("/")[1:])
            for chapter in programs.chapters(trace[name]):
                self.slot[chapter.start : chapter.stop] = chapter.slot

    def draw(self, panel: np.ndarray, step: int) -> None:
        """Draw step `step` into `panel` [height, width, 3]."""
        info, at = self.info, min(step, self.info.length - 1)
        lines = [info.env, f"step {step:,} / {info.length:,}", f"return {self.score[step]:g}"]
        if self.value is not None:
            lines.append(f"value {self.value[at]:+.2f}")
        if self.slot[at] >= 0:
            lines.append(f"program {self.slot[at]} ({self.subject})")
        for number, line in enumerate(lines):
            cv2.putText(panel, line, (12, 28 + 24 * number), FONT, 0.5, INK, 1, cv2.LINE_AA)
        top = 28 + 24 * len(lines) + 8
        if self.probabilities is None or step == info.length:
            return
        names = info.action_names or [str(number) for number in range(self.probabilities.shape[1])]
        for action, name in enumerate(names):
            y = top + 18 * action
            if y + 12 > len(panel):
                break
            taken = action == int(self.action[at])
            length = round(110 * float(self.probabilities[at, action]))
            cv2.rectangle(panel, (132, y), (132 + length, y + 10), BARS if taken else FAINT, -1)
            mark = "> " if taken else "  "
            cv2.putText(panel, mark + name, (12, y + 10), FONT, 0.4, INK if taken else FAINT, 1, cv2.LINE_AA)
