"""The ids of this package's environments. Nothing of it is imported before one is made."""

from typing import Any

from gymnasium import register

NAMESPACE = "neurocoder"
GAME_SEQUENCE = "ContinualAtari"
"""Atari games one after the other."""

TASKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: module, prefix of its two factories (…_env, …_vector_env), their arguments
    "Digits": ("supervised", "classification", {"dataset": "digits"}),
    "MNIST": ("supervised", "classification", {"dataset": "mnist"}),
    "CIFAR10": ("supervised", "classification", {"dataset": "cifar10"}),
    "CIFAR100": ("supervised", "classification", {"dataset": "cifar100"}),
    "SplitDigits": ("continual", "continual", {"dataset": "digits"}),
    "SplitMNIST": ("continual", "continual", {"dataset": "mnist", "pad": 2}),
    "PermutedMNIST": ("continual", "continual", {"dataset": "mnist", "pad": 2, "permuted": True}),
    "SplitCIFAR10": ("continual", "continual", {"dataset": "cifar10"}),
    "SplitCIFAR100": ("continual", "continual", {"dataset": "cifar100", "classes_per_task": 5}),
    "Polynomial": ("polynomial", "polynomial", {}),
    "Copy": ("algorithmic", "sequence", {"kind": "copy"}),
    "RepeatCopy": ("algorithmic", "sequence", {"kind": "repeat-copy"}),
    "AssociativeRecall": ("algorithmic", "sequence", {"kind": "associative-recall"}),
    "DynamicNGrams": ("algorithmic", "sequence", {"kind": "dynamic-n-grams"}),
    "PrioritySort": ("algorithmic", "sequence", {"kind": "priority-sort"}),
}


def register_tasks() -> None:
    """Register ``neurocoder/<name>-v0`` for every task, with its native vector form."""
    for name, (module, prefix, arguments) in TASKS.items():
        register(
            f"{NAMESPACE}/{name}-v0",
            f"neurocoder.envs.{module}:{prefix}_env",
            vector_entry_point=f"neurocoder.envs.{module}:{prefix}_vector_env",
            kwargs=arguments,
        )
    register(
        f"{NAMESPACE}/{GAME_SEQUENCE}-v0",
        "neurocoder.envs.continual_atari:continual_atari_env",
        vector_entry_point="neurocoder.envs.continual_atari:continual_atari_vector_env",
    )
