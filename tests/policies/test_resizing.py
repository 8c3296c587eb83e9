"""Memories that grow without changing the function, shrink, and take the optimiser along."""

import copy

import pytest
import torch

from neurocoder.policies import NeurocoderLinear
from neurocoder.policies.heads import HeadError
from neurocoder.policies.heads import program_memory as pm
from neurocoder.policies.heads.resizing import orthogonal_rows

MEMORIES = ("memory_u", "memory_v", "memory_s", "key_s")


def layer(steps=1, **options) -> NeurocoderLinear:
    settings = dict(slots=7, attention_heads=3, key_size=3, least_used=2, controller_size=4) | options
    made = NeurocoderLinear(20, 16, attention_steps=steps, **settings)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def train(made, optimizer, steps=3):
    x = torch.randn(8, 20)
    for _ in range(steps):
        optimizer.zero_grad()
        (made(x).square().sum() + made.aux_loss()).backward()
        optimizer.step()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("options", [{}, {"convex": True}, {"sharpness": "learnable"}, {"residual": False}])
def test_growing_changes_nothing_and_new_rows_are_orthogonal_to_the_old(steps, options):
    made = layer(steps, **options)
    x = torch.randn(50, 20)
    before = made(x).detach()
    made.grow(5)
    assert (made(x) - before).abs().max() <= 1e-6 * before.abs().max()
    assert made.slots == 12 and made.trace(x).attention_u.shape == (50, 3 * steps, 12)
    for memory in (made.memory_u, made.memory_v):
        old, new = memory[:7], memory[7:]
        assert (new @ old.T).abs().max() < 1e-5
        gram = new @ new.T / old.norm(dim=1).mean().square()
        torch.testing.assert_close(gram, torch.eye(5))
    made.grow(2)
    assert (made(x) - before).abs().max() <= 1e-6 * before.abs().max()


def test_growing_a_second_precision_is_exact_to_rounding():
    made = layer(3).double()
    x = torch.randn(9, 20, dtype=torch.float64)
    before = made(x)
    made.grow(4)
    torch.testing.assert_close(made(x), before, rtol=1e-12, atol=1e-12)


def test_rows_beyond_the_width_are_orthogonal_among_themselves():
    rows = orthogonal_rows(torch.randn(6, 4, dtype=torch.float64), 3)
    torch.testing.assert_close(rows @ rows.T, torch.eye(3, dtype=torch.float64) * (rows @ rows.T)[0, 0])
    memory = torch.randn(2, 4, dtype=torch.float64)
    rows = orthogonal_rows(memory, 3)
    assert (rows[:2] @ memory.T).abs().max() < 1e-12 < (rows[2] @ memory.T).abs().max()


@pytest.mark.parametrize("steps", [1, 2])
def test_new_slots_open_and_learn(steps):
    torch.manual_seed(1)
    made = layer(steps, slots=2, attention_heads=2)
    made.grow(6)
    x, target = torch.randn(64, 20), torch.randn(64, 16)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
    before = made.memory_u[2:].clone()
    for _ in range(40):
        optimizer.zero_grad()
        (made(x) - target).square().mean().backward()
        optimizer.step()
    assert (made.openness[2:] > 0.01).any()
    assert (made.memory_u[2:] - before).abs().max() > 1e-3
    assert made.trace(x).attention_u[..., 2:].max() > 0.01


def test_a_closed_slot_can_open_again():
    raw = torch.tensor([-0.5, 0.0, 2.0], requires_grad=True)
    rho = pm.open_slots(raw)
    torch.testing.assert_close(rho, torch.tensor([0.0, 0.0, 2.0]))
    rho.sum().backward()
    torch.testing.assert_close(raw.grad, torch.ones(3))


def test_openness_by_hand():
    query, key = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    e = torch.tensor([1.0, 0.0, -1.0]).exp()
    rho = torch.tensor([1.0, 0.5, 0.0])
    found = pm.content_attention(query, key, 1.0, rho)[0, 0]
    torch.testing.assert_close(found, rho * e / (rho * e).sum())
    usage = torch.tensor([[[0.5, 0.11, 0.0, 0.4]]])  # ranked by 0.5, 0.11 / 0.25 = 0.44, never, 0.4
    rho = torch.tensor([1.0, 0.5, 0.0, 1.0])
    lifted = pm.least_used_attention(usage, 1, rho)
    torch.testing.assert_close(lifted, torch.tensor([[[0.0, 0.0, 0.0, 0.1]]]))
    lifted = pm.least_used_attention(usage, 2, rho)
    torch.testing.assert_close(lifted, torch.tensor([[[0.0, 0.5 * 0.39, 0.0, 0.1]]]))


@pytest.mark.parametrize("optimizer_type", [torch.optim.Adam, torch.optim.RMSprop])
def test_the_optimiser_follows_growth_and_keeps_what_it_knew(optimizer_type):
    made = layer()
    optimizer = optimizer_type(made.parameters(), lr=1e-3)
    train(made, optimizer)
    known = {name: copy.deepcopy(optimizer.state[getattr(made, name)]) for name in MEMORIES}
    made.grow(3, optimizer=optimizer)
    for name in MEMORIES:
        for key, value in optimizer.state[getattr(made, name)].items():
            if value.dim():
                torch.testing.assert_close(value[:7], known[name][key])
                assert value.shape[0] == 10 and not value[7:].any()
            else:
                assert value == known[name][key]
    assert any(p is made.openness for group in optimizer.param_groups for p in group["params"])
    opened = made.openness.detach().clone()
    train(made, optimizer)
    assert (made.openness - opened).abs().max() > 0


def test_frozen_slots_do_not_move_and_the_others_do():
    made = layer()
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    train(made, optimizer)
    made.grow(4, freeze_old=True, optimizer=optimizer)
    before = copy.deepcopy(made)
    train(made, optimizer, steps=5)
    for name in (*MEMORIES, "openness"):
        old, new = getattr(before, name), getattr(made, name)
        torch.testing.assert_close(new[:7], old[:7], rtol=0, atol=0)
        assert (new[7:] - old[7:]).abs().max() > 0, name
    assert (made.controller.input.weight - before.controller.input.weight).abs().max() > 0


@pytest.mark.parametrize("steps", [1, 3])
def test_pruning_keeps_the_rows_and_their_state(steps):
    made = layer(steps)
    optimizer = torch.optim.Adam(made.parameters())
    train(made, optimizer)
    before, state = copy.deepcopy(made), copy.deepcopy(optimizer.state[made.memory_u]["exp_avg"])
    mask = torch.tensor([True, False, True, True, False, True, True])
    made.prune(mask, optimizer=optimizer)
    assert made.slots == 5
    for name in MEMORIES:
        torch.testing.assert_close(getattr(made, name), getattr(before, name)[mask], rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state[made.memory_u]["exp_avg"], state[mask], rtol=0, atol=0)
    train(made, optimizer)


def test_pruning_unused_slots_changes_nothing():
    made = layer(2)
    x = torch.randn(6, 20)
    before = made(x).detach()
    made.grow(3)
    made.prune(range(7))
    assert made.slots == 7 and made.frozen_slots == 0
    assert (made(x) - before).abs().max() <= 1e-6 * before.abs().max()


def test_pruning_counts_the_frozen_slots_that_stay():
    made = layer()
    made.grow(3, freeze_old=True)
    made.prune([9, 1, 2, 8])
    assert (made.slots, made.frozen_slots) == (4, 2)


def test_a_grown_layer_is_saved_and_loaded():
    made = layer(2)
    made.grow(3, freeze_old=True)
    fresh = layer(2, slots=10, openness=True, frozen_slots=7)
    fresh.load_state_dict(made.state_dict())
    x = torch.randn(4, 20)
    torch.testing.assert_close(fresh(x), made(x), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(made)(x), made(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made.grow(0), "n_slots=0 must be an integer >= 1"),
        (lambda made: made.grow(-2), "n_slots=-2 must be"),
        (lambda made: made.grow(1.5), "n_slots=1.5 must be"),
        (
            lambda made: made.grow(2, optimizer=torch.optim.Adam([torch.zeros(1)])),
            "optimizer does not hold this layer's memories",
        ),
        (lambda made: made.prune([0, 1, 7]), r"keep=\[0, 1, 7\] must be slots in \[0, 7\)"),
        (lambda made: made.prune([-1, 1]), r"keep=\[-1, 1\] must be slots"),
        (lambda made: made.prune([1, 1, 2]), "names a slot twice"),
        (lambda made: made.prune([]), r"keep=\[\] leaves 0 slots, fewer than least_used=2"),
        (lambda made: made.prune([3]), "leaves 1 slots, fewer than least_used=2"),
        (lambda made: made.prune(torch.ones(6, dtype=torch.bool)), r"a mask must be \[7\]"),
    ],
)
def test_sizes_that_cannot_be_are_refused_and_nothing_changes(change, message):
    made = layer()
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(HeadError, match=message):
        change(made)
    after = made.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
