"""One training run from its first step, or from a checkpoint, to its end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

import gymnasium as gym
import torch

from neurocoder.agents.a3c import NonFiniteLossError
from neurocoder.agents.hogwild import SharedModel, TrainSpec, WorkerError, train
from neurocoder.envs import make_vec
from neurocoder.errors import ConfigError
from neurocoder.policies import Policy
from neurocoder.runs.checkpoint import (
    Checkpoint,
    CheckpointError,
    find_checkpoint,
    load_parameters,
    recover,
    save_checkpoint,
)
from neurocoder.runs.config import TrainConfig
from neurocoder.runs.run import Run
from neurocoder.runs.trackers import (
    ConsoleTracker,
    CsvTracker,
    RowMaker,
    TensorBoardTracker,
    Tracker,
    close_all,
)


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


def environment_factory(config: TrainConfig, *, trust: bool = True) -> partial[gym.vector.VectorEnv]:
    """Return a picklable ``make_envs(num_envs)`` for the run's environment and protocol."""
    return partial(make_vec, config.env, protocol=config.protocol, trust=trust)


def make_policy(config: TrainConfig, envs: gym.vector.VectorEnv) -> Policy:
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
    with_envs = environment_factory(config, trust=trust)(1)
    try:
        policy = make_policy(config, with_envs)
    finally:
        with_envs.close()
    if checkpoint is not None:
        load_parameters(policy, checkpoint.model, checkpoint.path)
    return replace(config, policy=policy.config), policy


def run_training(
    config: TrainConfig, policy: Policy, run: Run, checkpoint: Checkpoint | None = None, *, trust: bool = True
) -> Outcome:
    """Train `policy` until ``config.steps``, writing into `run` (whose lock the caller holds).

    Goes on from `checkpoint`, whose parameters `policy` has already, if there is one. An exception leaves
    the last checkpoint as it is.
    """
    recover(run.checkpoints)
    model = SharedModel(policy, config.a3c)
    resumed_at = 0
    if checkpoint is not None:
        assert checkpoint.optimizer is not None
        model.load_state(checkpoint.optimizer)
        resumed_at = int(checkpoint.state["agent_steps"])
        model.agent_steps.fill_(resumed_at)
    make_envs = environment_factory(config, trust=trust)
    spec = TrainSpec(
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
        resumed_at=resumed_at,
    )
    try:
        rows = RowMaker(config.log_every, resumed_at, checkpoint.state if checkpoint else None)
    except (TypeError, ValueError) as error:
        assert checkpoint is not None
        raise CheckpointError(f"{checkpoint.path / 'state.json'}: damaged: {error}") from None

    def save() -> Path:
        model.copy_into(policy)
        return save_checkpoint(
            run.checkpoints,
            rows.agent_steps,
            policy.state_dict(),
            model.state(),
            {**rows.state(), "protocol_hash": config.protocol.hash if config.protocol else None},
            config.keep_checkpoints,
        )

    trackers: list[Tracker] = [
        CsvTracker(run.progress_file, resumed_at),
        TensorBoardTracker(run.path),
        ConsoleTracker(config.steps, resumed_at),
    ]
    with _stop_on_signal() as stop:
        try:
            if checkpoint is None:
                save()  # the untrained network: what to compare with, and something to fall back on
            for record in train(spec, model, stop):
                row = rows.add(record)
                if row is not None:
                    for tracker in trackers:
                        tracker.add(row)
                if record.checkpoint:
                    save()
        except (NonFiniteLossError, WorkerError) as error:
            kept = find_checkpoint(run.checkpoints)
            raise type(error)(f"{error}\nthe last good checkpoint is kept: {kept}") from None
        finally:
            close_all(trackers)
        path = save()
        return Outcome(rows.agent_steps, rows.mean_return, rows.seconds, stop.is_set(), path)
