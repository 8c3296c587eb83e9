"""Pictures of a machine with a memory at work on one sequence, and of its errors by the length of sequences.

Shape suffixes: T time, B batch, H heads, N rows of the memory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from neurocoder.envs import make_tasks
from neurocoder.policies.ntm import NTMTrace
from neurocoder.runs.reproduce.trained import Trained

SEED = 7
"""Of the sequence that is drawn."""


class Seen(NamedTuple):
    """A network on sequences of one length: inputs, targets and outputs in [0, 1] are [T, B, ...], mask [T, B]."""

    inputs: np.ndarray
    targets: np.ndarray
    outputs: np.ndarray
    mask: np.ndarray
    memory: NTMTrace | None


@torch.no_grad()
def look(trained: Trained, batch: int) -> Seen:
    """Run `trained` on `batch` sequences."""
    drawn = make_tasks(trained.env, batch, trained.options).task.draw(SEED, 0, batch)
    assert drawn.mask is not None
    start = torch.zeros(drawn.mask.shape, dtype=torch.bool)
    start[0] = True
    policy = trained.policy
    output, _, trace = policy(torch.from_numpy(drawn.inputs), policy.initial_state(batch), start)
    return Seen(drawn.inputs, drawn.targets, output.logits.sigmoid().numpy(), drawn.mask, trace.core)


def draw_strips(trained: Trained, file: Path, title: str) -> None:
    """Draw input, target, output and error of one sequence, as in figures 4, 7 and 10 of the paper."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    seen = look(trained, 1)
    shown = seen.mask[:, 0, None]
    strips = {
        "input": seen.inputs[:, 0],
        "target": np.where(shown, seen.targets[:, 0], 0.0),
        "output": np.where(shown, seen.outputs[:, 0], 0.0),
        "error": np.where(shown, np.abs(seen.outputs[:, 0] - seen.targets[:, 0]), 0.0),
    }
    figure, axes = plt.subplots(4, 1, figsize=(8, 5), sharex=True, layout="constrained")
    for axis, (name, strip) in zip(axes, strips.items(), strict=True):
        axis.imshow(strip.T, aspect="auto", cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axis.set(ylabel=name, yticks=[])
    axes[-1].set(xlabel="step")
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_memory(trained: Trained, file: Path, title: str) -> None:
    """Draw where each head writes and reads over one sequence, as in figures 6 and 12 of the paper."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    memory = look(trained, 1).memory
    assert memory is not None
    heads = [(f"write {h + 1}", w) for h, w in enumerate(_by_head(memory.write_weighting))]
    heads += [(f"read {h + 1}", w) for h, w in enumerate(_by_head(memory.read_weighting))]
    used = np.flatnonzero(sum(w.max(axis=0) for _, w in heads) > 0.05)
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, heads[0][1].shape[1])
    columns = min(2, len(heads))
    lines = -(-len(heads) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(8, 3 * lines), squeeze=False, sharex=True, layout="constrained"
    )
    for axis, (name, weighting) in zip(axes.flat, heads, strict=False):
        extent = (-0.5, len(weighting) - 0.5, high - 0.5, low - 0.5)
        axis.imshow(weighting[:, low:high].T, aspect="auto", cmap="magma", extent=extent, vmin=0, vmax=1)
        axis.set(title=name, xlabel="step", ylabel="row of the memory")
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _by_head(weighting_TBHN: torch.Tensor) -> list[np.ndarray]:
    """Return the weightings [T, N] of every head over the first sequence."""
    return list(weighting_TBHN[:, 0].permute(1, 0, 2).numpy())


def draw_errors(
    by_run: Mapping[str, Mapping[str, Mapping[int, float]]], learned: Mapping[str, int], file: Path
) -> None:
    """Draw wrong bits per sequence over what makes sequences longer: a panel for each of `learned`, a line for each run.

    Parameters
    ----------
    by_run
        Of each run ("label, seed n"), of each name in `learned`: bits at each value.
    learned
        What sequences have of it in training, at most: a dotted line.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys(run.rpartition(", seed")[0] for run in by_run))
    figure, axes = plt.subplots(
        1, len(learned), figsize=(1 + 5 * len(learned), 3.8), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, (name, most) in zip(axes.flat, learned.items(), strict=True):
        named = set()
        for run, sweeps in by_run.items():
            label = run.rpartition(", seed")[0]
            bits = sweeps.get(name, {})
            axis.plot(
                list(bits),
                list(bits.values()),
                f"C{labels.index(label)}.-",
                alpha=0.7,
                label=None if label in named else label,
            )
            named.add(label)
        axis.axvline(most, color="grey", linewidth=0.8, linestyle=":")
        axis.set(xlabel=f"{name} (learned up to {most})", yscale="symlog", ylim=(0, None))
        axis.set_yscale("symlog", linthresh=0.1)
    axes.flat[0].set_ylabel("wrong bits per sequence")
    axes.flat[0].legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
