"""Shared parameters: gradients that are known, an optimiser that is torch's, processes that end."""

import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from neurocoder.agents.a3c import A3CConfig, NonFiniteLossError
from neurocoder.agents.hogwild import (
    FlatParameters,
    LocalCopy,
    SharedModel,
    TrainSpec,
    WorkerError,
    clip_gradient_,
    train,
    worker_seeds,
)
from neurocoder.envs import make_vec
from neurocoder.policies import Policy, PolicyConfig


def cartpole(**a3c):
    config = A3CConfig(**(dict(workers=1, envs_per_worker=2, n_steps=4, reward_clip=0.0) | a3c))
    make_envs = partial(make_vec, "CartPole-v1")
    envs = make_envs(1)
    policy_config = PolicyConfig(core="none")
    torch.manual_seed(0)
    policy = Policy(envs.single_observation_space, envs.single_action_space, policy_config)
    spec = TrainSpec(
        make_envs=make_envs,
        observation_space=envs.single_observation_space,
        action_space=envs.single_action_space,
        policy=policy_config,
        a3c=config,
        total_steps=64,
        seed=0,
    )
    return policy, spec, SharedModel(policy, config)


def test_known_gradients_reach_the_shared_model_update_after_update():
    """With true gradients 1, 2, 3, 4 the classic implementations apply 1, 3, 6, 10 or 1, 1, 1, 1 on torch ≥ 2."""
    # With a decay of 0 RMSProp's denominator is |gradient| + eps: an eps that dwarfs it makes plain descent.
    config = A3CConfig(optimizer="rmsprop", rmsprop_decay=0.0, optimizer_eps=1e6, max_grad_norm=0.0)
    weight = nn.Linear(1, 1, bias=False)
    shared = SharedModel(weight, config)
    local = LocalCopy(weight, shared, config)
    applied = []
    for true_gradient in (1.0, 2.0, 3.0, 4.0):
        before = shared.values[0].item()
        local.pull()
        assert weight.weight.item() == before
        (weight.weight * true_gradient).sum().backward()
        assert local.push(learning_rate=1e6) == true_gradient
        applied.append(before - shared.values[0].item())
    assert applied == pytest.approx([1.0, 2.0, 3.0, 4.0], rel=1e-4)


def test_a_gradient_that_is_not_finite_is_not_pushed():
    config = A3CConfig()
    weight = nn.Linear(2, 1)
    shared = SharedModel(weight, config)
    local = LocalCopy(weight, shared, config)
    before = shared.values.clone()
    local.pull()
    (weight.weight * float("nan")).sum().backward()
    with pytest.raises(NonFiniteLossError, match="the update was not applied"):
        local.push(learning_rate=0.1)
    torch.testing.assert_close(shared.values, before, rtol=0, atol=0)


def test_parameters_and_gradients_stay_views_of_their_vectors():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2))
    expected = [p.detach().clone() for p in net.parameters()]
    flat = FlatParameters(net)
    for parameter, value in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value)
    for _ in range(2):
        flat.zero_grad()
        net(torch.randn(4, 2, 3, 3)).sum().backward()
    for parameter in net.parameters():
        assert parameter.grad.untyped_storage().data_ptr() == flat.gradient.untyped_storage().data_ptr()
    assert flat.gradient.square().sum().item() == pytest.approx(
        sum(p.grad.square().sum().item() for p in net.parameters()), rel=1e-5
    )
    with torch.no_grad():
        flat.values.fill_(2.0)
    assert all((p == 2).all() for p in net.parameters())


def test_modules_with_buffers_are_refused():
    with pytest.raises(TypeError, match="buffers"):
        FlatParameters(nn.BatchNorm1d(3))


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_two_holders_of_the_shared_optimizer_step_like_one(name):
    policy, _, _ = cartpole()
    config = A3CConfig(optimizer=name, learning_rate=0.01)
    shared = SharedModel(policy, config)
    reference = nn.Parameter(shared.values.clone())
    if name == "adam":
        plain: torch.optim.Optimizer = torch.optim.Adam([reference], 0.01, eps=config.optimizer_eps)
    else:
        plain = torch.optim.RMSprop([reference], 0.01, alpha=config.rmsprop_decay, eps=config.optimizer_eps)
    holders = [shared.optimizer(config), shared.optimizer(config)]
    for step in range(6):
        gradient = torch.randn_like(reference)
        reference.grad = gradient.clone()
        plain.step()
        holder = holders[step % 2]
        holder.param_groups[0]["params"][0].grad = gradient.clone()
        holder.step()
    torch.testing.assert_close(shared.values, reference.detach(), rtol=1e-5, atol=1e-6)
    assert shared.updates.item() == 6


def test_clip_gradient_scales_only_what_is_too_long():
    gradient = torch.tensor([3.0, 4.0])
    assert clip_gradient_(gradient, 10.0) == 5.0 and gradient.tolist() == [3.0, 4.0]
    assert clip_gradient_(gradient, 1.0) == 5.0
    torch.testing.assert_close(gradient, torch.tensor([0.6, 0.8]))
    assert clip_gradient_(gradient, 0.0) == pytest.approx(1.0) and gradient.norm() == pytest.approx(1.0)


def test_optimizer_state_round_trips_and_foreign_state_is_refused():
    _, _, shared = cartpole()
    shared.statistics["exp_avg"].fill_(3.0)
    shared.updates.fill_(7)
    saved = shared.state()
    _, _, other = cartpole()
    other.load_state(saved)
    assert other.updates.item() == 7 and (other.statistics["exp_avg"] == 3).all()
    with pytest.raises(Exception, match="does not fit"):
        other.load_state({"updates": saved["updates"]})


def test_copy_into_returns_the_parameters_that_went_in():
    policy, _, shared = cartpole()
    expected = {k: v.clone() for k, v in policy.state_dict().items()}
    fresh, _, _ = cartpole()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    shared.copy_into(fresh)
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_every_worker_and_game_has_a_seed_of_its_own():
    seeds = [seed for worker in range(4) for seed in worker_seeds(3, worker, 8)[1]]
    assert len(set(seeds)) == 32 and all(0 <= seed < 2**31 for seed in seeds)
    assert worker_seeds(3, 0, 8) == worker_seeds(3, 0, 8)
    assert worker_seeds(3, 0, 8) != worker_seeds(3, 0, 8, resumed_at=100)


def test_workers_change_the_shared_model_and_count_the_steps():
    _, spec, shared = cartpole(workers=2)
    before = shared.values.clone()
    records = list(train(spec, shared, threading.Event()))
    assert {r.worker for r in records} <= {0, 1}
    assert sorted(r.agent_steps for r in records) == list(range(8, 65, 8))
    assert shared.updates.item() == len(records) == 8
    assert (shared.values - before).abs().max() > 1e-5
    assert torch.isfinite(shared.values).all()


def test_a_loss_that_is_not_finite_never_reaches_the_shared_model():
    _, spec, shared = cartpole(value_coefficient=1e38, reward_clip=0.0)
    with torch.no_grad():
        shared.values.mul_(1e4)
    before = shared.values.clone()
    with pytest.raises(NonFiniteLossError, match=r"the update was not applied"):
        list(train(spec, shared, threading.Event()))
    torch.testing.assert_close(shared.values, before, rtol=0, atol=0)


def test_a_killed_worker_is_named_with_its_exit_code_and_nothing_is_left():
    _, spec, shared = cartpole()
    spec = replace(spec, total_steps=10**9)
    stream = train(spec, shared, threading.Event())
    next(stream)
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"worker 0 died \(exit code -9\)"):
        for _ in stream:
            pass
    assert not multiprocessing.active_children()


def test_a_failing_environment_reports_its_traceback():
    _, spec, shared = cartpole()
    spec = replace(spec, make_envs=partial(make_vec, "NoSuchEnv-v0"))
    with pytest.raises(WorkerError, match=r"worker 0 failed:(.|\n)*unknown environment 'NoSuchEnv-v0'"):
        list(train(spec, shared, threading.Event()))
