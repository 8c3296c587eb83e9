"""The memory of programs against float64 loops, hand numbers and the properties of its equations."""

import math

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurocoder.policies.heads import HeadError, mixture, nsm
from neurocoder.policies.heads.nsm import NSMHead


def head(**options) -> NSMHead:
    made = NSMHead(4, 3, **(dict(programs=6, key_size=3) | options)).double()
    with torch.no_grad():  # away from the start, where biases vanish
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def inputs(*leading: int) -> torch.Tensor:
    return torch.randn(*leading, 4, dtype=torch.float64)


# -------------------------------------------------------------------------------------- the oracle


def affine(layer: torch.nn.Linear, x: np.ndarray) -> list[float]:
    return [
        bias + sum(w * value for w, value in zip(row, x, strict=True))
        for row, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    ]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def oracle(made: NSMHead, x: np.ndarray) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Attention, program and output of one input."""
    query = [math.tanh(q) for q in affine(made.query, x)]
    strength = math.log1p(math.exp(affine(made.strength, x)[0]))
    scores = []
    for row in made.key.tolist():
        scores.append(math.exp(strength * cosine(query, [math.tanh(k) for k in row])))
    weights = [score / sum(scores) for score in scores]
    program, y = np.zeros((made.in_features, made.out_features)), np.zeros(made.out_features)
    for w, matrix, bias in zip(weights, made.weight.tolist(), made.bias.tolist(), strict=True):
        for o in range(made.out_features):
            y[o] += w * bias[o]
            for i in range(made.in_features):
                program[i, o] += w * matrix[i][o]
                y[o] += w * x[i] * matrix[i][o]
    return weights, program, y


@pytest.mark.parametrize("wide", [mixture.WIDE, 1])
def test_forward_program_and_attention_agree_with_the_oracle(wide, monkeypatch):
    monkeypatch.setattr(mixture, "WIDE", wide)  # 1: every program is a product of its own
    made, x = head(), inputs(5)
    y, trace = made.forward_with_trace(x)
    for row in range(5):
        weights, program, expected = oracle(made, x[row].numpy())
        np.testing.assert_allclose(y[row].detach().numpy(), expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(made.program(x)[row].detach().numpy(), program, rtol=0, atol=1e-10)
        for attention in (trace.attention, made.attention(x)):
            np.testing.assert_allclose(attention[row, 0].detach().numpy(), weights, rtol=0, atol=1e-10)
    torch.testing.assert_close(made(x), y, rtol=0, atol=0)


def test_gradcheck():
    made = head(key_diversity=0.3, key_orthogonality=0.7)
    names, values = zip(*made.named_parameters(), strict=True)

    class WithAux(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = made

        def forward(self, x):
            return self.head.forward_with_aux(x)

    def call(x, *parameters):
        named = {f"head.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(WithAux(), named, (x,))

    assert torch.autograd.gradcheck(call, (inputs(2).requires_grad_(), *values))


# ------------------------------------------------------------------------------------ hand numbers


def test_attention_by_hand():
    """Query along the first axis; keys at cosines 1, 0, -1; softplus(log(e² - 1)) = 2."""
    query = torch.tensor([[0.7, 0.0]])
    key = torch.tensor([[3.0, 0.0], [0.0, -0.2], [-0.01, 0.0]])
    weights = nsm.program_attention(query, key, torch.tensor([math.log(math.expm1(2.0))]))
    expected = np.exp([2.0, 0.0, -2.0]) / np.exp([2.0, 0.0, -2.0]).sum()
    np.testing.assert_allclose(weights[0].numpy(), expected, rtol=1e-5)


def test_key_diversity_loss_by_hand():
    """Cosines of the three pairs: 0.6, 0, 0.8."""
    key = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 0.5]], dtype=torch.float64)
    assert nsm.key_diversity_loss(key).item() == pytest.approx((0.6 + 0 + 0.8) / 3, abs=1e-12)
    assert nsm.key_diversity_loss(torch.ones(4, 3)).item() == pytest.approx(1)
    opposite = torch.tensor([[1.0, 1.0], [-2.0, -2.0]])
    assert nsm.key_diversity_loss(opposite).item() == pytest.approx(-1)


def test_key_orthogonality_loss_by_hand():
    """K Kᵀ = [[4, 6], [6, 25]], minus I: squares 9 + 36 + 36 + 576, over two keys."""
    key = torch.tensor([[2.0, 0.0], [3.0, 4.0]])
    assert nsm.key_orthogonality_loss(key).item() == pytest.approx((9 + 36 + 36 + 576) / 2)
    assert nsm.key_orthogonality_loss(torch.eye(3)).item() == 0


def test_aux_loss_is_the_weighted_sum_on_the_stored_keys():
    made = head(key_diversity=0.3, key_orthogonality=0.7)
    expected = 0.3 * nsm.key_diversity_loss(made.key) + 0.7 * nsm.key_orthogonality_loss(made.key)
    assert made.aux_loss().item() == pytest.approx(expected.item())
    x = inputs(3)
    assert made.forward_with_aux(x)[1].item() == made.aux_loss().item()
    assert head().aux_loss().item() == 0


@pytest.mark.parametrize("options", [dict(key_diversity=1.0), dict(key_orthogonality=1.0)])
def test_descent_on_a_key_loss_drives_equal_keys_apart(options):
    made = head(programs=3, **options)
    with torch.no_grad():
        made.key.copy_(torch.ones_like(made.key) + 0.01 * torch.randn_like(made.key))
    optimizer = torch.optim.SGD([made.key], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        made.aux_loss().backward()
        optimizer.step()
    assert nsm.key_diversity_loss(made.key).item() < 0.05


# -------------------------------------------------------------------------------------- properties


@settings(max_examples=30, deadline=None)
@given(
    n_inputs=st.integers(1, 8),
    n_outputs=st.integers(1, 8),
    programs=st.integers(2, 8),
    key_size=st.integers(2, 6),
    leading=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 2**16),
)
def test_invariants(n_inputs, n_outputs, programs, key_size, leading, seed):
    torch.manual_seed(seed)
    made = NSMHead(n_inputs, n_outputs, programs=programs, key_size=key_size).double()
    x = torch.randn(*leading, n_inputs, dtype=torch.float64)
    y, trace = made.forward_with_trace(x)
    assert y.shape == (*leading, n_outputs)
    assert trace.attention.shape == (*leading, 1, programs)
    assert (trace.attention > 0).all()
    torch.testing.assert_close(trace.attention.sum(-1), torch.ones_like(trace.attention[..., 0]))
    program = made.program(x)
    assert program.shape == (*leading, n_inputs, n_outputs)
    torch.testing.assert_close(y, (x.unsqueeze(-2) @ program).squeeze(-2))  # biases are zero at the start


def test_a_huge_strength_selects_one_program_exactly():
    made, x = head(), inputs(5)
    nearest = made.attention(x)[:, 0].argmax(-1)
    with torch.no_grad():
        made.strength.bias.fill_(1e7)
    one_hot = torch.nn.functional.one_hot(nearest, 6).double()
    torch.testing.assert_close(made.attention(x)[:, 0], one_hot, rtol=0, atol=0)
    torch.testing.assert_close(made.program(x), made.weight[nearest], rtol=0, atol=0)
    for row, chosen in enumerate(nearest):
        alone = x[row] @ made.weight[chosen] + made.bias[chosen]
        torch.testing.assert_close(made(x)[row], alone, rtol=0, atol=1e-14)


def test_equal_programs_are_one_linear_layer():
    made, x = head(), inputs(5)
    with torch.no_grad():
        made.weight.copy_(made.weight[:1].expand_as(made.weight))
        made.bias.copy_(made.bias[:1].expand_as(made.bias))
    torch.testing.assert_close(made(x), x @ made.weight[0] + made.bias[0])


def test_permuting_the_programs_changes_nothing():
    made, x = head(key_diversity=0.3, key_orthogonality=0.7), inputs(4)
    y, aux = made.forward_with_aux(x)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        for memory in (made.key, made.weight, made.bias):
            memory.copy_(memory[order])
    permuted, permuted_aux = made.forward_with_aux(x)
    torch.testing.assert_close(permuted, y)
    torch.testing.assert_close(permuted_aux, aux)


def test_every_parameter_of_a_fresh_head_gets_a_gradient():
    made = NSMHead(6, 4)
    made(torch.randn(8, 6)).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, name


def test_features_that_are_all_zero_leave_moderate_gradients():
    made = NSMHead(6, 4)
    with torch.no_grad():
        made.bias.normal_()
    made(torch.zeros(1, 6)).sum().backward()
    assert all(parameter.grad.abs().max() < 100 for parameter in made.parameters())


# ------------------------------------------------------------------------ start, copies, compilers


@pytest.fixture
def _unchecked(monkeypatch):
    """The checks of shapes that run in every other test are not made to be traced."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(("n_inputs", "n_outputs"), [(6, 4), (4, 6)])
def test_each_fresh_program_is_an_orthogonal_layer_and_the_keys_are_spread(n_inputs, n_outputs):
    made = NSMHead(n_inputs, n_outputs, output_scale=0.5, key_size=4)
    for program in made.weight:
        narrow = program if n_inputs < n_outputs else program.T
        torch.testing.assert_close(narrow @ narrow.T, 0.25 * torch.eye(4), rtol=0, atol=1e-5)
    assert not made.bias.any()
    floor = (10 - 4) / 10  # ten keys in four dimensions
    assert nsm.key_orthogonality_loss(made.key).item() == pytest.approx(floor, abs=1e-5)


def test_output_scale_multiplies_the_output_once_at_the_start():
    torch.manual_seed(3)
    plain = NSMHead(6, 4)
    torch.manual_seed(3)
    small = NSMHead(6, 4, output_scale=0.01)
    x = torch.randn(5, 6)
    torch.testing.assert_close(small(x), 0.01 * plain(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_outputs_losses_and_gradients_keep_the_dtype(dtype):
    made = NSMHead(6, 4, key_diversity=0.1, key_orthogonality=0.1).to(dtype)
    y, aux = made.forward_with_aux(torch.randn(8, 6, dtype=dtype))
    (y.sum() + aux).backward()
    assert {y.dtype, aux.dtype, made.key.grad.dtype} == {dtype}
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(programs=1), "programs=1 must be an integer >= 2"),
        (dict(programs=True), "programs=True must be an integer"),
        (dict(key_size=1), "key_size=1 must be an integer >= 2"),
        (dict(key_diversity=-0.1), "key_diversity=-0.1 must be"),
        (dict(key_orthogonality=math.inf), "key_orthogonality=inf must be"),
        (dict(output_scale=-1.0), "output_scale=-1.0 must be"),
    ],
)
def test_values_that_cannot_be_used_are_named(options, message):
    with pytest.raises(HeadError, match=message):
        NSMHead(4, 3, **options)
