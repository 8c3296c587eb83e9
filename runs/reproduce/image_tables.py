"""Table 2: CIFAR-10 with an MLP (all layers recoded) and a LeNet (its last layer), by the kind of head.

The paper prints the best of five runs and neither learning rate nor epochs. Here: Adam at 1e-3 without schedule, batches of
128, 10 passes, no augmentation, every setting alike; J = 5 steps of H = 3 heads over 30 slots (Table 5). In a first
trial of 20 passes none of seven settings gained more than 0.6 points after the tenth.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurocoder.runs.config import flat
from neurocoder.runs.reproduce.experiment import ACCURACY, Experiment, Row, Setting
from neurocoder.runs.reproduce.pictures import bars
from neurocoder.runs.reproduce.verdicts import against

PASS = 50_000
PASSES = 10
ENV = "neurocoder/CIFAR10-v0"
MLP = [512, 256]
NEUROCODER: dict[str, Any] = {
    "slots": 30,
    "attention_steps": 5,
    "attention_heads": 3,
    "key_size": 5,
    "least_used": 5,
    "orthogonality": 0.1,
    "sharpness": 1.0,
}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "moe": ("moe", {"experts": 10}),
    "nsm": ("nsm", {"programs": 10}),
    "neurocoder": ("neurocoder", NEUROCODER),
    "neurocoder, sharpness 10": ("neurocoder", {**NEUROCODER, "sharpness": 10.0}),
    "neurocoder, uniform attention": ("neurocoder", {**NEUROCODER, "sharpness": 1e-6}),
    "neurocoder, a = 0": ("neurocoder", {**NEUROCODER, "orthogonality": 0.0}),
    "lowrank r15": ("lowrank", {"rank": 15}),
    "lowrank r1": ("lowrank", {"rank": 1}),
}
PRINTED_PARAMETERS = {
    ("MLP", "linear"): "1.7M",
    ("MLP", "moe"): "15.4M",
    ("MLP", "nsm"): "21.2M",
    ("MLP", "neurocoder"): "1.9M",
    ("LeNet", "linear"): "2.1M",
    ("LeNet", "moe"): "12.3M",
    ("LeNet", "nsm"): "27.1M",
    ("LeNet", "neurocoder"): "2.3M",
}
PUBLISHED = {
    ("MLP", "linear"): "52.06",
    ("MLP", "moe"): "50.76",
    ("MLP", "nsm"): "52.76",
    ("MLP", "neurocoder"): "54.86",
    ("LeNet", "linear"): "75.71",
    ("LeNet", "moe"): "75.88",
    ("LeNet", "nsm"): "75.45",
    ("LeNet", "neurocoder"): "78.92",
}


def _setting(network: str, name: str) -> Setting:
    head, options = HEADS[name]
    if network == "LeNet" and head == "lowrank":
        options = {"rank": min(10, options["rank"])}
    overrides: dict[str, Any] = {
        "steps": PASSES * PASS,
        "checkpoint_every": PASS,
        "evaluation.every": PASS,
        "keep_checkpoints": 1,
        "milestone_every": 0,
        "policy.head": head,
    }
    encoder: dict[str, Any] = {}
    if network == "MLP":
        encoder = {"hidden": MLP, "activation": "relu"}
        if head != "linear":
            encoder |= {"layers_head": head, "layers_head_config": options}
        if head == "lowrank":
            options = {"rank": min(10, options["rank"])}  # ten classes
    overrides |= flat(encoder, "policy.encoder_config.")
    overrides |= flat(options, "policy.head_config.")
    recipe = "images" if network == "MLP" else "images-lenet"
    published, parameters = (printed.get((network, name), "") for printed in (PUBLISHED, PRINTED_PARAMETERS))
    return Setting(f"{network}, {name}", ENV, recipe, overrides, published, parameters)


def verdict(rows: Sequence[Row], folder: Path) -> str:
    """Say whether composed programs beat each of the others, network by network."""
    parts = []
    for network in ("MLP", "LeNet"):
        for other in HEADS:
            if other != "neurocoder":
                parts.append(against(rows, f"{network}, neurocoder", f"{network}, {other}", ACCURACY))
    return "\n".join(f"- {part}" for part in parts if part)


def figures(rows: Sequence[Row], folder: Path) -> None:
    """Draw every setting's accuracies as dots on its bar."""
    bars(rows, folder / "accuracy.png", "test accuracy, percent")


TABLE2 = Experiment(
    "table2",
    "Table 2: CIFAR-10, test accuracy",
    [_setting(network, name) for network in ("MLP", "LeNet") for name in HEADS],
    quick={
        "steps": 2 * 5_000,
        "env_options.samples": 5_000,
        "checkpoint_every": 5_000,
        "evaluation.every": 5_000,
        "evaluation.env_options.samples": 1_000,
    },
    seeds=3,
    metric=ACCURACY,
    verdict=verdict,
    figures=figures,
)
