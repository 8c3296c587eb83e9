"""Our environments as SB3's VecEnv, with the real emulator and the real SB3."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor

from neurocoder.envs import PROTOCOLS, AtariProtocol, EnvError, make_vec
from neurocoder.envs import make_atari as make_one
from neurocoder.envs.sb3 import SB3VecEnv, make_atari
from neurocoder.envs.vector import adapt_observation
from neurocoder.errors import ConfigError

GAME = "ALE/Breakout-v5"


def twins(protocol, n_envs=3, **options):
    """Return an SB3 batch and a batch of ours that play the same games."""
    sb3 = make_atari(GAME, n_envs, seed=5, protocol=protocol, **options)
    ours = make_vec(GAME, n_envs, protocol=protocol)
    first, (second, _) = sb3.reset(), ours.reset(seed=[5, 6, 7][:n_envs])
    np.testing.assert_array_equal(first, second)
    return sb3, ours


def test_a_step_is_the_native_one_in_sb3_s_words():
    sb3, ours = twins(PROTOCOLS["dqn2015"])
    rng = np.random.default_rng(0)
    lives_lost = games = 0
    for _ in range(700):
        actions = rng.integers(0, 4, 3)
        observation, reward, done, infos = sb3.step(actions)
        expected, raw, terminated, truncated, info = ours.step(actions)
        np.testing.assert_array_equal(observation, expected)
        np.testing.assert_array_equal(reward, np.sign(raw))
        assert reward.dtype == np.float32
        np.testing.assert_array_equal(done, terminated | truncated)
        for row in range(3):
            assert infos[row]["lives"] == info["lives"][row]
            assert ("terminal_observation" in infos[row]) == done[row]
            assert ("episode" in infos[row]) == info["_episode"][row]
            if done[row] and info["_episode"][row]:
                games += 1
                np.testing.assert_array_equal(infos[row]["terminal_observation"], info["final_obs"][row])
                assert infos[row]["episode"]["r"] == info["episode"]["r"][row]
                assert infos[row]["episode"]["l"] == info["episode"]["l"][row]
            elif done[row]:  # a lost life: the frames shift by one, as in any other step
                lives_lost += 1
                np.testing.assert_array_equal(infos[row]["terminal_observation"], observation[row])
                assert infos[row]["TimeLimit.truncated"] is False
    assert lives_lost > 4 and games > 1
    sb3.close()
    ours.close()


def test_a_cut_game_is_told_as_a_time_limit():
    envs = make_atari(GAME, 2, seed=0, protocol=AtariProtocol(max_frames=80))
    envs.reset()
    for _ in range(40):
        _, _, done, infos = envs.step(np.zeros(2, dtype=np.int64))
        if done.all():
            break
    assert [info["TimeLimit.truncated"] for info in infos] == [True, True]
    assert [info["episode"]["l"] for info in infos] == [20, 20]


def test_rewards_are_clipped_for_the_learner_and_raw_for_the_record():
    paid, raw = [], []
    for clip in (True, False):
        envs = make_atari("ALE/SpaceInvaders-v5", 2, seed=3, clip_reward=clip)
        envs.reset()
        rng = np.random.default_rng(1)
        total = np.zeros(2)
        for _ in range(3000):
            _, reward, _, infos = envs.step(rng.integers(0, 6, 2))
            total += reward
            if "episode" in infos[0]:
                break
        paid.append(total[0])
        raw.append(infos[0]["episode"]["r"])
    assert raw[0] == raw[1] == paid[1] > paid[0] > 0


def test_seeds_repeat_games_and_none_do_not():
    def frames(seed):
        envs = make_atari(GAME, 2, seed=seed, protocol="dqn2015")
        envs.reset()
        return [envs.step(np.array([1, 2]))[0] for _ in range(30)]

    np.testing.assert_array_equal(frames(1), frames(1))
    assert (np.array(frames(1)) != np.array(frames(2))).any()
    envs = make_atari(GAME, 2, seed=1)
    assert envs.reset().shape == (2, 4, 84, 84)
    envs.reset()  # SB3 uses a seed once; now there is none


def test_sb3_s_evaluation_reads_raw_scores_without_a_monitor():
    envs = make_atari(GAME, 2, seed=0, protocol=AtariProtocol(max_frames=2000))
    assert envs.env_is_wrapped(Monitor) == [True, True] and envs.env_is_wrapped(gym.Wrapper) == [False] * 2
    model = DQN("CnnPolicy", envs, buffer_size=16, learning_starts=10_000, policy_kwargs=dict(
        features_extractor_kwargs=dict(features_dim=8)))  # fmt: skip
    returns, lengths = evaluate_policy(model, envs, 3, return_episode_rewards=True)
    assert len(returns) == 3 and all(1 < length <= 500 for length in lengths)


def test_monitoring_it_twice_is_told():
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        VecMonitor(make_atari(GAME, 1))


def test_replay_buffers_get_the_last_observation_of_a_game_and_no_noise():
    envs = make_atari(GAME, 2, seed=0, protocol="dqn2015")
    model = DQN("CnnPolicy", envs, buffer_size=2000, learning_starts=10_000, seed=0, policy_kwargs=dict(
        features_extractor_kwargs=dict(features_dim=8)))  # fmt: skip
    model.learn(1200)
    buffer = model.replay_buffer
    used = buffer.pos
    seen, following = buffer.observations[:used], buffer.next_observations[:used]
    done = buffer.dones[:used].astype(bool)
    assert done.sum() > 4
    # each stack is the one before, shifted by a frame: at the end of lives and games, too
    np.testing.assert_array_equal(following[:, :, :-1], seen[:, :, 1:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda envs: envs.set_attr("sticky", 0), "set_attr"),
        (lambda envs: envs.env_method("clone_state"), "env_method"),
        (lambda envs: (envs.set_options({"mode": 3}), envs.reset()), "options"),
        (lambda envs: (envs._seeds.__setitem__(0, 3), envs.reset()), "give every environment one, or none"),
    ],
)
def test_what_a_native_batch_cannot_do_is_said(call, message):
    with pytest.raises(EnvError, match=message):
        call(make_atari(GAME, 2))


@pytest.mark.parametrize("seed", [None, 2**32 - 1, 2**31 - 1])
def test_any_seed_of_sb3_is_taken(seed):
    envs = make_atari(GAME, 2)
    envs.seed(seed)
    assert envs.reset().shape == (2, 4, 84, 84)


def test_other_environments_and_unknown_protocols_are_refused():
    with pytest.raises(EnvError, match="'CartPole-v1' is not an Atari game; SB3's make_vec_env"):
        make_atari("CartPole-v1")
    with pytest.raises(ConfigError, match="did you mean 'machado2018'"):
        make_atari(GAME, protocol="machado18")
    with pytest.raises(EnvError, match="'neurocoder2020': its frames are normalised to floats"):
        make_atari(GAME, protocol="neurocoder2020")


def test_any_batch_of_ours_fits():
    envs = SB3VecEnv(make_vec("CartPole-v1", 2))
    envs.seed(0)
    envs.reset()
    for _ in range(100):
        observation, _, done, infos = envs.step(np.array([0, 1]))
        if done.any():
            row = int(np.argmax(done))
            assert not np.array_equal(infos[row]["terminal_observation"], observation[row])
            assert infos[row]["episode"]["l"] == infos[row]["episode"]["r"]
            break
    else:
        raise AssertionError("no pole fell")
    assert envs.get_attr("num_envs") == [2, 2] and list(envs.get_images()) == [None, None]


@pytest.mark.parametrize("game", [GAME, "ALE/Pong-v5", "ALE/MontezumaRevenge-v5"])
@pytest.mark.parametrize("name", [name for name, p in PROTOCOLS.items() if p.normalisation == "scale"])
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")
def test_both_checkers_accept_our_single_games(game, name):
    """Running normalisation exists on the native path alone: there is no single game of neurocoder2020."""
    check_env(make_one(game, PROTOCOLS[name]))
    gymnasium_check_env(make_one(game, PROTOCOLS[name]), skip_render_check=True)


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1", "Blackjack-v1", "Acrobot-v1"])
def test_sb3_accepts_what_we_make_of_other_environments(env):
    check_env(adapt_observation(gym.make(env)))
