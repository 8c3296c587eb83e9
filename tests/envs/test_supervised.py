"""Classification as an environment: every image once in a pass, its own label beside it, pixels as they should be."""

import numpy as np
import pytest

from neurocoder.envs import EnvError, make_tasks, supervised
from neurocoder.envs.datasets import load_dataset
from neurocoder.envs.supervised import PIXEL_STATISTICS, Classification, shift_and_mirror

DIGITS = load_dataset("digits", "train")
N = len(DIGITS.labels)


def stream(task, batch, draws, seed=0):
    drawn = [task.draw(seed, index, batch) for index in range(draws)]
    images = np.concatenate([part.inputs[0] for part in drawn])
    return images, np.concatenate([part.targets[0] for part in drawn])


def names_of(images):
    """Return the index in the data set of every image [B, C, H, W], which must be there exactly."""
    known = {image.tobytes(): index for index, image in enumerate(DIGITS.images)}
    assert len(known) == N
    return np.array([known[np.ascontiguousarray(image).tobytes()] for image in images])


def test_a_pass_shows_every_image_once_and_the_next_in_another_order():
    task = Classification("digits", normalize=False)
    images, labels = stream(task, 7, -(-2 * N // 7))
    shown = names_of(images)
    first, second = shown[:N], shown[N : 2 * N]
    assert sorted(first) == sorted(second) == list(range(N))
    assert (first != second).mean() > 0.99 and (first != np.arange(N)).mean() > 0.99
    np.testing.assert_array_equal(labels, DIGITS.labels[shown])


def test_batches_longer_than_the_data_go_round():
    task = Classification("digits", normalize=False, samples=5)
    shown = names_of(stream(task, 12, 3)[0])
    for start in range(0, 35, 5):
        assert len(set(shown[start : start + 5])) == 5
    assert set(shown) == set(names_of(stream(task, 5, 1, seed=9)[0]))  # which ones: whatever the seed


def test_the_size_of_the_batch_does_not_change_the_stream():
    task = Classification("digits")
    np.testing.assert_array_equal(stream(task, 6, 10)[0], stream(task, 20, 3)[0])


def test_partial_batches_are_masked_and_passes_counted():
    task = Classification("digits", "test", normalize=False, last="partial")
    draws = task.passes(64)
    assert draws == -(-task.n // 64) and Classification("digits").passes(64) is None
    for pass_ in range(2):
        drawn = [task.draw(0, pass_ * draws + index, 64) for index in range(draws)]
        counted = sum(int(part.mask.sum()) for part in drawn)
        assert counted == task.n and all(part.mask[0].all() for part in drawn[:-1])
        kept = np.concatenate([part.inputs[part.mask] for part in drawn])
        assert len({image.tobytes() for image in kept}) == len({i.tobytes() for i in task.data.images})


def test_an_order_is_drawn_once_a_pass_by_however_many_environments(monkeypatch):
    drawn = []
    generator = supervised._generator
    monkeypatch.setattr(supervised, "_generator", lambda *key: drawn.append(key) or generator(*key))
    tasks = [Classification("digits") for _ in range(20)]
    for index in range(N + 1):
        if index < 5 or index > N - 5:
            for seed, task in enumerate(tasks):
                task.draw(seed, index, 1)
    assert len(drawn) == 2 * len(tasks)


def test_without_shuffling_it_is_the_files_order():
    images, labels = stream(Classification("digits", normalize=False, shuffle=False), 50, 4)
    np.testing.assert_array_equal(images, DIGITS.images[:200])
    np.testing.assert_array_equal(labels, DIGITS.labels[:200])


def test_normalisation_by_hand():
    raw, _ = stream(Classification("digits", normalize=False), 32, 1)
    seen, _ = stream(Classification("digits"), 32, 1)
    (mean,), (deviation,) = PIXEL_STATISTICS["digits"]
    np.testing.assert_allclose(seen, (raw / 255 - mean) / deviation, atol=1e-6)
    space = Classification("digits").observation_space
    assert all(space.contains(image) for image in seen)


@pytest.mark.parametrize(
    "name",
    [
        "digits",
        pytest.param("mnist", marks=pytest.mark.data),
        pytest.param("cifar10", marks=pytest.mark.data),
    ],
)
def test_statistics_are_those_of_the_training_images(name):
    images = load_dataset(name, "train").images
    for channel, (mean, deviation) in enumerate(zip(*PIXEL_STATISTICS[name], strict=True)):
        counts = np.bincount(images[:, channel].ravel(), minlength=256)
        values = np.arange(256) / 255
        found = (counts * values).sum() / counts.sum()
        spread = np.sqrt((counts * (values - found) ** 2).sum() / counts.sum())
        assert found == pytest.approx(mean, abs=2e-3) and spread == pytest.approx(deviation, abs=2e-3)


def test_padding_is_black():
    raw, _ = stream(Classification("digits", normalize=False), 8, 1)
    padded, _ = stream(Classification("digits", normalize=False, pad=3), 8, 1)
    assert padded.shape[2:] == (14, 14)
    np.testing.assert_array_equal(padded[:, :, 3:-3, 3:-3], raw)
    assert padded.sum() == raw.sum()
    assert Classification("digits", pad=3).observation_space.shape == (1, 14, 14)


def test_augmentation_shifts_and_mirrors_and_nothing_else():
    """Every augmented image is one of the 2 · 81 that the definition allows; all 81 shifts occur."""
    image = np.random.default_rng(0).integers(1, 256, (2, 6, 5), dtype=np.uint8)
    allowed = {}
    for down in range(-4, 5):
        for right in range(-4, 5):
            shifted = np.zeros_like(image)
            for row in range(6):
                for column in range(5):
                    if 0 <= row + down < 6 and 0 <= column + right < 5:
                        shifted[:, row, column] = image[:, row + down, column + right]
            allowed[shifted.tobytes()] = (down, right, False)
            allowed[np.ascontiguousarray(shifted[:, :, ::-1]).tobytes()] = (down, right, True)
    many = shift_and_mirror(np.repeat(image[None], 3000, 0), np.random.default_rng(1))
    kinds = [allowed[np.ascontiguousarray(one).tobytes()] for one in many]
    assert len({kind[:2] for kind in kinds}) == 81
    assert abs(np.mean([kind[2] for kind in kinds]) - 0.5) < 0.03


def test_augmented_batches_depend_on_seed_and_index_only():
    task = Classification("digits", augment=True)
    np.testing.assert_array_equal(
        task.draw(1, 5, 8).inputs, Classification("digits", augment=True).draw(1, 5, 8).inputs
    )
    assert (task.draw(1, 5, 8).inputs != Classification("digits").draw(1, 5, 8).inputs).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": "drop"}, "unknown last 'drop'"),
        ({"samples": N + 1}, f"samples={N + 1} must be in"),
        ({"samples": -1}, "samples=-1"),
        ({"pad": -1}, "pad=-1"),
        ({"split": "valid"}, "valid"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(EnvError, match=message):
        make_tasks("neurocoder/Digits-v0", 2, options)
