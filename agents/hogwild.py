"""Workers that share one network without locks (Recht et al. 2011, "Hogwild!"; Mnih et al. 2016, section 4).

All parameters of the network lie in one vector in shared memory, and so do the optimiser's statistics. A
worker copies the vector into its own network (one memcpy), computes a gradient, which autograd accumulates
into views of the worker's own gradient vector, and steps the optimiser on the shared vector with it. Nothing
depends on ``param.grad`` of a shared module: zeroing or replacing those is what silently broke the classic
A3C implementations on torch ≥ 2.
"""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurocoder.agents.a3c import A3CConfig
from neurocoder.agents.rollout import NonFiniteLossError
from neurocoder.errors import NeurocoderError
from neurocoder.policies import Policy

ALIGNMENT = 16
"""Parameters start at multiples of this many floats (64 bytes) in the vector: one cache line, one AVX-512 load."""


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
    """What all workers read and write: parameters and optimiser statistics."""

    def __init__(self, policy: nn.Module, config: A3CConfig) -> None:
        self.values = FlatParameters(policy).values.clone().share_memory_()
        names = ("exp_avg", "exp_avg_sq") if config.optimizer == "adam" else ("square_avg",)
        self.statistics = {name: torch.zeros_like(self.values).share_memory_() for name in names}
        self.updates = torch.zeros((), dtype=torch.float32).share_memory_()  # the optimiser's own `step`
        rows = config.workers if config.sync else 0
        self.gradients = torch.zeros(rows, self.values.numel()).share_memory_()
        """One gradient per worker, where they share one update (A2C)."""

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
        self.module = module
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
        step(self._optimizer, self._flat.gradient, learning_rate)
        return norm

    def deliver(self, gradient: Tensor) -> None:
        """Copy the module's gradient into `gradient`, for an update that all workers share."""
        gradient.copy_(self._flat.gradient)


def step(optimizer: torch.optim.Optimizer, gradient: Tensor, learning_rate: float) -> None:
    """Let an optimiser of :meth:`SharedModel.optimizer` take one step along `gradient`."""
    (group,) = optimizer.param_groups
    group["lr"] = learning_rate
    (target,) = group["params"]
    target.grad = gradient.to(target.device)
    optimizer.step()


class SharedUpdate:
    """The one update that all workers of A2C share: the mean of their gradients."""

    def __init__(self, shared: SharedModel, config: A3CConfig) -> None:
        self._shared = shared
        self._mean = torch.empty_like(shared.values)  # fresh memory would cost more than the sum
        self._max_grad_norm = config.max_grad_norm
        self._optimizer = shared.optimizer(config)

    def apply(self, learning_rate: float, workers: Sequence[int]) -> float:
        """Apply the mean of the gradients that `workers` delivered, clipped; return the norm it had.

        Raises
        ------
        NonFiniteLossError
            It is not finite; it was not applied.
        """
        gradients, mean = self._shared.gradients, self._mean
        mean.copy_(gradients[workers[0]])
        for worker in workers[1:]:
            mean.add_(gradients[worker])
        mean.div_(len(workers))
        norm = clip_gradient_(mean, self._max_grad_norm)
        if not math.isfinite(norm):
            raise NonFiniteLossError(f"gradient norm {norm}; the update was not applied")
        step(self._optimizer, mean, learning_rate)
        return norm


class Board:
    """What workers and supervisor tell each other, in shared memory and without locks.

    A process that is killed while it holds a lock stops all others; here every number has one writer, so
    nobody ever waits.
    """

    def __init__(self, workers: int, agent_steps: int = 0, checkpoint_at: int = 0) -> None:
        self._before = agent_steps
        self.steps = torch.zeros(workers, dtype=torch.int64).share_memory_()  # in updates that were applied
        self.updates = torch.zeros(workers, dtype=torch.int64).share_memory_()
        self.beats = torch.zeros(workers, dtype=torch.float64).share_memory_()  # monotonic seconds
        self.pushing = torch.zeros(workers, dtype=torch.int64).share_memory_()
        self._orders = torch.tensor([0, 0, checkpoint_at]).share_memory_()

    @property
    def agent_steps(self) -> int:
        """The run's agent steps so far."""
        return self._before + int(self.steps.sum())

    def beat(self, worker: int) -> None:
        """Give a sign of life."""
        self.beats[worker] = time.monotonic()

    @property
    def stopping(self) -> bool:
        """Whether workers are to end after the update in progress."""
        return bool(self._orders[0])

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._orders[0] = value

    @property
    def pausing(self) -> bool:
        """Whether workers are to wait after the update in progress, so that the model can be saved."""
        return bool(self._orders[1])

    @pausing.setter
    def pausing(self, value: bool) -> None:
        self._orders[1] = value

    @property
    def checkpoint_at(self) -> int:
        """The agent steps at which whoever reaches them asks all for a pause; 0: never."""
        return int(self._orders[2])

    @checkpoint_at.setter
    def checkpoint_at(self, value: int) -> None:
        self._orders[2] = value

    def pause_if_due(self) -> None:
        """Ask all for a pause if the agent steps of the next checkpoint are reached."""
        if 0 < self.checkpoint_at <= self.agent_steps:
            self.pausing = True
