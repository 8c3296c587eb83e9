"""Figure 8, made small: Split CIFAR-10 on the features of a frozen EfficientNet-Lite0, five tasks of two classes.

The paper trains a ResNet; here the images (96 × 96, bilinear) pass once through an ImageNet network of 3.4 M parameters, and
what is learned is an MLP 1280-256-256-2 on its 1,280 features, all layers plain or all recoded (Table 5: P = 100, H = 10,
K = 5, with residual; for a see ``continual_tables``). Scenario domain; Adam at 1e-3, four passes a task. The accuracies are not
the paper's to compare with; which network forgets less is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurocoder.envs.datasets import features_folder
from neurocoder.runs.features import compute_showing_progress, features_name
from neurocoder.runs.reproduce.continual_tables import compared
from neurocoder.runs.reproduce.experiment import ACCURACY, Experiment, Row, Setting
from neurocoder.runs.reproduce.pictures import labels_of, save

ENV, DATASET = "neurocoder/SplitCIFAR10-v0", "cifar10"
ENCODER, SIZE = "efficientnet_lite0", 96
FEATURES = features_name(ENCODER, SIZE)
NEUROCODER: dict[str, Any] = {
    "slots": 100,
    "attention_steps": 1,
    "attention_heads": 10,
    "key_size": 5,
    "least_used": 5,
    "orthogonality": 0.1,
    "residual": True,
    "sharpness": 1.0,
}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "MLP": ("linear", {"init": "uniform"}),
    "lowrank r10": ("lowrank", {"rank": 10}),
    "neurocoder": ("neurocoder", NEUROCODER),
    "neurocoder, sharpness 10": ("neurocoder", {**NEUROCODER, "sharpness": 10.0}),
}
METHODS = {"Adam": "none", "SI": "si"}


def _setting(method: str, name: str) -> Setting:
    head, options = HEADS[name]
    overrides: dict[str, Any] = {
        "env_options": {},
        "env_options.scenario": "domain",
        "env_options.features": FEATURES,
        "keep_checkpoints": 1,
        "milestone_every": 0,
        "continual.method": METHODS[method],
        "policy.encoder_config": {},
        "policy.encoder_config.hidden": [256, 256],
        "policy.encoder_config.activation": "relu",
        "policy.head": head,
        "policy.head_config": {},
    }
    if head == "linear":
        overrides["policy.encoder_config.init"] = "uniform"
    else:
        overrides["policy.encoder_config.layers_head"] = head
        overrides |= {f"policy.encoder_config.layers_head_config.{key}": v for key, v in options.items()}
    if head == "lowrank":
        options = {"rank": 2}  # two outputs
    overrides |= {f"policy.head_config.{key}": value for key, value in options.items()}
    return Setting(f"{method}, {name}", ENV, "continual", overrides)


def prepare() -> None:
    """Compute the features, unless they are there."""
    if not features_folder(DATASET, FEATURES).is_dir():
        print(f"features of {DATASET}, once …", flush=True)
        compute_showing_progress(DATASET, ENCODER, SIZE, {"weights": "pretrained"})


def verdict(rows: Sequence[Row], folder: Path) -> str:
    """Say whether stored programs forget less, without help and with SI, than a plain MLP and a static low rank."""
    pairs = [("neurocoder", other) for other in HEADS if other != "neurocoder"]
    found = [compared(rows, method, ours, other) for method in METHODS for ours, other in pairs]
    lines = [sentence for sentence in found if sentence]
    for label in labels_of(rows):
        own = [row["measures"] for row in rows if row["label"] == label]
        means = {name: np.mean([measures[name] for measures in own]) for name in ("bwt", "forgetting_max")}
        lines.append(
            f"- {label}: BWT {means['bwt']:.1f}, forgetting (max) {means['forgetting_max']:.1f} points, {len(own)} seeds."
        )
    return "\n".join(lines)


def figures(rows: Sequence[Row], folder: Path) -> None:
    """Draw the mean accuracy over the tasks seen, task after task."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for method, style in zip(METHODS, ("-", "--"), strict=True):
        for number, head in enumerate(HEADS):
            label, colour = f"{method}, {head}", f"C{number}"
            scores = np.array([row["scores"] for row in rows if row["label"] == label])
            if not len(scores):
                continue
            x = np.arange(1, scores.shape[1] + 1)
            axis.plot(x, scores.mean(axis=0), style, color=colour, marker="o", label=label)
            low, high = scores.min(axis=0), scores.max(axis=0)
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set(xlabel="tasks learned", ylabel="mean accuracy of these, percent", xticks=range(1, 6))
    axis.legend(fontsize=8, handlelength=4)
    save(figure, folder / "curve.png", rows)


FIG8 = Experiment(
    "fig8",
    "Figure 8, small: Split CIFAR-10 on frozen features, mean accuracy after the last task",
    [_setting(method, name) for method in METHODS for name in HEADS],
    quick={"continual.passes": 1, "env_options.samples": 2_000},
    seeds=5,
    metric=ACCURACY,
    verdict=verdict,
    figures=figures,
    prepare=prepare,
)
