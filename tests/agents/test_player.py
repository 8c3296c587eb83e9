"""The player: explicit state, and evaluation that favours no episode length."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from neurocoder.agents.player import EvaluatedEpisode, Player, evaluate
from neurocoder.envs import PROTOCOLS, make_vec
from neurocoder.policies import Policy, PolicyConfig


class RandomLength(gym.Env):
    """Each episode lasts 1 or 20 steps, with equal chance; the return is its length."""

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 1 if self.np_random.random() < 0.5 else 20
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(1, np.float32), 1.0, self.left == 0, False, {}


gym.register("RandomLength-v0", RandomLength)


class Quiet(gym.Env):
    """Pays `reward` on the steps of `pays` and loses a life on those of `losses`; ends after `n_steps`, if ever."""

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, pays=(), losses=(), n_steps=None, reward=1.0):
        self.pays, self.losses, self.n_steps, self.reward = pays, losses, n_steps, reward

    def info(self):
        return {"lives": 5 - sum(self.step_count >= step for step in self.losses)} if self.losses else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_count = 0
        return np.ones(1, np.float32), self.info()

    def step(self, action):
        self.step_count += 1
        reward = self.reward * (self.step_count in self.pays)
        return np.ones(1, np.float32), reward, self.step_count == self.n_steps, False, self.info()


class SomeQuiet(Quiet):
    """By its seed, either a game of 30 steps that pays on each, or one that never pays nor ends."""

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed)
        quiet = self.np_random.random() < 0.5
        self.pays, self.n_steps = ((), None) if quiet else (range(100), 30)
        return result


gym.register("Quiet-v0", Quiet)
gym.register("SomeQuiet-v0", SomeQuiet)


def player(**options):
    space = gym.spaces.Box(0, 100, (1,), np.float32)
    return Player(Policy(space, gym.spaces.Discrete(2), PolicyConfig(core="gru", core_size=4)), **options)


def test_evaluation_plays_exactly_the_episodes_asked_for():
    for episodes, games in ((1, 1), (5, 3), (7, 7)):
        played = evaluate(player(), make_vec("RandomLength-v0", games), episodes, seed=0)
        assert len(played) == episodes
        assert all(e.raw_return == e.length and e.length in (1, 20) for e in played)


def test_short_episodes_are_not_favoured():
    played = evaluate(player(), make_vec("RandomLength-v0", 16), 320, seed=1)
    mean = np.mean([e.length for e in played])
    assert abs(mean - 10.5) < 3 * 9.5 / np.sqrt(320)


def test_equal_seeds_play_equal_games_and_deterministic_takes_the_mode():
    envs = make_vec("CartPole-v1", 4)
    torch.manual_seed(1)
    policy = Policy(envs.single_observation_space, envs.single_action_space, PolicyConfig(core="none"))
    with torch.no_grad():
        policy.actor.residual.add_(torch.randn_like(policy.actor.residual))

    def games(seed, deterministic=False):
        return evaluate(Player(policy, seed=seed, deterministic=deterministic), envs, 8, seed)

    assert games(3) == games(3)
    assert games(3) != games(4)
    step = next(Player(policy, deterministic=True).play(envs, [1, 2, 3, 4]))
    assert (step.decision.action == step.decision.logits.argmax(-1)).all()


def test_explaining_a_decision_does_not_change_it():
    envs = make_vec("CartPole-v1", 4)
    policy = Policy(envs.single_observation_space, envs.single_action_space, PolicyConfig(core_size=8))

    def steps(explain):
        stream = Player(policy, seed=3, explain=explain).play(envs, [1, 2, 3, 4])
        return [next(stream) for _ in range(40)]

    for plain, explained in zip(steps(False), steps(True), strict=True):
        said, more = plain.decision, explained.decision
        assert torch.equal(said.logits, more.logits) and torch.equal(said.action, more.action)
        assert said.value is None and not said.traces
        assert more.value.shape == (4,) and more.traces.keys() == {"actor", "critic"}


@pytest.mark.parametrize(
    ("game", "stuck_after", "expected"),
    [
        ({"pays": (3, 5)}, 10, EvaluatedEpisode(2.0, 15, stuck=True, truncated=False)),
        ({}, 1, EvaluatedEpisode(0.0, 1, stuck=True, truncated=False)),
        ({"pays": (8, 16, 24), "n_steps": 25}, 8, EvaluatedEpisode(3.0, 25, stuck=False, truncated=False)),
        ({"pays": (3, 6), "reward": -1.0}, 4, EvaluatedEpisode(-2.0, 10, stuck=True, truncated=False)),
        ({"losses": (9, 18, 27)}, 10, EvaluatedEpisode(0.0, 37, stuck=True, truncated=False)),
        ({"losses": (9, 18, 27)}, 8, EvaluatedEpisode(0.0, 8, stuck=True, truncated=False)),
        ({"n_steps": 10}, 10, EvaluatedEpisode(0.0, 10, stuck=False, truncated=False)),
        ({"n_steps": 40}, 0, EvaluatedEpisode(0.0, 40, stuck=False, truncated=False)),
    ],
)
def test_a_game_without_reward_or_lost_life_is_cut_as_stuck(game, stuck_after, expected):
    gym.register("ThisQuiet-v0", Quiet, kwargs=game)
    try:
        envs = make_vec("ThisQuiet-v0", 2)
    finally:
        del gym.registry["ThisQuiet-v0"]
    assert evaluate(player(), envs, 5, seed=0, stuck_after=stuck_after) == [expected] * 5


def test_a_game_at_its_time_limit_counts_as_truncated():
    gym.register("ShortQuiet-v0", Quiet, max_episode_steps=20)
    try:
        envs = make_vec("ShortQuiet-v0", 2)
    finally:
        del gym.registry["ShortQuiet-v0"]
    played = evaluate(player(), envs, 3, seed=0, stuck_after=50)
    assert played == [EvaluatedEpisode(0.0, 20, stuck=False, truncated=True)] * 3


def test_only_the_games_that_are_stuck_start_anew():
    played, again = (
        evaluate(player(), make_vec("SomeQuiet-v0", 8), 32, seed=3, stuck_after=7) for _ in range(2)
    )
    stuck = [episode for episode in played if episode.stuck]
    assert set(stuck) == {EvaluatedEpisode(0.0, 7, stuck=True, truncated=False)}
    assert set(played) - set(stuck) == {EvaluatedEpisode(30.0, 30, stuck=False, truncated=False)}
    assert 8 < len(stuck) < 24
    assert again == played


def test_the_recurrent_state_does_not_outlive_a_cut_game():
    stream = player().play(make_vec("Quiet-v0", 2), [1, 2], stuck_after=5)
    logits = [next(stream).decision.logits for _ in range(10)]
    assert not torch.equal(logits[4], logits[0])
    torch.testing.assert_close(logits[5:], logits[:5], rtol=0, atol=0)


def atari_player(envs, **options):
    config = PolicyConfig(core="gru", core_size=4, head="linear")
    policy = Policy(envs.single_observation_space, envs.single_action_space, config)
    return Player(policy, **options)


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_an_agent_that_never_serves_is_stuck_in_breakout(vectorization):
    envs = make_vec("ALE/Breakout-v5", 2, vectorization=vectorization)
    lazy = atari_player(envs, deterministic=True)
    with torch.no_grad():
        lazy.policy.actor.layer.bias[0] += 10.0  # no-op
    played = evaluate(lazy, envs, 3, seed=0, stuck_after=25)
    assert played == [EvaluatedEpisode(0.0, 25, stuck=True, truncated=False)] * 3


def test_cutting_one_game_leaves_the_others_of_the_emulator_alone():
    """Every game is the same as without cutting until it is cut itself."""
    n_games, n_steps, stuck_after = 3, 140, 28

    def play(stuck_after):
        envs = make_vec("ALE/Breakout-v5", n_games, protocol=PROTOCOLS["dqn2015"])
        torch.manual_seed(0)
        stream = atari_player(envs).play(envs, [1, 2, 3], stuck_after=stuck_after)
        return [next(stream) for _ in range(n_steps)]

    whole, cut = play(0), play(stuck_after)
    first_cuts = [next(t for t, step in enumerate(cut) if step.stuck[row]) for row in range(n_games)]
    assert len(set(first_cuts)) > 1
    for row, end in enumerate(first_cuts):
        for one, other in zip(whole[: end + 1], cut, strict=False):
            np.testing.assert_array_equal(one.observation[row], other.observation[row])
        assert not np.array_equal(whole[end + 1].observation[row], cut[end + 1].observation[row])
