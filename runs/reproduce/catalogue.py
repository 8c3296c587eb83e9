"""What can be reproduced, by name. Each is imported when it is asked for."""

import importlib

from neurocoder.errors import lookup
from neurocoder.runs.reproduce.experiment import Experiment

EXPERIMENTS: dict[str, tuple[str, str]] = {
    # name: module, its constant
    "table2": ("image_tables", "TABLE2"),
    "table3": ("continual_tables", "TABLE3"),
    "table4": ("continual_tables", "TABLE4"),
    "fig4": ("linear_mnist", "FIG4"),
    "fig5": ("polynomials", "FIG5"),
    "fig6": ("polynomials", "FIG6"),
    "fig8": ("continual_cifar", "FIG8"),
    "ntm-copy": ("sequence_tables", "NTM_COPY"),
    "ntm-repeat-copy": ("sequence_tables", "NTM_REPEAT_COPY"),
    "ntm-recall": ("sequence_tables", "NTM_RECALL"),
    "ntm-ngrams": ("sequence_tables", "NTM_NGRAMS"),
    "ntm-sort": ("sequence_tables", "NTM_SORT"),
}
COUNTS = ("table6",)
"""What is counted, and not trained."""


def is_count(name: str) -> bool:
    """Whether `name` is a table of counts.

    Raises
    ------
    ConfigError
        There is nothing of that name.
    """
    lookup({**EXPERIMENTS, **dict.fromkeys(COUNTS)}, name, "table or figure")
    return name in COUNTS


def experiment(name: str) -> Experiment:
    """Return the experiment of that name."""
    module, constant = lookup(EXPERIMENTS, name, "table or figure")
    return getattr(importlib.import_module(f"neurocoder.runs.reproduce.{module}"), constant)
