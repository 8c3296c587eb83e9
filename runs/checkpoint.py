"""Checkpoints: data files that appear at once or not at all.

``checkpoints/<agent steps>/`` holds ``model.safetensors``, ``optimizer.safetensors``, ``workers.safetensors`` (where
each worker stood: random number generators, recurrent states, the games) and ``state.json``, which knows the
SHA-256 of the others. They are written into a hidden folder beside it, synced to disk and renamed, so a reader
never sees half of one. Nothing in them is ever executed.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neurocoder.errors import NeurocoderError
from neurocoder.policies.heads import match_slots

FORMAT = 2
# One key only: safetensors writes several in an order that changes from run to run.
METADATA = {"neurocoder": f"checkpoint {FORMAT}"}


class CheckpointError(NeurocoderError):
    """Raised when a checkpoint is missing, damaged, foreign, or made for another network."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One saved state of a run. Of `optimizer` and `workers` nothing is there where only the network was asked for."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor] | None
    state: dict[str, Any]
    workers: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Retention:
    """Which checkpoints are kept, besides the best and the first (0, the untrained network)."""

    newest: int = 3
    milestone_every: int = 0
    """Agent steps; the first checkpoint at or after each multiple is kept for ever. 0: none."""

    def kept(self, steps: list[int]) -> set[int]:
        """Return those of `steps`, ascending, that are kept."""
        kept = set(steps[-self.newest :])
        if self.milestone_every:
            firsts: dict[int, int] = {}
            for step in steps:
                firsts.setdefault(step // self.milestone_every, step)
            kept |= {step for multiple, step in firsts.items() if multiple}
        return kept


def save_checkpoint(
    folder: Path,
    agent_steps: int,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    retention: Retention,
    *,
    workers: dict[str, Tensor] | None = None,
    in_use: Collection[int] = (),
) -> Path:
    """Write ``folder/<agent_steps>`` atomically, then drop those that `retention` does not keep.

    The best is kept (see :func:`best_step`), and those of `in_use`.

    Raises
    ------
    CheckpointError
        It could not be written, e.g. for want of space; all that were there are untouched.
    """
    final = folder / str(agent_steps)
    partial = folder / f".partial-{agent_steps}-{os.getpid()}"
    try:
        folder.mkdir(exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        hashes = {}
        for name, tensors in (("model", model), ("optimizer", optimizer), ("workers", workers or {})):
            file = partial / f"{name}.safetensors"
            save_file({key: t.contiguous() for key, t in tensors.items()}, file, metadata=METADATA)
            hashes[file.name] = _sha256(file)
        content = {"format": FORMAT, "agent_steps": agent_steps, "sha256": hashes, **state}
        text = json.dumps(content, indent=1, sort_keys=True)
        (partial / "state.json").write_text(text + "\n", "utf-8")
        for file in (*partial.iterdir(), partial):
            _sync(file)
        _replace(final, partial)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{final}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    saved = saved_steps(folder)
    for step in set(saved) - retention.kept(saved) - {best_step(folder), 0, *in_use}:
        shutil.rmtree(folder / str(step), ignore_errors=True)
    return final


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _replace(final: Path, partial: Path) -> None:
    """Rename `partial` to `final`. A folder of that name steps aside first, and back if this fails."""
    aside = final.with_name(f".aside-{final.name}")
    if final.exists():
        final.rename(aside)
    try:
        partial.rename(final)
    except BaseException:
        if aside.exists():
            aside.rename(final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def recover(folder: Path) -> None:
    """Clear up what a killed writer left in `folder`. For the run's only writer."""
    for aside in folder.glob(".aside-*"):
        final = folder / aside.name.removeprefix(".aside-")
        if final.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(final)
    for partial in folder.glob(".partial-*"):
        shutil.rmtree(partial)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def saved_steps(folder: Path) -> list[int]:
    """Return the agent steps of all checkpoints in `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def best_step(folder: Path) -> int | None:
    """Return the checkpoint with the highest evaluated mean, the latest of equals; None if there is none.

    Where none was evaluated, the mean return of training decides. One whose network is damaged does not count.
    """
    return next((step for step in _from_the_best(folder) if _has_whole_network(folder / str(step))), None)


def _has_whole_network(path: Path) -> bool:
    try:
        _load_tensors(path / "model.safetensors", read_state(path))
    except CheckpointError:
        return False
    return True


def _from_the_best(folder: Path) -> list[int]:
    """Return the checkpoints that have a score, from the best on."""
    evaluated: list[tuple[float, int]] = []
    trained: list[tuple[float, int]] = []
    for step in saved_steps(folder):
        try:
            state = read_state(folder / str(step))
            evaluation = read_evaluation(folder / str(step)) or {}
        except CheckpointError:
            continue
        for scored, value in ((evaluated, evaluation.get("mean")), (trained, state.get("mean_return"))):
            if isinstance(value, int | float) and math.isfinite(value):
                scored.append((value, step))
    return [step for _, step in sorted(evaluated or trained, reverse=True)]


def write_evaluation(path: Path, score: Mapping[str, Any]) -> None:
    """Write `score` (see ``neurocoder.runs.scoring``) as the checkpoint's ``evaluation.json``, atomically."""
    partial = path / f".evaluation-{os.getpid()}.json"
    try:
        partial.write_text(json.dumps(score, indent=1) + "\n", "utf-8")
        _sync(partial)
        partial.replace(path / "evaluation.json")
    finally:
        partial.unlink(missing_ok=True)


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """Return ``evaluation.json`` of the checkpoint at `path`, None if it was not evaluated."""
    file = path / "evaluation.json"
    try:
        evaluation = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from None
    if not isinstance(evaluation, dict):
        raise CheckpointError(f"{file}: expected an object, found {type(evaluation).__name__}")
    return evaluation


def find_checkpoint(folder: Path, which: str = "last") -> Path:
    """Return the folder of checkpoint `which`: ``last``, ``best`` or a number of agent steps."""
    steps = saved_steps(folder)
    if not steps:
        raise CheckpointError(f"{folder}: no checkpoint there")
    if which == "last":
        return folder / str(steps[-1])
    if which == "best":
        best = best_step(folder)
        return folder / str(steps[-1] if best is None else best)
    if not which.isdecimal() or int(which) not in steps:
        raise CheckpointError(
            f"{folder}: no checkpoint {which!r}; there are last, best, {', '.join(map(str, steps))}"
        )
    return folder / which


def read_state(path: Path) -> dict[str, Any]:
    """Return ``state.json`` of the checkpoint at `path`."""
    file = path / "state.json"
    try:
        state = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not a checkpoint of this toolkit (state.json is missing)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{file}: expected checkpoint format {FORMAT}, found {found!r}")
    return state


def load_checkpoint(path: Path, *, with_optimizer: bool = True) -> Checkpoint:
    """Return the checkpoint at `path`, with what is needed to train on if `with_optimizer`.

    Nothing in it is executed.

    Raises
    ------
    CheckpointError
        A file is missing, damaged (its SHA-256 is not the one that was saved) or of another format.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint")
    state = read_state(path)
    names = ("model", "optimizer", "workers") if with_optimizer else ("model",)
    tensors = {name: _load_tensors(path / f"{name}.safetensors", state) for name in names}
    return Checkpoint(path, tensors["model"], tensors.get("optimizer"), state, tensors.get("workers", {}))


def load_newest(folder: Path) -> tuple[Checkpoint, dict[Path, CheckpointError]]:
    """Return the newest checkpoint that is whole, and what is wrong with those after it, by their folders.

    Raises
    ------
    CheckpointError
        There is none.
    """
    damaged: dict[Path, CheckpointError] = {}
    for step in reversed(saved_steps(folder)):
        path = folder / str(step)
        try:
            return load_checkpoint(path), damaged
        except CheckpointError as error:
            damaged[path] = error
    if damaged:
        raise next(iter(damaged.values()))
    raise CheckpointError(f"{folder}: no checkpoint there")


def set_aside(path: Path) -> Path:
    """Rename the damaged checkpoint at `path`, so that it neither counts nor is lost; return where it is."""
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def _load_tensors(file: Path, state: dict[str, Any]) -> dict[str, Tensor]:
    try:
        tensors = load_file(file)
        sha256 = _sha256(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: damaged or not safetensors: {error}") from None
    hashes = state.get("sha256")
    if not isinstance(hashes, dict) or sha256 != hashes.get(file.name):
        raise CheckpointError(f"{file}: damaged, or not the file that was saved: its SHA-256 differs")
    return tensors


def load_parameters(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy `tensors` into `module`; all names and shapes must agree, or nothing is copied.

    But for the number of slots of program memories that can open and close them: that is what it was.

    Raises
    ------
    CheckpointError
        Names the keys that are missing, unknown, or of another shape.
    """
    match_slots(module, tensors)
    own = module.state_dict()
    problems = [
        f"{kind} {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for kind, names in (
            ("missing", sorted(own.keys() - tensors.keys())),
            ("unknown", sorted(tensors.keys() - own.keys())),
            (
                "other shape",
                [
                    f"{k} {tuple(tensors[k].shape)} for {tuple(own[k].shape)}"
                    for k in sorted(own.keys() & tensors.keys())
                    if own[k].shape != tensors[k].shape
                ],
            ),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{source}: made for another network: {'; '.join(problems)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
