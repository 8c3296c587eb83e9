"""Atari under a protocol, against the real emulator: each trap of the fast path has a test that would show it."""

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from dataclasses import FrozenInstanceError, asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from neurocoder.envs import (
    ENGINES,
    PROTOCOLS,
    AtariEnvs,
    AtariProtocol,
    EnvError,
    EpisodeRecorder,
    env_ids,
    env_spec,
    get_protocol,
    is_atari,
    make_atari,
    make_vec,
)
from neurocoder.envs.atari import LifeLossEnds, RunningNormalization
from neurocoder.errors import ConfigError

PONG, BREAKOUT, INVADERS = "ALE/Pong-v5", "ALE/Breakout-v5", "ALE/SpaceInvaders-v5"
EXACT = AtariProtocol(sticky=0.0)
LIVES = replace(EXACT, life_loss_ends_episode=True)


def play(
    env_id: str, protocol: AtariProtocol, steps: int, num_envs: int = 1, seed: int | list[int] = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return observations [steps + 1, envs, ...] and rewards [steps, envs] under fixed actions."""
    rng = np.random.default_rng(5)
    with closing(AtariEnvs(env_id, protocol, num_envs)) as envs:
        observations = [envs.reset(seed=seed)[0].copy()]
        rewards = []
        for _ in range(steps):
            actions = np.full(num_envs, rng.integers(envs.single_action_space.n))
            observation, reward, *_ = envs.step(actions)
            observations.append(observation.copy())
            rewards.append(reward)
    return np.stack(observations), np.stack(rewards)


def walk(envs: gym.vector.VectorEnv, actions: Any, limit: int = 2000) -> Iterator[tuple[Any, ...]]:
    """Step `envs` with the cycled `actions`; yield (previous observation, *what step returned)."""
    previous = envs.reset(seed=0)[0].copy()
    for k in range(limit):
        result = envs.step(np.full(envs.num_envs, actions[k % len(actions)]))
        yield previous, *result
        previous = result[0].copy()


# ---------------------------------------------------------------------------------------- protocol

TABLE = {  # sticky, no-ops, life loss ends, size, stack, normalisation
    "machado2018": (0.25, 0, False, 84, 4, "scale"),
    "dqn2015": (0.0, 30, True, 84, 4, "scale"),
    "neurocoder2020": (0.0, 30, True, 80, 1, "running"),
}


def test_there_are_exactly_the_three_presets() -> None:
    assert PROTOCOLS.keys() == TABLE.keys()


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_has_the_fields_of_the_written_table(name: str) -> None:
    p = get_protocol(name)
    assert p.name == name
    assert TABLE[name] == (
        p.sticky,
        p.noop_max,
        p.life_loss_ends_episode,
        p.screen_size,
        p.stack,
        p.normalisation,
    )
    assert (p.frame_skip, p.max_frames, p.full_action_space) == (4, 108_000, False)


def test_the_default_protocol_is_machado2018() -> None:
    assert AtariProtocol() == PROTOCOLS["machado2018"]


def test_a_mistyped_preset_offers_the_near_one() -> None:
    with pytest.raises(ConfigError, match="'machado208'; did you mean 'machado2018'"):
        get_protocol("machado208")


def test_a_protocol_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        AtariProtocol().sticky = 0.0  # type: ignore[misc]


CHANGES: dict[str, Any] = {
    "sticky": 0.1,
    "frame_skip": 3,
    "noop_max": 7,
    "fire_reset": True,
    "life_loss_ends_episode": True,
    "full_action_space": True,
    "screen_size": 42,
    "stack": 2,
    "normalisation": "running",
    "max_frames": 1000,
}


def test_every_field_but_the_name_is_covered_by_the_hash_test() -> None:
    assert {field.name for field in fields(AtariProtocol)} == CHANGES.keys() | {"name"}


@pytest.mark.parametrize("field", CHANGES)
def test_the_hash_changes_with_the_field(field: str) -> None:
    assert replace(AtariProtocol(), **{field: CHANGES[field]}).hash != AtariProtocol().hash


def test_the_hash_does_not_change_with_the_name() -> None:
    assert AtariProtocol(name="mine").hash == AtariProtocol().hash


@pytest.mark.parametrize("name", TABLE)
def test_the_hash_of_a_preset_is_the_one_stored_with_old_scores(name: str) -> None:
    golden = {"machado2018": "0e7011de3709", "dqn2015": "f5b2dffcbe09", "neurocoder2020": "cc7844a7bf0f"}
    assert PROTOCOLS[name].hash == golden[name]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sticky", 1.0),
        ("sticky", -0.1),
        ("sticky", float("nan")),
        ("frame_skip", 0),
        ("screen_size", 0),
        ("stack", 0),
        ("max_frames", 0),
        ("noop_max", -1),
        ("normalisation", "none"),
    ],
)
def test_a_protocol_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"protocol\.{field}="):
        AtariProtocol(**{field: value})


@pytest.mark.parametrize("name", TABLE)
def test_a_protocol_describes_itself_with_its_hash_in_one_line(name: str) -> None:
    text = PROTOCOLS[name].describe()
    assert PROTOCOLS[name].hash in text and "\n" not in text


# ------------------------------------------------------------------------------ rewards and actions


def test_rewards_are_raw_scores_not_signs() -> None:
    _, rewards = play(INVADERS, EXACT, 200)
    assert rewards.dtype == np.float64
    assert set(np.unique(rewards)) <= {0, *range(5, 31, 5)}  # what the invaders of each row are worth
    assert rewards.max() >= 5


def test_full_action_space_offers_all_18_actions() -> None:
    full = replace(EXACT, full_action_space=True)
    with closing(AtariEnvs(PONG, full, 1)) as envs, closing(make_atari(PONG, full)) as single:
        assert envs.single_action_space == single.action_space == gym.spaces.Discrete(18)


def test_the_minimal_action_set_is_the_games_own() -> None:
    with closing(AtariEnvs(PONG, EXACT, 1)) as envs, closing(make_atari(PONG, EXACT)) as single:
        assert envs.single_action_space == single.action_space == gym.spaces.Discrete(6)


# -------------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_equal_seeds_give_equal_frames(sticky: float) -> None:
    protocol = AtariProtocol(sticky=sticky)
    np.testing.assert_array_equal(play(PONG, protocol, 60)[0], play(PONG, protocol, 60)[0])


def test_the_default_sticky_actions_reach_the_emulator() -> None:
    assert (play(PONG, AtariProtocol(), 60)[0] != play(PONG, EXACT, 60)[0]).any()


def test_two_seeds_give_two_games_with_sticky_actions() -> None:
    frames, _ = play(PONG, AtariProtocol(), 60, num_envs=2, seed=[1, 2])
    assert (frames[:, 0] != frames[:, 1]).any()


def test_one_integer_seeds_the_games_with_consecutive_seeds() -> None:
    a, _ = play(PONG, AtariProtocol(), 40, num_envs=2, seed=7)
    b, _ = play(PONG, AtariProtocol(), 40, num_envs=2, seed=[7, 8])
    np.testing.assert_array_equal(a, b)


def test_no_op_starts_differ_by_seed_and_stay_below_the_limit() -> None:
    with closing(AtariEnvs(PONG, replace(EXACT, noop_max=30), 4)) as envs:
        _, info = envs.reset(seed=0)
    assert len(set(info["episode_frame_number"])) > 1
    assert (info["episode_frame_number"] < 30).all()


# ---------------------------------------------------------------------------------------- one stack


def test_the_first_stack_is_padded_with_zeros() -> None:
    with closing(AtariEnvs(PONG, EXACT, 1)) as envs:
        observation, _ = envs.reset(seed=0)
    assert not observation[0, :3].any() and observation[0, 3].any()


def test_every_observation_is_the_last_one_shifted_by_a_frame() -> None:
    frames, _ = play(BREAKOUT, EXACT, 20)
    assert frames.shape == (21, 1, 4, 84, 84) and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames[1:, :, :3], frames[:-1, :, 1:])


@pytest.mark.parametrize("name", TABLE)
def test_observations_lie_in_the_declared_space(name: str) -> None:
    with closing(AtariEnvs(PONG, PROTOCOLS[name], 2)) as envs:
        observation, _ = envs.reset(seed=0)
        assert observation in envs.observation_space
        observation, *_ = envs.step(np.zeros(2, dtype=np.int64))
        assert observation in envs.observation_space
        assert observation.shape == (2, *envs.single_observation_space.shape)


# ----------------------------------------------------------------------------------------- one life


def breakout_game() -> list[tuple[Any, ...]]:
    """Play Breakout, lives ending episodes, until the game is over: one tuple per step."""
    steps = []
    with closing(make_vec(BREAKOUT, 1, protocol=LIVES)) as envs:
        for previous, observation, reward, terminated, truncated, info in walk(envs, (1, 2)):
            steps.append((previous, observation.copy(), reward[0], terminated[0], truncated[0], info))
            if info["game_over"][0]:
                return steps
    raise AssertionError("the game did not end")


def test_a_lost_life_terminates_but_the_game_goes_on() -> None:
    game = breakout_game()
    lives_lost, end = game[:-1], game[-1]
    terminated = [step for step in lives_lost if step[3]]
    assert [int(info["lives"][0]) for *_, info in terminated] == [4, 3, 2, 1]
    for previous, observation, _, _, truncated, info in terminated:
        assert not truncated and not info["game_over"][0] and not info["_episode"][0]
        assert "final_obs" not in info  # what ale-py leaves there is not a frame of this game
        np.testing.assert_array_equal(observation[0, :3], previous[0, 1:])
    previous, observation, _, is_terminated, _, info = end
    assert is_terminated and info["_episode"][0] and info["lives"][0] == 5
    assert not observation[0, :3].any()  # the next game's first stack
    np.testing.assert_array_equal(info["final_obs"][0, :3], previous[0, 1:])


def test_the_episodes_return_is_the_raw_sum_over_all_lives() -> None:
    game = breakout_game()
    rewards = [step[2] for step in game]
    lives_with_points = sum(any(rewards[a:b]) for a, b in life_spans(game))
    assert lives_with_points >= 2, "the game must score in several lives for this test to see anything"
    assert game[-1][-1]["episode"] == {"r": [sum(rewards)], "l": [len(game)]}


def life_spans(game: list[tuple[Any, ...]]) -> Iterator[tuple[int, int]]:
    start = 0
    for end, step in enumerate(game, 1):
        if step[3]:
            yield start, end
            start = end


def test_without_the_rule_a_lost_life_terminates_nothing() -> None:
    with closing(make_vec(BREAKOUT, 1, protocol=EXACT)) as envs:
        terminations = []
        for _, _, _, terminated, _, info in walk(envs, (1, 2)):
            if terminated[0]:
                terminations.append(bool(info["game_over"][0]))
                break
            lives = int(info["lives"][0])
    assert terminations == [True] and lives == 1


# --------------------------------------------------------------------------------------- truncation


@pytest.mark.parametrize("protocol", [EXACT, LIVES], ids=["games", "lives"])
def test_the_frame_cap_truncates_and_does_not_terminate(protocol: AtariProtocol) -> None:
    with closing(make_vec(BREAKOUT, 2, protocol=replace(protocol, max_frames=40))) as envs:
        steps = list(walk(envs, (0,), 20))
    ended = [k for k, (*_, truncated, _) in enumerate(steps, 1) if truncated.any()]
    assert ended == [10, 20]  # 40 emulator frames are 10 agent steps
    for previous, observation, _, terminated, truncated, info in (steps[9], steps[19]):
        assert truncated.all() and not terminated.any()
        assert info["game_over"].all() and info["_final_obs"].all()
        np.testing.assert_array_equal(info["episode"]["l"], [10, 10])
        np.testing.assert_array_equal(info["final_obs"][:, :3], previous[:, 1:])
        assert not observation[:, :3].any()
    assert not any("final_obs" in step[-1] for step in steps[:9])


def test_final_observations_are_valid_only_where_a_game_ended() -> None:
    """The first of two games ends early, so that its successor loses a life as the other reaches the cap."""

    def steps(max_frames: int, n_steps: int) -> Iterator[tuple[Any, ...]]:
        with closing(make_vec(BREAKOUT, 2, protocol=replace(LIVES, max_frames=max_frames))) as envs:
            envs.reset(seed=0)
            for k in range(n_steps):
                yield envs.step(np.array([(1, 2)[k % 2], 0]))  # the second game is never begun

    lost = [k for k, (_, _, terminated, _, _) in enumerate(steps(10**6, 400), 1) if terminated[0]]
    step = lost[5]  # five lives, and the first of the next game
    *_, (_, _, terminated, truncated, info) = steps(4 * step, step)
    assert terminated.tolist() == [True, False] and truncated.tolist() == [False, True]
    for key in ("game_over", "_episode", "_final_obs"):
        assert info[key].tolist() == [False, True], key


def test_the_recorder_starts_anew_after_each_episode() -> None:
    with closing(make_vec(INVADERS, 1, protocol=replace(EXACT, max_frames=800))) as envs:
        total, checked = 0.0, 0
        for _, _, reward, _, _, info in walk(envs, (1, 3), 420):
            total += reward[0]
            assert info["episode"]["r"][0] == total
            if info["_episode"][0]:
                checked += total > 0
                total = 0.0
    assert checked >= 2


# ------------------------------------------------------------------------------------ shared state


def test_making_our_environment_leaves_the_metadata_of_others_alone() -> None:
    class_before = dict(AtariVectorEnv.metadata)
    other = AtariVectorEnv("pong", 1, autoreset_mode=AutoresetMode.NEXT_STEP)
    try:
        before = dict(other.metadata)
        with closing(AtariEnvs(PONG, EXACT, 1)) as envs:
            assert other.metadata == before
            assert other.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
            assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
            assert envs.native.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    finally:
        other.close()
        AtariVectorEnv.metadata.clear()
        AtariVectorEnv.metadata.update(class_before)


def test_an_environment_made_later_does_not_change_ours() -> None:
    class_before = dict(AtariVectorEnv.metadata)
    with closing(AtariEnvs(PONG, EXACT, 1)) as envs:
        try:
            AtariVectorEnv("pong", 1, autoreset_mode=AutoresetMode.NEXT_STEP).close()
            assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
            assert envs.native.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
        finally:
            AtariVectorEnv.metadata.clear()
            AtariVectorEnv.metadata.update(class_before)


# ---------------------------------------------------------------------------- native against wrappers


@pytest.mark.parametrize("env_id", [PONG, BREAKOUT, INVADERS, "PongNoFrameskip-v4"])
def test_the_native_path_and_the_wrappers_play_the_same_game(env_id: str) -> None:
    rng = np.random.default_rng(1)
    with closing(AtariEnvs(env_id, EXACT, 1)) as envs, closing(make_atari(env_id, EXACT)) as single:
        native, _ = envs.reset(seed=3)
        wrapped, _ = single.reset(seed=3)
        np.testing.assert_array_equal(native[0], wrapped)
        for step in range(1, 121):
            action = int(rng.integers(single.action_space.n))
            native, reward, terminated, truncated, info = envs.step(np.array([action]))
            wrapped, reward_1, terminated_1, truncated_1, info_1 = single.step(action)
            np.testing.assert_array_equal(native[0], wrapped)
            assert (reward[0], terminated[0], truncated[0]) == (reward_1, terminated_1, truncated_1)
            assert info["lives"][0] == info_1["lives"]
            # A skip of four on top of the id's own skip would show here.
            assert info["episode_frame_number"][0] == info_1["episode_frame_number"] == 4 * step


def test_the_skip_and_stickiness_of_an_id_give_way_to_the_protocol() -> None:
    protocol = AtariProtocol()
    np.testing.assert_array_equal(play("PongNoFrameskip-v4", protocol, 40)[0], play(PONG, protocol, 40)[0])


def test_the_single_form_truncates_at_the_same_frame() -> None:
    with closing(make_atari(BREAKOUT, replace(EXACT, max_frames=40))) as env:
        env.reset(seed=0)
        ends = [env.step(0)[2:4] for _ in range(10)]
    assert ends == [(False, False)] * 9 + [(False, True)]


def test_the_single_form_goes_on_after_a_lost_life_and_resets_after_the_game() -> None:
    with closing(make_atari(BREAKOUT, LIVES)) as env:
        assert isinstance(env, LifeLossEnds)
        env.reset(seed=0)
        lives, frames = [], []
        for k in range(2000):
            observation, _, terminated, truncated, info = env.step((1, 2)[k % 2])
            assert not truncated
            if not terminated:
                continue
            lives.append(info["lives"])
            again, info_again = env.reset()
            if info["game_over"]:
                break
            np.testing.assert_array_equal(again, observation)
            frames.append(info_again["episode_frame_number"])
    assert lives == [4, 3, 2, 1, 0]
    assert frames == sorted(frames) and frames[0] > 0  # one game all along
    assert info_again["lives"] == 5 and info_again["episode_frame_number"] == 0


def test_a_seed_makes_the_single_form_start_a_new_game_after_a_lost_life() -> None:
    with closing(make_atari(BREAKOUT, LIVES)) as env:
        env.reset(seed=0)
        while not env.step(1)[2]:
            pass
        assert env.reset(seed=0)[1]["lives"] == 5


@pytest.mark.parametrize("change", [{"normalisation": "running"}, {"fire_reset": True}])
def test_what_the_wrappers_cannot_do_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(EnvError, match="need the native vector environment"):
        make_atari(PONG, replace(EXACT, **change))


@pytest.mark.parametrize("make", [make_atari, lambda env_id, p: AtariEnvs(env_id, p, 1)])
def test_an_environment_that_is_no_game_is_refused(make: Any) -> None:
    with pytest.raises(EnvError, match="'CartPole-v1' is not an Atari game"):
        make("CartPole-v1", EXACT)


def test_a_cap_below_the_no_op_starts_still_ends_games() -> None:
    with closing(make_vec(PONG, 4, protocol=replace(EXACT, noop_max=30, max_frames=4))) as envs:
        for *_, truncated, info in walk(envs, (0,), 30):
            np.testing.assert_array_equal(info["game_over"], truncated)


# ------------------------------------------------------------------------------- one engine, another


@pytest.mark.parametrize(
    ("max_frames", "steps"), [(108_000, 330), (100, 30)], ids=["ends", "cap on a lost life"]
)
def test_both_engines_say_the_same_of_lost_lives_and_of_ended_games(max_frames: int, steps: int) -> None:
    """Without chance in the game; the second of two games plays otherwise, so that rows differ."""
    protocol = replace(LIVES, max_frames=max_frames)
    rng = np.random.default_rng(0)
    with (
        closing(make_vec(BREAKOUT, 2, protocol=protocol)) as native,
        closing(make_vec(BREAKOUT, 2, protocol=protocol, vectorization="sync")) as sync,
    ):
        np.testing.assert_array_equal(native.reset(seed=0)[0], sync.reset(seed=0)[0])
        lost = over = 0
        for k in range(steps):
            actions = np.array([(1, 2)[k % 2], rng.integers(4)])
            *ours, info = native.step(actions)
            *theirs, info_sync = sync.step(actions)
            for a, b in zip(ours, theirs, strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                np.testing.assert_array_equal(a, b)
            assert {"game_over", "episode", "_episode", "lives", "episode_frame_number"} <= info_sync.keys()
            assert ("final_obs" in info) == ("final_obs" in info_sync) == ("_final_obs" in info_sync)
            for key in ("game_over", "_episode", "lives", "episode_frame_number", "episode", "_final_obs"):
                np.testing.assert_equal(info_sync.get(key), info.get(key), err_msg=key)
            if "final_obs" in info:
                rows = info["_final_obs"]
                np.testing.assert_array_equal(info["final_obs"][rows], info_sync["final_obs"][rows])
            over += int(info["game_over"].sum())
            lost += int((ours[2] & ~info["game_over"]).sum())
    assert over >= 1 and (lost >= 8 or max_frames == 100)


def test_scores_of_another_engine_have_another_hash() -> None:
    p = AtariProtocol()
    assert p.hash_on(ENGINES["native"]) == p.hash != p.hash_on(ENGINES["sync"])
    assert p.hash_on(ENGINES["sync"]) in p.describe(ENGINES["sync"])
    with pytest.raises(ConfigError, match=r"engine='envpool' must be one of \('ale-native-vector'"):
        p.hash_on("envpool")


# ------------------------------------------------------------------------------- double buffering


def record(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies, so that what an engine did to its buffers afterwards would show."""
    return deepcopy(result)


@pytest.mark.parametrize("vectorization", ENGINES)
def test_two_groups_stepped_in_turn_play_as_if_each_were_alone(vectorization: str) -> None:
    protocol = AtariProtocol(noop_max=5, life_loss_ends_episode=True, max_frames=80)
    steps = 30

    def groups() -> list[EpisodeRecorder]:
        return [make_vec(BREAKOUT, 1, protocol=protocol, vectorization=vectorization) for _ in range(2)]

    actions = np.random.default_rng(2).integers(4, size=(steps, 2, 1))
    alone = []
    for index, envs in enumerate(groups()):
        with closing(envs):
            alone.append([envs.reset(seed=10 * index)])
            alone[index] += [envs.step(actions[k, index]) for k in range(steps)]
    a, b = groups()
    with closing(a), closing(b):
        in_turn = [[record(a.reset(seed=0))], [record(b.reset(seed=10))]]
        a.step_async(actions[0, 0])
        for k in range(steps):
            b.step_async(actions[k, 1].copy())
            in_turn[0].append(record(a.step_wait()))
            if k + 1 < steps:
                a.step_async(actions[k + 1, 0].copy())
            in_turn[1].append(record(b.step_wait()))
    assert any(info["_episode"].any() for *_, info in alone[0][1:])
    for ours, theirs in zip(in_turn, alone, strict=True):
        for got, expected in zip(ours, theirs, strict=True):
            np.testing.assert_equal(got, expected)


@pytest.mark.parametrize("vectorization", ENGINES)
def test_steps_begun_and_ended_out_of_turn_are_refused(vectorization: str) -> None:
    with closing(make_vec(PONG, 1, vectorization=vectorization)) as envs:
        envs.reset(seed=0)
        with pytest.raises(gym.error.NoAsyncCallError, match="step_wait"):
            envs.step_wait()  # a bare recv() would wait for ever
        action = np.array([0])
        envs.step_async(action)
        with pytest.raises(gym.error.AlreadyPendingCallError, match="step_async"):
            envs.step_async(action)
        with pytest.raises(gym.error.AlreadyPendingCallError, match="reset"):
            envs.reset(seed=0)
        envs.step_wait()
        _, info = envs.reset(seed=0)
        assert info["episode_frame_number"][0] == 0


@pytest.mark.parametrize("vectorization", ENGINES)
def test_environments_close_in_the_middle_of_a_step(vectorization: str) -> None:
    envs = make_vec(PONG, 2, vectorization=vectorization)
    envs.reset(seed=0)
    envs.step_async(np.array([0, 0]))
    begun = time.monotonic()
    envs.close()
    assert envs.closed and time.monotonic() - begun < 30  # it does not wait for a step that nobody asks for


def test_the_actions_of_a_step_in_progress_do_not_change_with_the_callers_array() -> None:
    with closing(make_vec("Pendulum-v1", 1)) as envs, closing(make_vec("Pendulum-v1", 1)) as same:
        envs.reset(seed=0)
        same.reset(seed=0)
        actions = np.array([[1.0]], np.float32)
        envs.step_async(actions)
        actions[:] = -1
        np.testing.assert_array_equal(envs.step_wait()[0], same.step(np.array([[1.0]], np.float32))[0])


# ------------------------------------------------------------------------------------ normalisation


def test_running_normalisation_equals_a_slow_float64_loop_per_environment() -> None:
    rng = np.random.default_rng(0)
    batches = rng.integers(0, 256, size=(30, 3, 1, 5, 4), dtype=np.uint8)
    batches[:, 1] //= 4  # environments that differ
    normalization = RunningNormalization(3)
    expected = np.empty(batches.shape)
    for env in range(3):
        mean = deviation = 0.0
        for n in range(len(batches)):
            pixels = [float(value) / 255 for value in batches[n, env].ravel()]
            average = sum(pixels) / len(pixels)
            spread = (sum((value - average) ** 2 for value in pixels) / len(pixels)) ** 0.5
            mean = 0.9999 * mean + 0.0001 * average
            deviation = 0.9999 * deviation + 0.0001 * spread
            correction = 1 - 0.9999 ** (n + 1)
            z = [(value - mean / correction) / (deviation / correction + 1e-8) for value in pixels]
            expected[n, env] = np.reshape(z, (1, 5, 4))
    for n, frames in enumerate(batches):
        out = normalization(frames)
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, expected[n], atol=2e-4)


def test_applying_the_running_averages_does_not_move_them() -> None:
    normalization = RunningNormalization(1)
    frames = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    normalization(frames)
    before = (normalization.mean.copy(), normalization.deviation.copy(), normalization.count)
    normalization.apply(frames[::-1] * 3)
    assert (normalization.mean, normalization.deviation, normalization.count) == before


def test_the_protocols_normalisation_is_applied_to_the_frames() -> None:
    running = replace(PROTOCOLS["neurocoder2020"], noop_max=0, fire_reset=False)
    raw, _ = play(PONG, replace(running, normalisation="scale"), 10, num_envs=2)
    seen, _ = play(PONG, running, 10, num_envs=2)
    normalization = RunningNormalization(2)
    np.testing.assert_allclose(seen, np.stack([normalization(frames) for frames in raw]), atol=1e-6)


def test_final_observations_are_normalised_like_the_others_and_not_counted() -> None:
    running = replace(EXACT, stack=2, normalisation="running", max_frames=20)
    raw = replace(running, normalisation="scale")
    normalization = RunningNormalization(1)
    with (
        closing(make_vec(PONG, 1, protocol=running)) as envs,
        closing(make_vec(PONG, 1, protocol=raw)) as plain,
    ):
        normalization(plain.reset(seed=0)[0])
        envs.reset(seed=0)
        for _ in range(5):
            observation, *_, truncated, info = plain.step(np.array([0]))
            seen, *_, info_seen = envs.step(np.array([0]))
            if truncated.any():
                expected = normalization.apply(info["final_obs"])
            np.testing.assert_allclose(seen, normalization(observation), atol=1e-6)
    assert truncated.all() and info_seen["final_obs"].dtype == np.float32
    np.testing.assert_allclose(info_seen["final_obs"], expected, atol=1e-6)


# ---------------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [("ALE/Pnog-v5", "ALE/Pong-v5"), ("ale/pong-v5", "ALE/Pong-v5"), ("CartPol-v1", "CartPole-v1")],
)
def test_an_unknown_id_offers_the_near_one(mistyped: str, meant: str) -> None:
    with pytest.raises(EnvError, match=f"unknown environment '{mistyped}'; did you mean .*'{meant}'"):
        env_spec(mistyped)


def test_an_unknown_version_offers_those_that_exist() -> None:
    with pytest.raises(EnvError, match=r"did you mean 'ALE/Pong-v5'\?"):
        env_spec("ALE/Pong-v9")


def test_an_id_that_imports_a_module_is_refused_without_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "untrusted_module.py").write_text(f"open({str(marker)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    for use in (env_spec, partial(make_vec, num_envs=1)):
        with pytest.raises(EnvError, match="--trust"):
            use("untrusted_module:CartPole-v1", trust=False)
    assert not marker.exists()
    assert env_spec("untrusted_module:CartPole-v1", trust=True).id == "CartPole-v1"
    assert marker.exists()
    del sys.modules["untrusted_module"]


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(EnvError, match="cannot import module 'no_such_module'"):
        env_spec("no_such_module:CartPole-v1")


@pytest.mark.parametrize("env_id", [":CartPole-v1", ".a:CartPole-v1"])
def test_a_module_name_that_is_none_is_refused(env_id: str) -> None:
    with pytest.raises(EnvError):
        env_spec(env_id)


def test_the_listed_ids_exist_and_name_each_game_once() -> None:
    ids = env_ids()
    assert {PONG, BREAKOUT, "CartPole-v1"} <= set(ids)
    assert not {"Pong-v4", "PongNoFrameskip-v4", "CartPole-v0"} & set(ids)
    assert ids == sorted(set(ids)) and all(env_spec(env_id) for env_id in ids)


@pytest.mark.parametrize(
    ("env_id", "expected"), [(PONG, True), ("PongNoFrameskip-v4", True), ("CartPole-v1", False)]
)
def test_atari_ids_are_recognised(env_id: str, expected: bool) -> None:
    assert is_atari(env_spec(env_id)) is expected


def test_a_protocol_survives_a_dictionary() -> None:
    for protocol in PROTOCOLS.values():
        assert AtariProtocol(**asdict(protocol)) == protocol
