"""Checkpoints: three data files that appear at once or not at all.

``checkpoints/<agent steps>/`` holds ``model.safetensors``, ``optimizer.safetensors`` and ``state.json``. They are
written into a hidden folder beside it, synced to disk and renamed, so a reader never sees half of one. Nothing
in them is ever executed.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neurocoder.errors import NeurocoderError

FORMAT = 1
# One key only: safetensors writes several in an order that changes from run to run.
METADATA = {"neurocoder": f"checkpoint {FORMAT}"}


class CheckpointError(NeurocoderError):
    """Raised when a checkpoint is missing, damaged, foreign, or made for another network."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One saved state of a run. `optimizer` is None where only the network was asked for."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor] | None
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    agent_steps: int,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write ``folder/<agent_steps>`` atomically, then drop all but the newest `keep`, the best and the first.

    The best is the one with the highest ``state["mean_return"]``; the first, 0, is the untrained network.
    """
    folder.mkdir(exist_ok=True)
    final = folder / str(agent_steps)
    partial = folder / f".partial-{agent_steps}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, tensors in (("model", model), ("optimizer", optimizer)):
            contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
            save_file(contiguous, partial / f"{name}.safetensors", metadata=METADATA)
        text = json.dumps({"format": FORMAT, "agent_steps": agent_steps, **state}, indent=1, sort_keys=True)
        (partial / "state.json").write_text(text + "\n", "utf-8")
        for file in (*partial.iterdir(), partial):
            _sync(file)
        _replace(final, partial)
        _sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    saved = saved_steps(folder)
    for step in set(saved[:-keep]) - {best_step(folder), 0}:
        shutil.rmtree(folder / str(step))
    return final


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
    """Return the checkpoint with the highest mean return, the latest of equals; None if there is none.

    Damaged ones do not count.
    """
    scored = []
    for step in saved_steps(folder):
        try:
            value = read_state(folder / str(step)).get("mean_return")
        except CheckpointError:
            continue
        if isinstance(value, int | float):
            scored.append((value, step))
    return max(scored)[1] if scored else None


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
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{file}: expected checkpoint format {FORMAT}, found {found!r}")
    return state


def load_checkpoint(path: Path, *, with_optimizer: bool = True) -> Checkpoint:
    """Return the checkpoint at `path`; nothing in it is executed."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint")
    state = read_state(path)
    model = _load_tensors(path / "model.safetensors")
    optimizer = _load_tensors(path / "optimizer.safetensors") if with_optimizer else None
    return Checkpoint(path, model, optimizer, state)


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: damaged or not safetensors: {error}; remove {file.parent} to go on from the one before"
        ) from None


def load_parameters(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy `tensors` into `module`; all names and shapes must agree, or nothing is copied.

    Raises
    ------
    CheckpointError
        Names the keys that are missing, unknown, or of another shape.
    """
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
