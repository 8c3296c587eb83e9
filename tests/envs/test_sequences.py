"""The five algorithmic tasks against plain Python over samples, and the Bayes-optimal reader of N-grams."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest

from neurocoder.envs.sequences import (
    LONGEST,
    TASKS,
    AssociativeRecall,
    Copy,
    DynamicNGrams,
    PrioritySort,
    RepeatCopy,
    Sequences,
    bayes_bits,
    bayes_probability,
)
from neurocoder.errors import ConfigError

EACH = pytest.mark.parametrize("task", [make() for make in TASKS.values()], ids=list(TASKS))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def several(task, n: int = 40, batch: int = 5):
    rng = generator(1)
    return [task.draw(rng, batch) for _ in range(n)]


@EACH
def test_shapes_types_and_the_promised_longest(task):
    lengths = set()
    for drawn in several(task, 300):
        inputs, targets, mask = drawn
        steps = len(inputs)
        lengths.add(steps)
        assert inputs.shape == (steps, 5, task.input_size) and inputs.dtype == np.float32
        assert targets.shape == (steps, 5, task.output_size) and targets.dtype == np.float32
        assert mask.shape == (steps, 5) and mask.dtype == bool and mask.any(0).all()
        assert not targets[~mask].any() and set(np.unique(targets)) <= {0.0, 1.0}
        assert (mask == mask[:, :1]).all()
    assert max(lengths) == task.max_steps


@EACH
def test_the_same_generator_draws_the_same_and_another_something_else(task):
    first, again, other = (task.draw(generator(seed), 3) for seed in (7, 7, 8))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.inputs.shape != other.inputs.shape or (first.inputs != other.inputs).any()


@EACH
def test_rows_of_a_batch_differ(task):
    drawn = TASKS_LONG.get(type(task), task).draw(generator(), 64)
    assert len(np.unique(drawn.targets.swapaxes(0, 1).reshape(64, -1), axis=0)) > 50


TASKS_LONG = {Copy: Copy(min_length=10), RepeatCopy: RepeatCopy(min_length=8)}


def rows(drawn: Sequences):
    """Yield inputs and targets of every sample, as lists of steps."""
    for b in range(drawn.inputs.shape[1]):
        yield drawn.inputs[:, b], drawn.targets[:, b]


def test_copy():
    lengths = set()
    for drawn in several(Copy(), 400, 2):
        length = len(drawn.inputs) // 2
        lengths.add(length)
        for inputs, targets in rows(drawn):
            assert [int(row[8]) for row in inputs] == [int(t == length) for t in range(2 * length + 1)]
            assert not inputs[length:, :8].any()
            np.testing.assert_array_equal(targets[length + 1 :], inputs[:length, :8])
        assert drawn.mask[:, 0].tolist() == [t > length for t in range(2 * length + 1)]
    assert lengths == set(range(1, 21))


def test_repeat_copy():
    task, seen = RepeatCopy(), set()
    for drawn in several(task, 1500, 2):
        length = int(drawn.inputs[:, 0, 8].argmax())
        repeats, rest = divmod(len(drawn.inputs) - 2 - length, length)
        assert rest == 0
        seen.add((length, repeats))
        for inputs, targets in rows(drawn):
            vectors = inputs[:length, :8].tolist()
            said = [row[:8] for row in targets[length + 1 : -1].tolist()]
            assert said == vectors * repeats and not targets[:-1, 8].any()
            assert targets[-1].tolist() == [0.0] * 8 + [1.0]
            assert inputs[length, 9] == pytest.approx((repeats - 5.5) / math.sqrt(8.25))
            assert not inputs[length + 1 :].any() and not inputs[:length, 8:].any()
        assert drawn.mask[:, 0].tolist() == [t > length for t in range(len(drawn.inputs))]
    assert seen == {(length, repeats) for length in range(1, 11) for repeats in range(1, 11)}


def test_repeats_are_normalised_over_the_published_range_and_as_in_training_beyond_it():
    shown = [(k - RepeatCopy().repeats_mean) / RepeatCopy().repeats_deviation for k in range(1, 11)]
    assert np.mean(shown) == pytest.approx(0) and np.var(shown) == pytest.approx(1)
    longer = dataclasses.replace(RepeatCopy(), min_repeats=20, max_repeats=20)
    assert longer.draw(generator(), 2).inputs[..., 9].max() == pytest.approx(14.5 / math.sqrt(8.25))


def test_associative_recall():
    counts, asked_for = set(), set()
    for drawn in several(AssociativeRecall(), 400, 6):
        n_items = len(drawn.inputs) // 4 - 2
        counts.add(n_items)
        for inputs, targets in rows(drawn):
            items = [inputs[4 * k + 1 : 4 * k + 4, :6].tolist() for k in range(n_items)]
            end = 4 * n_items
            assert inputs[:, 6].tolist() == [float(t < end and t % 4 == 0) for t in range(len(inputs))]
            assert inputs[:, 7].tolist() == [float(t in (end, end + 4)) for t in range(len(inputs))]
            query, answer = inputs[end + 1 : end + 4, :6].tolist(), targets[-3:].tolist()
            fitting = [
                k for k, (item, after) in enumerate(pairwise(items)) if (item, after) == (query, answer)
            ]
            assert fitting and not inputs[-3:].any()
            asked_for.update((n_items, k) for k in fitting)
        assert drawn.mask[:, 0].tolist() == [t >= len(drawn.inputs) - 3 for t in range(len(drawn.inputs))]
    assert counts == set(range(2, 7))
    assert asked_for == {(n, k) for n in range(2, 7) for k in range(n - 1)}


def test_priority_sort_is_pythons_sorted():
    task = PrioritySort()
    for drawn in several(task, 40):
        for inputs, targets in rows(drawn):
            items = [(float(row[8]), row[:8].tolist()) for row in inputs[:20]]
            expected = [vector for _, vector in sorted(items, key=lambda item: -item[0])][:16]
            assert targets[21:].tolist() == expected
            assert inputs[:, 9].tolist() == [float(t == 20) for t in range(37)] and not inputs[21:].any()
            assert all(-1 <= priority <= 1 for priority, _ in items)
    drawn = dataclasses.replace(task, items=4, targets=2, bits=3).draw(generator(), 2)
    assert drawn.inputs.shape == (7, 2, 5) and drawn.targets.shape == (7, 2, 3)
    wide = task.draw(generator(), 4000).inputs[:20, :, 8]
    assert abs(wide.mean()) < 0.02 and abs(wide.var() - 1 / 3) < 0.01  # of U[-1, 1]


def test_ngrams_ask_for_the_next_bit():
    drawn = DynamicNGrams().draw(generator(), 8)
    np.testing.assert_array_equal(drawn.inputs[1:], drawn.targets[:-1])
    assert not drawn.inputs[0].any() and drawn.mask.all() and len(drawn.inputs) == 200


def test_ngrams_follow_one_table_per_sequence():
    """In a long sequence, how often 1 follows each context tells its table, whose entries are Beta(1/2, 1/2)."""
    bits = DynamicNGrams(order=3, length=2000).draw(generator(), 400).targets[..., 0].astype(int)
    context = 2 * bits[:-2] + bits[1:-1]
    shares, apart = [], []
    for before, after in zip(context.T, bits[2:].T, strict=True):
        for k in range(4):
            follow = after[before == k]
            if len(follow) > 200:
                shares.append(follow.mean())
                apart.append(follow[: len(follow) // 2].mean() - follow[len(follow) // 2 :].mean())
    assert len(shares) > 600 and np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.var(shares) == pytest.approx(1 / 8, abs=0.02)  # of Beta(1/2, 1/2)
    assert np.std(apart) < 0.05  # the second half of a sequence follows the same table


def test_the_bayes_predictor_against_counting_in_plain_python():
    bits = generator().integers(0, 2, (60, 4))
    probability = bayes_probability(bits, order=3)
    for b in range(4):
        needed = 0.0
        counts: dict[tuple[int, ...], list[float]] = {}
        for t in range(60):
            p = 0.5
            if t >= 2:
                seen = counts.setdefault(tuple(bits[t - 2 : t, b]), [0, 0])
                p = (seen[1] + 0.5) / (sum(seen) + 1)
                seen[bits[t, b]] += 1
            assert probability[t, b] == pytest.approx(p, rel=1e-12)
            needed -= math.log2(p if bits[t, b] else 1 - p)
        assert bayes_bits(bits, order=3)[b] == pytest.approx(needed, rel=1e-12)


def test_the_bayes_predictor_needs_133_bits_and_nobody_does_better():
    bits = DynamicNGrams().draw(generator(), 20_000).targets[..., 0]
    needed = bayes_bits(bits)
    error = needed.std() / math.sqrt(len(needed))
    assert needed.mean() == pytest.approx(133.23, abs=4 * error) and error < 0.3  # of 10⁶: 133.23 ± 0.04
    probability = bayes_probability(bits)
    for worse in (0.9 * probability + 0.05, np.clip(1.1 * probability - 0.05, 0.01, 0.99)):
        assert -np.log2(np.where(bits == 1, worse, 1 - worse)).sum(0).mean() > needed.mean() + 0.5


def test_the_shortest_and_the_longest_sequence():
    assert Copy(min_length=120, max_length=120).draw(generator(), 1).inputs.shape == (241, 1, 9)
    assert DynamicNGrams(order=1, length=1).draw(generator(), 2).inputs.shape == (1, 2, 1)
    assert Copy(max_length=(LONGEST - 1) // 2).max_steps <= LONGEST


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Copy(max_length=LONGEST), "Copy's longest sequence has 200001 steps, more than 100000"),
        (lambda: Copy(min_length=21), "min_length=21 must be <= max_length=20"),
        (lambda: Copy(min_length=0), "min_length=0 must be an integer >= 1"),
        (lambda: Copy(bits=1.5), "bits=1.5 must be an integer"),
        (lambda: RepeatCopy(min_repeats=11), "min_repeats=11 must be <= max_repeats=10"),
        (lambda: RepeatCopy(repeats_deviation=0.0), "repeats_deviation=0.0 must be finite and > 0"),
        (lambda: AssociativeRecall(min_items=1), "min_items=1 must be >= 2"),
        (lambda: DynamicNGrams(order=0), "order=0 must be an integer >= 1"),
        (lambda: DynamicNGrams(order=21), "order=21 must be <= 20"),
        (lambda: DynamicNGrams(length=5), "length=5 must be >= order=6"),
        (lambda: PrioritySort(targets=21), "targets=21 must be <= items=20"),
        (lambda: PrioritySort().draw(generator(), 0), "batch=0 must be >= 1"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)
