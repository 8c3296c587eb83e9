"""What can be reproduced, by name. Each is imported when it is asked for."""

import importlib

from neurocoder.errors import lookup
from neurocoder.runs.reproduce.experiment import Experiment

EXPERIMENTS: dict[str, tuple[str, str]] = {
    # name: module, its constant
    "table2": ("image_tables", "TABLE2"),
    "fig4": ("linear_mnist", "FIG4"),
    "fig5": ("polynomials", "FIG5"),
    "fig6": ("polynomials", "FIG6"),
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
