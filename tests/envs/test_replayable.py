"""Exact resumption: play, keep the state, go on in a fresh environment; not one bit may differ."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from safetensors.numpy import load, save

from neurocoder.envs import (
    PROTOCOLS,
    AtariProtocol,
    EnvError,
    EpisodeRecorder,
    GameState,
    SeededEpisodes,
    episode_seed,
    make_atari,
    make_vec,
)
from neurocoder.errors import ConfigError

PONG, BREAKOUT, PACMAN = "ALE/Pong-v5", "ALE/Breakout-v5", "ALE/MsPacman-v5"
LIVES = AtariProtocol(life_loss_ends_episode=True)


class Toy(gym.Env):
    """Observation [t, sum of the actions]; terminates after five steps, or sooner by seed."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, action_space: spaces.Space | None = None, render_mode: str | None = None) -> None:
        self.action_space = action_space or spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t, self.total, self.end = 0, 0.0, int(self.np_random.integers(3, 6))
        return self.see(), {}

    def step(self, action: Any) -> Any:
        assert self.t < self.end, "stepped past the end"
        self.t += 1
        self.total += float(np.sum(action))
        return self.see(), self.total, self.t >= self.end, False, {}

    def see(self) -> np.ndarray:
        return np.array([self.t, self.total], np.float32)


class Unseeded(Toy):
    """Draws from a generator that no seed reaches."""

    generator = np.random.default_rng(0)

    def see(self) -> np.ndarray:
        return super().see() + self.generator.normal(size=2).astype(np.float32)


class FirstTime(Toy):
    """Shows something else at the second step, but only the first time ever."""

    times = count()

    def see(self) -> np.ndarray:
        seen = super().see()
        return seen + (next(self.times) == 0) if self.t == 2 else seen


@pytest.fixture
def register() -> Iterator[Any]:
    made = []

    def add(entry_point: Any, **options: Any) -> str:
        env_id = f"tests/Replayable{len(made)}-v0"
        gym.register(env_id, entry_point=entry_point, **options)
        made.append(env_id)
        return env_id

    yield add
    for env_id in made:
        del gym.registry[env_id]


def random_actions(envs: gym.vector.VectorEnv, steps: int, seed: int = 5) -> list[np.ndarray]:
    envs.action_space.seed(seed)
    return [envs.action_space.sample() for _ in range(steps)]


def assert_same(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    """Everything that a step returned, seeds of new games in ``info`` included."""
    for a, b in zip(ours[:4], theirs[:4], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    np.testing.assert_equal(ours[4], theirs[4])


def assert_goes_on(
    envs: EpisodeRecorder, observation: Any, state: Any, actions: list[Any], stream: list[Any]
) -> None:
    """Restored to `state`, `envs` must show `observation` and then play `stream`."""
    beats: list[int] = []
    restored = envs.set_state(state, lambda: beats.append(1))
    assert len(beats) == sum(len(game.actions) // 100 for game in state)
    assert restored.dtype == observation.dtype
    np.testing.assert_array_equal(restored, observation)
    assert len(stream) == len(actions) > 0
    for action, expected in zip(actions, stream, strict=True):
        assert_same(envs.step(action), expected)


# ------------------------------------------------------------------------------------------- games

CAPPED = {
    "machado2018": replace(PROTOCOLS["machado2018"], max_frames=720),
    "dqn2015": replace(PROTOCOLS["dqn2015"], max_frames=720, sticky=0.25),  # chance everywhere
}


@pytest.mark.parametrize("env_id", [PONG, BREAKOUT, PACMAN])
@pytest.mark.parametrize("name", CAPPED)
def test_a_game_goes_on_to_the_bit_in_a_fresh_emulator(env_id: str, name: str) -> None:
    protocol = CAPPED[name]
    stream, kept = [], {}
    with closing(make_vec(env_id, 1, protocol=protocol, vectorization="sync")) as envs:
        observations = [envs.reset(seed=3)[0]]
        kept["at step 0"] = 0, envs.get_state()
        games = 0
        actions = random_actions(envs, 440)
        for step, action in enumerate(actions, start=1):
            stream.append(envs.step(action))
            observation, _, terminated, _, info = stream[-1]
            observations.append(observation)
            over = bool(info["game_over"][0])
            games += over
            if over and games == 2:
                kept["directly after a game"] = step, envs.get_state()
            elif terminated[0] and not over:
                kept.setdefault("directly after a life", (step, envs.get_state()))
            elif step == 240:
                kept["amid a game"] = step, envs.get_state()
    assert any(truncated[0] for *_, truncated, _ in stream)
    assert len(kept) == 3 + (protocol.life_loss_ends_episode and env_id != PONG)
    with closing(make_vec(env_id, 1, protocol=protocol, vectorization="sync")) as envs:
        for step, state in kept.values():
            end = step + (200 if step == 240 else 40)
            assert_goes_on(envs, observations[step], state, actions[step:end], stream[step:end])


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
)
def test_other_environments_go_on_to_the_bit(env_id: str) -> None:
    with closing(make_vec(env_id, 3)) as envs:
        observations, stream, kept = [envs.reset(seed=[3, 4, 5])[0]], [], [envs.get_state()]
        actions = random_actions(envs, 460)
        for action in actions:
            stream.append(envs.step(action))
            observations.append(stream[-1][0])
            kept.append(envs.get_state())
    ended = [k for k, (*_, info) in enumerate(stream, start=1) if info["_episode"].any()]
    points = {0, 57, 258, *ended[:2]}  # 258: past a time limit of 200 steps, short of the next
    for step in points:
        with closing(make_vec(env_id, 3)) as envs:
            end = step + 200
            assert_goes_on(envs, observations[step], kept[step], actions[step:end], stream[step:end])


@pytest.mark.parametrize(
    ("space", "stored"),
    [
        (spaces.Discrete(3, start=2), np.int64),
        (spaces.MultiDiscrete([3, 4]), np.int64),
        (spaces.MultiBinary((2, 2)), np.int64),
        (spaces.Box(-1, 1, (2, 3), np.float32), np.float32),
        (spaces.Box(-1, 1, (1,), np.float64), np.float64),
        (spaces.Box(0, 255, (2,), np.uint8), np.uint8),
    ],
    ids=str,
)
def test_states_of_every_kind_of_action_survive_data_files(space: Any, stored: Any, register: Any) -> None:
    """Through safetensors and JSON, as checkpoints keep them."""
    env_id = register(Toy, kwargs={"action_space": space})
    with closing(make_vec(env_id, 2)) as envs:
        envs.reset(seed=0)
        actions = random_actions(envs, 20)
        stream = []
        for step, action in enumerate(actions):
            if step == 7:
                kept = envs.get_state()
                observation = stream[-1][0]
            stream.append(envs.step(action))
    assert all(state.actions.dtype == stored for state in kept)
    read = []
    for state in kept:
        arrays = load(save({"actions": state.actions, "resets": state.resets}))
        numbers = json.loads(json.dumps([state.seed, state.episode, state.checksum]))
        read.append(GameState(numbers[0], numbers[1], arrays["actions"], arrays["resets"], numbers[2]))
    with closing(make_vec(env_id, 2)) as envs:
        assert_goes_on(envs, observation, read, actions[7:], stream[7:])


def test_a_state_can_be_kept_between_the_end_of_a_life_and_its_reset() -> None:
    """On the single environment nobody resets by itself."""
    with closing(SeededEpisodes(make_atari(BREAKOUT, LIVES))) as env:
        env.reset(seed=1)
        env.action_space.seed(0)
        while not env.step(env.action_space.sample())[2]:
            pass
        kept = env.state()
        assert len(kept.resets) == 0
        after = env.reset()[0], *(env.step(1)[0] for _ in range(5))
        assert env.state().resets.tolist() == [len(kept.actions)]
        while not env.step(1)[2]:
            pass
        env.reset()  # goes on
        env.reset()  # does not
        assert env.state().episode == 1 and len(env.state().actions) == 0
    with closing(SeededEpisodes(make_atari(BREAKOUT, LIVES))) as env:
        env.restore(kept)
        np.testing.assert_array_equal(after, (env.reset()[0], *(env.step(1)[0] for _ in range(5))))


def test_actions_kept_do_not_change_with_the_callers_array() -> None:
    with closing(make_vec("Pendulum-v1", 1)) as envs:
        envs.reset(seed=0)
        action = np.array([[0.5]], np.float32)
        envs.step(action)
        action[:] = 2
        (state,) = envs.get_state()
        envs.step(action)
    assert state.actions.tolist() == [[0.5]]


# ------------------------------------------------------------------------------------------- seeds


def test_every_episode_can_be_played_from_its_own_seed_and_actions_alone() -> None:
    with closing(make_vec("CartPole-v1", 2)) as envs, closing(gym.make("CartPole-v1")) as single:
        first, _ = envs.reset(seed=[7, 8])
        np.testing.assert_array_equal(first[0], single.reset(seed=7)[0])
        actions = random_actions(envs, 200)
        episode = [0, 0]
        for action in actions:
            observation, *_, info = envs.step(action)
            for row in np.flatnonzero(info["_episode"]):
                episode[row] += 1
                seed = episode_seed(7 + int(row), episode[row])
                np.testing.assert_array_equal(observation[row], single.reset(seed=seed)[0])
    assert min(episode) >= 3


def test_the_seeds_of_a_game_are_those_that_old_checkpoints_count_on() -> None:
    assert [episode_seed(7, n) for n in range(3)] == GOLDEN_SEEDS
    many = [episode_seed(seed, n) for seed in range(20) for n in range(1, 50)]
    assert len(set(many)) == len(many) and min(many) >= 0 and max(many) < 2**31


GOLDEN_SEEDS = [7, 1809491585, 1915825222]


def test_a_new_seed_begins_a_new_game_and_none_the_next_episode(register: Any) -> None:
    with closing(SeededEpisodes(Toy())) as env:
        env.reset()
        drawn = env.state().seed
        env.reset()
        assert env.state()[:2] == (drawn, 1)
        env.reset(seed=4)
        assert env.state()[:2] == (4, 0)


# ------------------------------------------------------------------------------------------ refusals


def played(env_id: str, steps: int, **options: Any) -> list[GameState]:
    with closing(make_vec(env_id, 1, **options)) as envs:
        envs.reset(seed=0)
        for action in random_actions(envs, steps):
            envs.step(action)
        return envs.get_state()


def test_a_game_with_one_action_changed_is_detected() -> None:
    (state,) = played(BREAKOUT, 60, protocol=LIVES, vectorization="sync")
    assert len(state.actions) == 60 and len(state.resets) >= 1
    with closing(make_vec(BREAKOUT, 1, protocol=LIVES, vectorization="sync")) as envs:
        moved = state.actions.copy()
        moved[40] = 2 if moved[40] == 3 else 3  # the other way
        for tampered in (
            state._replace(actions=moved),
            state._replace(actions=state.actions[:-1]),
            state._replace(resets=state.resets - 1),
            state._replace(episode=1),
        ):
            with pytest.raises(EnvError, match="not deterministic given its seed and its actions"):
                envs.set_state([tampered])
        envs.set_state([state])


def test_more_actions_than_the_episode_had_are_detected(register: Any) -> None:
    env_id = register(Toy)
    (state,) = played(env_id, 2)
    with closing(make_vec(env_id, 1)) as envs, pytest.raises(EnvError, match="not deterministic"):
        envs.set_state([state._replace(actions=np.zeros(9, np.int64))])


@pytest.mark.parametrize("toy", [Unseeded, FirstTime])
def test_an_environment_that_is_not_deterministic_is_reported_and_can_start_anew(
    toy: Any, register: Any
) -> None:
    env_id = register(toy)
    states = played(env_id, 2)
    assert len(states[0].actions) == 2
    states += played(env_id, 2)
    with closing(make_vec(env_id, 2)) as envs:
        with pytest.raises(EnvError, match=rf"^environment '{env_id}': .*2 steps .*can only start anew$"):
            envs.set_state(states)
        envs.reset(seed=1)
        *_, info = envs.step(np.array([2, 1]))
        assert info["episode"]["l"].tolist() == [1, 1] and info["episode"]["r"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros(2, np.float32)}, r"are int64 \[2\], got float32 \[2\]: another environment\?"),
        ({"actions": np.zeros((2, 1), np.int64)}, r"are int64 \[2\], got int64 \[2, 1\]"),
        ({"actions": np.array([0, 3])}, r"has action 3, expected one of Discrete\(3\)"),
        ({"seed": -1}, r"integers >= 0, got \(-1, 0, \d+\)"),
        ({"episode": -1}, r"integers >= 0, got \(0, -1, \d+\)"),
        ({"checksum": "7"}, r"integers >= 0, got \(0, 0, '7'\)"),
    ],
    ids=["dtype", "shape", "action", "seed", "episode", "checksum"],
)
def test_a_state_of_another_environment_is_refused(
    change: dict[str, Any], message: str, register: Any
) -> None:
    env_id = register(Toy)
    (state,) = played(env_id, 2)
    with closing(make_vec(env_id, 1)) as envs, pytest.raises(EnvError, match=message):
        envs.set_state([state._replace(**change)])


def test_the_number_of_states_must_be_the_number_of_games(register: Any) -> None:
    env_id = register(Toy)
    states = played(env_id, 2)
    with closing(make_vec(env_id, 2)) as envs, pytest.raises(EnvError, match="states of 2 games, got 1"):
        envs.set_state(states)


def test_there_is_no_state_before_the_first_reset(register: Any) -> None:
    with closing(make_vec(register(Toy), 1)) as envs, pytest.raises(gym.error.ResetNeeded):
        envs.get_state()


def test_a_game_begun_with_options_cannot_be_kept(register: Any) -> None:
    with closing(make_vec(register(Toy), 1)) as envs:
        envs.reset(seed=0, options={"level": 3})
        with pytest.raises(EnvError, match=r"reset options \{'level': 3\} cannot be stored"):
            envs.get_state()
        envs.reset(seed=0)
        envs.get_state()


def test_actions_that_are_no_arrays_are_refused(register: Any) -> None:
    env_id = register(Toy, kwargs={"action_space": spaces.Tuple((spaces.Discrete(2),))})
    with pytest.raises(EnvError, match="expected a Box, Discrete, MultiDiscrete or MultiBinary"):
        make_vec(env_id, 1)


def test_only_the_native_path_cannot_be_resumed(register: Any) -> None:
    with closing(make_vec(PONG, 1)) as envs:
        assert not envs.exactly_resumable
        envs.reset(seed=0)
        with pytest.raises(EnvError, match=r"native vector environment has no state .*'sync'"):
            envs.get_state()
        with pytest.raises(EnvError, match=r"native vector environment has no state .*'sync'"):
            envs.set_state([])
    with (
        closing(make_vec(PONG, 1, vectorization="sync")) as envs,
        closing(make_vec(register(Toy), 1)) as toys,
    ):
        assert envs.exactly_resumable and toys.exactly_resumable


def test_a_protocol_that_the_wrappers_cannot_play_is_refused() -> None:
    with pytest.raises(EnvError, match=r"'neurocoder2020': running normalisation and FIRE .* 'native'"):
        make_vec(PONG, 1, protocol=PROTOCOLS["neurocoder2020"], vectorization="sync")


@pytest.mark.parametrize("env_id", [PONG, "CartPole-v1"])
def test_a_mistyped_vectorization_is_refused(env_id: str) -> None:
    with pytest.raises(ConfigError, match="unknown vectorization 'syn'; did you mean 'sync'"):
        make_vec(env_id, 1, vectorization="syn")


def test_nothing_is_asked_of_a_step_in_progress(register: Any) -> None:
    with closing(make_vec(register(Toy), 1)) as envs:
        envs.reset(seed=0)
        envs.step_async(np.array([1]))
        with pytest.raises(gym.error.AlreadyPendingCallError, match="get_state"):
            envs.get_state()
        envs.step_wait()
        envs.get_state()
