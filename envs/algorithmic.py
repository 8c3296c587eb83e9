"""The sequence tasks of the Neural Turing Machine paper as environments: bits in, bits to be predicted, scored in a mask.

    gymnasium.make_vec("neurocoder/Copy-v0", num_envs=32, min_length=20, max_length=20)

Options are the fields of the task (``envs.sequences``).
"""

from typing import Any

import gymnasium as gym
import numpy as np

from neurocoder.envs.sequences import (
    AssociativeRecall,
    Copy,
    DynamicNGrams,
    PrioritySort,
    RepeatCopy,
    SequenceTask,
)
from neurocoder.envs.tasks import Drawn, Task, TaskEnv, TaskVectorEnv

KINDS: dict[str, type[SequenceTask]] = {
    "copy": Copy,
    "repeat-copy": RepeatCopy,
    "associative-recall": AssociativeRecall,
    "dynamic-n-grams": DynamicNGrams,
    "priority-sort": PrioritySort,
}


class Sequential(Task):
    """A sequence task: observations are its inputs [I], actions its O output bits; an episode is one sequence."""

    def __init__(self, kind: str, **fields: Any) -> None:
        self.kind, self.fields = kind, fields
        self.sequences = KINDS[kind](**fields)
        low, high = _bounds(self.sequences)
        self.observation_space = gym.spaces.Box(low, high, (self.sequences.input_size,), np.float32)
        self.action_space = gym.spaces.MultiBinary(self.sequences.output_size)

    @property
    def name(self) -> str:
        return KINDS[self.kind].__name__

    def with_options(self, **options: Any) -> "Sequential":
        self._refuse(options, KINDS[self.kind].__dataclass_fields__)  # type: ignore[attr-defined]  # they all have them
        return Sequential(self.kind, **{**self.fields, **options})

    def draw(self, seed: int, index: int, batch: int) -> Drawn:
        """Return the sequences number `index` of `batch` environments."""
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
        inputs, targets, mask = self.sequences.draw(generator, batch)
        return Drawn(inputs, targets.astype(np.int8), mask)


def _bounds(task: SequenceTask) -> tuple[float, float]:
    """Return the range of a task's inputs: bits, priorities, or a normalised number of repeats."""
    if isinstance(task, PrioritySort):
        return -1.0, 1.0
    if isinstance(task, RepeatCopy):
        ends = [
            (n - task.repeats_mean) / task.repeats_deviation for n in (task.min_repeats, task.max_repeats)
        ]
        return float(min(0.0, *ends)), float(max(1.0, *ends))
    return 0.0, 1.0


def sequence_env(kind: str, **fields: Any) -> TaskEnv:
    """Return a single environment; `fields` are those of the task."""
    return TaskEnv(Sequential(kind, **fields))


def sequence_vector_env(kind: str, num_envs: int = 1, **fields: Any) -> TaskVectorEnv:
    """Return `num_envs` of them as one batch."""
    return TaskVectorEnv(Sequential(kind, **fields), num_envs)
