"""What the viewer's page is told of an episode, as JSON; and the page as one file with everything in it.

Arrays travel as base64 of zlib, little-endian; pictures stay in their strips. What is computed from an episode (lift,
chapters, warnings) is computed here; the page only draws.
"""

import base64
import io
import json
import re
import zlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neurocoder.runs.replay import programs
from neurocoder.runs.replay.episode import SCHEMA, RecordedEpisode, ReplayError, Trace
from neurocoder.runs.replay.frames import read_strip, strip_bytes

MAX_LABEL = 16
"""Numbers per step that are still worth printing as they are."""


def payload(
    episode: RecordedEpisode, key: str, strip_url: Callable[[int], str | None] | None = None
) -> dict[str, Any]:
    """Return all that the page shows of an episode but its pictures, which are at ``strip_url(number)``.

    Raises
    ------
    ReplayError
        The trace is damaged. Damaged pictures are told in ``problems``, and are null.
    """
    info, trace = episode.info, episode.trace
    arrays = _Arrays()
    reward = trace["reward"]
    arrays.add("reward", reward)
    arrays.add("action", _as_numbers(trace["action"]))
    for name in ("value", "boundary"):
        if (found := trace.get(name)) is not None:
            arrays.add(name, found)
    if (lives := trace.get("lives")) is not None:
        arrays.add("lives", np.concatenate([lives[:1], lives]).astype(np.int32))
    if info.discount is not None:
        arrays.add("return_to_go", return_to_go(reward, info.discount))
    names = info.action_names
    if (logits := trace.get("logits")) is not None and trace["action"].dtype.kind in "iu":
        arrays.add("probabilities", softmax(logits))
        names = names or [str(number) for number in range(logits.shape[-1])]
    labels = []
    for name in trace.names:
        if name.startswith("info/") and np.prod(trace[name].shape[1:]) <= MAX_LABEL:
            label = name.removeprefix("info/")
            arrays.add(label, _as_numbers(trace[name]))
            labels.append({"name": label, "array": label})
    if (values := trace.get("action_values")) is not None:
        arrays.add("action_values", values)
        labels.append({"name": "action values", "array": "action_values"})
    shown: dict[str, Any] = {
        "schema": SCHEMA,
        "key": key,
        "env": info.env,
        "seed": info.seed,
        "checkpoint": info.source.checkpoint,
        "return": info.raw_return,
        "length": info.length,
        "ended": info.ended,
        "masked": info.masked or None,
        "facts": facts(episode),
        "problems": [],
        "action_names": names,
        "frames": None,
        "labels": labels,
        "programs": [_program(trace, name, reward, arrays) for name in programs.maps(trace.names)],
        "sigma": {},
        "gate": {},
    }
    for name in trace.names:
        kind, _, head = name.partition("/")
        if kind in ("sigma", "gate"):
            arrays.add(name, trace[name])
            shown[kind][head] = name
    shown["arrays"] = arrays.packed
    if info.frame_shape is not None and strip_url is not None:
        height, width = info.frame_shape
        shown["frames"] = {
            "width": width,
            "height": height,
            "per_strip": info.per_strip,
            "count": info.n_frames,
            "strips": [strip_url(number) for number in range(-(-info.n_frames // info.per_strip))],
        }
    return shown


def facts(episode: RecordedEpisode) -> list[tuple[str, str]]:
    """Return what there is to know about an episode, as names and texts."""
    info = episode.info
    found = [
        ("run", info.source.run),
        ("checkpoint", "" if info.source.checkpoint is None else f"{info.source.checkpoint:,} agent steps"),
        ("actions", "most probable" if info.deterministic else "sampled"),
        ("recorded", info.recorded),
        ("recorded with", ", ".join(f"{name} {version}" for name, version in info.versions.items())),
        ("model", info.source.sha256[:12]),
    ]
    if info.protocol is not None:
        sticky, skip = info.protocol.get("sticky"), info.protocol.get("frame_skip")
        name = info.protocol.get("name")
        found.insert(
            2, ("protocol", f"{name} [{info.protocol_hash}]: sticky {sticky}, {skip} frames per step")
        )
    if info.options:
        found.insert(
            2, ("environment", ", ".join(f"{name} = {value}" for name, value in info.options.items()))
        )
    if not info.replayable:
        found.append(("replay", "the environment is not deterministic: it cannot be played again"))
    return [(name, text) for name, text in found if text]


def return_to_go(reward: np.ndarray, discount: float) -> np.ndarray:
    """Return Gₜ = rₜ + γ Gₜ₊₁ of the clipped rewards [T], which is what the critic estimates."""
    result = np.zeros(len(reward), np.float32)
    running = 0.0
    for step in range(len(reward) - 1, -1, -1):
        running = float(np.clip(reward[step], -1, 1)) + discount * running
        result[step] = running
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities [T, A], float32."""
    shifted = np.exp(logits.astype(np.float32) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _program(trace: Trace, name: str, reward: np.ndarray, arrays: "_Arrays") -> dict[str, Any]:
    _, head, memory = name.split("/")
    quantized = trace.quantized(name)
    attention = quantized.restore()
    found = programs.chapters(attention)
    arrays.add(f"{name}.codes", np.ascontiguousarray(quantized.codes.T))
    arrays.add(f"{name}.low", quantized.low)
    arrays.add(f"{name}.step", quantized.step)
    arrays.add(f"{name}.mean", attention.mean(axis=0))
    arrays.add(f"{name}.order", programs.row_order(found, attention))
    return {
        "head": head,
        "memory": memory,
        "slots": attention.shape[1],
        **{part: f"{name}.{part}" for part in ("codes", "low", "step", "mean", "order")},
        "chapters": [
            {**chapter._asdict(), "reward": float(reward[chapter.start : chapter.stop].sum())}
            for chapter in found
        ],
        "warnings": programs.warnings(attention),
    }


def _as_numbers(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int32 if array.dtype.kind in "biu" else np.float32)


class _Arrays:
    def __init__(self) -> None:
        self.packed: dict[str, dict[str, Any]] = {}

    def add(self, name: str, array: np.ndarray) -> None:
        kinds = {"u": "u1", "i": "i4", "f": "f4"}
        kind = kinds["i" if array.dtype.kind == "i" else "u" if array.dtype == np.uint8 else "f"]
        data = np.ascontiguousarray(array, f"<{kind}")
        packed = base64.b64encode(zlib.compress(data.tobytes(), 6)).decode()
        self.packed[name] = {"dtype": kind, "shape": list(array.shape), "data": packed}


# ------------------------------------------------------------------------------------------- pictures


def middle_strip(episode: RecordedEpisode) -> int:
    """Return the number of the strip that :func:`thumbnail` is cut from, or raise a ReplayError if there is none."""
    if episode.info.frame_shape is None:
        raise ReplayError(f"{episode.folder}: has no pictures")
    return episode.info.length // 2 // episode.info.per_strip


def thumbnail(episode: RecordedEpisode, width: int = 80) -> bytes:
    """Return a small WebP of the middle of an episode.

    Raises
    ------
    ReplayError
        There are no pictures, or that one is damaged.
    """
    info, number = episode.info, middle_strip(episode)
    row = info.length // 2 % info.per_strip
    image = Image.fromarray(read_strip(episode.folder, info, number)[row])
    image.thumbnail((width, 4 * width))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=70)
    return stream.getvalue()


# --------------------------------------------------------------------------------------------- export


def export_page(episodes: list[RecordedEpisode], out: Path) -> int:
    """Write the viewer with `episodes` (one, or two to compare) into one HTML file; return its size in bytes.

    Raises
    ------
    ReplayError
        An episode is damaged.
    """
    texts = [_script_safe(json.dumps(payload(episode, "", _data_url(episode)))) for episode in episodes]
    static = resources.files("neurocoder.runs.viewer") / "static"
    modules = {file.name: file.read_text("utf-8") for file in static.iterdir() if file.name.endswith(".js")}
    # Modules of a page on disk cannot import files: they come as data, under names of an import map.
    urls = {f"viewer/{name}": _javascript_url(text) for name, text in modules.items()}
    scripts = [f'<script type="importmap">{_script_safe(json.dumps({"imports": urls}))}</script>']
    scripts += [f'<script type="application/json" class="episode">{text}</script>' for text in texts]
    scripts.append('<script type="module">import "viewer/main.js";</script>')
    page = (static / "index.html").read_text("utf-8")
    style = (static / "style.css").read_text("utf-8")
    page, styles = re.subn(r"<link[^>]*style\.css[^>]*>", lambda _: f"<style>{style}</style>", page)
    page, mains = re.subn(r"<script[^>]*main\.js[^>]*></script>", lambda _: "\n".join(scripts), page)
    assert styles == mains == 1
    data = page.encode()
    part = out.with_name(f".{out.name}.part")
    try:
        part.write_bytes(data)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return len(data)


def _script_safe(text: str) -> str:
    """Return JSON that no HTML parser can mistake for the end of the script that it stands in."""
    return text.replace("<", "\\u003c")


def _javascript_url(text: str) -> str:
    text = re.sub(r"""from\s+(["'])\./""", r"from \1viewer/", text)
    return "data:text/javascript;base64," + base64.b64encode(text.encode()).decode()


def _data_url(episode: RecordedEpisode) -> Callable[[int], str | None]:
    def url(number: int) -> str | None:
        try:
            data = strip_bytes(episode.folder, episode.info, number)
        except ReplayError:
            return None
        return "data:image/webp;base64," + base64.b64encode(data).decode()

    return url
