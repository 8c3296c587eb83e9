"""One training run from its first step, or from a checkpoint, to its end."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from neurocoder.agents.hogwild import SharedModel
from neurocoder.agents.rollout import NonFiniteLossError
from neurocoder.agents.supervisor import Standstill, WorkerError, train
from neurocoder.agents.worker import Notice, Record, Snapshot, TrainSpec
from neurocoder.envs import EpisodeRecorder, make_vec, random_observations
from neurocoder.errors import ConfigError
from neurocoder.policies import Policy, calibrate
from neurocoder.runs.checkpoint import (
    Checkpoint,
    CheckpointError,
    Retention,
    find_checkpoint,
    load_parameters,
    recover,
    save_checkpoint,
)
from neurocoder.runs.config import TrainConfig
from neurocoder.runs.evaluator import Evaluator, EvaluatorReport
from neurocoder.runs.run import Run
from neurocoder.runs.trackers import (
    ConsoleTracker,
    CsvTracker,
    RowMaker,
    TensorBoardTracker,
    Trackers,
)

IMAGE_DIMENSIONS = 3
"""Channels, height and width."""

LAST_EVALUATION = 600.0
"""Seconds that the end of a run waits for an evaluation that is going on."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    agent_steps: int
    mean_return: float | None
    seconds: float
    interrupted: bool
    checkpoint: Path


def check_device(device: str) -> None:
    """Raise a ConfigError unless torch can compute on `device` here."""
    try:
        kind = torch.device(device).type
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        count = torch.cuda.device_count()
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device={device!r} is not there ({reason}); this machine has cpu"
            f"{f' and {count} CUDA devices' if count else ' and no CUDA device'}"
        ) from None
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"device={device!r}: expected cpu, cuda or cuda:N")


def resolve_precision(precision: str, device: str) -> str:
    """Return fp32 or bf16. ``auto`` is bf16 where the processor's flags have it, never by a timing."""
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return "fp32"
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def environment_factory(config: TrainConfig, *, trust: bool = True) -> partial[EpisodeRecorder]:
    """Return a picklable ``make_envs(num_envs)`` for the run's environment and protocol."""
    return partial(
        make_vec, config.env, protocol=config.protocol, vectorization=config.vectorization, trust=trust
    )


def make_policy(config: TrainConfig, envs: EpisodeRecorder) -> Policy:
    """Return a fresh policy for the run, its weights drawn from the run's seed."""
    torch.manual_seed(config.seed)
    return Policy(envs.single_observation_space, envs.single_action_space, config.policy)


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
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


def prepare(
    config: TrainConfig, checkpoint: Checkpoint | None = None, *, trust: bool = True
) -> tuple[TrainConfig, Policy]:
    """Return the configuration with nothing left on ``auto``, and a fresh policy, or the checkpoint's.

    Everything that can be wrong with a configuration shows here, before anything is written.
    """
    check_device(config.device)
    config = replace(config, precision=resolve_precision(config.precision, config.device))
    make_envs = environment_factory(config, trust=trust)
    with_envs = make_envs(1)
    try:
        policy = make_policy(config, with_envs)
    finally:
        with_envs.close()
    if checkpoint is not None:
        load_parameters(policy, checkpoint.model, checkpoint.path)
    elif config.calibration_steps and len(policy.observation_space.shape) == IMAGE_DIMENSIONS:
        seen = random_observations(make_envs, config.calibration_steps, config.seed)
        calibrate(policy, torch.from_numpy(seen))
    return replace(config, policy=policy.config), policy


def pack_snapshots(snapshots: list[Snapshot]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the workers' snapshots as the tensors and the JSON values of a checkpoint."""
    tensors = {
        f"{snapshot.worker}/{name}": torch.from_numpy(array)
        for snapshot in snapshots
        for name, array in snapshot.arrays.items()
    }
    return tensors, {str(snapshot.worker): snapshot.data for snapshot in snapshots}


def unpack_snapshots(checkpoint: Checkpoint) -> dict[int, Snapshot]:
    """Return what :func:`pack_snapshots` stored; nothing for a checkpoint without it."""
    snapshots = {}
    for worker, data in checkpoint.state.get("workers", {}).items():
        prefix = f"{worker}/"
        arrays = {
            name.removeprefix(prefix): tensor.numpy()
            for name, tensor in checkpoint.workers.items()
            if name.startswith(prefix)
        }
        snapshots[int(worker)] = Snapshot(int(worker), arrays, data)
    return snapshots


def train_spec(
    config: TrainConfig,
    policy: Policy,
    make_envs: partial[EpisodeRecorder],
    resumed_at: int = 0,
    snapshots: dict[int, Snapshot] | None = None,
) -> TrainSpec:
    """Return what the supervisor is told for a run, from its first step or from where it is resumed."""
    return TrainSpec(
        make_envs=make_envs,
        observation_space=policy.observation_space,
        action_space=policy.action_space,
        policy=config.policy,
        a3c=config.a3c,
        total_steps=config.steps,
        seed=config.seed,
        device=config.device,
        precision=config.precision,
        checkpoint_every=config.checkpoint_every,
        max_restarts=config.max_restarts,
        worker_timeout=config.worker_timeout,
        resumed_at=resumed_at,
        snapshots=snapshots or {},
    )


class _Training:
    """A run in progress: what consumes the supervisor's events."""

    def __init__(
        self, config: TrainConfig, policy: Policy, run: Run, checkpoint: Checkpoint | None, trust: bool
    ) -> None:
        self.config, self.policy, self.run = config, policy, run
        self.model = SharedModel(policy, config.a3c)
        self.saved = checkpoint.path if checkpoint else None
        self.resumed_at = int(checkpoint.state["agent_steps"]) if checkpoint else 0
        snapshots: dict[int, Snapshot] = {}
        try:
            self.rows = RowMaker(config.log_every, self.resumed_at, checkpoint.state if checkpoint else None)
            if checkpoint is not None:
                assert checkpoint.optimizer is not None
                self.model.load_state(checkpoint.optimizer)
                snapshots = unpack_snapshots(checkpoint)
        except (TypeError, ValueError, AttributeError) as error:
            assert checkpoint is not None
            raise CheckpointError(f"{checkpoint.path / 'state.json'}: damaged: {error}") from None
        make_envs = environment_factory(config, trust=trust)
        self.spec = train_spec(config, policy, make_envs, self.resumed_at, snapshots)
        self.evaluator = Evaluator(run.path, config, make_envs)
        self.evaluated_at = self.resumed_at
        self.trackers = Trackers(
            CsvTracker(run.progress_file, self.resumed_at),
            TensorBoardTracker(run.path),
            ConsoleTracker(config.steps, self.resumed_at),
        )

    def run_until(self, stop: threading.Event) -> Outcome:
        """Train to the end, or until `stop` is set.

        Raises
        ------
        CheckpointError
            The end of the run could not be saved.
        """
        rows = self.rows
        saved = True
        if self.saved is None:
            self.save(0, [])  # the untrained network: what to compare with, and something to fall back on
        for event in train(self.spec, self.model, stop):
            match event:
                case Record():
                    if (row := rows.add(event)) is not None:
                        self.trackers.add(row)
                case Notice():
                    rows.restarts += event.restarts > 0
                    self.trackers.note(event.text)
                case Standstill():
                    saved = self.save(event.agent_steps, event.snapshots)
                    if saved and self.saved and self._evaluation_is_due(event.agent_steps):
                        self.evaluator.submit(self.saved)
            self._show(self.evaluator.poll())
        deadline = time.monotonic() + LAST_EVALUATION
        while self.evaluator.pending and not stop.is_set() and time.monotonic() < deadline:
            self._show(self.evaluator.poll(0.5))
        if not saved or self.saved is None:
            raise CheckpointError(f"{self.run.path}: the end of the run could not be saved (see above)")
        return Outcome(rows.agent_steps, rows.mean_return, rows.seconds, stop.is_set(), self.saved)

    def save(self, agent_steps: int, snapshots: list[Snapshot]) -> bool:
        """Write a checkpoint; return whether that worked. A full disk costs this one only."""
        self.model.copy_into(self.policy)
        workers, data = pack_snapshots(snapshots)
        try:
            self.saved = save_checkpoint(
                self.run.checkpoints,
                agent_steps,
                self.policy.state_dict(),
                self.model.state(),
                {**self.rows.state(), "workers": data, "protocol_hash": self.config.protocol_hash},
                Retention(self.config.keep_checkpoints, self.config.milestone_every),
                workers=workers,
                in_use=self.evaluator.pending,
            )
        except CheckpointError as error:
            kept = f"the last good one is {self.saved}" if self.saved else "there is none yet"
            self.trackers.note(f"{error}; training goes on, {kept}")
            return False
        return True

    def close(self) -> None:
        """End the evaluation that may be going on, and close all files."""
        self.evaluator.close()
        self.trackers.close()

    def _evaluation_is_due(self, agent_steps: int) -> bool:
        """Whether this is the first checkpoint at or after a multiple of ``evaluation.every``."""
        every = self.config.evaluation.every
        due = bool(every) and agent_steps // every > self.evaluated_at // every
        if due:
            self.evaluated_at = agent_steps
        return due

    def _show(self, report: EvaluatorReport) -> None:
        for score in report.scores:
            self.trackers.add_score(score)
        for note in report.notes:
            self.trackers.note(note)


def run_training(
    config: TrainConfig, policy: Policy, run: Run, checkpoint: Checkpoint | None = None, *, trust: bool = True
) -> Outcome:
    """Train `policy` until ``config.steps``, writing into `run` (whose lock the caller holds).

    Goes on from `checkpoint`, whose parameters `policy` has already, if there is one. An exception leaves
    the last checkpoint as it is.
    """
    recover(run.checkpoints)
    training = _Training(config, policy, run, checkpoint, trust)
    with _stop_on_signal() as stop:
        try:
            return training.run_until(stop)
        except (NonFiniteLossError, WorkerError) as error:
            kept = find_checkpoint(run.checkpoints)
            raise type(error)(f"{error}\nthe last good checkpoint is kept: {kept}") from None
        finally:
            training.close()
