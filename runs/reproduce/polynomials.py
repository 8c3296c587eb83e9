"""Figures 5 and 6: polynomial auto-regression by a GRU whose output layer is composed.

Widths are the paper's: a GRU of 32 units with a linear output (3,489 parameters), 28 with HyperNet's scales of the output
layer's inputs (3,529), 16 with a Neurocoder of one step (P = 10, H = 15), 8 with one of five steps (P = 20, H = 1). It does not
say how large the controller is; here it is what makes the Neurocoders as large as printed, or a little smaller: 3,486 (3.6K)
and 2,049 (2.1K). A program of one output has rank 1 whatever is composed, so the control of low rank is a static layer on the
smallest GRU. What else the paper does not say is set here: 100 points, 5 chunks, every chunk scaled to |y| <= 1, Adam at
1e-3, gradients of at most norm 1. Updates are half of the paper's 10,000, a quarter in variants and controls (which are
compared at as many updates): it says that both Neurocoders converge within 2,000, and the curves show whether they did.
"""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurocoder.envs import make_tasks
from neurocoder.policies import Policy
from neurocoder.runs.reproduce.experiment import LOSS, Experiment, Row, Setting
from neurocoder.runs.reproduce.pictures import curves
from neurocoder.runs.reproduce.trained import Trained, open_row
from neurocoder.runs.reproduce.verdicts import against

ENV = "neurocoder/Polynomial-v0"
LENGTH, BATCH = 100, 128
PER_UPDATE = LENGTH * BATCH
UPDATES = 5_000
SINGLE = {"slots": 10, "attention_steps": 1, "attention_heads": 15, "controller_size": 9}
MULTI = {"slots": 20, "attention_steps": 5, "attention_heads": 1, "controller_size": 14}
COMMON = {"key_size": 3, "least_used": 2, "orthogonality": 0.1, "residual": False, "sharpness": 1.0}
MODELS: dict[str, tuple[int, str, dict[str, Any]]] = {
    # GRU units, head, its options
    "linear": (32, "linear", {}),
    "hypernet": (28, "hypernet", {"variant": "input-scale"}),
    "neurocoder single-step": (16, "neurocoder", {**COMMON, **SINGLE}),
    "neurocoder multi-step": (8, "neurocoder", {**COMMON, **MULTI}),
    "linear, GRU of 8": (8, "linear", {}),
}
PRINTED_PARAMETERS = {
    "linear": "3.4K",
    "hypernet": "3.5K",
    "neurocoder single-step": "3.6K",
    "neurocoder multi-step": "2.1K",
}
CONTROLS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "neurocoder multi-step, uniform attention": (8, "neurocoder", {**COMMON, **MULTI, "sharpness": 1e-6}),
    "neurocoder multi-step, a = 0": (8, "neurocoder", {**COMMON, **MULTI, "orthogonality": 0.0}),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    ", twice the chunks": {"env_options.chunks": 10},
    ", noise 0.1": {"env_options.noise": 0.1},
}
BOUNDARIES = "boundaries.csv"
TOLERANCE = 2
"""Steps by which a found boundary may miss a true one."""


def _setting(model: str, variant: str) -> Setting:
    units, head, options = (MODELS | CONTROLS)[model]
    updates = UPDATES // 2 if variant or model in CONTROLS else UPDATES
    overrides: dict[str, Any] = {
        "steps": updates * PER_UPDATE,
        "checkpoint_every": updates // 20 * PER_UPDATE,
        "evaluation.every": updates // 20 * PER_UPDATE,
        "evaluation.episodes": 1024,
        "keep_checkpoints": 1,
        "milestone_every": 0,
        "policy.core_size": units,
        "policy.head": head,
        "policy.head_config": {},
        **{f"policy.head_config.{name}": value for name, value in options.items()},
        **VARIANTS[variant],
    }
    printed = "" if variant else PRINTED_PARAMETERS.get(model, "")
    return Setting(model + variant, ENV, "polynomial", overrides, published_parameters=printed)


# ------------------------------------------------------------------------ does attention follow chunks?


def changes(attention: np.ndarray) -> np.ndarray:
    """Return how much attention [T, ..., P] moves before each step, [T] with 0 first: half the L1 distance, per row."""
    moved = np.abs(np.diff(attention, axis=0)).sum(axis=-1) / 2
    return np.concatenate([[0.0], moved.reshape(len(moved), -1).mean(axis=1)])


def boundary_score(change: np.ndarray, boundaries: Sequence[int], tolerance: int = TOLERANCE) -> float:
    """Return the share of `boundaries` that are among the len(boundaries) highest peaks of `change` [T].

    A peak is a step that no other within `tolerance` exceeds; it finds a boundary that is at most `tolerance` steps away.
    """
    taken: list[int] = []
    for step in np.argsort(-change, kind="stable"):
        if len(taken) == len(boundaries):
            break
        if change[step] > 0 and all(abs(step - other) > tolerance for other in taken):
            taken.append(int(step))
    found = sum(any(abs(step - boundary) <= tolerance for step in taken) for boundary in boundaries)
    return found / len(boundaries)


@torch.no_grad()
def attention_over(policy: Policy, inputs: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return what the head attends to in M_U, [T, B, P] (its first component), and predictions [T, B]."""
    start = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    start[0] = True
    output, _, trace = policy.eval()(inputs, policy.initial_state(inputs.shape[1]), start)
    return trace.actor.attention_u[..., 0, :].numpy(), output.logits[..., 0].numpy()


def boundary_scores(trained: Trained, sequences: int = 256) -> dict[str, float]:
    """Return the mean boundary score of a policy's attention, of the jumps of y itself, and of chance."""
    policy, _, options = trained
    envs = make_tasks(ENV, sequences, options)
    drawn = envs.task.draw(12345, 0, sequences)
    attention, _ = attention_over(policy, torch.from_numpy(drawn.inputs))
    chunks = int(options.get("chunks", 5))
    boundaries = [LENGTH // chunks * c for c in range(1, chunks)]
    generator = np.random.default_rng(0)
    y = drawn.targets[..., 0]
    jumps = np.abs(np.diff(y, axis=0, prepend=y[:1]))
    scores = {"attention": [], "jumps of y": [], "chance": []}  # type: dict[str, list[float]]
    for b in range(sequences):
        scores["attention"].append(boundary_score(changes(attention[:, b]), boundaries))
        scores["jumps of y"].append(boundary_score(jumps[:, b], boundaries))
        scores["chance"].append(boundary_score(generator.random(LENGTH), boundaries))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def draw_attention(trained: Trained, title: str, file: Path) -> None:
    """Draw one sequence as Figure 5 does: attention of the first component above, prediction and truth below."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    policy, _, options = trained
    drawn = make_tasks(ENV, 1, options).task.draw(7, 0, 1)
    attention, predicted = attention_over(policy, torch.from_numpy(drawn.inputs))
    chunks = int(options.get("chunks", 5))
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True, layout="constrained")
    above.imshow(attention[:, 0].T, aspect="auto", cmap="magma", interpolation="nearest")
    above.set(ylabel="slot of M_U", title=title)
    below.plot(drawn.targets[:, 0, 0], color="C0", label="y")
    below.plot(predicted[:, 0], color="C1", label="predicted")
    for c in range(1, chunks):
        for axis in (above, below):
            axis.axvline(LENGTH // chunks * c - 0.5, color="green", linestyle="--", linewidth=0.8)
    below.set(xlabel="step")
    below.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


FIG5_MODELS = ("neurocoder single-step", "neurocoder multi-step")


def figures5(rows: Sequence[Row], folder: Path) -> None:
    """Draw Figure 5 for both Neurocoders, and write how well their attention finds boundaries."""
    lines = ["setting,seed,attention,jumps of y,chance"]
    for row in rows:
        if row["label"] not in FIG5_MODELS or (trained := open_row(folder, row)) is None:
            continue
        scores = boundary_scores(trained)
        lines.append(f"{row['label']},{row['seed']}," + ",".join(f"{value:.3f}" for value in scores.values()))
        if row["seed"] == 0:
            title = f"{row['label']}, seed {row['seed']}"
            draw_attention(trained, title, folder / f"attention-{row['label'].split()[-1]}.png")
    if len(lines) > 1:
        (folder / BOUNDARIES).write_text("\n".join(lines) + "\n", "utf-8")


def verdict5(rows: Sequence[Row], folder: Path) -> str:
    """Say how many of the boundaries between chunks each Neurocoder's attention finds."""
    if not (folder / BOUNDARIES).exists():
        return ""
    with (folder / BOUNDARIES).open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    parts = []
    for label in FIG5_MODELS:
        own = [line for line in found if line["setting"] == label]
        if own:
            means = {
                name: float(np.mean([float(line[name]) for line in own]))
                for name in ("attention", "jumps of y", "chance")
            }
            parts.append(
                f"- {label}: attention finds {means['attention']:.0%} of the boundaries between chunks, the jumps of "
                f"y itself {means['jumps of y']:.0%}, chance {means['chance']:.0%} ({len(own)} seeds)."
            )
    single, multi = (
        {line["seed"]: float(line["attention"]) for line in found if line["setting"] == label}
        for label in FIG5_MODELS
    )
    if both := sorted(single.keys() & multi.keys()):
        wins = sum(multi[seed] > single[seed] for seed in both)
        parts.append(
            f"- The multi-step one finds more than the single-step one with {wins} of {len(both)} seeds."
        )
    return "\n".join(parts)


def figures6(rows: Sequence[Row], folder: Path) -> None:
    """Draw the learning curves of each variant."""
    for variant in VARIANTS:
        models = (*MODELS, *(() if variant else CONTROLS))
        own = [row for row in rows if row["label"] in {model + variant for model in models}]
        if own:
            name = "curves" + (variant.replace(", ", "-").replace(" ", "-").replace(".", "") or "")
            curves(own, folder / f"{name}.png", LOSS, per_unit=PER_UPDATE, logarithmic=True)


def verdict(rows: Sequence[Row], folder: Path) -> str:
    """Say whether the order of Figure 6 (multi-step < single-step < HyperNet < linear) is there."""
    parts = []
    order = ["neurocoder multi-step", "neurocoder single-step", "hypernet", "linear"]
    for variant in VARIANTS:
        for better, worse in itertools.pairwise(order):
            parts.append(against(rows, better + variant, worse + variant, LOSS))
        parts.append(against(rows, "neurocoder multi-step" + variant, "linear, GRU of 8" + variant, LOSS))
    for control in CONTROLS:
        until = max((row["steps"][-1] for row in rows if row["label"] == control), default=0)
        if until and (found := against(rows, "neurocoder multi-step", control, LOSS, until)):
            parts.append(f"After {until // PER_UPDATE:,} updates: {found}")
    return "\n".join(f"- {part}" for part in parts if part)


QUICK = {
    "steps": 100 * PER_UPDATE,
    "checkpoint_every": 25 * PER_UPDATE,
    "evaluation.every": 25 * PER_UPDATE,
    "evaluation.episodes": 128,
}
FIG6 = Experiment(
    "fig6",
    "Figure 6: polynomial auto-regression, mean squared error",
    [_setting(model, "") for model in (*MODELS, *CONTROLS)]
    + [_setting(model, variant) for variant in VARIANTS if variant for model in MODELS],
    quick=QUICK,
    seeds=3,
    metric=LOSS,
    verdict=verdict,
    figures=figures6,
    shares_with=("fig5",),
)
FIG5 = Experiment(
    "fig5",
    "Figure 5: attention over a sequence of polynomials",
    [_setting(model, "") for model in FIG5_MODELS],
    quick=QUICK,
    seeds=3,
    metric=LOSS,
    verdict=verdict5,
    figures=figures5,
    shares_with=("fig6",),
)
