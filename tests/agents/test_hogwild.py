"""Shared parameters: gradients that are known, an optimiser that is torch's, a board without locks."""

import pytest
import torch
from torch import nn

from neurocoder.agents.a3c import A3CConfig
from neurocoder.agents.hogwild import (
    Board,
    FlatParameters,
    LocalCopy,
    SharedModel,
    SharedUpdate,
    clip_gradient_,
)
from neurocoder.agents.rollout import NonFiniteLossError
from neurocoder.envs import make_vec
from neurocoder.policies import Policy, PolicyConfig


def cartpole(**a3c):
    config = A3CConfig(workers=1, **a3c)
    envs = make_vec("CartPole-v1", 1)
    torch.manual_seed(0)
    policy = Policy(envs.single_observation_space, envs.single_action_space, PolicyConfig(core="none"))
    return policy, SharedModel(policy, config)


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
    policy, _ = cartpole()
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
    _, shared = cartpole()
    shared.statistics["exp_avg"].fill_(3.0)
    shared.updates.fill_(7)
    saved = shared.state()
    _, other = cartpole()
    other.load_state(saved)
    assert other.updates.item() == 7 and (other.statistics["exp_avg"] == 3).all()
    with pytest.raises(Exception, match="does not fit"):
        other.load_state({"updates": saved["updates"]})


def test_copy_into_returns_the_parameters_that_went_in():
    policy, shared = cartpole()
    expected = {k: v.clone() for k, v in policy.state_dict().items()}
    fresh, _ = cartpole()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    shared.copy_into(fresh)
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_workers_of_a2c_share_the_mean_of_their_gradients():
    config = A3CConfig(
        workers=3, sync=True, optimizer="rmsprop", rmsprop_decay=0.0, optimizer_eps=1e6, max_grad_norm=0.0
    )
    weight = nn.Linear(1, 1, bias=False)
    shared = SharedModel(weight, config)
    for worker, gradient in enumerate((1.0, 2.0, 6.0)):
        local = LocalCopy(nn.Linear(1, 1, bias=False), shared, config)
        local.pull()
        (local.module.weight * gradient).sum().backward()
        local.deliver(shared.gradients[worker])
    before = shared.values[0].item()
    assert SharedUpdate(shared, config).apply(learning_rate=1e6, workers=range(3)) == 3.0
    assert before - shared.values[0].item() == pytest.approx(3.0, rel=1e-4)
    assert SharedUpdate(shared, config).apply(learning_rate=1e6, workers=[0, 2]) == 3.5
    shared.gradients[1, 0] = float("nan")
    after = shared.values.clone()
    with pytest.raises(NonFiniteLossError, match="the update was not applied"):
        SharedUpdate(shared, config).apply(learning_rate=1e6, workers=range(3))
    torch.testing.assert_close(shared.values, after, rtol=0, atol=0)


def test_one_gradient_alone_is_applied_as_a3c_would():
    results = []
    for sync in (False, True):
        policy, shared = cartpole(sync=sync, max_grad_norm=0.1)
        local = LocalCopy(policy, shared, A3CConfig(sync=sync, max_grad_norm=0.1))
        local.pull()
        sum(p.square().sum() for p in policy.parameters()).backward()
        if sync:
            local.deliver(shared.gradients[0])
            SharedUpdate(shared, A3CConfig(max_grad_norm=0.1)).apply(0.01, [0])
        else:
            local.push(0.01)
        results.append(shared.values.clone())
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_the_board_counts_and_asks_for_a_pause_when_it_is_due():
    board = Board(2, agent_steps=100, checkpoint_at=120)
    board.steps[0] += 12
    board.pause_if_due()
    assert board.agent_steps == 112 and not board.pausing
    board.steps[1] += 12
    board.pause_if_due()
    assert board.agent_steps == 124 and board.pausing and not board.stopping
    board.pausing, board.stopping, board.checkpoint_at = False, True, 0
    board.pause_if_due()
    assert board.stopping and not board.pausing
    board.beat(1)
    assert board.beats[1] > board.beats[0]
