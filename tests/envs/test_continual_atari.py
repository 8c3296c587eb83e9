"""Atari games one after the other: the right game with the right switches, under one protocol and one set of actions."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from neurocoder.envs import AtariEnvs, AtariProtocol, EnvError, make_vec
from neurocoder.envs.continual_atari import check_games, choose, continual_atari_env, parse_games

ID = "neurocoder/ContinualAtari-v0"
GAMES = ["Pong", "Boxing", "Freeway:3:1"]


# the checker would rather have the emulator; what is to be checked is what stands around it
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")
def test_both_checkers_accept_every_game():
    for task in range(3):
        env = gym.make(ID, games=GAMES, task=task)
        assert env.action_space.n == 18
        check_env(continual_atari_env(GAMES, task), skip_render_check=True)
        sb3_check_env(env)
        _, info = env.reset(seed=0)
        assert info["task"] == env.step(0)[4]["task"] == task
        env.close()


def test_switches_reach_the_cartridge():
    plain, switched = (gym.make(ID, games=[game], task=0) for game in ("Freeway", "Freeway:3:1"))
    for env in (plain, switched):
        env.reset(seed=0)
    frames = []
    for env in (plain, switched):
        for _ in range(20):
            observation, *_ = env.step(0)
        frames.append(np.array(observation))
        env.close()
    assert (frames[0] != frames[1]).any()  # other cars at other speeds


def test_the_native_batch_is_the_game_with_all_actions():
    ours = gym.make_vec(ID, num_envs=3, games=GAMES, task=1)
    assert isinstance(ours.unwrapped, AtariEnvs) and ours.single_action_space.n == 18
    theirs = AtariEnvs("ALE/Boxing-v5", AtariProtocol(full_action_space=True), 3)
    one, info = ours.reset(seed=[1, 2, 3])
    two, _ = theirs.reset(seed=[1, 2, 3])
    np.testing.assert_array_equal(one, two)
    assert info["task"].tolist() == [1, 1, 1]
    for step in range(30):
        actions = np.array([step % 18, 3, 17])
        one, reward, *_, info = ours.step(actions)
        two, other, *_ = theirs.step(actions)
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(reward, other)
        assert info["task"].tolist() == [1, 1, 1]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_agents_get_it_as_any_environment(vectorization):
    envs = make_vec(ID, 2, options={"games": ["Pong", "Boxing"], "task": 1}, vectorization=vectorization)
    _, info = envs.reset(seed=[0, 1])
    _, _, _, _, info = envs.step(np.array([0, 1]))
    assert info["task"].tolist() == [1, 1] and info["episode"]["l"].tolist() == [1, 1]
    assert envs.exactly_resumable == (vectorization == "sync")
    envs.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"games": ["Pong", "Boxin"]}, "did you mean"),
        ({"games": []}, "must be a list"),
        ({"games": "Pong"}, "must be a list"),
        ({"games": ["Pong:x"]}, "NAME:MODE"),
        ({"games": ["Pong"], "task": 1}, r"in \[0, 1\)"),
        ({"games": ["Pong:1"], "task": 0}, "vectorization 'sync'"),
        ({"game": ["Pong"]}, "no option 'game'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(EnvError, match=message):
        make_vec(ID, 1, options=options)


@pytest.mark.parametrize(
    ("game", "message"),
    [
        ("Freeway:99", r"mode 99: ALE/Freeway-v5 has \[0, 1, 2, 3, 4, 5, 6, 7\]"),
        ("Freeway:0:7", r"difficulty 7: ALE/Freeway-v5 has \[0, 1\]"),
    ],
)
def test_a_switch_has_the_positions_of_its_cartridge(game, message):
    with pytest.raises(EnvError, match=message):
        make_vec(ID, 1, options={"games": [game], "task": 0}, vectorization="sync")
    check_games(["Pong", "Freeway:3:1"], native=False)
    with pytest.raises(EnvError, match=message):  # whichever of the games it is
        check_games(["Pong", game], native=False)


def test_games_by_name():
    assert [game.env_id for game in parse_games(GAMES)][2] == "ALE/Freeway-v5"
    game = choose(GAMES, 2)
    assert (game.mode, game.difficulty, game.switched) == (3, 1, True)
    assert not choose(GAMES, 0).switched
