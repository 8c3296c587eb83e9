"""Learning tasks one after the other, and remembering them: seven methods under the protocol of Hsu et al. 2018.

Hsu, Liu, Ramasamy & Kira, "Re-evaluating Continual Learning Scenarios", arXiv 1810.12488, and its released code. Task
after task, `passes` times through its images; the optimiser is carried over; after every task all tasks are tested::

    envs = make_tasks("neurocoder/SplitMNIST-v0", 128, {"scenario": "domain"})
    test = make_tasks("neurocoder/SplitMNIST-v0", 128, {"scenario": "domain", "split": "test"})
    made_of = PolicyConfig(encoder="mlp", core="none", critic=False)
    policy = Policy(envs.single_observation_space, envs.single_action_space, made_of)
    config = ContinualConfig(method="si", strength=preset("domain", "si"))
    ContinualLearner(policy, envs, test, config, seed=0).learn()    # percent, [1 + tasks, tasks]

What is minimised at a step of task k, with the parameters θ and their values θ* at the ends of tasks::

    cross-entropy over the outputs that compete  +  a·L_o of the heads  +  strength · Σ_i Ω_i (θ_i - θ*_i)²

========== ============================================================ ============================================
method     Ω                                                            kept of the tasks before
========== ============================================================ ============================================
none       0                                                            nothing
l2         1                                                            the last θ*
ewc        mean squared gradient of log p(ŷ|x), ŷ the most probable     Ω and θ* of each
online-ewc the same                                                     the sum of all Ω, the last θ*
si         -Σ_steps gradient · change, over (change in all)² + 0.1      the sum of all Ω, the last θ*
mas        |gradient of the mean squared output|                        the sum of all Ω, the last θ*
replay     0                                                            images, mixed one to one with the new ones
========== ============================================================ ============================================

Program memories may gain slots between two tasks (``grow``, always or where the new task is a surprise), and lose those
that no task reads (``prune``): see ``agents.growth``.

There is no factor ½ on Ω, and coefficients are those of that code: ``continual_methods.PRESETS``. The heads' auxiliary losses (L_o) are
learned from but are no part of any Ω, which is about the task.

In scenario task every task has a head of its own (``PolicyConfig.task_heads``), and a parameter that nothing has asked to
change yet has no gradient, not one of zeros: Adam begins to count a head's steps with its first.

Shape suffixes: B batch, O outputs, N tasks.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from neurocoder.agents.continual_methods import METHOD_CLASSES, ContinualConfig
from neurocoder.agents.growth import check_growth, claim, grow, growing_heads, moved, prune, usage
from neurocoder.agents.importance import Network, Samples, competing
from neurocoder.agents.rollout import NonFiniteLossError
from neurocoder.agents.supervised import (
    Batch,
    Update,
    batches,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    predict,
)
from neurocoder.envs import EPISODE, Place, TaskVectorEnv
from neurocoder.envs.continual import ContinualVectorEnv
from neurocoder.errors import ConfigError, require
from neurocoder.policies import NeurocoderLinear, Policy
from neurocoder.policies.heads import HeadsSideBySide

MANY = 1_024
"""Images of a task by which slots are claimed where routing is fixed, and by which it shows that slots are not read."""
SETTLING = 0.05
"""Weight of the newest batch in the running mean that a new task is compared with."""


def samples_of(batch: Batch, task: int, device: torch.device) -> Samples:
    """Return what `batch`, one step of a stream, shows of task number `task`, without what only fills it up."""
    counted = slice(None) if batch.mask is None else batch.mask[0]
    observation, target = batch.observation[0][counted].to(device), batch.target[0][counted].to(device)
    return Samples(observation, target, torch.full_like(target, task))


def logits_of(policy: Policy, samples: Samples, precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """Return the policy's outputs [B, O] for `samples`, in float32, and the heads' auxiliary loss."""
    start = torch.ones_like(samples.target[None], dtype=torch.bool)
    logits, auxiliary = predict(
        policy, Batch(samples.observation[None], samples.target[None], None, start), precision
    )
    return logits[0], auxiliary


def asking(policy: Policy, outputs_O: Tensor) -> AbstractContextManager[None]:
    """Within this, run of heads side by side only those that have an output in `outputs_O` [O], a mask."""
    return policy.actor.only(outputs_O) if isinstance(policy.actor, HeadsSideBySide) else nullcontext()


@torch.no_grad()
def accuracies(
    policy: Policy,
    envs: ContinualVectorEnv,
    seen: int,
    seed: int = 0,
    before: Callable[[int], None] = lambda task: None,
) -> list[float]:
    """Return the percentage of images that `policy` gets right, task by task, each image of `envs` once.

    After `seen` tasks were learned: that decides which outputs compete (``ContinualTask.logits_masks``). `before` is
    called with the number of each task before its first image.
    """
    policy.eval()
    device = next(policy.parameters()).device
    masks_NO = torch.from_numpy(envs.task.logits_masks(seen)).to(device)
    result = []
    for task in range(envs.task.n_tasks):
        envs.set_task(task)
        before(task)
        n = _passes(envs)
        right, shown = 0, 0
        with asking(policy, masks_NO[task]):
            for batch in islice(batches(envs, *envs.reset(seed=seed)), n):
                samples = samples_of(batch, task, device)
                answer = competing(logits_of(policy, samples)[0], masks_NO[task]).argmax(-1)
                right += int((answer == samples.target).sum())
                shown += len(answer)
        result.append(100 * right / shown)
    return result


def _passes(envs: TaskVectorEnv) -> int:
    draws = envs.task.passes(envs.num_envs)
    assert draws is not None
    return draws


class ContinualLearner:
    """Learns the tasks of `envs` one after the other; its state can be stored and brought back exactly.

    Parameters
    ----------
    policy
        Without time (core "none"): its action space has the outputs of all tasks.
    envs, test_envs
        Training and test images of one sequence of tasks, last="partial".
    precision
        fp32 or bf16, in training's forward passes only.

    Raises
    ------
    ConfigError
        A policy with a core, an environment without tasks, or two that have different ones.
    """

    def __init__(
        self,
        policy: Policy,
        envs: TaskVectorEnv,
        test_envs: TaskVectorEnv,
        config: ContinualConfig,
        *,
        seed: int,
        precision: str = "fp32",
    ) -> None:
        self.envs, self.test_envs = _continual(envs), _continual(test_envs)
        if not self.envs.task.is_tested_by(self.test_envs.task):
            raise ConfigError(
                "training and test environment have different tasks: give both the same options"
            )
        if not self.envs.task.shuffle:
            raise ConfigError("shuffle=False: continual learning needs images in random order")
        require(
            policy.config.core == "none", "policy.core", policy.config.core, "'none': images have no time"
        )
        self.policy, self.config, self.seed, self.precision = policy, config, seed, precision
        self.device = next(policy.parameters()).device
        self.network = Network(policy)
        self.optimizer = make_optimizer(config.of_optimizer, policy)
        torch.manual_seed(seed)  # what is random in a forward pass (moe's gates)
        remembered = self.envs.task.n_tasks - 1  # nothing is replayed after the last
        if config.method == "replay" and config.memory_size < remembered:
            raise ConfigError(f"continual.memory_size={config.memory_size} is less than one image a task")
        self.method = METHOD_CLASSES[config.method](self.network, config, seed)
        self.steps = 0
        """Agent steps learned from: new images, with what fills up a pass's last batch."""
        self.rows: list[list[float]] = []
        """Accuracies in percent of all tasks: row 0 of the untrained network, row i after the i-th task."""
        self.task = 0
        """How many tasks have been learned: the number of the one that is being learned."""
        self.growths = 0
        """How often the memories have grown."""
        self.draw = 0
        """Batches of this task that have been learned from."""
        self.growing = growing_heads(self.network) if config.grow or config.prune else {}
        """Program memories that change between two tasks."""
        check_growth(self.growing, config.grow, self.envs.task.n_tasks)
        self.routed = {name: head for name, head in self.growing.items() if head.fixed_routing}
        """Those of them whose slots are claimed by the images of their task."""
        if self.routed and (config.novelty or config.prune):
            raise ConfigError(
                "continual.novelty, continual.prune: not with fixed_routing, where every task claims slots"
            )
        scenario = self.envs.task.scenario
        if config.own_slots and scenario != "task":
            raise ConfigError(
                f"continual.own_slots: in scenario {scenario!r} no image comes with its task's number"
            )
        self.usage: dict[str, Tensor] = {}
        """How much each of their slots was read at the end of the task that read it most."""
        self.settled = 0.0
        """Cross-entropy of the batches last learned from, a running mean."""
        self._last: Samples | None = None
        self._begin()

    def _begin(self) -> None:
        """Begin to show the task, from its first batch."""
        self.envs.set_task(self.task)
        self._batches = batches(self.envs, *self.envs.reset(seed=[self.seed, self.task]))
        masks = self.envs.task.logits_masks(self.task + 1)
        self._masks_NO = torch.from_numpy(masks).to(self.device)

    @property
    def done(self) -> bool:
        """Whether all tasks have been learned."""
        return self.task == self.envs.task.n_tasks

    @property
    def total_steps(self) -> int:
        """Agent steps of the whole run."""
        tasks = map(lambda k: self.envs.task.with_options(task=k), range(self.envs.task.n_tasks))
        draws = sum(task.passes(self.envs.num_envs) or 0 for task in tasks)
        return self.config.passes * draws * self.envs.num_envs

    @property
    def matrix(self) -> np.ndarray:
        """The accuracies so far in percent, [rows, tasks]: row 0 of the untrained network, row i after the i-th task."""
        return np.array(self.rows).reshape(-1, self.envs.task.n_tasks)

    def learn(self) -> np.ndarray:
        """Learn all that is left, and return the matrix of accuracies [1 + tasks, tasks]."""
        while not self.done:
            self.update()
        return self.matrix

    def update(self) -> Update:
        """Learn from the next batch; after the last one of a task, remember it and test all tasks.

        ``returns`` is the percentage of right answers in the batch, before its step.

        Raises
        ------
        NonFiniteLossError
            The loss is not finite; the parameters are as they were.
        """
        if self.done:
            raise RuntimeError("all tasks have been learned")
        if not self.rows:
            self._test()
        if self.draw % _passes(self.envs) == 0:  # what layers see has moved since the last pass
            self._claim()
        self._show(self.task)
        new = samples_of(next(self._batches), self.task, self.device)
        steps = [self._step(samples) for samples in self.method.mixed(new, self.draw)]
        self.draw += 1
        self.steps += self.envs.num_envs
        self.settled += (steps[-1][0] - self.settled) * (1.0 if self.draw == 1 else SETTLING)
        if self.draw == self.config.passes * _passes(self.envs):
            self._finish_task()
        loss, auxiliary, right = (sum(column) / len(steps) for column in zip(*steps, strict=True))
        return Update(self.envs.num_envs, loss, auxiliary, [EPISODE * right], EPISODE)

    def _step(self, samples: Samples) -> tuple[float, float, float]:
        """Take one step; return cross-entropy, auxiliary loss and share of right answers."""
        self._last = samples
        self.policy.train()
        parameters = self.network.learned()
        masks = self._masks_NO[samples.task]
        with asking(self.policy, masks.any(0)):
            logits, auxiliary = logits_of(self.policy, samples, self.precision)
        logits = competing(logits, masks)
        loss = F.cross_entropy(logits, samples.target)
        other = auxiliary + self.config.strength * self.method.penalty(parameters)
        value = loss.item()
        if not math.isfinite(value + other.item()):
            raise NonFiniteLossError(
                f"the loss is {value} and the penalty {other.item()} in task {self.task}, after {self.steps:,} "
                f"agent steps"
            )
        inputs = list(parameters.values())
        # apart: importances are of the cross-entropy alone
        gradients = torch.autograd.grad(loss, inputs, retain_graph=other.requires_grad, allow_unused=True)
        others: tuple[Tensor | None, ...] = (None,) * len(inputs)
        if other.requires_grad:
            others = torch.autograd.grad(other, inputs, allow_unused=True)
        for parameter, of_loss, of_other in zip(inputs, gradients, others, strict=True):
            if of_other is not None:
                parameter.grad = of_other if of_loss is None else of_loss + of_other
            elif self.optimizer.state.get(parameter):  # what is not asked now goes on with its momentum
                parameter.grad = torch.zeros_like(parameter) if of_loss is None else of_loss
            else:
                parameter.grad = of_loss if of_loss is not None and of_loss.any() else None
        self.method.before_step()
        self.optimizer.step()
        self.method.after_step(dict(zip(parameters, gradients, strict=True)))
        return value, auxiliary.item(), float((logits.argmax(-1) == samples.target).float().mean())

    def _claim(self) -> None:
        """Let the task's images read the slots that came with it, where that is not learned."""
        if self.routed and self.growths == self.task:
            self.policy.eval()
            self._show(self.task)
            claim(
                self.network, self.routed, lambda head: self._slots_of(head, self.task), self._some_images()
            )

    def _some_images(self) -> Samples:
        """Return images of the task, MANY of them or all, always the same."""
        drawn = self.envs.task.draw(self.seed, 0, min(MANY, self.envs.task.n))
        observation, target = (torch.from_numpy(part[0]).to(self.device) for part in drawn[:2])
        return Samples(observation, target, torch.full_like(target, self.task))

    def _show(self, task: int) -> None:
        """Show the slots that images of `task` may read: its own, where that is asked for and they are there."""
        if self.config.own_slots:
            for head in self.growing.values():
                own = self._slots_of(head, task)
                head.shown = own if own.stop <= head.slots else None

    def _slots_of(self, head: NeurocoderLinear, task: int) -> range:
        """Return the slots that came to `head` with `task`."""
        first = head.slots - self.config.grow * self.growths
        start = first + (task - 1) * self.config.grow
        return range(start, start + self.config.grow) if task else range(first)

    def _finish_task(self) -> None:
        self._claim()
        if self.task + 1 < self.envs.task.n_tasks:  # after the last comes nothing that could overwrite it
            left = islice(self._batches, _passes(self.envs))
            data = (samples_of(batch, self.task, self.device) for batch in left)
            with asking(self.policy, self._masks_NO[self.task]):
                self.method.after_task(data, self._masks_NO)
        if self.config.prune:
            self._prune()
        self.task, self.draw = self.task + 1, 0
        self._test()
        if not self.done:
            self._begin()
            if self.config.grow and self._is_novel():
                self.method.follow(
                    grow(self.growing, self.config.grow, self.optimizer, freeze_old=self.config.freeze_old)
                )
                self.growths += 1

    def _prune(self) -> None:
        """Remove the slots that neither this task reads nor any before it."""
        self.policy.eval()
        now = usage(self.network, self.growing, self._some_images().observation)
        for name, read in now.items():
            before = self.usage.get(name, torch.zeros_like(read))
            missing = read.new_zeros(len(read) - len(before))  # slots that are new in this task
            now[name] = torch.maximum(read, torch.cat((before, missing)))
        places = prune(self.growing, now, self.config.prune, self.optimizer)
        self.method.follow(places)
        self.usage = {name: moved(read, places.get(f"{name}memory_s")) for name, read in now.items()}

    @torch.no_grad()
    def _is_novel(self) -> bool:
        """Whether the task that begins is one that the network has to grow for."""
        if not self.config.novelty:
            return True
        self.policy.eval()
        first = batches(self.envs, *self.envs.reset(seed=[self.seed, self.task]))
        samples = samples_of(next(first), self.task, self.device)
        logits = competing(logits_of(self.policy, samples)[0], self._masks_NO[samples.task])
        novel = F.cross_entropy(logits, samples.target).item() > self.config.novelty * self.settled
        self._begin()  # from the first batch again
        return novel

    def _test(self) -> None:
        self.rows.append(accuracies(self.policy, self.test_envs, self.task, before=self._show))

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Return the diagnostics of the policy's heads for the batch last learned from."""
        if self._last is None:
            return {}
        observation, target, _ = self._last
        start = torch.ones_like(target, dtype=torch.bool)
        features, _ = self.policy.features(observation, self.policy.initial_state(len(target)), start)
        return self.policy.diagnostics(features)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what :meth:`load` needs to go on exactly from here, within a task too: tensors, and JSON values."""
        tensors = {"random": torch.get_rng_state()}
        tensors |= {f"optimizer/{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        # copies: two of them may be one tensor, which a file of tensors refuses
        tensors |= {f"method/{name}": value.clone() for name, value in self.method.tensors().items()}
        tensors |= {f"usage/{name}": value.clone() for name, value in self.usage.items()}
        data = {"task": self.task, "draw": self.draw, "steps": self.steps, "rows": [*self.rows]}
        data["settled"], data["growths"] = self.settled, self.growths
        data["frozen"] = {name: head.frozen_slots for name, head in self.growing.items()}
        return tensors, data | {"place": list(self.envs.stream.place)}

    def load(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned, with a policy that has the parameters of then.

        Raises
        ------
        ValueError
            It is damaged, or was stored by another optimiser or method, or for another network or sequence of tasks.
        """
        parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "method": {}, "usage": {}}
        random = tensors["random"]
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind in parts:
                parts[kind][name] = value
        task, n_tasks = int(data["task"]), self.envs.task.n_tasks
        rows = [[float(value) for value in row] for row in data["rows"]]
        if not 0 <= task <= n_tasks or any(len(row) != n_tasks for row in rows):
            raise ValueError(f"stored for other tasks than these {n_tasks}")
        self.method.load(parts["method"])
        load_optimizer(self.optimizer, parts["optimizer"])
        self.task, self.draw, self.steps, self.rows = task, int(data["draw"]), int(data["steps"]), rows
        self.settled, self.usage = float(data["settled"]), parts["usage"]
        self.growths = int(data.get("growths", 0))
        for name, head in self.growing.items():
            head.frozen_slots = int(data["frozen"][name])
        if not self.done:
            self._begin()
            self._batches = batches(self.envs, *self.envs.go_to(Place(*map(int, data["place"]))))
        torch.set_rng_state(random)


def _continual(envs: TaskVectorEnv) -> ContinualVectorEnv:
    if not isinstance(envs, ContinualVectorEnv):
        raise ConfigError(
            "this environment has no tasks one after the other; take one that has, e.g. neurocoder/SplitMNIST-v0"
        )
    if envs.task.passes(envs.num_envs) is None:
        raise ConfigError("last='wrap': tasks are counted in passes, which need last='partial'")
    return envs
