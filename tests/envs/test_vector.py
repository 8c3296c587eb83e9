"""Batches of any Gymnasium environment: returns in closed form, observations that a policy can encode."""

from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from neurocoder.envs import EnvError, make_vec
from neurocoder.envs.vector import MAX_FLAT_SIZE, ChannelsFirst
from neurocoder.runs.cli import main


class Counter(gym.Env):
    """Observation [t, action]; reward 2t + action at step t = 1, 2, …; terminates after `end` steps."""

    observation_space = spaces.Box(-1, 1000, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, end: int = 3, render_mode: str | None = None) -> None:
        self.end = end

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.array([0, -1], np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        observation = np.array([self.t, action], np.float32)
        return observation, 2.0 * self.t + float(action), self.t >= self.end, False, {}


class Shows(gym.Env):
    """An environment that shows `value` of `space` for ever."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space, value: Any, render_mode: str | None = None) -> None:
        self.observation_space, self.value = space, value

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return deepcopy(self.value), {}

    def step(self, action: Any) -> Any:
        return deepcopy(self.value), 0.0, False, False, {}


def broken() -> gym.Env:
    raise RuntimeError("no licence found\nin this process")


@pytest.fixture
def register() -> Iterator[Any]:
    """Register environments for one test: register(name, entry_point, **options) -> id."""
    made = []

    def add(name: str, entry_point: Any, **options: Any) -> str:
        env_id = f"tests/{name}-v0"
        gym.register(env_id, entry_point=entry_point, **options)
        made.append(env_id)
        return env_id

    yield add
    for env_id in made:
        del gym.registry[env_id]


# ---------------------------------------------------------------------------------------- episodes


def test_returns_and_lengths_of_terminated_episodes_are_known(register: Any) -> None:
    env_id = register("Counter", Counter)
    with closing(make_vec(env_id, 2)) as envs:
        envs.reset(seed=0)
        for t in range(1, 8):
            observation, reward, terminated, truncated, info = envs.step(np.array([0, 1]))
            k = (t - 1) % 3 + 1  # step within the episode
            np.testing.assert_array_equal(reward, [2 * k, 2 * k + 1])
            np.testing.assert_array_equal(info["episode"]["r"], [k * (k + 1), k * (k + 1) + k])
            np.testing.assert_array_equal(info["episode"]["l"], [k, k])
            np.testing.assert_array_equal(info["_episode"], [k == 3] * 2)
            np.testing.assert_array_equal(terminated, [k == 3] * 2)
            assert not truncated.any()
            if k == 3:
                np.testing.assert_array_equal(observation, [[0, -1], [0, -1]])  # of the next episode
                np.testing.assert_array_equal(info["final_obs"], [[3, 0], [3, 1]])
            else:
                assert "final_obs" not in info


def test_a_time_limit_truncates_and_does_not_terminate(register: Any) -> None:
    env_id = register("Endless", Counter, kwargs={"end": 10**9}, max_episode_steps=4)
    with closing(make_vec(env_id, 1)) as envs:
        envs.reset(seed=0)
        for t in range(1, 9):
            _, _, terminated, truncated, info = envs.step(np.array([2]))
            assert not terminated.any() and truncated[0] == info["_episode"][0] == (t % 4 == 0)
            if truncated[0]:
                assert info["episode"] == {"r": [20 + 8], "l": [4]}
                np.testing.assert_array_equal(info["final_obs"], [[4, 2]])
                np.testing.assert_array_equal(info["_final_obs"], [True])


def test_final_observations_are_one_array_valid_where_marked() -> None:
    with closing(make_vec("CartPole-v1", 4)) as envs:
        envs.reset(seed=0)
        seen = 0
        for _ in range(60):
            observation, _, terminated, truncated, info = envs.step(np.array([0, 1, 0, 1]))
            if "final_obs" not in info:
                assert not (terminated | truncated).any()
                continue
            seen += 1
            final, valid = info["final_obs"], info["_final_obs"]
            assert final.dtype == np.float32 and final.shape == observation.shape
            np.testing.assert_array_equal(valid, terminated | truncated)
            # CartPole terminates outside of ±2.4 and ±12 degrees, and starts within ±0.05.
            assert ((np.abs(final[valid, 0]) > 2.4) | (np.abs(final[valid, 2]) > 0.2094)).all()
            assert (np.abs(observation[valid]) <= 0.05).all()
            assert not final[~valid].any()
        assert seen >= 4


def test_a_reset_begins_new_returns(register: Any) -> None:
    with closing(make_vec(register("Counter", Counter), 1)) as envs:
        envs.reset(seed=0)
        envs.step(np.array([2]))
        envs.reset(seed=0)
        *_, info = envs.step(np.array([0]))
    assert info["episode"] == {"r": [2], "l": [1]}


def test_numbers_kept_from_one_step_do_not_change_at_the_next(register: Any) -> None:
    with closing(make_vec(register("Counter", Counter), 1)) as envs:
        envs.reset(seed=0)
        kept = [envs.step(np.array([0]))[-1] for _ in range(4)]
    assert [float(info["episode"]["r"][0]) for info in kept] == [2, 6, 12, 2]
    assert [bool(info["_episode"][0]) for info in kept] == [False, False, True, False]


# ------------------------------------------------------------------------------------ observations

VECTOR = spaces.Box(-1, 1, (2,), np.float32)
HALF = np.array([0.5, -0.5], np.float32)
FLATTENED = {
    "Discrete": (spaces.Discrete(4), 2, [0, 0, 1, 0]),
    "DiscreteFromThree": (spaces.Discrete(3, start=3), 5, [0, 0, 1]),
    "MultiDiscrete": (spaces.MultiDiscrete([2, 3]), np.array([1, 2]), [0, 1, 0, 0, 1]),
    "MultiBinary": (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
    "Dict": (
        spaces.Dict({"a": VECTOR, "b": spaces.Discrete(3)}),
        {"a": HALF, "b": 1},
        [0.5, -0.5, 0, 1, 0],
    ),
    "Tuple": (spaces.Tuple((spaces.Discrete(2), VECTOR)), (1, HALF), [0, 1, 0.5, -0.5]),
}


@pytest.mark.parametrize("name", FLATTENED)
def test_other_spaces_are_flattened_with_discrete_parts_one_hot(name: str, register: Any) -> None:
    space, value, expected = FLATTENED[name]
    env_id = register(name, Shows, kwargs={"space": space, "value": value})
    with closing(make_vec(env_id, 2)) as envs:
        assert isinstance(envs.single_observation_space, spaces.Box)
        observation, _ = envs.reset(seed=0)
        np.testing.assert_array_equal(observation, [expected] * 2)
        np.testing.assert_array_equal(envs.step(np.array([0, 1]))[0], [expected] * 2)
        assert observation in envs.observation_space


@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_channels_first(channels: int, register: Any) -> None:
    space = spaces.Box(0, 255, (36, 40, channels), np.uint8)
    image = np.random.default_rng(0).integers(0, 256, space.shape, dtype=np.uint8)
    env_id = register("Image", Shows, kwargs={"space": space, "value": image})
    with closing(make_vec(env_id, 1)) as envs:
        assert envs.single_observation_space == spaces.Box(0, 255, (channels, 36, 40), np.uint8)
        observation, _ = envs.reset(seed=0)
    assert all(observation[0, c, 7, 11] == image[7, 11, c] for c in range(channels))
    np.testing.assert_array_equal(observation[0].transpose(1, 2, 0), image)


def test_bounds_move_with_their_channel() -> None:
    low = np.zeros((8, 8, 3), np.float32)
    high = np.broadcast_to(np.array([1, 2, 3], np.float32), low.shape).copy()
    env = ChannelsFirst(Shows(spaces.Box(low, high), low))
    assert isinstance(env.observation_space, spaces.Box)
    np.testing.assert_array_equal(env.observation_space.high[:, 0, 0], [1, 2, 3])


@pytest.mark.parametrize("shape", [(3, 36, 40), (5,), (2, 3)])
def test_other_boxes_stay_as_they_are(shape: tuple[int, ...], register: Any) -> None:
    space = spaces.Box(0, 255, shape, np.float32)
    env_id = register("Box", Shows, kwargs={"space": space, "value": np.ones(shape, np.float32)})
    with closing(make_vec(env_id, 1)) as envs:
        assert envs.single_observation_space == space


def huge(size: int) -> spaces.Dict:
    return spaces.Dict({"pixels": spaces.Box(0, 1, (size - 2,), np.float32), "goal": spaces.Discrete(2)})


def test_a_dictionary_up_to_the_limit_is_flattened(register: Any) -> None:
    space = huge(MAX_FLAT_SIZE)
    value = {"pixels": np.zeros(MAX_FLAT_SIZE - 2, np.float32), "goal": 0}
    with closing(make_vec(register("Large", Shows, kwargs={"space": space, "value": value}), 1)) as envs:
        assert envs.single_observation_space.shape == (MAX_FLAT_SIZE,)


def test_a_dictionary_that_is_no_small_vector_is_refused(register: Any) -> None:
    env_id = register("Huge", Shows, kwargs={"space": huge(MAX_FLAT_SIZE + 1), "value": None})
    with pytest.raises(
        EnvError, match=f"{MAX_FLAT_SIZE + 1} > {MAX_FLAT_SIZE} numbers; wrap the environment"
    ):
        make_vec(env_id, 1)


def test_a_space_without_a_size_is_refused(register: Any) -> None:
    env_id = register("Sequence", Shows, kwargs={"space": spaces.Sequence(VECTOR), "value": ()})
    with pytest.raises(EnvError, match="no fixed size; wrap the environment"):
        make_vec(env_id, 1)


# ------------------------------------------------------------------------------------------ errors


def test_what_a_constructor_raises_becomes_an_error_that_names_the_environment(register: Any) -> None:
    with pytest.raises(EnvError, match=r"'tests/Broken-v0' cannot be made: RuntimeError: no licence found"):
        make_vec(register("Broken", broken), 1)


def test_the_command_line_reports_a_broken_constructor_in_one_line(
    register: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    env_id = register("Broken", broken)
    assert main(["train", env_id, "--logs", str(tmp_path / "logs")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "logs").exists()


def test_a_game_without_a_protocol_is_played_under_the_default_one() -> None:
    with closing(make_vec("ALE/Pong-v5", 1)) as envs:
        assert envs.unwrapped.protocol.name == "machado2018"


def test_a_partial_reset_forgets_the_returns_of_its_rows_only():
    envs = make_vec("CartPole-v1", 2)
    envs.reset(seed=[1, 2])
    for _ in range(3):
        envs.step(np.array([0, 1]))
    envs.reset(options={"reset_mask": np.array([True, False])})
    info = envs.step(np.array([0, 1]))[-1]
    assert info["episode"]["r"].tolist() == [1, 4] and info["episode"]["l"].tolist() == [1, 4]
