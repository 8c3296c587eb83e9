"""What rows trained, opened again: for pictures, and for tests of another kind than the training's."""

from pathlib import Path
from typing import Any, NamedTuple

from neurocoder.policies import Policy
from neurocoder.runs.checkpoint import find_checkpoint, load_checkpoint
from neurocoder.runs.preparation import prepare
from neurocoder.runs.reproduce.experiment import Row
from neurocoder.runs.run import Run


class Trained(NamedTuple):
    """A policy in evaluation mode, and the environment that scored it."""

    policy: Policy
    env: str
    options: dict[str, Any]


def open_row(folder: Path, row: Row) -> Trained | None:
    """Return the policy that a row's run ended with; None where there is only the row, as in a committed table."""
    run = Run(folder / row["run"])
    if not run.checkpoints.is_dir():
        return None
    saved = load_checkpoint(find_checkpoint(run.checkpoints), with_optimizer=False)
    config, policy = prepare(run.config(), saved, trust=False)
    return Trained(policy.eval(), config.env, config.evaluation_options)
