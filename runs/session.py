"""A run in progress: what every learner's run has in common. Subclasses learn; this keeps and shows."""

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from neurocoder.policies import Policy
from neurocoder.runs.checkpoint import Checkpoint, CheckpointError, Retention, save_checkpoint
from neurocoder.runs.config import TrainConfig
from neurocoder.runs.run import Run, RunError
from neurocoder.runs.scoring import last_evaluated
from neurocoder.runs.trackers import ConsoleTracker, CsvTracker, RowMaker, TensorBoardTracker, Trackers


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    agent_steps: int
    mean_return: float | None
    seconds: float
    interrupted: bool
    checkpoint: Path


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set; a second one interrupts at once."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    in_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Session(ABC):
    """A run in progress, from its first step or from `checkpoint`, whose parameters `policy` has already.

    Raises
    ------
    CheckpointError
        The checkpoint is damaged.
    RunError
        There is no room for the run's rows.
    """

    def __init__(self, config: TrainConfig, policy: Policy, run: Run, checkpoint: Checkpoint | None) -> None:
        self.config, self.policy, self.run = config, policy, run
        self.saved = checkpoint.path if checkpoint else None
        self.resumed_at = int(checkpoint.state["agent_steps"]) if checkpoint else 0
        self.evaluated_at = last_evaluated(run.path, self.resumed_at)
        try:
            self.rows = RowMaker(config.log_every, self.resumed_at, checkpoint.state if checkpoint else None)
            self.restore(checkpoint)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            assert checkpoint is not None, error
            raise CheckpointError(f"{checkpoint.path / 'state.json'}: damaged: {error}") from None
        try:
            kept = CsvTracker(run.progress_file, self.resumed_at), TensorBoardTracker(run.path)
        except OSError as error:
            raise RunError(
                f"{run.path}: cannot be written: {error.strerror or error}; nothing is lost, make room and start again"
            ) from None
        self.trackers = Trackers(*kept, ConsoleTracker(config.steps, self.resumed_at))

    @abstractmethod
    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Make the learner: a fresh one, or one that goes on from `checkpoint`.

        Raises
        ------
        TypeError, ValueError, AttributeError, KeyError, IndexError
            The checkpoint is damaged.
        """

    @abstractmethod
    def run_until(self, stop: threading.Event) -> Outcome:
        """Train to the end, or until `stop` is set.

        Raises
        ------
        CheckpointError
            The end of the run could not be saved.
        """

    def write(
        self,
        agent_steps: int,
        optimizer: dict[str, Tensor],
        state: dict[str, Any],
        workers: dict[str, Tensor] | None = None,
        in_use: set[int] | None = None,
    ) -> bool:
        """Write a checkpoint of the policy; return whether that worked. A full disk costs this one only."""
        try:
            self.saved = save_checkpoint(
                self.run.checkpoints,
                agent_steps,
                self.policy.state_dict(),
                optimizer,
                {**self.rows.state(), **state, "protocol_hash": self.config.protocol_hash},
                Retention(self.config.keep_checkpoints, self.config.milestone_every),
                workers=workers,
                in_use=in_use or (),
            )
        except CheckpointError as error:
            kept = f"the last good one is {self.saved}" if self.saved else "there is none yet"
            self.trackers.note(f"{error}; training goes on, {kept}")
            return False
        return True

    def evaluation_is_due(self, agent_steps: int) -> bool:
        """Whether this is the first checkpoint at or after a multiple of ``evaluation.every``."""
        every = self.config.evaluation.every
        due = bool(every) and agent_steps // every > self.evaluated_at // every
        if due:
            self.evaluated_at = agent_steps
        return due

    def outcome(self, saved: bool, interrupted: bool) -> Outcome:
        """Return how the run ended, if its end was `saved`."""
        if not saved or self.saved is None:
            raise CheckpointError(f"{self.run.path}: the end of the run could not be saved (see above)")
        rows = self.rows
        return Outcome(rows.agent_steps, rows.mean_return, rows.seconds, interrupted, self.saved)

    def close(self) -> None:
        """Close all files."""
        self.trackers.close()
