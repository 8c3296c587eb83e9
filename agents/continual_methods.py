"""Methods against forgetting, and their settings: what each keeps of the tasks before, and does with it.

A method is asked for the batches that are learned from (``mixed``) and for a ``penalty``, and told of every step and of the
end of every task. The base, :class:`Method`, does nothing; ``continual`` says what the others do.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neurocoder.agents.growth import Places, moved
from neurocoder.agents.importance import (
    Network,
    Parameters,
    Samples,
    fisher_diagonal,
    output_sensitivity,
    path_importance,
    path_integral,
    quadratic_penalty,
)
from neurocoder.agents.supervised import OPTIMIZERS, SupervisedConfig
from neurocoder.envs.continual import SCENARIOS
from neurocoder.errors import ConfigError, lookup, require

PRESETS: dict[str, dict[str, float]] = {
    # Hsu et al. 2018, the released scripts for split MNIST: coefficients found there by a search
    "task": {"l2": 0.01, "ewc": 100.0, "online-ewc": 400.0, "si": 300.0, "mas": 1.0},
    "domain": {"l2": 0.5, "ewc": 100.0, "online-ewc": 700.0, "si": 3000.0, "mas": 10_000.0},
    "class": {"l2": 100.0, "ewc": 600.0, "online-ewc": 100.0, "si": 600.0, "mas": 1.0},
}
"""`strength` by scenario and method. They move by orders of magnitude from one scenario to another."""
LEARNING_RATES = {"adam": 1e-3, "sgd": 0.01, "adagrad": 0.01}
"""By optimiser, from the same scripts."""
METHODS = ("none", "l2", "ewc", "online-ewc", "si", "mas", "replay")


def preset(scenario: str, method: str) -> float:
    """Return the coefficient of Hsu et al. for `method`, 0 for one that has none.

    Raises
    ------
    ConfigError
        An unknown scenario or method.
    """
    lookup(dict.fromkeys(METHODS), method, "method")
    return lookup(PRESETS, scenario, "scenario").get(method, 0.0)


@dataclass(frozen=True, slots=True)
class ContinualConfig:
    """Hyper-parameters of continual learning; the defaults are the protocol's."""

    method: str = "none"
    """none, l2, ewc, online-ewc, si, mas or replay."""
    strength: float = 0.0
    """The method's coefficient, which has no default: see PRESETS. 0 for none and replay."""
    passes: int = 4
    """Times that a task's images are shown."""
    batch_size: int = 128
    optimizer: str = "adam"
    """adam, sgd, rmsprop or adagrad; its state is kept from task to task."""
    learning_rate: float = 1e-3
    momentum: float = 0.0
    """Of sgd and rmsprop."""
    weight_decay: float = 0.0
    memory_size: int = 1_100
    """Images that replay keeps in all, of every task as many."""
    fisher_samples: int = 0
    """Images of a task that ewc and online-ewc take the gradients of; 0: all."""
    damping: float = 0.1
    """ξ of si."""
    grow: int = 0
    """Slots that every program memory gains between two tasks; 0: it stays as it is."""
    freeze_old: bool = False
    """Whether the slots of the tasks before stand still from then on."""
    own_slots: bool = False
    """Scenario task, where a task's number is known: its images read the slots that came with it, and no others."""
    novelty: float = 0.0
    """Grow only before a task whose first images cost more than this many times what the task before ended at; 0: always."""
    prune: float = 0.0
    """After a task, slots are removed that no task reads at least this share of evenly, 1 / slots; 0: none."""

    def __post_init__(self) -> None:
        require(self.method in METHODS, "continual.method", self.method, f"one of {METHODS}")
        value = self.strength
        require(math.isfinite(value) and value >= 0, "continual.strength", value, "finite and >= 0")
        if self.method in ("none", "replay"):
            require(value == 0, "continual.strength", value, f"0: method {self.method!r} has no coefficient")
        else:
            known = ", ".join(f"{PRESETS[scenario][self.method]:g} ({scenario})" for scenario in SCENARIOS)
            what = f"> 0: method {self.method!r} needs its coefficient; for split MNIST by scenario: {known}"
            require(value > 0, "continual.strength", value, what)
        for name, least in (
            ("passes", 1),
            ("batch_size", 2),
            ("memory_size", 1),
            ("fisher_samples", 0),
            ("grow", 0),
            ("novelty", 0),
            ("prune", 0),
        ):
            require(getattr(self, name) >= least, f"continual.{name}", getattr(self, name), f">= {least}")
        require(self.optimizer in OPTIMIZERS, "continual.optimizer", self.optimizer, f"one of {OPTIMIZERS}")
        for name in ("freeze_old", "novelty", "own_slots"):
            require(
                not getattr(self, name) or self.grow > 0,
                f"continual.{name}",
                getattr(self, name),
                "0 without grow",
            )
        plain = not (self.own_slots and (self.novelty or self.prune or self.method == "replay"))
        require(plain, "continual.own_slots", self.own_slots, "false with novelty, prune or replay")
        require(self.prune < 1, "continual.prune", self.prune, "< 1, the share of an even attention")
        for name in ("novelty", "prune"):
            require(math.isfinite(getattr(self, name)), f"continual.{name}", getattr(self, name), "finite")
        for name in ("learning_rate", "damping"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, f"continual.{name}", value, "finite and > 0")
        value = self.weight_decay
        require(math.isfinite(value) and value >= 0, "continual.weight_decay", value, "finite and >= 0")
        require(0 <= self.momentum < 1, "continual.momentum", self.momentum, "in [0, 1)")

    @property
    def of_optimizer(self) -> SupervisedConfig:
        """What the optimiser is made from."""
        return SupervisedConfig(
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


class Method:
    """None of them: tasks are learned as they come. Base of the others, which remember something after every task."""

    def __init__(self, network: Network, config: ContinualConfig, seed: int) -> None:
        self.network, self.config, self.seed = network, config, seed

    def mixed(self, new: Samples, draw: int) -> list[Samples]:
        """Return what is learned from, step by step, when draw number `draw` of the task shows `new`."""
        return [new]

    def penalty(self, parameters: Parameters) -> Tensor:
        """Return what the tasks before have against these parameters; its coefficient is not in it."""
        return torch.zeros(())

    def before_step(self) -> None:
        """Called with the parameters as they were when a step's gradients were computed."""

    def after_step(self, gradients: Mapping[str, Tensor | None]) -> None:
        """Called after a step, with the gradients of its cross-entropy alone."""

    def after_task(self, data: Iterator[Samples], masks_NO: Tensor) -> None:
        """Remember the task just learned: one more pass through it, in random order, is `data`."""

    def follow(self, places: Places) -> None:
        """Between two tasks parameters have gained and lost rows: let what is remembered of them do the same."""

    def tensors(self) -> Parameters:
        """Return all that is remembered, for :meth:`load`."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what :meth:`tensors` returned.

        Raises
        ------
        ValueError
            It is damaged, or another method's or network's.
        """
        if tensors:
            raise ValueError("another method has remembered something, and this one keeps nothing")


class Term(NamedTuple):
    """Where parameters are drawn to, and how strongly each."""

    importance: Parameters
    anchor: Parameters


class L2(Method):
    """Every parameter stays near its last value, Ω = 1. Base of what weighs them."""

    def __init__(self, network: Network, config: ContinualConfig, seed: int) -> None:
        super().__init__(network, config, seed)
        self.terms: list[Term] = []

    def penalty(self, parameters: Parameters) -> Tensor:
        terms = [quadratic_penalty(parameters, term.anchor, term.importance) for term in self.terms]
        return sum(terms, super().penalty(parameters))

    def after_task(self, data: Iterator[Samples], masks_NO: Tensor) -> None:
        new = Term(self.importance(data, masks_NO), self.network.copied())
        self.terms = self.joined(new)

    def importance(self, data: Iterator[Samples], masks_NO: Tensor) -> Parameters:
        """Return Ω of the task just learned."""
        return {name: torch.ones_like(p) for name, p in self.network.learned().items()}

    def joined(self, new: Term) -> list[Term]:
        """Return what is kept, now that `new` has come."""
        return [new]

    def follow(self, places: Places) -> None:
        self.terms = [
            Term(*({name: moved(tensor, places.get(name)) for name, tensor in part.items()} for part in term))
            for term in self.terms
        ]

    def tensors(self) -> Parameters:
        return {
            f"{number}/{part}/{name}": tensor
            for number, term in enumerate(self.terms)
            for part, tensors in term._asdict().items()
            for name, tensor in tensors.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        known = self.network.learned()
        terms: dict[int, Term] = {}
        for key, tensor in tensors.items():
            number, part, name = key.split("/", 2)
            if name not in known or known[name].shape != tensor.shape:
                raise ValueError(f"{key} of shape {tuple(tensor.shape)} belongs to no parameter")
            getattr(terms.setdefault(int(number), Term({}, {})), part)[name] = tensor
        if any(part.keys() != known.keys() for term in terms.values() for part in term):
            raise ValueError("parameters are missing in what was remembered")
        self.terms = [terms[number] for number in sorted(terms)]


class EWC(L2):
    """Elastic weight consolidation, Kirkpatrick et al. 2017: Ω is the Fisher information; every task keeps its own."""

    def importance(self, data: Iterator[Samples], masks_NO: Tensor) -> Parameters:
        return fisher_diagonal(self.network, data, masks_NO, limit=self.config.fisher_samples)

    def joined(self, new: Term) -> list[Term]:
        return [*self.terms, new]


def summed(terms: list[Term], new: Term) -> list[Term]:
    """Return one term: the anchor of `new`, and the sum of all importances."""
    total = dict(new.importance)
    for term in terms:
        total = {name: value + term.importance[name] for name, value in total.items()}
    return [Term(total, new.anchor)]


class OnlineEWC(EWC):
    """Online EWC, Schwarz et al. 2018, eqs. 8-9 with γ = 1: Fisher informations add up, and only the last θ* is kept."""

    def joined(self, new: Term) -> list[Term]:
        return summed(self.terms, new)


class SI(L2):
    """Synaptic intelligence, Zenke et al. 2017: Ω is what a parameter's way has taken off the task's loss."""

    def __init__(self, network: Network, config: ContinualConfig, seed: int) -> None:
        super().__init__(network, config, seed)
        self.begun = network.copied()
        """Where the parameters were when the task began."""
        self.path = {name: torch.zeros_like(p) for name, p in self.begun.items()}
        self._before: Parameters = {}

    def before_step(self) -> None:
        self._before = self.network.copied()

    def after_step(self, gradients: Mapping[str, Tensor | None]) -> None:
        for name, p in self.network.learned().items():
            gradient = gradients[name]
            if gradient is not None:
                change = p.detach() - self._before[name]
                self.path[name] = path_integral(self.path[name], gradient, change)

    def importance(self, data: Iterator[Samples], masks_NO: Tensor) -> Parameters:
        return {
            name: path_importance(self.path[name], p.detach() - self.begun[name], self.config.damping)
            for name, p in self.network.learned().items()
        }

    def joined(self, new: Term) -> list[Term]:
        self.begun = new.anchor
        self.path = {name: torch.zeros_like(p) for name, p in new.anchor.items()}
        return summed(self.terms, new)

    def follow(self, places: Places) -> None:
        super().follow(places)
        self.begun = self.network.copied()
        self.path = {name: torch.zeros_like(p) for name, p in self.begun.items()}

    def tensors(self) -> Parameters:
        own = {"begun": self.begun, "path": self.path}
        mine = {f"{part}/{name}": tensor for part, tensors in own.items() for name, tensor in tensors.items()}
        return {f"terms/{key}": tensor for key, tensor in super().tensors().items()} | mine

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        parts: dict[str, Parameters] = {"terms": {}, "begun": {}, "path": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensor
        for part in ("begun", "path"):
            shapes = {name: tensor.shape for name, tensor in parts[part].items()}
            if shapes != {name: p.shape for name, p in self.begun.items()}:
                raise ValueError(f"{part} was stored for other parameters")
        super().load(parts["terms"])
        self.begun, self.path = parts["begun"], parts["path"]


class MAS(L2):
    """Memory aware synapses, Aljundi et al. 2018: Ω is how much the outputs depend on a parameter."""

    def importance(self, data: Iterator[Samples], masks_NO: Tensor) -> Parameters:
        return output_sensitivity(self.network, data, masks_NO)

    def joined(self, new: Term) -> list[Term]:
        return summed(self.terms, new)


class Replay(Method):
    """Naive rehearsal of Hsu et al. 2018: images of the tasks before are learned along with the new ones, one to one.

    The memory holds of every task as many images. From the second task on a step's batch is one half new and one half
    old, so that a pass takes twice as many steps; the memory is gone through in shuffled passes of its own.
    """

    def __init__(self, network: Network, config: ContinualConfig, seed: int) -> None:
        super().__init__(network, config, seed)
        self.memory: list[Samples] = []
        """Of every task, in the order that its images were chosen in: to keep fewer is to keep the first."""

    def mixed(self, new: Samples, draw: int) -> list[Samples]:
        if not self.memory:
            return [new]
        memory = Samples(*map(torch.cat, zip(*self.memory, strict=True)))
        chosen = self._chosen(len(memory.target), draw * self.config.batch_size, len(new.target))
        half = math.ceil(self.config.batch_size / 2)
        old = Samples(*(part[chosen.to(part.device)] for part in memory))
        halves = zip(*(part.split(half) for part in (*new, *old)), strict=True)
        return [Samples(*(torch.cat((part[i], part[i + 3])) for i in range(3))) for part in halves]

    def _chosen(self, n: int, first: int, count: int) -> Tensor:
        """Return which of `n` images have the places `first`, `first` + 1, … in an endless row of shuffled passes."""
        chosen: list[np.ndarray] = []
        pass_, place = divmod(first, n)
        while count > 0:
            key = (len(self.memory), pass_)
            order = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key)).permutation(n)
            chosen.append(order[place : place + count])
            count, pass_, place = count - len(chosen[-1]), pass_ + 1, 0
        return torch.from_numpy(np.concatenate(chosen))

    def after_task(self, data: Iterator[Samples], masks_NO: Tensor) -> None:
        each = self.config.memory_size // (len(self.memory) + 1)
        kept: list[Samples] = []
        missing = each
        for samples in data:  # shuffled: its first are a random choice
            if missing <= 0:
                break
            kept.append(Samples(*(part[:missing] for part in samples)))
            missing -= len(kept[-1].target)
        if not each:
            raise ConfigError(
                f"continual.memory_size={self.config.memory_size} is less than one image a task"
            )
        new = Samples(*map(torch.cat, zip(*kept, strict=True)))
        self.memory = [Samples(*(part[:each].clone() for part in old)) for old in self.memory] + [new]

    def tensors(self) -> Parameters:
        return {
            f"{number}/{part}": tensor
            for number, samples in enumerate(self.memory)
            for part, tensor in samples._asdict().items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        n = -(-len(tensors) // len(Samples._fields))
        try:
            memory = [Samples(*(tensors[f"{k}/{part}"] for part in Samples._fields)) for k in range(n)]
        except KeyError as error:
            raise ValueError(f"{error} is missing in what was remembered") from None
        shape = self.network.policy.observation_space.shape
        for kept in memory:
            if kept.observation.shape != (len(kept.target), *shape) or kept.task.shape != kept.target.shape:
                raise ValueError(
                    f"images of shape {tuple(kept.observation.shape)} were remembered for {shape}"
                )
        self.memory = memory


METHOD_CLASSES: dict[str, type[Method]] = {
    "none": Method,
    "l2": L2,
    "ewc": EWC,
    "online-ewc": OnlineEWC,
    "si": SI,
    "mas": MAS,
    "replay": Replay,
}
