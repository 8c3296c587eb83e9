"""The layers by hand against the layer by equations: values, gradients, and when which of them runs."""

import copy
import threading

import pytest
import torch

from neurocoder.policies import NeurocoderLinear
from neurocoder.policies.heads import fused, fused_parts, fused_released, fused_steps
from neurocoder.policies.heads import program_memory as pm
from neurocoder.policies.heads.composed import ComposedHead
from neurocoder.policies.heads.released import ReleasedNeurocoderLinear


def layer(inputs=6, outputs=4, **options) -> NeurocoderLinear:
    settings = dict(slots=9, attention_heads=4, key_size=3, controller_size=5) | options
    return moved(NeurocoderLinear(inputs, outputs, **settings).double())


NOT_READ = ("key_u", "key_v", "bias")
"""Parameters of :func:`released` that its output does not depend on."""


def released(**options) -> ReleasedNeurocoderLinear:
    settings = dict(slots=9, attention_heads=4, key_size=3, residual=True) | options
    return moved(ReleasedNeurocoderLinear(6, 4, **settings).double())


def moved(made):
    with torch.no_grad():  # away from the harmless start, where many terms vanish
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def by_equations(made: ComposedHead) -> ComposedHead:
    other = copy.deepcopy(made)
    other.fused = False
    return other


def values_and_gradients(made, x, dy):
    x = x.detach().requires_grad_()
    made.zero_grad()
    y = made(x)
    y.backward(dy)
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in made.named_parameters()}}


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Grows by the number of attention steps, as 1 or 2 for several, whenever a fused layer runs; by 0 for a released one."""
    seen: list[int] = []
    for steps, module in ((0, fused_released), (1, fused), (2, fused_steps)):

        def counting(*arguments, original=module._forward, steps=steps):
            seen.append(steps)
            return original(*arguments)

        monkeypatch.setattr(module, "_forward", counting)
    return seen


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("sharpness", [1.0, 7.5])
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("part", [1 << 21, 250])
def test_values_and_gradients_are_those_of_the_equations(
    residual, sharpness, batch, part, calls, monkeypatch
):
    monkeypatch.setattr(fused, "PART", part)  # 250: two rows at a time
    made = layer(residual=residual, sharpness=sharpness)
    x, dy = torch.randn(batch, 6, dtype=torch.float64), torch.randn(batch, 4, dtype=torch.float64)
    found, expected = values_and_gradients(made, x, dy), values_and_gradients(by_equations(made), x, dy)
    assert len(calls) == 1
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_single_precision_stays_near_the_equations_with_many_slots_and_sharp_attention():
    made = layer(64, 32, slots=200, attention_heads=8, sharpness=fused_parts.MAX_SHARPNESS).float()
    x, dy = torch.randn(50, 64), torch.randn(50, 32)
    found, expected = values_and_gradients(made, x, dy), values_and_gradients(by_equations(made), x, dy)
    for name, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-3 * scale, msg=name)


@pytest.mark.parametrize("make", [layer, released])
def test_scratch_memory_is_not_shared_by_layers_whose_passes_interleave(make):
    first, second = make(), make()
    x = torch.randn(5, 6, dtype=torch.float64)
    dy = torch.randn(5, 4, dtype=torch.float64)
    expected = [values_and_gradients(by_equations(made), x, dy) for made in (first, second)]
    outputs = [made(x) for made in (first, second)]
    for y in outputs:
        y.backward(dy)
    for made, values in zip((first, second), expected, strict=True):
        for name, parameter in made.named_parameters():
            torch.testing.assert_close(parameter.grad, values[name])


@pytest.mark.parametrize("make", [layer, released])
def test_the_graph_can_be_kept_and_used_again(make):
    made = make()
    y = made(torch.randn(3, 6, dtype=torch.float64)).sum()
    read = [p for name, p in made.named_parameters() if name not in NOT_READ]
    first = torch.autograd.grad(y, read, retain_graph=True)
    made(torch.randn(5, 6, dtype=torch.float64))  # overwrites the scratch memory
    second = torch.autograd.grad(y, read)
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("make", [layer, released])
def test_threads_have_their_own_scratch_memory(make):
    made = make()
    xs = [torch.randn(40, 6, dtype=torch.float64) for _ in range(4)]
    expected = [made(x).detach() for x in xs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if not torch.equal(made(xs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_leading_dimensions_and_no_grad_take_the_same_path(calls):
    made = layer()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        quiet = made(x)
    assert len(calls) == 1 and not quiet.requires_grad
    torch.testing.assert_close(quiet, made(x), rtol=0, atol=0)
    torch.testing.assert_close(quiet[1, 2], made(x[1, 2]))
    assert made(x[:0]).shape == (0, 3, 4) and len(calls) == 3


@pytest.mark.parametrize("make", [layer, released])
def test_a_changed_parameter_is_noticed_by_backward(make):
    made = make()
    y = made(torch.randn(3, 6, dtype=torch.float64)).sum()
    with torch.no_grad():
        made.memory_u.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("make", [layer, released])
def test_second_derivatives_are_refused_unless_the_equations_run(make):
    made = make()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(made(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    assert torch.autograd.gradgradcheck(by_equations(made), x)


@pytest.mark.parametrize("make", [layer, released])
def test_per_sample_gradients_work_and_agree_with_a_loop(make):
    made = make()
    parameters = {name: p.detach() for name, p in made.named_parameters()}
    x = torch.randn(4, 6, dtype=torch.float64)

    def loss(parameters, row):
        return torch.func.functional_call(made, parameters, row).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, row in enumerate(x):
        made.zero_grad()
        made(row).square().sum().backward()
        for name, parameter in made.named_parameters():
            expected = torch.zeros_like(parameter) if name in NOT_READ else parameter.grad
            torch.testing.assert_close(gradients[name][i], expected)


@pytest.mark.parametrize(
    "options",
    [
        dict(convex=True),
        dict(convex=True, attention_steps=2),
        dict(sharpness="learnable"),
        dict(sharpness=fused_parts.MAX_SHARPNESS + 1),
        dict(openness=True),
        dict(frozen_slots=3),
    ],
)
def test_what_it_does_not_compute_goes_through_the_equations(options, calls):
    made = layer(**options)
    made(torch.randn(20, 6, dtype=torch.float64))
    assert made.prepared() is made  # nothing can be computed before
    assert not calls


@pytest.mark.parametrize("make", [layer, released])
def test_what_was_computed_in_inference_mode_hinders_no_training(make):
    made = make()
    x = torch.randn(3, 6, dtype=torch.float64)

    def work():
        with torch.inference_mode():
            made(x)
        made(x).sum().backward()
        done.append(made.memory_u.grad is not None)

    done: list[bool] = []
    thread = threading.Thread(target=work)  # whose scratch memory is fresh
    thread.start()
    thread.join()
    assert done == [True]


def test_a_gate_that_is_shut_stops_what_comes_through_it():
    made = layer().float()
    with torch.no_grad():
        gates = made.controller.readout.bias.view(3, made.key_size + 1, 4)[:, -1]
        gates[0] = -200  # of U; its sigmoid is 0
    x, dy = torch.randn(5, 6), torch.randn(5, 4)
    found, expected = values_and_gradients(made, x, dy), values_and_gradients(by_equations(made), x, dy)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("make", [layer, released])
def test_shapes_can_be_asked_for_without_numbers(make):
    assert make().to("meta")(torch.empty(3, 6, dtype=torch.float64, device="meta")).shape == (3, 4)


@pytest.mark.parametrize(
    "rows, inner, columns", [(3, 5, 2), (3, 5, 15), (3, 5, 16), (40, 5, 1), (3, 1, 2), (3, 1, 20)]
)
def test_the_matrix_product_is_that_of_a_loop(rows, inner, columns):
    left, right = (torch.randn(shape, dtype=torch.float64) for shape in ((rows, inner), (inner, columns)))
    expected = [
        [sum(left[i, k] * right[k, j] for k in range(inner)) for j in range(columns)] for i in range(rows)
    ]
    for one in (left, left.t().contiguous().t()):
        torch.testing.assert_close(
            fused_parts.matrix_product(one, right), torch.tensor(expected, dtype=torch.float64)
        )


@pytest.mark.parametrize("make", [layer, released])
@pytest.mark.parametrize("batch", [1, 20])
def test_gradients_are_laid_out_as_parameters_are(make, batch):
    """Fused optimisers go through both side by side, and of ``autograd.grad`` nobody else sees to it."""
    made = make()
    read = [p for name, p in made.named_parameters() if name not in NOT_READ]
    y = made(torch.randn(batch, 6, dtype=torch.float64))
    for parameter, gradient in zip(read, torch.autograd.grad(y.sum(), read), strict=True):
        assert gradient.stride() == parameter.stride()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", [(6,), (7, 6), (2, 3, 6)])
def test_a_prepared_layer_is_the_layer_until_a_parameter_changes(residual, shape, calls):
    made = layer(residual=residual)
    x = torch.randn(shape, dtype=torch.float64)
    act = made.prepared()
    y = act(x)
    assert len(calls) == 1 and not y.requires_grad
    before = made(x).detach()
    torch.testing.assert_close(y, before, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        made.memory_u.mul_(2)
    torch.testing.assert_close(act(x), y, rtol=0, atol=0)
    assert not torch.allclose(made(x), before)
    torch.testing.assert_close(made.prepared()(x), made(x).detach(), rtol=1e-10, atol=1e-12)
    assert act(x[None][:0]).shape == (0, *shape[:-1], 4)  # nothing to read: by equations


# --------------------------------------------------------------------------------------- several steps


@pytest.mark.parametrize("steps, heads, least_used", [(2, 4, 5), (3, 2, 1), (5, 1, 2), (3, 3, 9)])
@pytest.mark.parametrize("residual, sharpness", [(True, 1.0), (False, 7.5)])
@pytest.mark.parametrize("part", [1 << 19, 700])
def test_values_and_gradients_of_several_steps_are_those_of_the_equations(
    steps, heads, least_used, residual, sharpness, part, calls, monkeypatch
):
    monkeypatch.setattr(fused_steps, "PART", part)  # 700: a few rows at a time
    made = layer(
        attention_steps=steps,
        attention_heads=heads,
        least_used=least_used,
        residual=residual,
        sharpness=sharpness,
    )
    x, dy = torch.randn(17, 6, dtype=torch.float64), torch.randn(17, 4, dtype=torch.float64)
    found, expected = values_and_gradients(made, x, dy), values_and_gradients(by_equations(made), x, dy)
    assert calls == [2]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(made(x), expected["y"], rtol=1e-9, atol=1e-11)


def test_several_steps_keep_the_dtype_and_the_leading_dimensions_and_few_rows_go_through_the_equations(calls):
    made = layer(attention_steps=3).float()
    x = torch.randn(5, 4, 6)
    y = made(x)
    assert calls == [2] and y.dtype == torch.float32 and y.shape == (5, 4, 4)
    torch.testing.assert_close(y[4, 2], made(x[4, 2]), rtol=1e-4, atol=1e-4)
    made(torch.randn(fused_steps.FEW_ROWS - 1, 6))
    assert calls == [2] and made.prepared() is made


def test_slots_that_tie_are_chosen_by_index():
    """Two pairs of slots with the same content and the same keys tie in every memory and at every step."""
    made = layer(attention_steps=3, least_used=3)
    with torch.no_grad():
        for memory in (made.memory_u, made.memory_v, made.memory_s, made.key_s):
            memory[5], memory[7] = memory[2], memory[3]
    x = torch.randn(40, 6, dtype=torch.float64)
    torch.testing.assert_close(made(x), by_equations(made)(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_the_least_used_are_those_of_eq_13(count, levels):
    usage = torch.randint(levels, (3, 9, 2, 50)).double() / levels  # few levels: nearly all slots tie
    chosen = fused_steps.least_used(usage, count)
    lifted = pm.least_used_attention(usage.permute(0, 3, 2, 1), count).permute(0, 3, 2, 1)
    torch.testing.assert_close(chosen * (usage.amax(1, keepdim=True) - usage), lifted)
    assert (chosen.sum(1) == count).all()


# --------------------------------------------------------------------------------- the released layer


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("content_keys", [True, False])
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("part", [1 << 21, 250])
def test_values_and_gradients_of_the_release_are_those_of_its_equations(
    residual, content_keys, batch, part, calls, monkeypatch
):
    monkeypatch.setattr(fused_released, "PART", part)  # 250: two rows at a time
    made = released(residual=residual, content_keys=content_keys)
    x, dy = torch.randn(batch, 6, dtype=torch.float64), torch.randn(batch, 4, dtype=torch.float64)
    found, expected = values_and_gradients(made, x, dy), values_and_gradients(by_equations(made), x, dy)
    assert calls == [0] and found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(made(x), expected["y"], rtol=1e-10, atol=1e-12)


def test_a_key_and_a_query_of_zero_have_the_gradients_of_the_release(calls):
    """There the offsets of its cosine are all that counts."""
    made = released(content_keys=False)
    with torch.no_grad():
        made.key_s[2] = 0
        for net in made.queries:
            net.bias.zero_()
    x = torch.randn(5, 6, dtype=torch.float64)
    x[3] = 0
    dy = torch.randn(5, 4, dtype=torch.float64)
    found, expected = values_and_gradients(made, x, dy), values_and_gradients(by_equations(made), x, dy)
    assert expected["key_s"][2].abs().max() > 100 * expected["key_s"][3].abs().max()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_the_release_keeps_the_leading_dimensions_and_steps_go_through_the_equations(calls):
    made = released().float()
    x = torch.randn(2, 3, 6)
    y = made(x)
    assert calls == [0] and y.shape == (2, 3, 4) and y.dtype == torch.float32
    torch.testing.assert_close(y[1, 2], made(x[1, 2]), rtol=1e-4, atol=1e-5)
    released(attention_steps=2)(x.double())
    assert calls == [0, 0]
