"""The five tasks of the Neural Turing Machine paper (Graves, Wayne and Danihelka 2014, section 4) as pure generators.

``task.draw(generator, batch)`` returns `batch` sequences of one length, itself drawn from the task's range; only the
steps in the mask are scored. A task's fields are its ranges, as published; to test on longer sequences, change them:

    longer = dataclasses.replace(Copy(), min_length=120, max_length=120)

What the paper leaves open is fixed here. Delimiters have a channel of their own. Repeat copy shows the number of
repeats in the step of the delimiter, and goes on to normalise it as in training where the range is changed.
Associative recall has a delimiter before each item, and another channel's before and after the query. N-grams show
the bit before (0 at first) and ask for the next one, of all `length` bits.

Shape suffixes: T time, B batch, I/O channels of inputs and targets.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from neurocoder.errors import ConfigError, require

LONGEST = 100_000
"""The most steps of a sequence."""


class Sequences(NamedTuple):
    """inputs [T, B, I] and targets [T, B, O], float32; mask [T, B], true where the target counts.

    Targets are 0 where they do not count.
    """

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray


class SequenceTask(Protocol):
    """What every task here offers."""

    @property
    def input_size(self) -> int:
        """I."""

    @property
    def output_size(self) -> int:
        """O."""

    @property
    def max_steps(self) -> int:
        """The steps of the longest sequence."""

    def draw(self, rng: np.random.Generator, batch: int) -> Sequences:
        """Return `batch` sequences of one length."""


def _check(task: SequenceTask, *at_least_one: str) -> None:
    """Raise :class:`ConfigError` unless these fields are integers >= 1, and all ranges are ranges."""
    for field in at_least_one:
        value = getattr(task, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{field}={value!r} must be an integer >= 1")
    for field in at_least_one:
        if field.startswith("min_"):
            low, high, upper = getattr(task, field), getattr(task, f"max_{field[4:]}"), f"max_{field[4:]}"
            if low > high:
                raise ConfigError(f"{field}={low} must be <= {upper}={high}")
    if task.max_steps > LONGEST:
        raise ConfigError(
            f"{type(task).__name__}'s longest sequence has {task.max_steps} steps, more than {LONGEST}; "
            f"its length follows from {', '.join(at_least_one)}"
        )


def _empty(task: SequenceTask, steps: int, batch: int) -> Sequences:
    require(batch >= 1, "batch", batch, ">= 1")
    return Sequences(
        np.zeros((steps, batch, task.input_size), np.float32),
        np.zeros((steps, batch, task.output_size), np.float32),
        np.zeros((steps, batch), bool),
    )


def _bits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2, shape, np.int8)


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high, endpoint=True))


@dataclass(frozen=True, slots=True)
class Copy:
    """4.1. Random vectors, a delimiter, then the same vectors are to be said."""

    bits: int = 8
    min_length: int = 1
    max_length: int = 20

    def __post_init__(self) -> None:
        _check(self, "bits", "min_length", "max_length")

    @property
    def input_size(self) -> int:
        return self.bits + 1

    @property
    def output_size(self) -> int:
        return self.bits

    @property
    def max_steps(self) -> int:
        return 2 * self.max_length + 1

    def draw(self, rng: np.random.Generator, batch: int) -> Sequences:
        length = _between(rng, self.min_length, self.max_length)
        drawn = _empty(self, 2 * length + 1, batch)
        vectors = _bits(rng, length, batch, self.bits)
        drawn.inputs[:length, :, : self.bits] = vectors
        drawn.inputs[length, :, self.bits] = 1
        drawn.targets[length + 1 :] = vectors
        drawn.mask[length + 1 :] = True
        return drawn


@dataclass(frozen=True, slots=True)
class RepeatCopy:
    """4.2. As copy, but the vectors are to be said `repeats` times, and then an end marker (the last channel)."""

    bits: int = 8
    min_length: int = 1
    max_length: int = 10
    min_repeats: int = 1
    max_repeats: int = 10
    repeats_mean: float = 5.5
    """Of 1 … 10, as is `repeats_deviation`: what the number of repeats is normalised by."""
    repeats_deviation: float = math.sqrt(8.25)

    def __post_init__(self) -> None:
        _check(self, "bits", "min_length", "max_length", "min_repeats", "max_repeats")
        require(math.isfinite(self.repeats_mean), "repeats_mean", self.repeats_mean, "finite")
        deviation = self.repeats_deviation
        require(0 < deviation < math.inf, "repeats_deviation", deviation, "finite and > 0")

    @property
    def input_size(self) -> int:
        return self.bits + 2

    @property
    def output_size(self) -> int:
        return self.bits + 1

    @property
    def max_steps(self) -> int:
        return self.max_length * (1 + self.max_repeats) + 2

    def draw(self, rng: np.random.Generator, batch: int) -> Sequences:
        length = _between(rng, self.min_length, self.max_length)
        repeats = _between(rng, self.min_repeats, self.max_repeats)
        drawn = _empty(self, length * (1 + repeats) + 2, batch)
        vectors = _bits(rng, length, batch, self.bits)
        drawn.inputs[:length, :, : self.bits] = vectors
        drawn.inputs[length, :, self.bits] = 1
        drawn.inputs[length, :, self.bits + 1] = (repeats - self.repeats_mean) / self.repeats_deviation
        drawn.targets[length + 1 : -1, :, : self.bits] = np.tile(vectors, (repeats, 1, 1))
        drawn.targets[-1, :, self.bits] = 1
        drawn.mask[length + 1 :] = True
        return drawn


@dataclass(frozen=True, slots=True)
class AssociativeRecall:
    """4.3. A list of items, then one of them again, never the last: the item after it is to be said."""

    bits: int = 6
    item_length: int = 3
    min_items: int = 2
    max_items: int = 6

    def __post_init__(self) -> None:
        _check(self, "bits", "item_length", "min_items", "max_items")
        require(
            self.min_items >= 2, "min_items", self.min_items, ">= 2: the item after the query is asked for"
        )

    @property
    def input_size(self) -> int:
        return self.bits + 2

    @property
    def output_size(self) -> int:
        return self.bits

    @property
    def max_steps(self) -> int:
        return self.max_items * (1 + self.item_length) + 2 * (1 + self.item_length)

    def draw(self, rng: np.random.Generator, batch: int) -> Sequences:
        n_items, block = _between(rng, self.min_items, self.max_items), 1 + self.item_length
        drawn = _empty(self, (n_items + 2) * block, batch)
        items = _bits(rng, n_items, self.item_length, batch, self.bits)
        query, rows = rng.integers(0, n_items - 1, batch), np.arange(batch)
        shown = drawn.inputs[: n_items * block].reshape(n_items, block, batch, -1)
        shown[:, 0, :, self.bits] = 1
        shown[:, 1:, :, : self.bits] = items
        asked = drawn.inputs[n_items * block :]
        asked[0, :, self.bits + 1] = asked[block, :, self.bits + 1] = 1
        asked[1:block, :, : self.bits] = items[query, :, rows].swapaxes(0, 1)
        drawn.targets[-self.item_length :] = items[query + 1, :, rows].swapaxes(0, 1)
        drawn.mask[-self.item_length :] = True
        return drawn


@dataclass(frozen=True, slots=True)
class DynamicNGrams:
    """4.4. Bits, each drawn given the `order` - 1 bits before, by a table that is drawn for every sequence.

    The first `order` - 1 bits are fair. No predictor does better than :func:`bayes_bits`.
    """

    order: int = 6
    length: int = 200

    input_size: ClassVar[int] = 1
    output_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check(self, "order", "length")
        require(self.order <= 20, "order", self.order, "<= 20: the table has 2 ** (order - 1) entries")
        require(self.length >= self.order, "length", self.length, f">= order={self.order}")

    @property
    def max_steps(self) -> int:
        return self.length

    def draw(self, rng: np.random.Generator, batch: int) -> Sequences:
        drawn = _empty(self, self.length, batch)
        n_before, rows = self.order - 1, np.arange(batch)
        table = rng.beta(0.5, 0.5, (batch, 1 << n_before))
        bits = np.empty((self.length, batch), np.int64)
        bits[:n_before] = _bits(rng, n_before, batch)
        uniform = rng.random((self.length - n_before, batch))
        context = _contexts(bits[:n_before], n_before)[-1]
        for t in range(n_before, self.length):
            bits[t] = uniform[t - n_before] < table[rows, context]
            context = _follow(context, bits[t], n_before)
        drawn.inputs[1:, :, 0] = bits[:-1]
        drawn.targets[..., 0] = bits
        drawn.mask[:] = True
        return drawn


def _follow(context: np.ndarray, bit: np.ndarray, n_before: int) -> np.ndarray:
    """Return the number that the last `n_before` bits spell, once `bit` has come."""
    return (2 * context + bit) & ((1 << n_before) - 1)


def _contexts(bits_TB: np.ndarray, n_before: int) -> np.ndarray:
    """Return the number that the (at most) `n_before` bits before each step spell, [T + 1, B]."""
    contexts = np.zeros((len(bits_TB) + 1, bits_TB.shape[1]), np.int64)
    for t, bit in enumerate(bits_TB.astype(np.int64)):
        contexts[t + 1] = _follow(contexts[t], bit, n_before)
    return contexts


def bayes_probability(bits_TB: np.ndarray, order: int = 6) -> np.ndarray:
    """Return P(bit = 1 | all bits before) [T, B] by the optimal predictor: (n₁ + ½) / (n₀ + n₁ + 1).

    n₀ and n₁ count what followed the same `order` - 1 bits earlier in the sequence; ½ is what Beta(½, ½) adds. The
    first `order` - 1 bits are fair.
    """
    n_steps, batch = bits_TB.shape
    contexts, rows = _contexts(bits_TB, order - 1), np.arange(batch)
    counts = np.zeros((batch, 1 << (order - 1), 2))
    probability = np.full((n_steps, batch), 0.5)
    for t in range(order - 1, n_steps):
        seen = counts[rows, contexts[t]]
        probability[t] = (seen[:, 1] + 0.5) / (seen.sum(-1) + 1)
        counts[rows, contexts[t], bits_TB[t].astype(np.int64)] += 1
    return probability


def bayes_bits(bits_TB: np.ndarray, order: int = 6) -> np.ndarray:
    """Return the bits [B] that the optimal predictor needs for sequences of bits [T, B]: of 200, 133.2 on average."""
    probability = bayes_probability(bits_TB, order)
    return -np.log2(np.where(bits_TB == 1, probability, 1 - probability)).sum(0)


@dataclass(frozen=True, slots=True)
class PrioritySort:
    """4.5. Vectors with priorities in [-1, 1], then the `targets` of highest priority are to be said, highest first."""

    bits: int = 8
    items: int = 20
    targets: int = 16

    def __post_init__(self) -> None:
        _check(self, "bits", "items", "targets")
        require(self.targets <= self.items, "targets", self.targets, f"<= items={self.items}")

    @property
    def input_size(self) -> int:
        return self.bits + 2

    @property
    def output_size(self) -> int:
        return self.bits

    @property
    def max_steps(self) -> int:
        return self.items + 1 + self.targets

    def draw(self, rng: np.random.Generator, batch: int) -> Sequences:
        drawn = _empty(self, self.max_steps, batch)
        vectors = _bits(rng, self.items, batch, self.bits)
        priority = rng.uniform(-1, 1, (self.items, batch)).astype(np.float32)
        drawn.inputs[: self.items, :, : self.bits] = vectors
        drawn.inputs[: self.items, :, self.bits] = priority
        drawn.inputs[self.items, :, self.bits + 1] = 1
        highest = np.argsort(-priority, axis=0, kind="stable")[: self.targets]
        drawn.targets[self.items + 1 :] = vectors[highest, np.arange(batch)]
        drawn.mask[self.items + 1 :] = True
        return drawn


TASKS: dict[str, type[SequenceTask]] = {
    "copy": Copy,
    "repeat-copy": RepeatCopy,
    "associative-recall": AssociativeRecall,
    "dynamic-ngrams": DynamicNGrams,
    "priority-sort": PrioritySort,
}
