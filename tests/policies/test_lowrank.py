"""The low-rank control against loops, and what its rank can and cannot express."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurocoder.policies.heads import HeadError, LinearHead
from neurocoder.policies.heads.lowrank import LowRankHead

BIAS = pytest.mark.parametrize("bias", [True, False])


def head(rank=2, bias=True, **options) -> LowRankHead:
    made = LowRankHead(5, 4, rank=rank, bias=bias, **options).double()
    with torch.no_grad():  # away from the orthogonal start and the zero bias
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def oracle(made: LowRankHead, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W and y of one input, entry by entry."""
    u, v = made.u.detach().numpy(), made.v.detach().numpy()
    weight, y = np.zeros((5, 4)), np.zeros(4)
    for o in range(4):
        for i in range(5):
            weight[i, o] = sum(u[i, r] * v[r, o] for r in range(made.rank))
        y[o] = sum(x[i] * weight[i, o] for i in range(5))
        if made.bias is not None:
            y[o] += made.bias[o].item()
    return weight, y


@BIAS
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_forward_and_program_agree_with_the_oracle(rank, bias):
    made = head(rank, bias)
    x = torch.randn(3, 5, dtype=torch.float64)
    for row, y, weight in zip(x, made(x), made.program(x), strict=True):
        expected_weight, expected_y = oracle(made, row.numpy())
        np.testing.assert_allclose(weight.detach().numpy(), expected_weight, rtol=0, atol=1e-10)
        np.testing.assert_allclose(y.detach().numpy(), expected_y, rtol=0, atol=1e-10)


@BIAS
def test_gradcheck(bias):
    made = head(bias=bias)
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    names, values = zip(*made.named_parameters(), strict=True)

    def call(x, *parameters):
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *values))


@BIAS
def test_every_parameter_gets_a_gradient_at_the_start(bias):
    made = LowRankHead(6, 4, rank=3, bias=bias)
    made(torch.randn(8, 6)).square().sum().backward()
    assert set(dict(made.named_parameters())) == ({"u", "v", "bias"} if bias else {"u", "v"})
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(1, 8),
    outputs=st.integers(1, 8),
    rank=st.integers(1, 8),
    bias=st.booleans(),
    leading=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 2**16),
)
def test_invariants(inputs, outputs, rank, bias, leading, seed):
    torch.manual_seed(seed)
    rank = min(rank, inputs, outputs)
    made = LowRankHead(inputs, outputs, rank=rank, bias=bias).double()
    x = torch.randn(*leading, inputs, dtype=torch.float64)
    y, program = made(x), made.program(x)
    assert y.shape == (*leading, outputs)
    assert program.shape == (*leading, inputs, outputs)
    torch.testing.assert_close(y, (x.unsqueeze(-2) @ program).squeeze(-2))
    singular_values = torch.linalg.svdvals(made.program(x.new_zeros(inputs)).detach())
    expected = (torch.arange(len(singular_values)) < rank).double()
    torch.testing.assert_close(singular_values, expected, rtol=0, atol=1e-6)
    assert sum(p.numel() for p in made.parameters()) == rank * (inputs + outputs) + bias * outputs


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_the_program_has_exactly_the_rank_asked_for(rank):
    program = head(rank).program(torch.zeros(5, dtype=torch.float64)).detach()
    assert torch.linalg.matrix_rank(program, atol=1e-9) == rank


def test_full_rank_can_equal_any_matrix_and_a_lower_rank_the_nearest():
    target = torch.randn(5, 4, dtype=torch.float64)
    left, sigma, right = torch.linalg.svd(target, full_matrices=False)
    for rank in (4, 2):
        made = head(rank)
        with torch.no_grad():
            made.u.copy_(left[:, :rank] * sigma[:rank])
            made.v.copy_(right[:rank])
        error = torch.linalg.matrix_norm(made.program(torch.zeros(5)).detach() - target).item()
        assert error == pytest.approx(sigma[rank:].square().sum().sqrt().item(), abs=1e-12)


@pytest.mark.parametrize(("inputs", "outputs"), [(40, 6), (6, 40), (16, 16)])
def test_full_rank_starts_on_the_scale_of_a_linear_layer(inputs, outputs):
    x = torch.randn(256, inputs)
    for scale in (1.0, 0.01):
        full = LowRankHead(inputs, outputs, rank=min(inputs, outputs), output_scale=scale)(x)
        linear = LinearHead(inputs, outputs, output_scale=scale)(x)
        assert full.std().item() == pytest.approx(linear.std().item(), rel=0.15)


def test_output_scale_multiplies_v_once_at_the_start():
    torch.manual_seed(3)
    plain = LowRankHead(6, 4, rank=2)
    torch.manual_seed(3)
    small = LowRankHead(6, 4, rank=2, output_scale=0.01)
    x = torch.randn(7, 6)
    torch.testing.assert_close(small.v, 0.01 * plain.v)
    torch.testing.assert_close(small.u, plain.u)
    torch.testing.assert_close(small(x), 0.01 * plain(x))


def test_the_program_is_the_same_for_all_inputs_and_reads_no_slots():
    made = head()
    x = torch.randn(3, 5, dtype=torch.float64)
    program = made.program(x)
    assert not made.conditional
    torch.testing.assert_close(program, program[:1].expand_as(program), rtol=0, atol=0)
    assert made.attention(x) is None
    assert made.aux_loss().item() == 0
    assert made.diagnostics(x) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rank=0), "rank=0 must be an integer >= 1"),
        (dict(rank=1.5), "rank=1.5 must be an integer"),
        (dict(rank=4), r"rank=4 must be <= min\(in_features, out_features\)=3"),
        (dict(bias="no"), "bias='no' must be True or False"),
        (dict(output_scale=0.0), "output_scale=0.0 must be"),
        (dict(output_scale=float("inf")), "output_scale=inf must be"),
    ],
)
def test_values_that_cannot_be_used_are_named(options, message):
    with pytest.raises(HeadError, match=message):
        LowRankHead(5, 3, **options)
