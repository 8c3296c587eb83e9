"""Tasks one after the other: the classes of a data set in groups, or its pixels permuted anew for every task.

One environment shows one task at a time; ``set_task`` goes to another::

    envs = gymnasium.make_vec("neurocoder/SplitMNIST-v0", num_envs=128, scenario="class").unwrapped
    envs.set_task(1)
    observation, info = envs.reset(seed=0)    # info["target"] and info["task"], int64 [128]

What is told, and what is to be predicted, is the scenario's (van de Ven & Tolias 2018; Hsu et al. 2018, section 2):

======== ======================================== ================ ==================================
scenario target, for class number c of task k     outputs          which of them compete
======== ======================================== ================ ==================================
task     k · classes_per_task + c                 of all tasks     those of the image's own task
domain   c                                        classes_per_task all
class    the class itself (permuted: as in task)  all classes      those of the tasks seen so far
======== ======================================== ================ ==================================

Outputs that do not compete are left out of loss and prediction: :meth:`ContinualTask.logits_masks`. In scenario task this
is one head of classes_per_task outputs per task, chosen by ``info["task"]``: a linear layer with the outputs of all tasks
holds exactly their weights and biases.
"""

import copy
from typing import Any

import gymnasium as gym
import numpy as np

from neurocoder.envs.registry import EnvError
from neurocoder.envs.supervised import Classification
from neurocoder.envs.tasks import EPISODE, Drawn, Place, Stream, TaskEnv, TaskVectorEnv
from neurocoder.errors import lookup

SCENARIOS = ("task", "domain", "class")
ORDERS = ("fixed", "random")
PERMUTATIONS = 10
"""Tasks of a permuted data set, unless the option says otherwise."""
PADDED_STATISTICS = {("mnist", 2): ((0.1000,), (0.2752,))}
"""Mean and deviation by data set and padding: those with which Hsu et al. 2018 normalise MNIST of 32 × 32 pixels."""


class ContinualTask(Classification):
    """One task of a sequence, as a stream of images; :meth:`with_options` returns the others.

    Parameters
    ----------
    dataset, split, normalize, pad, augment, samples, shuffle, features, last
        See :class:`~neurocoder.envs.supervised.Classification`. Images padded as in Hsu et al. 2018 (MNIST, pad=2) are
        normalised with that paper's statistics.
    scenario
        task, domain or class: see the module's table.
    classes_per_task
        0: two, or all where pixels are permuted.
    tasks
        How many there are. 0: as many as the classes suffice for, or ten permutations.
    permuted
        Every task has all the classes, and its own fixed permutation of the pixels; the first task has none.
    order
        Which classes make up the tasks: "fixed" is 0, 1, 2 …, "random" a permutation that `order_seed` draws.
    order_seed
        Of the classes' order, and of the pixels' permutations.
    task
        Which task is shown, from 0.

    Raises
    ------
    EnvError
        An option out of range: more tasks than there are classes, an unknown scenario or order.
    """

    def __init__(
        self,
        dataset: str,
        split: str = "train",
        *,
        scenario: str = "domain",
        classes_per_task: int = 0,
        tasks: int = 0,
        permuted: bool = False,
        order: str = "fixed",
        order_seed: int = 0,
        task: int = 0,
        normalize: bool = True,
        pad: int = 0,
        augment: bool = False,
        samples: int = 0,
        shuffle: bool = True,
        features: str = "",
        last: str = "partial",
    ) -> None:
        lookup(dict.fromkeys(SCENARIOS), scenario, "scenario", EnvError)
        lookup(dict.fromkeys(ORDERS), order, "order", EnvError)
        for name, value in (
            ("classes_per_task", classes_per_task),
            ("tasks", tasks),
            ("order_seed", order_seed),
            ("task", task),
        ):
            if isinstance(value, bool) or not isinstance(value, int):
                raise EnvError(f"{name}={value!r} must be a whole number")
        super().__init__(
            dataset,
            split,
            normalize=normalize,
            pad=pad,
            augment=augment,
            samples=samples,
            shuffle=shuffle,
            features=features,
            last=last,
        )
        if features and permuted:
            raise EnvError(f"features={features!r} have no pixels to permute: leave out permuted")
        if normalize and not features and (dataset, pad) in PADDED_STATISTICS:
            self._normalize(*PADDED_STATISTICS[dataset, pad])
        if order_seed < 0:
            raise EnvError(f"order_seed={order_seed} must be >= 0")
        if permuted and order == "random":
            raise EnvError(
                "order='random' is for split classes; with permuted=True another order_seed does it"
            )
        n_classes = self.data.n_classes
        self.scenario, self.permuted = scenario, permuted
        self.classes_per_task = classes_per_task or (n_classes if permuted else 2)
        """How many classes every task has."""
        if self.classes_per_task == 1 and scenario != "class":
            raise EnvError(
                f"classes_per_task=1: in scenario {scenario!r} there is nothing to tell apart; take 2 or more"
            )
        self.n_tasks = _count_tasks(n_classes, self.classes_per_task, tasks, permuted)
        """How many tasks there are."""
        if order == "random":
            classes = np.random.default_rng(order_seed).permutation(n_classes)
        else:
            classes = np.arange(n_classes)
        if permuted:
            self.classes = np.tile(classes, (self.n_tasks, 1))
            """The classes of every task, [n_tasks, classes_per_task]."""
        else:
            self.classes = classes[: self.n_tasks * self.classes_per_task].reshape(self.n_tasks, -1)
        self.targets = self._targets(n_classes)
        """The target by task and class, [n_tasks, n_classes]; -1 for the classes that a task does not have."""
        own_outputs = (
            n_classes if scenario == "class" and not permuted else self.n_tasks * self.classes_per_task
        )
        self.n_outputs = self.classes_per_task if scenario == "domain" else own_outputs
        """Outputs that a policy has: those of all tasks."""
        self.action_space = gym.spaces.Discrete(self.n_outputs)
        self._order_seed = order_seed
        self._all = np.arange(len(self.data.labels)) if self.kept is None else self.kept
        self._show(task)

    def _normalize(self, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        """Let images become (x / 255 - mean) / deviation."""
        means, deviations = (np.array(part).reshape(-1, 1, 1) for part in (mean, deviation))
        scale, shift = 1 / (255 * deviations), -means / deviations
        self._affine = (scale.astype(np.float32), shift.astype(np.float32))
        shape = self.observation_space.shape
        low, high = (
            np.broadcast_to(self._float(np.full(means.shape, edge)), shape).copy() for edge in (0, 255)
        )
        self.observation_space = gym.spaces.Box(low, high, dtype=np.float32)

    def _targets(self, n_classes: int) -> np.ndarray:
        targets = np.full((self.n_tasks, n_classes), -1, np.int64)
        for task, classes in enumerate(self.classes):
            if self.scenario == "class" and not self.permuted:
                targets[task, classes] = classes
            else:
                first = 0 if self.scenario == "domain" else task * self.classes_per_task
                targets[task, classes] = first + np.arange(self.classes_per_task)
        return targets

    def _show(self, task: int) -> None:
        if not 0 <= task < self.n_tasks:
            raise EnvError(f"task={task} must be in [0, {self.n_tasks}): there are {self.n_tasks} tasks")
        self.task = task
        """Which task is shown, from 0."""
        self.kept = self._all[self.targets[task, self.data.labels[self._all]] >= 0]
        self.n = len(self.kept)
        if not self.n:
            raise EnvError(f"task {task} has no image of the classes {self.classes[task].tolist()}")
        self._pixels: np.ndarray | None = None
        if self.permuted and task:
            generator = np.random.default_rng(np.random.SeedSequence(self._order_seed, spawn_key=(task,)))
            _, height, width = self.observation_space.shape
            self._pixels = generator.permutation(height * width)

    def with_options(self, **options: Any) -> "ContinualTask":
        """Return another task of the sequence: the only option that may change is `task`."""
        self._refuse(options, ["task"])
        other = copy.copy(self)
        other._show(options.get("task", self.task))
        return other

    def is_tested_by(self, other: "ContinualTask") -> bool:
        """Return whether `other` has the same sequence of tasks, with images of the same kind: another split of it."""
        return (
            (self.scenario, self.permuted) == (other.scenario, other.permuted)
            and np.array_equal(self.classes, other.classes)
            and (not self.permuted or self._order_seed == other._order_seed)
            and self.observation_space == other.observation_space
        )

    def draw(self, seed: int, index: int, batch: int) -> Drawn:
        """Return one step: images [1, B, C, H, W] of this task and their targets [1, B]."""
        inputs, labels, mask = super().draw(seed, index, batch)
        if self._pixels is not None:  # the same for all channels
            inputs = inputs.reshape(*inputs.shape[:-2], -1)[..., self._pixels].reshape(inputs.shape)
        return Drawn(inputs, self.targets[self.task][labels], mask)

    def logits_masks(self, seen: int) -> np.ndarray:
        """Return which outputs compete for images of each task, bool [n_tasks, n_outputs].

        `seen` is how many tasks have been learned, the one that is being learned among them. In scenario class these
        tasks' classes compete, and up to its own those of a task that is yet to come: so it has an accuracy to be
        compared with (of forward transfer).
        """
        masks = np.zeros((self.n_tasks, self.n_outputs), bool)
        for task in range(self.n_tasks):
            match self.scenario:
                case "task":
                    competing = self.targets[task]
                case "domain":
                    competing = np.arange(self.n_outputs)
                case _:
                    competing = self.targets[: max(seen, task + 1)].ravel()
            masks[task, competing[competing >= 0]] = True
        return masks


def _count_tasks(n_classes: int, per_task: int, tasks: int, permuted: bool) -> int:
    """Return how many tasks there are, `tasks` if that is possible."""
    for name, value in (("tasks", tasks), ("classes_per_task", per_task)):
        if value < 0:
            raise EnvError(f"{name}={value} must be >= 0")
    if permuted:
        if per_task != n_classes:
            raise EnvError(f"classes_per_task={per_task}: with permuted=True every task has all {n_classes}")
        return tasks or PERMUTATIONS
    if per_task > n_classes:
        raise EnvError(f"classes_per_task={per_task} must be <= {n_classes}, the classes of the data set")
    if not tasks and n_classes % per_task:
        most = n_classes // per_task
        raise EnvError(
            f"classes_per_task={per_task} does not divide {n_classes} classes; give tasks, at most {most}"
        )
    if tasks * per_task > n_classes:
        raise EnvError(
            f"tasks={tasks} with classes_per_task={per_task} need {tasks * per_task} classes, and there are "
            f"{n_classes}"
        )
    return tasks or n_classes // per_task


class ContinualVectorEnv(TaskVectorEnv):
    """A batch of environments that show the same task of a sequence; ``gymnasium.make_vec`` returns this."""

    task: ContinualTask

    def __init__(self, task: ContinualTask, num_envs: int = 1, episode_length: int = EPISODE) -> None:
        super().__init__(task, num_envs, episode_length)
        self._seed: int | None = None

    def set_task(self, task: int) -> None:
        """Go to task number `task`, from 0; a reset is due then.

        A reset without a seed begins the task with the seed of before, whatever was shown of it already.

        Raises
        ------
        EnvError
            There is no such task.
        """
        self.task = self.task.with_options(task=task)
        if self.stream._place is not None:
            self._seed = self.stream.place.seed
        self.stream = Stream(self.task, self.num_envs, self.stream.episode_length)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is None and self._seed is not None and self.stream._place is None:
            self.stream.go_to(Place(self._seed, 0, 0, 0))
        return super().reset(seed=seed, options=options)

    def _info(self, target: np.ndarray, mask: np.ndarray | None) -> dict[str, Any]:
        return super()._info(target, mask) | {"task": np.full(self.num_envs, self.task.task)}


class ContinualEnv(TaskEnv):
    """One environment that shows one task of a sequence at a time."""

    task: ContinualTask

    def set_task(self, task: int) -> None:
        """Go to task number `task`, from 0; a reset is due then.

        Raises
        ------
        EnvError
            There is no such task.
        """
        self.task = self.task.with_options(task=task)
        self._stream = Stream(self.task, 1, self._stream.episode_length)
        self._running = False

    def _seen(self) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = super()._seen()
        return observation, info | {"task": self.task.task}


def continual_env(dataset: str, *, episode_length: int = EPISODE, **options: Any) -> ContinualEnv:
    """Return a single environment; `options` are those of :class:`ContinualTask`."""
    return ContinualEnv(ContinualTask(dataset, **options), episode_length)


def continual_vector_env(
    dataset: str, num_envs: int = 1, *, episode_length: int = EPISODE, **options: Any
) -> ContinualVectorEnv:
    """Return `num_envs` of them as one batch."""
    return ContinualVectorEnv(ContinualTask(dataset, **options), num_envs, episode_length)
