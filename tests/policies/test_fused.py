"""The layer by hand against the layer by equations: values, gradients, and when which of them runs."""

import copy
import threading

import pytest
import torch

from neurocoder.policies import NeurocoderLinear
from neurocoder.policies.heads import fused


def layer(inputs=6, outputs=4, **options) -> NeurocoderLinear:
    settings = dict(slots=9, attention_heads=4, key_size=3, controller_size=5) | options
    made = NeurocoderLinear(inputs, outputs, **settings).double()
    with torch.no_grad():  # away from the harmless start, where many terms vanish
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def by_equations(made: NeurocoderLinear) -> NeurocoderLinear:
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
    """Grows by one whenever the fused layer runs."""
    seen: list[int] = []
    original = fused._forward

    def counting(*arguments):
        seen.append(1)
        return original(*arguments)

    monkeypatch.setattr(fused, "_forward", counting)
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
    made = layer(64, 32, slots=200, attention_heads=8, sharpness=fused.MAX_SHARPNESS).float()
    x, dy = torch.randn(50, 64), torch.randn(50, 32)
    found, expected = values_and_gradients(made, x, dy), values_and_gradients(by_equations(made), x, dy)
    for name, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-3 * scale, msg=name)


def test_scratch_memory_is_not_shared_by_layers_whose_passes_interleave():
    first, second = layer(), layer()
    x = torch.randn(5, 6, dtype=torch.float64)
    dy = torch.randn(5, 4, dtype=torch.float64)
    expected = [values_and_gradients(by_equations(made), x, dy) for made in (first, second)]
    outputs = [made(x) for made in (first, second)]
    for y in outputs:
        y.backward(dy)
    for made, values in zip((first, second), expected, strict=True):
        for name, parameter in made.named_parameters():
            torch.testing.assert_close(parameter.grad, values[name])


def test_the_graph_can_be_kept_and_used_again():
    made = layer()
    y = made(torch.randn(3, 6, dtype=torch.float64)).sum()
    first = torch.autograd.grad(y, tuple(made.parameters()), retain_graph=True)
    made(torch.randn(5, 6, dtype=torch.float64))  # overwrites the scratch memory
    second = torch.autograd.grad(y, tuple(made.parameters()))
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_threads_have_their_own_scratch_memory():
    made = layer()
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


def test_a_changed_parameter_is_noticed_by_backward():
    made = layer()
    y = made(torch.randn(3, 6, dtype=torch.float64)).sum()
    with torch.no_grad():
        made.memory_u.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_second_derivatives_are_refused_unless_the_equations_run():
    made = layer()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(made(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    assert torch.autograd.gradgradcheck(by_equations(made), x)


def test_per_sample_gradients_work_and_agree_with_a_loop():
    made = layer()
    parameters = {name: p.detach() for name, p in made.named_parameters()}
    x = torch.randn(4, 6, dtype=torch.float64)

    def loss(parameters, row):
        return torch.func.functional_call(made, parameters, row).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, row in enumerate(x):
        made.zero_grad()
        made(row).square().sum().backward()
        for name, parameter in made.named_parameters():
            torch.testing.assert_close(gradients[name][i], parameter.grad)


@pytest.mark.parametrize(
    "options",
    [
        dict(attention_steps=2),
        dict(convex=True),
        dict(sharpness="learnable"),
        dict(sharpness=fused.MAX_SHARPNESS + 1),
        dict(openness=True),
        dict(frozen_slots=3),
    ],
)
def test_what_it_does_not_compute_goes_through_the_equations(options, calls):
    layer(**options)(torch.randn(3, 6, dtype=torch.float64))
    assert not calls
