"""Tasks one after the other: which classes, which targets, which outputs compete, and every image once in a pass."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import neurocoder
from neurocoder.envs import EnvError, make_tasks
from neurocoder.envs.continual import ContinualEnv, ContinualTask, ContinualVectorEnv
from neurocoder.envs.datasets import load_dataset

assert neurocoder.__version__  # its import registers the ids

DIGITS = load_dataset("digits", "train")


def one_pass(task, batch=32, seed=0):
    """Return images and targets of one pass, without what fills up its last batch."""
    drawn = [task.draw(seed, index, batch) for index in range(task.passes(batch))]
    return tuple(np.concatenate([part[which][part.mask] for part in drawn]) for which in (0, 1))


def labels_of(images):
    known = {image.tobytes(): label for image, label in zip(DIGITS.images, DIGITS.labels, strict=True)}
    return np.array([known[np.ascontiguousarray(image).tobytes()] for image in images])


@pytest.mark.parametrize("task", range(5))
def test_a_pass_shows_every_image_of_the_tasks_two_classes_once(task):
    images, _ = one_pass(ContinualTask("digits", normalize=False, task=task))
    expected = DIGITS.images[np.isin(DIGITS.labels, [2 * task, 2 * task + 1])]
    assert sorted(i.tobytes() for i in images) == sorted(i.tobytes() for i in expected)
    again, _ = one_pass(ContinualTask("digits", normalize=False, task=task), seed=1)
    assert (again != images).any()


@pytest.mark.parametrize(
    ("scenario", "targets", "n_outputs"),
    [("task", {6: 6, 7: 7}, 10), ("domain", {6: 0, 7: 1}, 2), ("class", {6: 6, 7: 7}, 10)],
)
def test_targets_by_hand(scenario, targets, n_outputs):
    task = ContinualTask("digits", scenario=scenario, normalize=False, task=3)
    images, found = one_pass(task)
    assert task.action_space == gym.spaces.Discrete(n_outputs)
    np.testing.assert_array_equal(found, [targets[label] for label in labels_of(images)])


def test_three_classes_a_task():
    """Scenario task counts outputs by task, class by the data set's classes: one is never shown."""
    for scenario, n_outputs, first in (
        ("task", 9, [6, 7, 8]),
        ("class", 10, [6, 7, 8]),
        ("domain", 3, [0, 1, 2]),
    ):
        task = ContinualTask("digits", scenario=scenario, classes_per_task=3, tasks=3, task=2)
        assert task.n_tasks == 3 and task.n_outputs == n_outputs
        assert sorted(set(one_pass(task)[1])) == first


def test_a_random_order_of_classes():
    def classes(seed):
        return ContinualTask("digits", order="random", order_seed=seed).classes

    np.testing.assert_array_equal(classes(3), classes(3))
    assert sorted(classes(3).ravel()) == list(range(10))
    assert any((classes(seed) != classes(3)).any() for seed in range(3))
    first, second = classes(3)[1]
    expected = {
        "task": {first: 2, second: 3},
        "domain": {first: 0, second: 1},
        "class": {first: first, second: second},
    }
    for scenario, targets in expected.items():
        options = {"scenario": scenario, "order": "random", "order_seed": 3, "task": 1}
        images, found = one_pass(ContinualTask("digits", normalize=False, **options))
        np.testing.assert_array_equal(found, [targets[label] for label in labels_of(images)])
    masks = ContinualTask("digits", scenario="class", order="random", order_seed=3).logits_masks(2)
    assert set(np.flatnonzero(masks[0])) == set(classes(3)[:2].ravel())


def test_which_outputs_compete_by_hand():
    def rows(scenario, seen, **options):
        task = ContinualTask("digits", scenario=scenario, classes_per_task=2, tasks=3, **options)
        return ["".join(map(str, row.astype(int))) for row in task.logits_masks(seen)]

    for seen in range(4):
        assert rows("task", seen) == ["110000", "001100", "000011"]
        assert rows("domain", seen) == ["11", "11", "11"]
    assert rows("class", 0) == rows("class", 1) == ["1100000000", "1111000000", "1111110000"]
    assert rows("class", 2) == ["1111000000", "1111000000", "1111110000"]
    assert rows("class", 3) == ["1111110000"] * 3


def permuted(task=0, **options):
    options = {"permuted": True, "tasks": 3, "task": task, "normalize": False, "shuffle": False, **options}
    return ContinualTask("digits", **options)


def test_permuted_pixels():
    """One permutation a task, the first has none; it is the same for all images and in both splits."""
    plain, labels = one_pass(permuted())
    np.testing.assert_array_equal(plain, DIGITS.images)
    np.testing.assert_array_equal(labels, DIGITS.labels)
    seen = []
    for task in (1, 2):
        images, labels = one_pass(permuted(task))
        np.testing.assert_array_equal(labels, DIGITS.labels)
        flat, moved = plain.reshape(len(plain), -1), images.reshape(len(plain), -1)
        # where each pixel went, found from the images themselves: columns are told apart by all their values
        where = {column.tobytes(): place for place, column in enumerate(flat.T)}
        pixels = [where[column.tobytes()] for column in moved.T if column.any()]
        assert len(pixels) > 50 and (np.array(pixels) != np.sort(pixels)).any()
        np.testing.assert_array_equal(np.sort(moved, 1), np.sort(flat, 1))
        order = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(task,))).permutation(64)
        np.testing.assert_array_equal(moved, flat[:, order])
        test_images = load_dataset("digits", "test").images
        shown, _ = one_pass(permuted(task, split="test"))
        np.testing.assert_array_equal(
            shown.reshape(len(shown), -1), test_images.reshape(len(shown), -1)[:, order]
        )
        seen.append(order)
    assert (seen[0] != seen[1]).any()
    assert (one_pass(permuted(1, order_seed=1))[0] != one_pass(permuted(1))[0]).any()


@pytest.mark.parametrize(
    ("scenario", "n_outputs", "first"), [("task", 30, 20), ("domain", 10, 0), ("class", 30, 20)]
)
def test_permuted_targets(scenario, n_outputs, first):
    task = permuted(2, scenario=scenario)
    assert task.n_outputs == n_outputs
    np.testing.assert_array_equal(one_pass(task)[1], first + DIGITS.labels)
    seen = task.logits_masks(3)[0].sum()
    assert seen == {"task": 10, "domain": 10, "class": 30}[scenario]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 6}, "tasks=6 with classes_per_task=2 need 12 classes, and there are 10"),
        ({"tasks": -1}, "tasks=-1 must be >= 0"),
        ({"classes_per_task": 11}, "classes_per_task=11 must be <= 10"),
        ({"classes_per_task": 3}, "does not divide 10 classes; give tasks, at most 3"),
        ({"classes_per_task": -2}, "classes_per_task=-2"),
        ({"scenario": "tasks"}, "unknown scenario 'tasks'; did you mean 'task'"),
        ({"order": "shuffled"}, "unknown order 'shuffled'"),
        ({"order_seed": -1}, "order_seed=-1"),
        ({"task": 5}, "task=5 must be in"),
        ({"permuted": True, "order": "random"}, "another order_seed"),
        ({"permuted": True, "classes_per_task": 2}, "every task has all 10"),
        ({"samples": 1}, "task 0 has no image of the classes"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(EnvError, match=message):
        make_tasks("neurocoder/SplitDigits-v0", 2, options)


def test_only_the_task_may_change():
    task = ContinualTask("digits")
    assert task.with_options(task=2).task == 2 and task.task == 0
    for name, value in (("scenario", "class"), ("task", 9)):
        with pytest.raises(EnvError, match=name):
            task.with_options(**{name: value})


def test_a_batch_goes_to_another_task():
    envs = make_tasks("neurocoder/SplitDigits-v0", 16, {"scenario": "class"})
    observation, info = envs.reset(seed=4)
    assert info["task"].tolist() == [0] * 16 and info["task"].dtype == np.int64
    first = observation.copy()
    envs.set_task(3)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros(16, np.int64))
    observation, info = envs.reset()
    assert info["task"].tolist() == [3] * 16 and set(info["target"]) == {6, 7}
    _, reward, *_, info = envs.step(info["target"])
    assert reward.tolist() == [1] * 16 and info["task"].tolist() == [3] * 16
    envs.set_task(0)
    np.testing.assert_array_equal(envs.reset()[0], first)
    with pytest.raises(EnvError, match="task=7"):
        envs.set_task(7)
    assert envs.task.task == 0


def test_one_environment_goes_to_another_task():
    env = gym.make("neurocoder/SplitDigits-v0", scenario="class")
    _, info = env.reset(seed=1)
    assert info["task"] == 0
    assert isinstance(env.unwrapped, ContinualEnv)
    env.unwrapped.set_task(2)
    with pytest.raises(gym.error.ResetNeeded):
        env.unwrapped.step(0)
    _, info = env.reset()
    for _ in range(20):
        assert info["task"] == 2 and info["target"] in (4, 5)
        _, reward, _, _, info = env.step(info["target"])
        assert reward == 1


OFFLINE = ["SplitDigits"]
WITH_DATA = ["SplitMNIST", "PermutedMNIST", "SplitCIFAR10"]
IDS = [*OFFLINE, *(pytest.param(name, marks=pytest.mark.data) for name in WITH_DATA)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["SplitMNIST", "PermutedMNIST", "SplitCIFAR10", "SplitCIFAR100"])
def test_ids_of_images_pass_both_checkers_with_a_few_of_them(name, few_images):
    for scenario in ("task", "domain", "class"):
        test_ids_pass_both_checkers(name, scenario)
    test_make_vec_is_native_and_shows_every_task(name)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("name", IDS)
@pytest.mark.filterwarnings("ignore")  # advice: images are best uint8, boxes symmetric
def test_ids_pass_both_checkers(name, scenario):
    env = gym.make(f"neurocoder/{name}-v0", scenario=scenario)
    check_env(env.unwrapped)
    sb3_check_env(env)


@pytest.mark.parametrize("name", IDS)
def test_make_vec_is_native_and_shows_every_task(name):
    envs = gym.make_vec(f"neurocoder/{name}-v0", num_envs=8)
    assert type(envs.unwrapped) is ContinualVectorEnv
    for task in range(envs.unwrapped.task.n_tasks):
        envs.unwrapped.set_task(task)
        observation, info = envs.reset(seed=0)
        for _ in range(3):
            assert envs.observation_space.contains(observation)
            assert envs.action_space.contains(info["target"]) and (info["task"] == task).all()
            observation, reward, *_, info = envs.step(envs.action_space.sample())
            assert reward.shape == (8,) and np.isfinite(reward).all()
    envs.close()


def test_registered_ids_have_the_tasks_that_they_promise():
    for name, options in (("SplitCIFAR100", {"classes_per_task": 5}), ("PermutedMNIST", {"permuted": True})):
        assert gym.spec(f"neurocoder/{name}-v0").kwargs.items() >= options.items()


@pytest.mark.data
def test_padded_mnist_is_normalised_as_in_the_protocol():
    """Mean 0.1000 and deviation 0.2752 are those of the padded training images."""
    raw = load_dataset("mnist", "train").images
    values = np.bincount(raw.ravel(), minlength=256).astype(float)
    values[0] += len(raw) * (32 * 32 - 28 * 28)
    share, level = values / values.sum(), np.arange(256) / 255
    mean = (share * level).sum()
    deviation = np.sqrt((share * (level - mean) ** 2).sum())
    assert mean == pytest.approx(0.1000, abs=1e-4) and deviation == pytest.approx(0.2752, abs=2e-4)
    envs = make_tasks("neurocoder/SplitMNIST-v0", 4)
    observation, _ = envs.reset(seed=0)
    assert observation.shape == (4, 1, 32, 32)
    np.testing.assert_allclose(observation[:, 0, 0], -0.1 / 0.2752, rtol=1e-5)
    assert envs.observation_space.contains(observation)
