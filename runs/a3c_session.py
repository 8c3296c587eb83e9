"""A run of A3C: what consumes the supervisor's events."""

import threading
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neurocoder.agents.hogwild import SharedModel
from neurocoder.agents.supervisor import Standstill
from neurocoder.agents.supervisor import train as supervise
from neurocoder.agents.worker import Notice, Record, Snapshot, TrainSpec
from neurocoder.envs import EpisodeRecorder
from neurocoder.policies import Policy
from neurocoder.runs.checkpoint import Checkpoint
from neurocoder.runs.config import TrainConfig
from neurocoder.runs.evaluator import Evaluator, EvaluatorReport
from neurocoder.runs.preparation import environment_factory
from neurocoder.runs.run import Run
from neurocoder.runs.session import Outcome, Session

LAST_EVALUATION = 600.0
"""Seconds that the end of a run waits for an evaluation that is going on."""


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


class A3CSession(Session):
    """A run whose policy is shared by worker processes, and scored by a process of its own."""

    def __init__(
        self, config: TrainConfig, policy: Policy, run: Run, checkpoint: Checkpoint | None, trust: bool
    ) -> None:
        self.model = SharedModel(policy, config.a3c)
        self._make_envs = environment_factory(config, trust=trust)
        super().__init__(config, policy, run, checkpoint)
        self.evaluator = Evaluator(
            run.path, config, environment_factory(config, trust=trust, evaluation=True)
        )

    def restore(self, checkpoint: Checkpoint | None) -> None:
        snapshots: dict[int, Snapshot] = {}
        if checkpoint is not None:
            assert checkpoint.optimizer is not None
            self.model.load_state(checkpoint.optimizer)
            snapshots = unpack_snapshots(checkpoint)
        self.spec = train_spec(self.config, self.policy, self._make_envs, self.resumed_at, snapshots)

    def run_until(self, stop: threading.Event) -> Outcome:
        if self.saved is None:
            self.save(0, [])  # the untrained network: what to compare with, and something to fall back on
        elif self.evaluation_is_due(self.resumed_at):  # the session before ended before its score came
            self.evaluator.submit(self.saved)
        saved = self.train(stop)
        deadline = time.monotonic() + LAST_EVALUATION
        while self.evaluator.pending and not stop.is_set() and time.monotonic() < deadline:
            self._show(self.evaluator.poll(0.5))
        return self.outcome(saved, stop.is_set())

    def train(self, stop: threading.Event) -> bool:
        """Let the workers play and learn as ``spec`` says; return whether the last checkpoint could be saved."""
        rows, saved = self.rows, True
        for event in supervise(self.spec, self.model, stop):
            match event:
                case Record():
                    if (row := rows.add(event)) is not None:
                        self.trackers.add(row)
                case Notice():
                    rows.restarts += event.restarts > 0
                    self.trackers.note(event.text)
                case Standstill():
                    saved = self.save(event.agent_steps, event.snapshots)
                    if saved and self.saved and self.evaluation_is_due(event.agent_steps):
                        self.evaluator.submit(self.saved)
            self._show(self.evaluator.poll())
        return saved

    def save(self, agent_steps: int, snapshots: list[Snapshot]) -> bool:
        """Write a checkpoint of the shared model; return whether that worked."""
        self.model.copy_into(self.policy)
        workers, data = pack_snapshots(snapshots)
        tensors, more = self.learner_state()
        return self.write(
            agent_steps,
            self.model.state(),
            {"workers": data, **more},
            {**workers, **tensors},
            in_use=self.evaluator.pending,
        )

    def learner_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint holds beside model, optimiser and workers: tensors, and JSON values."""
        return {}, {}

    def close(self) -> None:
        """End the evaluation that may be going on, and close all files."""
        self.evaluator.close()
        super().close()

    def _show(self, report: EvaluatorReport) -> None:
        for score in report.scores:
            self.trackers.add_score(score)
        for note in report.notes:
            self.trackers.note(note)
