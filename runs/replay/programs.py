"""Which stored program acts when: attention over slots as a map, its chapters, and what is suspicious about it.

Attention is nearly flat with many slots at sharpness 1, so that the slot that a moment is *about* is not the one with
the largest weight, but the one that is read more than it usually is: maps and chapters use the lift,
lift_p(t) = a_p(t) / mean over the episode of a_p.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from neurocoder.policies import ProgramTrace
from neurocoder.policies.heads import MixtureTrace
from neurocoder.policies.ntm import NTMTrace

MEMORIES = ("U", "V", "S")
"""Of Neurocoder heads; a mixture (``nsm``, ``moe``) has one, called P."""
ORDER = (*MEMORIES, "P")
"""In which maps are offered; others come after them, by name."""
HOLD = 8
"""Steps that a slot must lead without a break to begin a chapter."""
FLAT = 0.02
"""Attention that stays within this share of uniform says nothing about programs."""
LEVELS = 63
"""Steps between the least and the largest attention of a slot, as it is stored."""
COLLAPSED = 0.95
"""Share of all attention at which a single slot is all there is."""


class Chapter(NamedTuple):
    """Steps `start` (inclusive) to `stop` (exclusive), of which `slot` is the subject."""

    start: int
    stop: int
    slot: int


def mean_attention(attention: Tensor, sigma: Tensor) -> Tensor:
    """Return Σᵣ σᵣ wᵣₚ / Σᵣ σᵣ: attention [..., R, P] over slots, [..., P], each component as heavy as its σ [..., R]."""
    share = sigma / sigma.sum(dim=-1, keepdim=True)
    return (share.unsqueeze(-2) @ attention).squeeze(-2)


def quantities(traces: Mapping[str, Any], *, full: bool = False) -> dict[str, np.ndarray]:
    """Return what is kept of a decision's `traces`, by name, each [B, ...] float32.

    ``attention/<head>/<memory>`` [B, P], ``sigma/<head>`` [B, R], ``gate/<head>`` [B]; with `full` also
    ``components/<head>/<memory>`` [B, R, P]. A Neural Turing Machine's ``attention/core/…`` is over the rows of its
    memory: ``read1``, …, ``write1``, …, and ``content``, the root mean square of what a row holds.
    """
    kept: dict[str, Tensor] = {}
    for head, trace in traces.items():
        if isinstance(trace, MixtureTrace):
            kept[f"attention/{head}/P"] = trace.attention[..., 0, :]
        elif isinstance(trace, ProgramTrace):
            for memory, attention in zip(MEMORIES, trace[:3], strict=True):
                kept[f"attention/{head}/{memory}"] = mean_attention(attention, trace.sigma)
                if full:
                    kept[f"components/{head}/{memory}"] = attention
            kept[f"sigma/{head}"] = trace.sigma
            kept[f"gate/{head}"] = trace.residual_gate
        elif isinstance(trace, NTMTrace):
            for kind, weighting in (("read", trace.read_weighting), ("write", trace.write_weighting)):
                for number, rows in enumerate(weighting.unbind(-2), start=1):
                    kept[f"attention/{head}/{kind}{number}"] = rows
            kept[f"attention/{head}/content"] = trace.memory.square().mean(-1).sqrt()
    return {name: tensor.float().cpu().numpy() for name, tensor in kept.items()}


def maps(names: Iterable[str]) -> list[str]:
    """Return those of `names` that are attention, the one that says most about what an agent does first.

    The actor comes before other heads, and U before V and S; a core's memory is read before it is written.
    """

    def place(name: str) -> tuple[bool, str, int, str]:
        _, head, memory = name.split("/")
        rank = ORDER.index(memory) if memory in ORDER else len(ORDER) + (memory == "content")
        return head != "actor", head, rank, memory

    return sorted((name for name in names if name.startswith("attention/")), key=place)


def lift(attention: np.ndarray) -> np.ndarray:
    """Return attention [T, P] over each slot's mean in the episode; 1 where a slot is never read."""
    mean = attention.mean(axis=0, dtype=np.float64)
    return np.divide(attention, mean, out=np.ones(attention.shape), where=mean > 0)


def chapters(attention: np.ndarray, hold: int = HOLD) -> list[Chapter]:
    """Return the chapters of attention [T, P]; they cover all steps and no two neighbours have the same slot.

    The leading slot of a step is the one of largest lift (the first of equals). A slot that leads for `hold` steps
    without a break begins a chapter there; shorter runs belong to the chapter that they interrupt, those at the very
    start to the first. If no run is that long, the whole episode is one chapter, of the slot that leads most often.
    """
    if not len(attention):
        return []
    leading = lift(attention).argmax(axis=1)
    starts = np.flatnonzero(np.diff(leading, prepend=-1))
    lengths = np.diff(starts, append=len(leading))
    begun: list[tuple[int, int]] = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        slot = int(leading[start])
        if length >= hold and (not begun or begun[-1][1] != slot):
            begun.append((start, slot))
    if not begun:
        begun.append((0, int(np.bincount(leading).argmax())))
    begun[0] = (0, begun[0][1])
    stops = [start for start, _ in begun[1:]] + [len(leading)]
    return [Chapter(start, stop, slot) for (start, slot), stop in zip(begun, stops, strict=True)]


def row_order(found: list[Chapter], attention: np.ndarray) -> np.ndarray:
    """Return all slots, those first that are the subject of most steps; the others by their mean attention."""
    steps = np.zeros(attention.shape[1])
    for chapter in found:
        steps[chapter.slot] += chapter.stop - chapter.start
    return np.lexsort((-attention.mean(axis=0), -steps)).astype(np.int32)


def warnings(attention: np.ndarray) -> list[str]:
    """Return what makes a map of attention [T, P] meaningless, in words."""
    if not len(attention):
        return []
    share = attention / np.maximum(attention.sum(axis=1, keepdims=True), 1e-12)
    n_slots = attention.shape[1]
    if n_slots > 1 and np.abs(share * n_slots - 1).max() <= FLAT:
        return [f"attention is within {FLAT:.0%} of uniform throughout: these programs are not told apart"]
    top = share.mean(axis=0)
    if n_slots > 1 and top.max() > COLLAPSED:
        return [f"slot {int(top.argmax())} holds {top.max():.0%} of all attention: the memory has collapsed"]
    return []


class Quantized(NamedTuple):
    """attention[t, p] ≈ low[p] + step[p] · codes[t, p]."""

    codes: np.ndarray
    low: np.ndarray
    step: np.ndarray

    def restore(self) -> np.ndarray:
        """Return the attention [T, P], float32."""
        return (self.low + self.step * self.codes).astype(np.float32)


def quantize(attention: np.ndarray) -> Quantized:
    """Return attention [T, P] in bytes: an error of at most ½ % of a slot's own mean, or of 1/126 of its range.

    The first holds where the attention is nearly flat. Fewer levels pack much better: of a sharp attention more are noise.
    """
    if not len(attention):
        empty = np.zeros(attention.shape[1], np.float32)
        return Quantized(np.zeros(attention.shape, np.uint8), empty, empty)
    low, high = attention.min(axis=0), attention.max(axis=0)
    step = np.maximum((high - low) / LEVELS, 0.01 * attention.mean(axis=0)).astype(np.float32)
    codes = np.rint(np.divide(attention - low, step, out=np.zeros(attention.shape), where=step > 0))
    return Quantized(codes.astype(np.uint8), low.astype(np.float32), step)
