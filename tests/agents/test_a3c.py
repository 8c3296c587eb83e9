"""A3C's equations against loops and hand numbers; rollouts against an environment known in closed form."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from toys import cartpole

from neurocoder.agents.a3c import (
    A3CConfig,
    assessed,
    clipped_surrogate_loss,
    extra_sticky,
    generalized_advantage,
    learning_rate,
    loss_and_metrics,
    normalize,
    policy_gradient_loss,
    value_loss,
    with_entropy_of,
)
from neurocoder.agents.hogwild import Board, SharedModel
from neurocoder.agents.rollout import Actor, play, rollouts
from neurocoder.agents.worker import Worker
from neurocoder.envs import make_vec
from neurocoder.errors import ConfigError
from neurocoder.policies import HEADS, Policy, PolicyConfig, to_env_action
from neurocoder.policies.tape import Tape

LENGTH = 4


class Clock(gym.Env):
    """Observes the time; pays 1 a step; ends after LENGTH steps, `terminated` or `truncated` as told."""

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, truncates: bool = False):
        self.truncates = truncates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time == LENGTH
        observation = np.full(1, self.time, np.float32)
        return observation, 3.0, over and not self.truncates, over and self.truncates, {}


gym.register("Clock-v0", Clock)
gym.register("TruncatedClock-v0", Clock, kwargs={"truncates": True})


def advantage_by_loops(reward, value, next_value, terminated, truncated, gamma, lam):
    steps, batch = reward.shape
    result = np.zeros_like(reward)
    for b in range(batch):
        for t in range(steps):
            weight, total = 1.0, 0.0
            for k in range(t, steps):
                worth = 0.0 if terminated[k, b] else next_value[k, b]
                total += weight * (reward[k, b] + gamma * worth - value[k, b])
                if terminated[k, b] or truncated[k, b]:
                    break
                weight *= gamma * lam
            result[t, b] = total
    return result


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_generalized_advantage_agrees_with_the_forward_sum(lam):
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, 9, 4))
    ends = rng.integers(0, 5, (9, 4))
    terminated, truncated = ends == 0, ends == 1
    made = generalized_advantage(
        *(torch.from_numpy(a) for a in (reward, value, next_value, terminated, truncated)), 0.9, lam
    )
    expected = advantage_by_loops(reward, value, next_value, terminated, truncated, 0.9, lam)
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-12)


def test_generalized_advantage_by_hand():
    reward, value = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [0.25]])
    following = torch.tensor([[0.25], [4.0]])
    no, yes = torch.tensor([[False], [False]]), torch.tensor([[False], [True]])

    def call(terminated, truncated):
        return (
            generalized_advantage(reward, value, following, terminated, truncated, 0.5, 0.5)
            .flatten()
            .tolist()
        )

    # δ₀ = 1 + ½·¼ − ½ = 0.625; δ₁ = 2 + ½·4 − ¼ = 3.75, or 1.75 if that state is final
    assert call(no, no) == [0.625 + 0.25 * 3.75, 3.75]
    assert call(yes, no) == [0.625 + 0.25 * 1.75, 1.75]
    assert call(no, yes) == call(no, no)  # a truncated last step is bootstrapped like an ongoing one


def test_lambda_one_is_the_n_step_return():
    reward, value = torch.rand(5, 1), torch.rand(5, 1)
    bootstrap = torch.rand(1)
    no = torch.zeros(5, 1, dtype=torch.bool)
    following = torch.cat((value[1:], bootstrap[None]))
    advantage = generalized_advantage(reward, value, following, no, no, 0.9, 1.0)
    returns = sum(0.9**k * reward[k, 0] for k in range(5)) + 0.9**5 * bootstrap[0]
    torch.testing.assert_close(advantage[0, 0] + value[0, 0], returns)


def test_losses_by_hand_and_their_gradients():
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantage = torch.tensor([3.0, -1.0], requires_grad=True)
    loss = policy_gradient_loss(log_prob, advantage)
    loss.backward()
    assert loss.item() == 0.5  # −(−1·3 + −2·−1)/2
    assert log_prob.grad.tolist() == [-1.5, 0.5] and advantage.grad is None
    value, target = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([2.0, 0.0], requires_grad=True)
    loss = value_loss(value, target)
    loss.backward()
    assert loss.item() == 1.25
    assert value.grad.tolist() == [-0.5, 1.0] and target.grad is None


def test_the_clipped_surrogate_by_hand():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1], dtype=torch.float64)
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    log_ratio = ratio.log().requires_grad_()
    loss = clipped_surrogate_loss(log_ratio, advantage, 0.2)
    loss.backward()
    # min(r·Â, clip(r)·Â): 1.2·2, 1.5·−2, 0.5·2, 0.8·−2, 1.1·3
    assert loss.item() == pytest.approx(-(2.4 - 3.0 + 1.0 - 1.6 + 3.3) / 5)
    # where clipping has won there is nothing to gain; elsewhere d(r·Â)/d log r = r·Â
    torch.testing.assert_close(log_ratio.grad, -torch.tensor([0, -3.0, 1.0, 0, 3.3], dtype=torch.float64) / 5)
    assert advantage.grad is None


def test_the_clipped_surrogate_starts_as_the_policy_gradient():
    log_prob = torch.randn(7, requires_grad=True)
    advantage = torch.randn(7)
    (expected,) = torch.autograd.grad(policy_gradient_loss(log_prob, advantage), log_prob)
    (made,) = torch.autograd.grad(
        clipped_surrogate_loss(log_prob - log_prob.detach(), advantage, 0.1), log_prob
    )
    torch.testing.assert_close(made, expected)


def test_learning_rate_schedules():
    linear = A3CConfig(learning_rate=0.1, lr_schedule="linear")
    assert [learning_rate(linear, n, 100) for n in (0, 25, 100, 130)] == pytest.approx([0.1, 0.075, 0, 0])
    assert learning_rate(A3CConfig(learning_rate=0.1, lr_schedule="constant"), 99, 100) == 0.1
    early = A3CConfig(learning_rate=0.1, lr_final=0.02, lr_steps=40)  # however long the run is
    for total in (20, 100):
        rates = [learning_rate(early, n, total) for n in (0, 10, 40, 90)]
        assert rates == pytest.approx([0.1, 0.08, 0.02, 0.02])
    halving = A3CConfig(learning_rate=0.1, lr_schedule="exponential", lr_final=0.0125, lr_steps=30)
    rates = [learning_rate(halving, n, 100) for n in (0, 10, 20, 30, 90)]
    assert rates == pytest.approx([0.1, 0.05, 0.025, 0.0125, 0.0125])


def test_the_entropy_s_coefficient_falls_in_a_straight_line():
    config = A3CConfig(entropy_coefficient=0.02, entropy_final=0.01, entropy_steps=40)
    found = [with_entropy_of(config, n).entropy_coefficient for n in (0, 10, 40, 90)]
    assert found == pytest.approx([0.02, 0.0175, 0.01, 0.01])
    assert with_entropy_of(A3CConfig(), 90) == A3CConfig()


def test_repeated_actions_grow_rarer_until_they_are_none():
    config = A3CConfig(extra_sticky=0.4)
    assert [extra_sticky(config, n, 100) for n in (0, 25, 100, 130)] == pytest.approx([0.4, 0.3, 0, 0])
    early = A3CConfig(extra_sticky=0.4, extra_sticky_steps=40)  # however long the run is
    assert [extra_sticky(early, n, 100) for n in (0, 10, 40, 90)] == pytest.approx([0.4, 0.3, 0, 0])
    assert extra_sticky(A3CConfig(), 0, 100) == 0


def small_policy(core="none", head="linear"):
    space = gym.spaces.Box(0, 100, (1,), np.float32)
    return Policy(space, gym.spaces.Discrete(2), PolicyConfig(core=core, core_size=8, head=head))


def first_rollouts(env_id, count=3, core="none", n_steps=3):
    policy = small_policy(core)
    envs = make_vec(env_id, 2)
    stream = rollouts(policy, envs, n_steps, [1, 2], torch.Generator().manual_seed(0))
    return policy, [next(stream) for _ in range(count)]


def test_rollouts_follow_the_clock():
    _, (first, second, third) = first_rollouts("Clock-v0")
    times = torch.cat([r.observation for r in (first, second, third)])[:, 0, 0].tolist()
    assert times == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    starts = torch.cat([r.episode_start for r in (first, second, third)])[:, 0].tolist()
    assert starts == [True, False, False, False, True, False, False, False, True]
    assert second.terminated[:, 0].tolist() == [True, False, False]
    assert not second.truncated.any()
    assert [e.raw_return for e in second.episodes] == [12.0, 12.0]
    assert [e.length for e in second.episodes] == [LENGTH, LENGTH]


def played_and_drawn(extra_sticky, count, env_id="Clock-v0", games=2):
    """Return what games were told and what they would have been, [T, B, …] each, with the episodes' starts [T, B]."""
    told = []
    envs = make_vec(env_id, games)
    step_async = envs.step_async
    envs.step_async = lambda action: (told.append(np.array(action)), step_async(action))
    policy = Policy(envs.single_observation_space, envs.single_action_space, PolicyConfig(head="linear"))
    actor = Actor(policy, envs, torch.Generator().manual_seed(0))
    actor.extra_sticky = extra_sticky
    actor.reset(range(games))
    (rollout,) = play([actor], count)
    drawn = np.stack([to_env_action(envs.single_action_space, action) for action in rollout.action])
    return torch.from_numpy(np.stack(told)), torch.from_numpy(drawn), rollout.episode_start


@pytest.mark.parametrize("env_id", ["Clock-v0", "Pendulum-v1"])
def test_a_game_repeats_what_it_played_and_the_learner_keeps_what_was_drawn(env_id):
    told, drawn, _ = played_and_drawn(0.0, 60, env_id)
    assert torch.equal(told, drawn)
    told, drawn, starts = played_and_drawn(1.0, 60, env_id)  # always
    assert len(drawn.unique()) > 1
    for t in range(60):
        for game in range(2):
            expected = drawn[t, game] if starts[t, game] else told[t - 1, game]
            assert torch.equal(told[t, game], expected)


def test_every_game_repeats_as_often_as_it_was_asked_to():
    told, drawn, starts = played_and_drawn(0.2, 4000, games=3)
    changed = drawn[1:] != told[:-1]  # where a repeated action shows
    repeated = (told[1:] == told[:-1]) & changed & ~starts[1:]
    for game in range(3):
        share = repeated[:, game].sum() / (changed & ~starts[1:])[:, game].sum()
        assert share == pytest.approx(0.2, abs=0.05)
    assert not (told != drawn)[starts].any()


def test_a_worker_learns_with_the_entropy_s_coefficient_of_now():
    spec, model = cartpole(
        total_steps=32, n_steps=4, entropy_coefficient=0.3, entropy_final=0.1, entropy_steps=16
    )
    worker = Worker(0, 0, spec, model, Board(1))
    list(worker._start())
    for expected in (0.3, 0.2, 0.1, 0.1):  # eight steps an update
        (record,) = worker._update()
        parts = (
            record.metrics["policy_loss"] + 0.5 * record.metrics["value_loss"] + record.metrics["aux_loss"]
        )
        assert (parts - record.metrics["loss"]) / record.metrics["entropy"] == pytest.approx(
            expected, rel=1e-3
        )


def test_a_worker_tells_its_games_how_sticky_they_are_now():
    spec, model = cartpole(total_steps=32, n_steps=4, extra_sticky=0.4)
    worker = Worker(0, 0, spec, model, Board(1))
    list(worker._start())
    for expected in (0.4, 0.3, 0.2):  # eight steps an update
        (record,) = worker._update()
        assert record.metrics["extra_sticky"] == pytest.approx(expected)
        assert [actor.extra_sticky for actor in worker._actors] == [pytest.approx(expected)]


def test_truncation_is_bootstrapped_from_the_last_observation_and_termination_is_not():
    policy, (_, second, _) = first_rollouts("TruncatedClock-v0")
    assert second.truncated[:, 0].tolist() == [True, False, False]
    assert not second.terminated.any()
    with torch.no_grad():
        value = policy(torch.full((1, 1), float(LENGTH)), (), torch.tensor([False]))[0].value
    torch.testing.assert_close(second.truncation_value[0], value.expand(2))
    assert second.truncation_value[1:].abs().max() == 0
    following = second.next_value(torch.full((3, 2), 7.0))
    torch.testing.assert_close(following[0], value.expand(2))
    torch.testing.assert_close(following[2], second.bootstrap_value)
    assert following[1].tolist() == [7.0, 7.0]


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_the_learning_pass_sees_what_the_acting_pass_saw(core):
    policy, (_, second, third) = first_rollouts("Clock-v0", core=core)
    with torch.no_grad():
        _, state, _ = policy(second.observation, second.initial_state, second.episode_start)
    for part, expected in zip(state, third.initial_state, strict=True):
        torch.testing.assert_close(part, expected)


def test_the_loss_is_the_sum_of_its_parts_and_rewards_are_clipped_for_learning_only():
    policy, (_, second, _) = first_rollouts("Clock-v0")
    config = A3CConfig(n_steps=3, value_coefficient=0.7, entropy_coefficient=0.2, gae_lambda=1.0, gamma=1.0)
    loss, metrics = loss_and_metrics(policy, second, config)
    parts = (
        metrics["policy_loss"] + 0.7 * metrics["value_loss"] - 0.2 * metrics["entropy"] + metrics["aux_loss"]
    )
    assert loss.item() == pytest.approx(parts)
    with torch.no_grad():
        value = policy(second.observation, (), second.episode_start)[0].value
    # from the first step: the clipped reward 1, then the episode is over
    first_target = 1.0
    last_target = 1.0 + second.bootstrap_value[0].item()
    middle_target = 1.0 + last_target
    targets = torch.tensor([first_target, middle_target, last_target])[:, None].expand(3, 2)
    assert metrics["value_loss"] == pytest.approx(0.5 * (targets - value).square().mean().item(), rel=1e-4)
    assert second.reward.max() == 3.0


def test_the_auxiliary_loss_enters_the_gradient_once():
    config = A3CConfig(n_steps=3)
    policy = small_policy(head="neurocoder")
    stream = rollouts(
        policy, make_vec("Clock-v0", 2), config.n_steps, [1, 2], torch.Generator().manual_seed(0)
    )
    rollout = next(stream)
    with torch.no_grad():
        policy.actor.memory_u.add_(0.3)

    def gradient(loss):
        policy.zero_grad()
        loss.backward()
        return policy.actor.memory_u.grad.clone()

    whole = gradient(loss_and_metrics(policy, rollout, config)[0])
    alone = gradient(policy.aux_loss())
    policy.actor.orthogonality = policy.critic.orthogonality = 0.0
    without = gradient(loss_and_metrics(policy, rollout, config)[0])
    torch.testing.assert_close(whole - without, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_with_its_loss_and_diagnostics(head):
    config = A3CConfig(n_steps=3)
    policy = small_policy(head=head)
    stream = rollouts(
        policy, make_vec("Clock-v0", 2), config.n_steps, [1, 2], torch.Generator().manual_seed(0)
    )
    loss, metrics = loss_and_metrics(policy, next(stream), config)
    loss.backward()
    assert all(np.isfinite(value) for value in metrics.values())
    assert (metrics["aux_loss"] != 0) == (head in ("neurocoder", "neurocoder-released", "moe"))
    assert ("actor/attention_entropy" in metrics) == (head not in ("linear", "lowrank", "hypernet"))
    assert ("critic/input_variance" in metrics) == policy.critic.conditional


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(workers=0), "a3c.workers=0 must be >= 1"),
        (dict(gamma=1.5), r"a3c.gamma=1.5 must be in \[0, 1\]"),
        (dict(learning_rate=float("nan")), "a3c.learning_rate=nan"),
        (dict(lr_final=-1e-4), "a3c.lr_final=-0.0001 must be finite and >= 0"),
        (dict(lr_steps=-1), "a3c.lr_steps=-1 must be >= 0"),
        (dict(extra_sticky=0.6), r"a3c.extra_sticky=0.6 must be in \[0, 0.5\]"),
        (dict(entropy_steps=-1), "a3c.entropy_steps=-1 must be >= 0"),
        (dict(entropy_final=-1.0), "a3c.entropy_final=-1.0 must be finite and >= 0"),
        (dict(extra_sticky_steps=-1), "a3c.extra_sticky_steps=-1 must be >= 0"),
        (dict(lr_schedule="exponential"), 'a3c.lr_final=0.0 must be > 0 with lr_schedule="exponential"'),
        (dict(optimizer="sgd"), "a3c.optimizer='sgd' must be one of"),
        (dict(reward_clip=-1.0), "a3c.reward_clip=-1.0"),
        (dict(clip_range=-0.1), "a3c.clip_range=-0.1"),
        (dict(epochs=0), "a3c.epochs=0 must be >= 1"),
        (dict(epochs=2), "a3c.epochs=2 must be 1 without clip_range or vtrace"),
        (dict(minibatches=2), "a3c.minibatches=2 must be 1 without clip_range or vtrace"),
        (dict(minibatches=3), "a3c.minibatches=3 must be a divisor of the 320 steps of a rollout"),
        (dict(minibatches=320, env_groups=2), "a3c.minibatches=320 must be a divisor of the 160 steps"),
        (dict(clip_range=0.1, vtrace=True), "a3c.clip_range=0.1 must be 0 with vtrace=True"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        A3CConfig(**options)


def test_normalized_advantages_have_mean_zero_and_deviation_one():
    made = normalize(torch.tensor([[1.0, 3.0], [5.0, 7.0]]))
    torch.testing.assert_close(made, torch.tensor([[-3.0, -1.0], [1.0, 3.0]]) / 5**0.5)
    assert normalize(torch.full((3,), 2.0)).tolist() == [0, 0, 0]


def test_normalized_advantages_enter_the_policy_s_loss_and_nothing_else():
    policy, (_, second, _) = first_rollouts("Clock-v0")
    plain, normalized = (
        loss_and_metrics(policy, second, A3CConfig(n_steps=3, normalize_advantage=flag))[1]
        for flag in (False, True)
    )
    differing = {name for name in plain if plain[name] != normalized[name]}
    assert differing == {"policy_loss", "loss"}


@pytest.mark.parametrize("core", ["none", "lstm"])
def test_the_parts_of_a_rollout_make_the_whole(core):
    policy = small_policy(core, "neurocoder")
    stream = rollouts(
        policy, make_vec("TruncatedClock-v0", 4), 6, [1, 2, 3, 4], torch.Generator().manual_seed(0)
    )
    _, rollout = next(stream), next(stream)
    config = A3CConfig(n_steps=6, envs_per_worker=4, minibatches=2, clip_range=0.2)

    def gradient(*parts):
        policy.zero_grad()
        for part in parts:
            (loss_and_metrics(policy, part, config)[0] / len(parts)).backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    order = torch.tensor([2, 0, 3, 1])
    parts = [rollout.games(index) for index in order.chunk(2)]
    assert parts[0].observation.shape[:2] == (6, 2) and parts[0].n_games == 2
    assert torch.equal(parts[1].reward, rollout.reward[:, [3, 1]])
    torch.testing.assert_close(gradient(*parts), gradient(rollout), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [dict(clip_range=0.2), dict(clip_range=0.2, normalize_advantage=True)])
def test_the_steps_of_a_rollout_make_the_whole_in_any_order(options):
    policy = small_policy("none", "neurocoder")
    stream = rollouts(
        policy, make_vec("TruncatedClock-v0", 4), 6, [1, 2, 3, 4], torch.Generator().manual_seed(0)
    )
    _, rollout = next(stream), next(stream)
    config = A3CConfig(n_steps=6, envs_per_worker=4, minibatches=8, **options)

    def gradient(*parts):
        policy.zero_grad()
        for part in parts:
            (loss_and_metrics(policy, part, config)[0] / len(parts)).backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    whole = gradient(rollout)
    known = assessed(policy, rollout, config)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    parts = [known.steps(index) for index in order.chunk(8)]
    assert parts[0].observation.shape[:2] == (1, 3) and parts[0].n_games == 3
    step, game = divmod(int(order[4]), 4)
    assert parts[1].action[0, 1] == rollout.action[step, game]
    assert parts[1].advantage[0, 1] == known.advantage[step, game]
    torch.testing.assert_close(gradient(*parts), whole, rtol=1e-4, atol=1e-6)
    if options.get("normalize_advantage"):
        assert known.advantage.mean().abs() < 1e-6 and known.advantage.std(correction=0) == pytest.approx(1)


def test_v_trace_corrects_every_update_of_a_rollout():
    """Parts are whole games, without advantages from before: those would be of the policy that acted."""
    spec, model = cartpole(n_steps=6, envs_per_worker=4, minibatches=2, vtrace=True, epochs=2)
    spec = replace(spec, policy=replace(spec.policy, core="none"))
    envs = spec.make_envs(1)
    model = SharedModel(
        Policy(envs.single_observation_space, envs.single_action_space, spec.policy), spec.a3c
    )
    worker = Worker(0, 0, spec, model, Board(1))
    list(worker._start())
    rollouts_ = play(worker._actors, 6)
    parts = [part for (part,) in worker._minibatches(rollouts_)]
    assert [part.action.shape for part in parts] == [(6, 2)] * 4
    assert all(part.advantage is None and part.target is None for part in parts)


def test_a_rollout_is_assessed_by_what_was_thought_when_it_was_played():
    policy = small_policy("none", "neurocoder")
    actor = Actor(
        policy,
        make_vec("TruncatedClock-v0", 4),
        torch.Generator().manual_seed(0),
        tape=Tape(6, differentiable=False),
    )
    actor.reset([1, 2, 3, 4])
    play([actor], 6)
    (rollout,) = play([actor], 6)
    config = A3CConfig(n_steps=6, envs_per_worker=4, minibatches=8, clip_range=0.2)
    known, again = (assessed(policy, r, config) for r in (rollout, replace(rollout, tape=None)))
    for name in ("advantage", "target"):
        assert getattr(known, name).std() > 0
        torch.testing.assert_close(getattr(known, name), getattr(again, name))
    rollout.observation.zero_()  # it is not looked at again
    torch.testing.assert_close(assessed(policy, rollout, config).target, known.target, rtol=0, atol=0)


def test_a_clipped_loss_knows_what_the_acting_policy_thought():
    policy, (_, second, _) = first_rollouts("Clock-v0")
    second.log_prob -= 1.0  # as if the policy had since come to like its actions e times better
    plain, clipped = (
        loss_and_metrics(policy, second, A3CConfig(n_steps=3, clip_range=clip))[1]["policy_loss"]
        for clip in (0.0, 0.2)
    )
    advantage = second.reward.clamp(-1, 1)  # by a critic that knows nothing, nearly
    assert plain != clipped
    assert (advantage > 0).all() and clipped == pytest.approx(
        plain / -second_log_prob(policy, second) * -1.2, rel=0.2
    )


def second_log_prob(policy, rollout):
    """Return the mean log-probability of what was done: the same for all, as the policy is nearly uniform."""
    with torch.no_grad():
        logits = policy(rollout.observation, (), rollout.episode_start)[0].logits
    return float(policy.distribution(logits).log_prob(rollout.action).mean())
