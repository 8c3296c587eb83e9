"""Supervised tasks as environments: targets, masks and rewards belong together, in single and vector form."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import neurocoder
from neurocoder.envs import EnvError, Place, Task, TaskVectorEnv, make_tasks
from neurocoder.envs.tasks import Drawn, Stream, TaskEnv, score

assert neurocoder.__version__  # its import registers the ids


class Echo(Task):
    """Sequences of 2 + index % 3 steps: the target is the input; the first step is not scored."""

    observation_space = gym.spaces.MultiBinary(3)  # type: ignore[assignment]
    action_space = gym.spaces.MultiBinary(3)

    def draw(self, seed, index, batch):
        length = 2 + index % 3
        bits = np.random.default_rng([seed, index]).integers(0, 2, (length, batch, 3), dtype=np.int8)
        return Drawn(bits, bits, np.arange(length)[:, None].repeat(batch, 1) > 0)


class Counting(Task):
    """An endless stream of numbers, four in a draw; the target is the number modulo 5."""

    observation_space = gym.spaces.Box(0, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(5)
    endless = True

    def draw(self, seed, index, batch):
        numbers = (seed % 1000 + 4 * index + np.arange(4))[:, None] * np.ones((1, batch), np.int64)
        return Drawn(numbers[..., None].astype(np.float32), numbers % 5)


@pytest.mark.parametrize(
    ("space", "action", "target", "expected"),
    [
        (gym.spaces.Discrete(4), [1, 2, 3], [1, 0, 3], [1, 0, 1]),
        (gym.spaces.MultiBinary(3), [[0, 1, 1], [1, 1, 1]], [[0, 1, 1], [0, 0, 1]], [0, -2]),
        (gym.spaces.Box(-9, 9, (2,)), [[1.0, 3.0], [0.0, 0.0]], [[1.0, 1.0], [0.5, 0.0]], [-2.0, -0.125]),
    ],
)
def test_rewards_by_hand(space, action, target, expected):
    np.testing.assert_allclose(score(np.array(action), np.array(target), None, space), expected)
    mask = np.arange(len(expected)) > 0
    np.testing.assert_allclose(
        score(np.array(action), np.array(target), mask, space), np.where(mask, expected, 0)
    )


def test_reward_is_for_the_observation_before():
    envs = TaskVectorEnv(Counting(), 2)
    observation, info = envs.reset(seed=3)
    for _ in range(30):
        right, wrong = info["target"][0], (info["target"][1] + 1) % 5
        assert right == observation[0, 0] % 5
        observation, reward, *_, info = envs.step(np.array([right, wrong]))
        assert reward.tolist() == [1, 0]


def test_a_stream_is_cut_into_episodes_and_loses_nothing():
    envs = TaskVectorEnv(Counting(), 2, episode_length=6)
    observation, _ = envs.reset(seed=0)
    seen, cut = [observation[0, 0]], []
    for step in range(1, 20):
        observation, _, terminated, truncated, info = envs.step(np.zeros(2, np.int64))
        seen.append(observation[0, 0])
        assert not terminated.any()
        if truncated.all():
            cut.append(step)
            np.testing.assert_array_equal(info["final_obs"], observation)
    assert cut == [6, 12, 18]
    assert np.diff(seen).tolist() == [1] * 19


def test_a_sequence_is_an_episode():
    envs = TaskVectorEnv(Echo(), 4)
    observation, info = envs.reset(seed=1)
    lengths, length = [], 0
    for _ in range(40):
        np.testing.assert_array_equal(observation, info["target"])
        assert info["mask"].all() == (length > 0)
        observation, reward, terminated, truncated, info = envs.step(1 - info["target"])
        assert (reward == (-3 if length else 0)).all()
        length += 1
        assert not truncated.any() and (terminated.all() or not terminated.any())
        if terminated.all():
            assert not info["final_obs"].any() and info["_final_obs"].all()
            lengths.append(length)
            length = 0
    assert lengths[:6] == [2, 3, 4, 2, 3, 4]


def test_the_single_environment_shows_what_a_batch_of_one_shows():
    env, envs = TaskEnv(Echo()), TaskVectorEnv(Echo(), 1)
    observation, info = env.reset(seed=8)
    place = env._stream.place
    batch, batch_info = envs.go_to(place)
    for _ in range(20):
        np.testing.assert_array_equal(observation, batch[0])
        np.testing.assert_array_equal(info["target"], batch_info["target"][0])
        action = np.array([1, 0, 1])
        observation, reward, terminated, _, info = env.step(action)
        batch, rewards, ends, _, batch_info = envs.step(action[None])
        assert reward == rewards[0] and isinstance(reward, float) and terminated == ends[0]
        if terminated:
            assert not observation.any() and not info["mask"]
            with pytest.raises(gym.error.ResetNeeded):
                env.step(action)
            observation, info = env.reset()


def test_a_place_brings_the_stream_back_anywhere():
    envs = TaskVectorEnv(Echo(), 3)
    envs.reset(seed=5)
    for _ in range(7):
        envs.step(np.zeros((3, 3), np.int8))
    place = Place(*list(envs.stream.place))
    expected = [envs.step(np.zeros((3, 3), np.int8))[0] for _ in range(9)]
    other = TaskVectorEnv(Echo(), 3)
    other.go_to(place)
    for observation in expected:
        np.testing.assert_array_equal(other.step(np.zeros((3, 3), np.int8))[0], observation)


def test_seeds_decide_everything():
    def first(seed):
        return TaskVectorEnv(Echo(), 16).reset(seed=seed)[0]

    np.testing.assert_array_equal(first(7), first(7))
    np.testing.assert_array_equal(first([1, 2]), first([1, 2]))
    assert (first(7) != first(8)).any()
    unseeded = TaskVectorEnv(Echo(), 16)
    assert (unseeded.reset()[0] != TaskVectorEnv(Echo(), 16).reset()[0]).any()
    before = unseeded.step(np.zeros((16, 3), np.int8)) and unseeded.stream.place
    unseeded.reset()
    assert unseeded.stream.place == before._replace(draw=before.draw + 1, step=0, steps=0)


def test_what_a_batch_cannot_do_is_refused():
    envs = TaskVectorEnv(Echo(), 2)
    with pytest.raises(EnvError, match="begin together"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros((2, 3), np.int8))
    with pytest.raises(EnvError, match="episode_length=0"):
        Stream(Echo(), 1, 0)
    with pytest.raises(EnvError, match="no supervised task"):
        make_tasks("CartPole-v1", 2)
    with pytest.raises(EnvError, match=r"cannot be made: TypeError: .*wings"):
        make_tasks("neurocoder/Polynomial-v0", 2, {"wings": 2})
    with pytest.raises(EnvError, match="did you mean"):
        make_tasks("neurocoder/Polynomial-v1", 2)


OFFLINE = [
    "Digits",
    "Polynomial",
    "Copy",
    "RepeatCopy",
    "AssociativeRecall",
    "DynamicNGrams",
    "PrioritySort",
]
WITH_DATA = ["MNIST", "CIFAR10"]
IDS = [*OFFLINE, *(pytest.param(name, marks=pytest.mark.data) for name in WITH_DATA)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "CIFAR100"])
def test_ids_of_images_pass_both_checkers_with_a_few_of_them(name, few_images):
    test_ids_pass_both_checkers(name)
    test_make_vec_is_native_and_has_targets_at_every_step(name)


@pytest.mark.parametrize("name", IDS)
@pytest.mark.filterwarnings("ignore")  # advice: images are best uint8, boxes symmetric
def test_ids_pass_both_checkers(name):
    env = gym.make(f"neurocoder/{name}-v0")
    check_env(env.unwrapped)
    sb3_check_env(env)


@pytest.mark.parametrize("name", IDS)
def test_make_vec_is_native_and_has_targets_at_every_step(name):
    envs = gym.make_vec(f"neurocoder/{name}-v0", num_envs=8)
    assert type(envs.unwrapped) is TaskVectorEnv
    observation, info = envs.reset(seed=0)
    for _ in range(130):
        assert envs.observation_space.contains(observation)
        assert envs.action_space.contains(info["target"].astype(envs.action_space.dtype))
        observation, reward, _, _, info = envs.step(envs.action_space.sample())
        assert reward.shape == (8,) and np.isfinite(reward).all()
    envs.close()
