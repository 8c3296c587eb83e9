"""Workers that share one network without locks (Recht et al. 2011, "Hogwild!"; Mnih et al. 2016, section 4).

All parameters of the network lie in one vector in shared memory, and so do the optimiser's statistics. A
worker copies the vector into its own network (one memcpy), computes a gradient, which autograd accumulates
into views of the worker's own gradient vector, and steps the optimiser on the shared vector with it. Nothing
depends on ``param.grad`` of a shared module: zeroing or replacing those is what silently broke the classic
A3C implementations on torch ≥ 2.
"""

import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from neurocoder.agents.a3c import (
    A3CConfig,
    Episode,
    NonFiniteLossError,
    learning_rate,
    loss_and_metrics,
    rollouts,
)
from neurocoder.errors import NeurocoderError
from neurocoder.policies import Policy, PolicyConfig

ALIGNMENT = 16
"""Parameters start at multiples of this many floats (64 bytes) in the vector: one cache line, one AVX-512 load."""


class WorkerError(NeurocoderError):
    """Raised when a worker died or failed; names it, its exit code and what it said."""

    exit_code = 1


def layout(module: nn.Module) -> tuple[list[slice], int]:
    """Return where each parameter of `module` lies in its vector, and the vector's length."""
    parts, end = [], 0
    for parameter in module.parameters():
        parts.append(slice(end, end + parameter.numel()))
        end += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
    return parts, end


class FlatParameters:
    """A module's parameters and gradients as views of two vectors, in the order of ``parameters()``.

    ``values`` and ``gradient`` are float32 [n], on the module's device. Gradients accumulate in place into
    ``gradient``; :meth:`zero_grad` zeroes it and keeps the views.
    """

    def __init__(self, module: nn.Module) -> None:
        if any(p.dtype != torch.float32 for p in module.parameters()):
            raise TypeError("parameters must be float32")
        if any(True for _ in module.buffers()):
            raise TypeError("modules with buffers are not shared: a worker would keep its own")
        parts, size = layout(module)
        self.values = torch.zeros(size, device=next(module.parameters()).device)
        self.gradient = torch.zeros_like(self.values)
        for parameter, part in zip(module.parameters(), parts, strict=True):
            self.values[part] = parameter.detach().flatten()
            parameter.data = self.values[part].view_as(parameter)
            parameter.grad = self.gradient[part].view_as(parameter)

    def zero_grad(self) -> None:
        """Zero all gradients, in place."""
        self.gradient.zero_()


def clip_gradient_(gradient: Tensor, max_norm: float) -> float:
    """Scale `gradient` in place to at most `max_norm` (0: leave it); return the norm it had."""
    norm = float(gradient.norm())
    if max_norm and norm > max_norm:
        gradient.mul_(max_norm / norm)
    return norm


class SharedModel:
    """What all workers read and write: parameters, optimiser statistics, the count of agent steps."""

    def __init__(self, policy: nn.Module, config: A3CConfig) -> None:
        self.values = FlatParameters(policy).values.clone().share_memory_()
        names = ("exp_avg", "exp_avg_sq") if config.optimizer == "adam" else ("square_avg",)
        self.statistics = {name: torch.zeros_like(self.values).share_memory_() for name in names}
        self.updates = torch.zeros((), dtype=torch.float32).share_memory_()  # the optimiser's own `step`
        self.agent_steps = torch.zeros((), dtype=torch.int64).share_memory_()

    def optimizer(self, config: A3CConfig) -> torch.optim.Optimizer:
        """Return an optimiser on the shared vector whose statistics are the shared ones."""
        target = nn.Parameter(self.values, requires_grad=True)
        optimizer: torch.optim.Optimizer
        if config.optimizer == "adam":
            optimizer = torch.optim.Adam([target], config.learning_rate, eps=config.optimizer_eps, fused=True)
        else:
            optimizer = torch.optim.RMSprop(
                [target], config.learning_rate, alpha=config.rmsprop_decay, eps=config.optimizer_eps
            )
        optimizer.state[target] = {"step": self.updates, **self.statistics}
        return optimizer

    def state(self) -> dict[str, Tensor]:
        """Return copies of the optimiser's tensors, for a checkpoint."""
        return {"updates": self.updates.clone(), **{k: v.clone() for k, v in self.statistics.items()}}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` returned; names and shapes must agree."""
        own = {"updates": self.updates, **self.statistics}
        if own.keys() != tensors.keys() or any(own[k].shape != tensors[k].shape for k in own):
            raise NeurocoderError(
                f"optimiser state does not fit: expected {sorted(own)}, got {sorted(tensors)}, or other sizes"
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def copy_into(self, policy: Policy) -> None:
        """Copy the shared parameters into `policy`, whatever memory its own live in."""
        with torch.no_grad():
            for parameter, part in zip(policy.parameters(), layout(policy)[0], strict=True):
                parameter.copy_(self.values[part].view_as(parameter))


class LocalCopy:
    """A worker's own copy of the network, and its way to the shared one: pull, backward, push.

    `module` may live on any device; the shared model is on the processor.
    """

    def __init__(self, module: nn.Module, shared: SharedModel, config: A3CConfig) -> None:
        self._flat = FlatParameters(module)
        self._shared = shared
        self._max_grad_norm = config.max_grad_norm
        self._optimizer = shared.optimizer(config)

    def pull(self) -> None:
        """Copy the shared parameters into the module, and zero its gradients."""
        self._flat.values.copy_(self._shared.values)
        self._flat.zero_grad()

    def push(self, learning_rate: float) -> float:
        """Apply the module's gradient, clipped, to the shared parameters; return the norm it had.

        Raises
        ------
        NonFiniteLossError
            The gradient is not finite; it was not applied.
        """
        norm = clip_gradient_(self._flat.gradient, self._max_grad_norm)
        if not math.isfinite(norm):
            raise NonFiniteLossError(f"gradient norm {norm}; the update was not applied")
        (group,) = self._optimizer.param_groups
        group["lr"] = learning_rate
        (target,) = group["params"]
        target.grad = self._flat.gradient.to(target.device)
        self._optimizer.step()
        return norm


# ------------------------------------------------------------------------------------------ worker


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """What a worker needs to know. `make_envs(num_envs)` must be picklable."""

    make_envs: Callable[[int], gym.vector.VectorEnv]
    observation_space: gym.Space
    action_space: gym.Space
    policy: PolicyConfig
    a3c: A3CConfig
    total_steps: int
    seed: int
    device: str = "cpu"
    precision: str = "fp32"
    checkpoint_every: int = 0
    resumed_at: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One update of one worker. `agent_steps` is the run's count after it."""

    worker: int
    agent_steps: int
    metrics: dict[str, float]
    episodes: list[Episode]
    checkpoint: bool = False
    """The worker waits, until the next record is asked for: the shared model holds still (one worker) and
    can be saved."""


@dataclass(frozen=True, slots=True)
class _Failure:
    kind: str
    text: str


@dataclass(slots=True)
class _Control:
    """What parent and workers share besides the model."""

    model: SharedModel
    step_lock: Any
    stop: Any
    parent: int = field(default_factory=os.getpid)

    def claim(self, n_steps: int, total: int) -> int:
        """Reserve `n_steps` agent steps; return the count after them, or 0 when the run is over."""
        with self.step_lock:
            if self.stop.is_set() or int(self.model.agent_steps) >= total or os.getppid() != self.parent:
                return 0
            self.model.agent_steps += n_steps
            return int(self.model.agent_steps)


def worker_seeds(seed: int, worker: int, n_envs: int, resumed_at: int = 0) -> tuple[int, list[int]]:
    """Return a worker's seed for actions and one seed per game, from one tree over the whole run."""
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(worker, resumed_at))
    words = sequence.generate_state(n_envs + 1, np.uint32) >> 1  # the emulator takes 31 bits
    return int(words[0]), [int(word) for word in words[1:]]


def _work(index: int, spec: TrainSpec, control: _Control, connection: Connection) -> None:
    """Body of a worker process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they may reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        for record in _updates(index, spec, control):
            connection.send(record)
            if record.checkpoint:
                connection.recv()  # until the parent has saved
        connection.send(None)
    except (BrokenPipeError, EOFError, ConnectionResetError):
        pass  # the parent is gone
    except NonFiniteLossError as error:
        where = f"worker {index} at {int(control.model.agent_steps):,} agent steps"
        connection.send(_Failure("nan", f"{where}: {error}"))
    except Exception:  # whatever it is, the parent reports it
        connection.send(_Failure("error", traceback.format_exc()))


def _updates(index: int, spec: TrainSpec, control: _Control) -> Iterator[Record]:
    """Play and learn until the run's steps are used up; one record per update."""
    config, model = spec.a3c, control.model
    action_seed, env_seeds = worker_seeds(spec.seed, index, config.envs_per_worker, spec.resumed_at)
    torch.manual_seed(action_seed)
    device = torch.device(spec.device)
    generator = torch.Generator(device).manual_seed(action_seed)
    policy = Policy(spec.observation_space, spec.action_space, spec.policy).to(device)
    local = LocalCopy(policy, model, config)
    envs = spec.make_envs(config.envs_per_worker)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16")
    stream = rollouts(policy, envs, config, env_seeds, generator)
    try:
        while agent_steps := control.claim(config.steps_per_rollout, spec.total_steps):
            local.pull()
            with bf16:
                rollout = next(stream)
                loss, metrics = loss_and_metrics(policy, rollout, config)
            loss.backward()
            rate = learning_rate(config, agent_steps, spec.total_steps)
            norm = local.push(rate)
            every = spec.checkpoint_every
            crossed = every and agent_steps // every > (agent_steps - config.steps_per_rollout) // every
            yield Record(
                worker=index,
                agent_steps=agent_steps,
                metrics={**metrics, "grad_norm": norm, "learning_rate": rate},
                episodes=rollout.episodes,
                checkpoint=bool(crossed),
            )
    finally:
        envs.close()


# ------------------------------------------------------------------------------------------ parent


def train(spec: TrainSpec, model: SharedModel, stop: threading.Event) -> Iterator[Record]:
    """Run all workers until `spec.total_steps`, yielding their records as they come.

    Setting `stop` ends the run after the updates in progress. The model may be saved whenever a record with
    ``checkpoint`` is in the consumer's hands, and after the iteration has ended. Leaving the generator early
    (an exception, ``close()``) ends all processes.

    Raises
    ------
    NonFiniteLossError
        A worker met a NaN; the shared model is as it was before.
    WorkerError
        A worker failed or died; the message names it and its exit code.
    """
    context = mp.get_context("spawn")
    stop_workers = context.Event()
    control = _Control(model, context.Lock(), stop_workers)
    processes: list[BaseProcess] = []
    connections: dict[Connection, int] = {}
    try:
        for index in range(spec.a3c.workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(index, spec, control, theirs), name=f"worker-{index}", daemon=True
            )
            process.start()
            theirs.close()  # ours now ends with EOF when the worker dies
            processes.append(process)
            connections[ours] = index
        while connections:
            if stop.is_set():
                stop_workers.set()
            for connection in wait(list(connections), timeout=0.2):
                assert isinstance(connection, Connection)
                index = connections[connection]
                try:
                    message = connection.recv()
                except (EOFError, ConnectionResetError):
                    processes[index].join(5)
                    code = processes[index].exitcode
                    raise WorkerError(
                        f"worker {index} died (exit code {code}) at {int(model.agent_steps):,} agent steps"
                    ) from None
                if message is None:
                    del connections[connection]
                elif isinstance(message, _Failure):
                    if message.kind == "nan":
                        raise NonFiniteLossError(message.text)
                    raise WorkerError(f"worker {index} failed:\n{message.text}")
                else:
                    yield message
                    if message.checkpoint:
                        connection.send(True)
    finally:
        stop_workers.set()
        for connection in connections:
            connection.close()  # whoever waits for an answer gets none
        _end(processes)


def _end(processes: list[BaseProcess], patience: float = 10.0) -> None:
    """Wait for processes that were told to stop; end those that do not."""
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
