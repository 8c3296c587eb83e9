"""Learning by gradient from ``info["target"]``: classes, numbers or bits, of single inputs or of whole sequences.

The environment is a batch (``envs.tasks``, or any vector environment whose info has a target). What it shows does not
depend on what is predicted, so the learner steps it with empty actions, gathers one batch of a stream or whole
episodes, and learns from them at once, through all of their time::

    neurocoder train neurocoder/MNIST-v0 --head linear

================ ===================================================== =========================
action space     loss of one scored step                               printed
================ ===================================================== =========================
Discrete         cross-entropy, nats                                   accuracy, percent
MultiBinary      binary cross-entropy, nats, summed over the bits      wrong bits per episode
Box              mean squared error                                    mean squared error
================ ===================================================== =========================

A batch's loss is the mean over its scored steps, plus the auxiliary loss of the policy's heads, once.
Shape suffixes: T time, B batch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import create_empty_array
from torch import Tensor
from torch.nn import functional as F

from neurocoder.agents.rollout import NonFiniteLossError
from neurocoder.envs import EPISODE, Curriculum, Place, TaskVectorEnv
from neurocoder.errors import ConfigError, require
from neurocoder.policies import Policy
from neurocoder.policies.ntm import NTMCore

OPTIMIZERS = ("adam", "sgd", "rmsprop", "adagrad")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True, slots=True)
class CurriculumConfig:
    """Options of the task that grow together while it is learned, over `updates` updates."""

    start: dict[str, int] = field(default_factory=dict)
    """E.g. {"max_length": 1}; empty: there is no curriculum."""
    end: dict[str, int] = field(default_factory=dict)
    """The same options' values from then on."""
    updates: int = 0

    def __post_init__(self) -> None:
        require(self.updates >= 0, "supervised.curriculum.updates", self.updates, ">= 0")
        require(
            self.start.keys() == self.end.keys(),
            "supervised.curriculum.end",
            self.end,
            f"a value for each of start={self.start}",
        )


@dataclass(frozen=True, slots=True)
class SupervisedConfig:
    """Hyper-parameters of supervised learning."""

    batch_size: int = 128
    """Environments of the batch: images, or sequences."""
    optimizer: str = "adam"
    """adam, sgd, rmsprop or adagrad."""
    learning_rate: float = 1e-3
    lr_schedule: str = "constant"
    """constant, linear (down to zero at the last step) or cosine."""
    momentum: float = 0.0
    """Of sgd and rmsprop."""
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    """Gradients longer than this are scaled down to it; 0 switches that off."""
    max_grad_value: float = 0.0
    """Every number of the gradient is cut to ± this, as in Graves et al. 2014; 0 switches that off."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    memory_rows: list[int] = field(default_factory=list)
    """Numbers of rows that an NTM's memory has in turns, batch by batch, e.g. [24, 128]; empty: what the core says."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "supervised.batch_size", self.batch_size, ">= 1")
        for name, known in (("optimizer", OPTIMIZERS), ("lr_schedule", SCHEDULES)):
            require(
                getattr(self, name) in known, f"supervised.{name}", getattr(self, name), f"one of {known}"
            )
        value = self.learning_rate
        require(math.isfinite(value) and value > 0, "supervised.learning_rate", value, "finite and > 0")
        for name in ("weight_decay", "max_grad_norm", "max_grad_value"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"supervised.{name}", value, "finite and >= 0")
        require(0 <= self.momentum < 1, "supervised.momentum", self.momentum, "in [0, 1)")


class Batch(NamedTuple):
    """What is learned from at once. mask is None where every step is scored.

    observation [T, B, ...], target [T, B, ...], mask [T, B] bool, episode_start [T, B] bool.
    """

    observation: Tensor
    target: Tensor
    mask: Tensor | None
    episode_start: Tensor

    @property
    def steps(self) -> int:
        """Agent steps: T · B."""
        return self.episode_start.numel()

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        return Batch(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ equations


def step_losses(space: gym.Space, logits: Tensor, target: Tensor) -> Tensor:
    """Return the losses [...] of head outputs `logits` [..., A] for targets of `space`, as the module's table has them.

    Raises
    ------
    ConfigError
        Targets of that kind of space cannot be learned from.
    """
    match space:
        case gym.spaces.Discrete():
            losses = F.cross_entropy(
                logits.flatten(0, -2), target.flatten() - int(space.start), reduction="none"
            )
            return losses.view(target.shape)
        case gym.spaces.MultiBinary():
            bits = target.flatten(logits.ndim - 1).to(logits.dtype)
            return F.binary_cross_entropy_with_logits(logits, bits, reduction="none").sum(-1)
        case gym.spaces.Box():
            return (logits - target.flatten(logits.ndim - 1)).square().mean(-1)
    raise ConfigError(
        f"action space {space}: supervised learning knows targets of Discrete, MultiBinary and Box"
    )


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of `values` where `mask` is set; 0 if that is nowhere."""
    if mask is None:
        return values.mean()
    return torch.where(mask, values, values.new_zeros(())).sum() / mask.sum().clamp(min=1)


@torch.no_grad()
def step_rewards(space: gym.Space, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Return the rewards [...] that the environment pays for the most probable prediction (``envs.tasks.score``)."""
    match space:
        case gym.spaces.Discrete():
            reward = (logits.argmax(-1) + int(space.start) == target).float()
        case gym.spaces.MultiBinary():
            reward = -((logits > 0) != target.flatten(logits.ndim - 1).bool()).float().sum(-1)
        case _:
            reward = -(logits - target.flatten(logits.ndim - 1)).square().mean(-1)
    return reward if mask is None else torch.where(mask, reward, reward.new_zeros(()))


def learning_rate(config: SupervisedConfig, done: float) -> float:
    """Return the learning rate after the fraction `done` of the run."""
    left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}
    return config.learning_rate * max(0.0, left[config.lr_schedule])


# -------------------------------------------------------------------------------------------- the data


def batches(envs: TaskVectorEnv, observation: np.ndarray, info: dict[str, Any]) -> Iterator[Batch]:
    """Yield what `envs` show, from `observation` and `info` on, without end: one step of a stream, or whole episodes."""
    start = np.ones(envs.num_envs, dtype=bool)
    idle: Any = create_empty_array(envs.single_action_space, envs.num_envs)
    seen: list[tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]] = []
    while True:
        seen.append((observation, info["target"], info.get("mask"), start))
        observation, _, terminated, _, info = envs.step(idle)
        start = terminated
        if envs.task.endless or terminated.all():
            observations, targets, masks, starts = zip(*seen, strict=True)
            mask = None if masks[0] is None else torch.from_numpy(_stack(masks))
            observation_TB, target_TB, start_TB = (
                torch.from_numpy(_stack(part)) for part in (observations, targets, starts)
            )
            yield Batch(observation_TB, target_TB, mask, start_TB)
            seen, start = [], np.ones(envs.num_envs, dtype=bool)


def _stack(arrays: tuple[Any, ...]) -> np.ndarray:
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


# ------------------------------------------------------------------------------------------ the learner


class Update(NamedTuple):
    """What came of one update. `returns` are those of the episodes in it, or of a stream a hundred times its mean reward;
    `length` is the episodes' length in agent steps."""

    steps: int
    loss: float
    auxiliary: float
    returns: list[float]
    length: int


def episode_returns(rewards: Tensor, mask: Tensor | None, *, endless: bool) -> list[float]:
    """Return the raw returns of episodes with rewards [T, B], or of a stream what a whole episode would be paid."""
    if endless:
        return [EPISODE * float(masked_mean(rewards, mask))]
    return rewards.sum(0).tolist()


def with_curriculum(envs: TaskVectorEnv, plan: CurriculumConfig) -> TaskVectorEnv:
    """Return environments whose options grow as `plan` has it, or `envs` where there is no curriculum.

    Raises
    ------
    EnvError, ConfigError
        The task has no such options, not with these values, or they do not fit the network.
    """
    if not plan.start:
        return envs
    return TaskVectorEnv(Curriculum(envs.task, plan.start, plan.end, plan.updates), envs.num_envs)


@contextmanager
def memory_of_turn(policy: Policy, sizes: Sequence[int], turn: int) -> Iterator[None]:
    """Give the memory of `policy` the size whose `turn` it is, 0, 1, …, for what begins inside; its own if there are none.

    Raises
    ------
    ConfigError
        The core has no memory, or none can be so small.
    """
    if not sizes:
        yield
        return
    if not isinstance(policy.core, NTMCore):
        raise ConfigError(
            f"supervised.memory_rows={list(sizes)}: core {policy.config.core!r} has no memory; use core 'ntm', or leave "
            f"memory_rows out"
        )
    with policy.core.resized(sizes[turn % len(sizes)]):
        yield


def check_memories(policy: Policy, config: SupervisedConfig) -> None:
    """Raise :class:`ConfigError` unless the memory of `policy` can have each of ``memory_rows``."""
    for turn in range(len(config.memory_rows)):
        with memory_of_turn(policy, config.memory_rows, turn):
            pass


def make_optimizer(config: SupervisedConfig, policy: Policy) -> torch.optim.Optimizer:
    """Return the optimiser of those parameters of `policy` that are not frozen."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    rate, decay, momentum = config.learning_rate, config.weight_decay, config.momentum
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, rate, momentum, weight_decay=decay, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, rate, momentum=momentum, weight_decay=decay)
    return torch.optim.Adagrad(parameters, rate, weight_decay=decay, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of `optimizer` as tensors, ``<number of the parameter>/<slot>``, for :func:`load_optimizer`."""
    states = optimizer.state_dict()["state"]
    return {
        f"{number}/{slot}": value
        for number, slots in states.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Bring back what :func:`optimizer_tensors` returned.

    Raises
    ------
    ValueError
        It is damaged, or of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        place, _, slot = name.partition("/")
        slots.setdefault(int(place), {})[slot] = value
    for number, parameter in enumerate(parameters):
        for slot, value in slots.get(number, {}).items():
            if value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{slot} of parameter {number} has shape {tuple(value.shape)}")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


class SupervisedLearner:
    """Learns `policy` from `envs`, update by update; its state can be stored and brought back exactly.

    Parameters
    ----------
    total_steps
        Agent steps of the whole run, for the schedule of the learning rate.
    precision
        fp32 or bf16 (encoder and core under autocast; heads, loss and update stay in float32).
    """

    def __init__(
        self,
        policy: Policy,
        envs: TaskVectorEnv,
        config: SupervisedConfig,
        total_steps: int,
        *,
        seed: int,
        precision: str = "fp32",
    ) -> None:
        envs = with_curriculum(envs, config.curriculum)
        check_memories(policy, config)
        self.policy, self.envs, self.config = policy, envs, config
        self.total_steps, self.precision = total_steps, precision
        self.steps = 0
        """Agent steps learned from."""
        self.optimizer = make_optimizer(config, policy)
        self.device = next(policy.parameters()).device
        self._parameters = [p for p in policy.parameters() if p.requires_grad]
        torch.manual_seed(seed)  # what is random in a forward pass (moe's gates)
        self._batches = batches(envs, *envs.reset(seed=seed))
        self._last: Batch | None = None

    def update(self) -> Update:
        """Learn from the next batch.

        Raises
        ------
        NonFiniteLossError
            The loss is not finite; the parameters are as they were.
        """
        draw = self.envs.stream.place.draw
        batch = self._last = next(self._batches).to(self.device)
        self.policy.train()
        with memory_of_turn(self.policy, self.config.memory_rows, draw):
            logits, auxiliary = predict(self.policy, batch, self.precision)
        space = self.envs.single_action_space
        loss = masked_mean(step_losses(space, logits, batch.target), batch.mask)
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError(f"the loss is {value} after {self.steps:,} agent steps")
        self.optimizer.zero_grad(set_to_none=True)
        (loss + auxiliary).backward()
        if self.config.max_grad_value:
            torch.nn.utils.clip_grad_value_(self._parameters, self.config.max_grad_value)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.steps / self.total_steps)
        self.optimizer.step()
        self.steps += batch.steps
        rewards = step_rewards(space, logits, batch.target, batch.mask)
        endless = self.envs.task.endless
        returns = episode_returns(rewards, batch.mask, endless=endless)
        return Update(batch.steps, value, auxiliary.item(), returns, EPISODE if endless else len(rewards))

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Return the diagnostics of the policy's heads for the batch last learned from; none of what has exploded."""
        if self._last is None:
            return {}
        observation, _, _, start = self._last
        self.policy.eval()  # the next update trains again; running statistics must not see a batch twice
        features, _ = self.policy.features(observation, self.policy.initial_state(start.shape[1]), start)
        try:
            return self.policy.diagnostics(features.flatten(0, 1))
        except (
            torch.linalg.LinAlgError
        ):  # a program that is not finite has no singular values; the next loss says so
            return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what :meth:`load` needs to go on exactly from here: tensors, and JSON values."""
        tensors = {"random": torch.get_rng_state(), **optimizer_tensors(self.optimizer)}
        place = self.envs.stream.place  # of the batch that is shown, and not yet learned from
        return tensors, {"place": list(place), "steps": self.steps}

    def load(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned, with a policy that has the parameters of then.

        Raises
        ------
        ValueError
            It is damaged, or was stored by another optimiser or for another network.
        """
        kept = dict(tensors)
        random = kept.pop("random")
        load_optimizer(self.optimizer, kept)
        self.steps = int(data["steps"])
        self._batches = batches(self.envs, *self.envs.go_to(Place(*map(int, data["place"]))))
        torch.set_rng_state(random)


def predict(policy: Policy, batch: Batch, precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """Return the policy's outputs [T, B, A] for `batch`, in float32, and the auxiliary loss."""
    state = policy.initial_state(batch.episode_start.shape[1])
    with torch.autocast(batch.observation.device.type, torch.bfloat16, enabled=precision == "bf16"):
        output, _, auxiliary = policy.evaluate(batch.observation, state, batch.episode_start)
    return output.logits.float(), auxiliary


# ----------------------------------------------------------------------------------------- evaluation


class Evaluation(NamedTuple):
    """How well a policy predicts. `returns` as in :class:`Update`; `loss` is the mean over all scored steps."""

    loss: float
    returns: list[float]
    scored: int
    """Scored steps: images, or steps of sequences."""
    length: int
    """Agent steps of an episode (of a stream: 100)."""


@torch.no_grad()
def evaluate_predictions(policy: Policy, envs: TaskVectorEnv, n_batches: int, seed: int) -> Evaluation:
    """Return how well `policy` (in evaluation mode) predicts `n_batches` batches of `envs`, which is reset to `seed`."""
    device = next(policy.parameters()).device
    space, endless = envs.single_action_space, envs.task.endless
    policy.eval()
    total, paid, scored, length = 0.0, 0.0, 0, EPISODE
    returns: list[float] = []
    source = batches(envs, *envs.reset(seed=seed))
    for _ in range(n_batches):
        batch = next(source).to(device)
        logits, _ = predict(policy, batch)
        losses = step_losses(space, logits, batch.target)
        count = losses.numel() if batch.mask is None else int(batch.mask.sum())
        total += count * float(masked_mean(losses, batch.mask))
        rewards = step_rewards(space, logits, batch.target, batch.mask)
        if endless:
            paid += float(rewards.sum())
        else:
            returns += episode_returns(rewards, batch.mask, endless=False)
            length = len(rewards)
        scored += count
    if endless:
        returns = [EPISODE * paid / max(1, scored)]
    return Evaluation(total / max(1, scored), returns, scored, length)
