"""The layer against a float64 oracle that loops, and the properties that the paper's equations imply."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import attention, orthogonal_loss, working_program

from neurocoder.policies import NeurocoderLinear, make_head
from neurocoder.policies.heads import HeadError
from neurocoder.policies.heads import program_memory as pm


def layer(steps=1, heads=2, residual=True, **options) -> NeurocoderLinear:
    settings = dict(slots=7, key_size=3, least_used=2, controller_size=4) | options
    made = NeurocoderLinear(
        5, 4, attention_steps=steps, attention_heads=heads, residual=residual, **settings
    ).double()
    with torch.no_grad():  # away from the harmless start, where many terms vanish
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        if made.fixed_routing:
            made.openness.fill_(1.0)
    return made


VARIANTS = pytest.mark.parametrize("residual", [True, False])
STEPS = pytest.mark.parametrize("steps", [1, 3])
HEADS = pytest.mark.parametrize("heads", [1, 2])


@STEPS
@HEADS
@VARIANTS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"convex": True},
        {"sharpness": 7.5},
        {"sharpness": "learnable"},
        {"fixed_routing": True},
        {"fixed_routing": True, "convex": True},
    ],
)
def test_forward_program_and_trace_agree_with_the_oracle(steps, heads, residual, options):
    if options.get("fixed_routing") and steps > 1:
        with pytest.raises(HeadError, match="fixed_routing: attention_steps=3 must be 1"):
            layer(steps, heads, residual, **options)
        return
    made = layer(steps, heads, residual, **options)
    x = torch.randn(3, made.in_features, dtype=torch.float64)
    y, program, trace = made(x), made.program(x), made.trace(x)
    for row in range(len(x)):
        sample = x[row].numpy()
        expected = working_program(made, sample)
        np.testing.assert_allclose(program[row].detach().numpy(), expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(y[row].detach().numpy(), sample @ expected, rtol=0, atol=1e-10)
        weights = attention(made, sample)
        for part, reference in zip(trace[:3], weights, strict=True):
            np.testing.assert_allclose(part[row].numpy(), reference, rtol=0, atol=1e-10)


@STEPS
@HEADS
@VARIANTS
def test_gradcheck(steps, heads, residual):
    made = layer(steps, heads, residual)
    x = torch.randn(2, made.in_features, dtype=torch.float64, requires_grad=True)
    names, values = zip(*made.named_parameters(), strict=True)

    def call(x, *parameters):
        output = torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), x)
        return output, made.orthogonal_loss()

    assert torch.autograd.gradcheck(lambda x, *p: call(x, *p)[0], (x, *values))


@STEPS
@HEADS
@VARIANTS
@pytest.mark.parametrize("sharpness", [1.0, "learnable"])
@pytest.mark.parametrize("convex", [False, True])
@pytest.mark.parametrize("openness", [False, True])
def test_every_parameter_gets_a_gradient(steps, heads, residual, sharpness, convex, openness):
    made = NeurocoderLinear(
        6,
        4,
        slots=9,
        attention_steps=steps,
        attention_heads=heads,
        residual=residual,
        sharpness=sharpness,
        convex=convex,
        openness=openness,
    )
    (made(torch.randn(8, 6)).square().sum() + made.aux_loss()).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_with_fixed_routing_the_memories_alone_are_learned():
    made = NeurocoderLinear(6, 4, slots=9, residual=False, fixed_routing=True)
    (made(torch.randn(8, 6)).square().sum() + made.aux_loss()).backward()
    learned = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert learned == {"memory_u", "memory_v", "memory_s"}
    for name, parameter in made.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) == (name in learned), name


def test_with_fixed_routing_x_meets_a_given_program():
    """No gradient reaches x through what it reads: it is that of y = x W for the W that was composed."""
    made = layer(heads=3, fixed_routing=True, residual=False, sharpness=20.0)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(6, 4, dtype=torch.float64)
    (dx,) = torch.autograd.grad(made(x), x, dy)
    torch.testing.assert_close(dx, torch.einsum("bio,bo->bi", made.program(x), dy))


def test_keys_are_the_mean_directions_of_what_each_class_asks_for():
    query = torch.randn(3, 11, 2, 4, dtype=torch.float64)
    classes = torch.tensor([5, 1, 5, 7, 1, 7, 7, 5, 1, 1, 5])
    keys = pm.claimed_keys(query, classes, 8)
    for memory in range(3):
        for slot in range(8):
            own = [1, 5, 7][slot % 3]
            head = slot // 3 % 2
            rows = [query[memory, image, head].numpy() for image in range(11) if classes[image] == own]
            expected = sum(row / np.sqrt((row**2).sum()) for row in rows) / len(rows)
            np.testing.assert_allclose(keys[memory, slot], expected, rtol=1e-12)


def test_inputs_read_the_slots_that_they_have_claimed():
    centres = 4 * torch.randn(2, 1, 5, dtype=torch.float64)
    x = (centres + 0.1 * torch.randn(2, 20, 5, dtype=torch.float64)).flatten(0, 1)
    classes = torch.arange(2).repeat_interleave(20)
    made = layer(heads=3, fixed_routing=True, convex=True, sharpness=200.0, slots=12, key_size=8)
    made.claim(x[:20], classes[:20], range(6))
    made.claim(x[20:], classes[20:], range(6, 12))
    read = made.trace(x)
    for part in read[:3]:
        assert part[:20, :, :6].sum(-1).mean() > 0.99 and part[20:, :, 6:].sum(-1).mean() > 0.99
    made.shown = range(6, 12)  # only these
    y = made(x)
    with torch.no_grad():
        for parameter in (made.memory_u, made.memory_v, made.memory_s):
            parameter[:6] += 1
    torch.testing.assert_close(made(x), y, rtol=0, atol=0)
    for slots in (range(3, 13), range(4, 4), range(-1, 3)):
        with pytest.raises(HeadError, match=r"must be slots in \[0, 12\)"):
            made.claim(x, classes, slots)
    with pytest.raises(HeadError, match="ask for fixed_routing=True"):
        layer().claim(x, classes, range(3))


def test_a_claimed_slot_opens_and_a_new_one_is_closed():
    made = layer(fixed_routing=True)
    made.grow(3, freeze_old=True)
    assert made.slot_keys.shape == (10, 3, 3) and made.openness.tolist() == [1.0] * 7 + [0.0] * 3
    made.claim(torch.randn(4, 5, dtype=torch.float64), torch.zeros(4, dtype=torch.long), range(7, 10))
    assert made.openness.tolist() == [1.0] * 10
    made.prune(range(3, 10))
    assert made.slot_keys.shape == (7, 3, 3) and made.slots == 7


def test_the_controller_has_no_parameters_that_one_step_cannot_use():
    names = dict(layer(steps=1).named_parameters())
    assert "controller.recurrent.weight" not in names
    assert names["controller.input.weight"].shape == (3 * 4, 5)
    assert "residual_gate.weight" not in dict(layer(residual=False).named_parameters())
    assert dict(layer(steps=2).named_parameters())["controller.recurrent.weight"].shape == (16, 4)
    assert layer(heads=2).controller.readout.out_features == 3 * (3 + 1) * 2
    assert layer(heads=2, convex=True).controller.readout.out_features == 3 * 3 * 2


@pytest.mark.parametrize(("slots", "width"), [(3, 8), (8, 3), (5, 5), (1, 1)])
def test_orthogonal_loss_agrees_with_the_entrywise_sum(slots, width):
    memory = torch.randn(slots, width, dtype=torch.float64)
    assert pm.orthogonal_loss(memory).item() == pytest.approx(orthogonal_loss(memory.numpy()), rel=1e-12)


def test_aux_loss_is_a_times_the_sum_over_u_and_v_and_starts_at_its_floor():
    made = NeurocoderLinear(20, 3, slots=8, orthogonality=0.3).double()
    floor = pm.orthogonal_loss_floor(8, 20, 3)
    assert floor == 5 / 8 and pm.orthogonal_loss_floor(8, 3, 6) == 7 / 8
    assert made.orthogonal_loss().item() == pytest.approx(floor, abs=1e-6)
    assert pm.total_loss(torch.tensor(2.0), made.orthogonal_loss(), 0.3).item() == pytest.approx(
        2.0 + made.aux_loss().item()
    )
    with torch.no_grad():
        made.memory_v.add_(1)
    expected = orthogonal_loss(made.memory_u.detach().numpy()) + orthogonal_loss(
        made.memory_v.detach().numpy()
    )
    assert made.aux_loss().item() == pytest.approx(0.3 * expected)


def test_optimising_the_orthogonal_loss_alone_reaches_the_floor():
    for width, floor in ((12, 0.0), (4, 0.5)):
        memory = torch.nn.Parameter(torch.randn(8, width, dtype=torch.float64))
        optimizer = torch.optim.Adam([memory], lr=0.02)
        for _ in range(2000):
            optimizer.zero_grad()
            loss = pm.orthogonal_loss(memory)
            loss.backward()
            optimizer.step()
        assert loss.item() == pytest.approx(floor, abs=1e-3)


# ------------------------------------------------------------------------------------ hand numbers


def test_singular_values_by_hand():
    log2 = np.log(2.0)
    sigma = pm.singular_values(torch.zeros(1, 3, dtype=torch.float64))
    np.testing.assert_allclose(sigma[0].numpy(), [3 * log2, 2 * log2, log2])


def test_least_used_attention_by_hand_with_ties_to_the_lower_index():
    usage = torch.tensor([[[0.5, 0.1, 0.9, 0.1, 0.1]]])
    lifted = pm.least_used_attention(usage, 2)
    torch.testing.assert_close(lifted, torch.tensor([[[0.0, 0.8, 0.0, 0.8, 0.0]]]))


def test_gated_attention_by_hand():
    content, least = torch.tensor([[[0.25, 0.75]]]), torch.tensor([[[0.6, 0.0]]])
    mixed = pm.gated_attention(torch.full((1, 1), np.log(3.0)), content, least)
    torch.testing.assert_close(mixed, torch.tensor([[[0.75 * 0.25 + 0.25 * 0.6, 0.75 * 0.75]]]))


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e-15])
def test_unit_vectors_are_those_of_normalize_down_to_zero(scale):
    v = scale * torch.randn(4, 3, 5, dtype=torch.float64)
    v[0, 0] = 0
    v.requires_grad_()
    dv = torch.randn_like(v)
    ours, theirs = pm.unit(v), torch.nn.functional.normalize(v, dim=-1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    found, expected = (torch.autograd.grad(y, v, dv)[0] for y in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 / scale)
    assert torch.isfinite(pm.unit(torch.zeros(2, 5))).all()


def test_content_attention_by_hand():
    key = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    weights = pm.content_attention(torch.tensor([[[3.0, 0.0]]]), key)
    expected = np.exp([1.0, 0.0, -1.0]) / np.exp([1.0, 0.0, -1.0]).sum()
    np.testing.assert_allclose(weights[0, 0].numpy(), expected, rtol=1e-6)


def test_usage_is_the_largest_attention_so_far():
    torch.testing.assert_close(
        pm.usage(torch.tensor([[[0.1, 0.7]]]), torch.tensor([[[0.4, 0.2]]])), torch.tensor([[[0.4, 0.7]]])
    )


def test_integrate_by_hand():
    program, residual = torch.ones(1, 2, 2), torch.eye(2)
    made = pm.integrate(program, torch.tensor([0.5]), torch.tensor([4.0]), residual)
    torch.testing.assert_close(made, torch.tensor([[[3.0, 1.0], [1.0, 3.0]]]))


# -------------------------------------------------------------------------------------- properties


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    slots=st.integers(2, 12),
    steps=st.integers(1, 4),
    heads=st.integers(1, 4),
    key_size=st.integers(1, 5),
    residual=st.booleans(),
    convex=st.booleans(),
    leading=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 2**16),
)
def test_invariants(inputs, outputs, slots, steps, heads, key_size, residual, convex, leading, seed):
    torch.manual_seed(seed)
    made = NeurocoderLinear(
        inputs,
        outputs,
        slots=slots,
        attention_steps=steps,
        attention_heads=heads,
        key_size=key_size,
        least_used=min(2, slots),
        residual=residual,
        convex=convex,
    ).double()
    x = torch.randn(*leading, inputs, dtype=torch.float64)
    y, trace, program = made(x), made.trace(x), made.program(x)
    assert y.shape == (*leading, outputs)
    assert program.shape == (*leading, inputs, outputs)
    torch.testing.assert_close(y, (x.unsqueeze(-2) @ program).squeeze(-2))
    n_components = steps * heads
    for part in trace[:3]:
        assert part.shape == (*leading, n_components, slots)
        assert (part >= 0).all()
        if convex and slots > 2:
            totals = part[..., :heads, :].sum(-1)
            torch.testing.assert_close(totals, torch.ones_like(totals))
    assert (trace.sigma > 0).all()
    assert (trace.sigma.diff(dim=-1) < 0).all()
    if y.numel():
        difference = program
        if residual:
            scale = trace.residual_gate * trace.sigma[..., -1]
            difference = program - scale[..., None, None] * made.residual
            assert (scale < trace.sigma[..., -1]).all()
        rank = torch.linalg.matrix_rank(difference.detach(), atol=1e-9)
        assert rank.max() <= min(n_components, slots, inputs, outputs)


@settings(max_examples=40, deadline=None)
@given(
    slots=st.integers(1, 12),
    heads=st.integers(1, 4),
    key_size=st.integers(1, 5),
    sharpness=st.floats(0.1, 30),
    least_used=st.integers(1, 12),
    seed=st.integers(0, 2**16),
)
def test_invariants_of_attention_and_usage(slots, heads, key_size, sharpness, least_used, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(3, heads, key_size, generator=generator, dtype=torch.float64)
    key = torch.randn(slots, key_size, generator=generator, dtype=torch.float64)
    content = pm.content_attention(query, key, sharpness)
    torch.testing.assert_close(content.sum(-1), torch.ones(3, heads, dtype=torch.float64))
    assert (content > 0).all()
    assert (content <= 1 / (1 + (slots - 1) * np.exp(-2 * sharpness)) + 1e-12).all()  # |cos| <= 1
    lifted = pm.least_used_attention(content, least_used)
    assert ((lifted != 0).sum(-1) <= least_used).all() and (lifted >= 0).all()
    assert (lifted <= content.amax(-1, keepdim=True)).all()
    if least_used >= slots:
        torch.testing.assert_close(lifted, content.amax(-1, keepdim=True) - content)


def test_the_residual_is_bounded_by_the_smallest_singular_value():
    made = layer(steps=2)
    x = torch.randn(20, 5, dtype=torch.float64)
    without = copy.deepcopy(made)
    without.residual = None
    difference = torch.linalg.matrix_norm(made.program(x) - without.program(x), ord=2)
    limit = made.trace(x).sigma[:, -1] * torch.linalg.matrix_norm(made.residual, ord=2)
    assert (difference < limit).all() and (difference > 0).all()


def change_memory(memory: torch.Tensor) -> None:
    memory.mul_(2).add_(1)


def test_a_change_of_the_memory_by_another_process_is_seen_by_the_next_forward():
    made = layer()
    x = torch.randn(2, 5, dtype=torch.float64)
    made.memory_u.requires_grad_(False).share_memory_()
    expected = copy.deepcopy(made)
    change_memory(expected.memory_u)
    before = made(x)
    process = torch.multiprocessing.get_context("fork").Process(target=change_memory, args=(made.memory_u,))
    process.start()
    process.join()
    assert process.exitcode == 0 and (made(x) - before).abs().max() > 1e-3
    torch.testing.assert_close(made(x), expected(x), rtol=0, atol=0)


def test_permuting_the_slots_changes_nothing():
    made = layer(steps=3)
    x = torch.randn(4, 5, dtype=torch.float64)
    before = made(x)
    order = torch.randperm(made.slots)
    with torch.no_grad():
        for memory in (made.memory_u, made.memory_v, made.memory_s, made.key_s):
            memory.copy_(memory[order])
    torch.testing.assert_close(made(x), before)


def test_scaling_queries_or_keys_changes_nothing():
    query, key = torch.randn(2, 3, 4), torch.randn(6, 4)
    torch.testing.assert_close(pm.content_attention(query, key), pm.content_attention(9 * query, 0.3 * key))


def test_usage_moves_the_second_step_even_when_the_controller_stands_still():
    made = layer(steps=2, heads=1)
    with torch.no_grad():
        made.controller.readout.weight.zero_()  # the same query and gate at every step
    first, second = made.trace(torch.randn(5, dtype=torch.float64)).attention_u
    assert (first - second).abs().max() > 1e-3


def test_a_change_of_the_memory_is_seen_by_the_next_forward():
    made = layer()
    x = torch.randn(2, 5, dtype=torch.float64)
    before = made.trace(x).attention_u
    with torch.no_grad():
        made.memory_u.copy_(torch.randn_like(made.memory_u))
    assert (made.trace(x).attention_u - before).abs().max() > 1e-3


def test_output_scale_multiplies_the_output_once_at_the_start():
    torch.manual_seed(3)
    plain = NeurocoderLinear(6, 4, key_size=1)
    torch.manual_seed(3)
    small = NeurocoderLinear(6, 4, key_size=1, output_scale=0.02)
    torch.testing.assert_close(small.memory_v, 0.02 * plain.memory_v)
    torch.testing.assert_close(small.residual, 0.02 * plain.residual)
    torch.testing.assert_close(small.memory_u, plain.memory_u)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(slots=0), "slots=0 must be"),
        (dict(slots=2.5), "slots=2.5 must be"),
        (dict(attention_heads=0), "attention_heads=0"),
        (dict(attention_steps=-1), "attention_steps=-1"),
        (dict(slots=4, least_used=5), "slots=4 must be >= least_used=5"),
        (dict(key_size=0), "key_size=0"),
        (dict(least_used=0), "least_used=0"),
        (dict(controller_size=0), "controller_size=0"),
        (dict(frozen_slots=81), "frozen_slots=81 must be <= slots=80"),
        (dict(sharpness="soft"), "sharpness='soft'"),
        (dict(sharpness=0.0), "sharpness=0.0"),
        (dict(orthogonality=float("nan")), "orthogonality=nan"),
        (dict(output_scale=0.0), "output_scale=0.0"),
        (dict(fixed_routing=True, sharpness="learnable"), "nothing would learn it"),
        (dict(slotz=3), "did you mean 'slots'"),
    ],
)
def test_values_that_cannot_be_used_are_named(options, message):
    with pytest.raises(HeadError, match=message.replace("(", r"\(")):
        make_head("neurocoder", 4, 3, **options)


def test_an_unknown_head_offers_the_nearest():
    with pytest.raises(HeadError, match="did you mean 'neurocoder'"):
        make_head("neurocodr", 4, 3)


def test_shapes_of_the_equations_are_checked_in_tests():
    with pytest.raises(Exception, match="Type-check error"):
        pm.usage(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
