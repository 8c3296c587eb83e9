"""The hypernetwork heads against loops written from the paper, and what a fresh one is and can learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from neurocoder.policies.heads import HeadError, LinearHead
from neurocoder.policies.heads import hypernet as hn
from neurocoder.policies.heads.hypernet import HyperNetHead

NAMES = ["static", "dynamic", "scale", "input-scale"]
VARIANTS = pytest.mark.parametrize("variant", NAMES)
CONDITIONAL = pytest.mark.parametrize("variant", NAMES[1:])


def head(variant, inputs=5, outputs=4, embedding_size=3, **options) -> HyperNetHead:
    if variant == "static":
        options = dict(hidden_size=2) | options
    made = HyperNetHead(inputs, outputs, variant=variant, embedding_size=embedding_size, **options).double()
    with torch.no_grad():  # away from the start, where nothing depends on x
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def parameters(made: HyperNetHead) -> dict[str, np.ndarray]:
    return {name.removeprefix("layer."): p.detach().numpy() for name, p in made.named_parameters()}


# ------------------------------------------------------------------------------------------- oracle


def affine(weight: np.ndarray, x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """weight [rows, columns] times x plus bias, entry by entry."""
    out = np.zeros(len(weight))
    for row in range(len(weight)):
        out[row] = sum(weight[row, column] * x[column] for column in range(len(x)))
        if bias is not None:
            out[row] += bias[row]
    return out


def oracle(made: HyperNetHead, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W [in, out], b [out] and y [out] of one input."""
    p, inputs, outputs = parameters(made), made.in_features, made.out_features
    kernel = np.zeros((inputs, outputs))
    if made.variant == "static":  # eq. 2, row by row
        for i in range(inputs):
            hidden = affine(p["hidden_weight"][i], p["embedding"], p["hidden_bias"][i])
            kernel[i] = affine(p["out_weight"], hidden, p["out_bias"])
    elif made.variant == "dynamic":  # eqs. 5, 6
        z = affine(p["embedding.weight"], x, p["embedding.bias"])
        for i in range(inputs):
            for o in range(outputs):
                kernel[i, o] = sum(z[k] * p["kernels"][k, o, i] for k in range(len(z)))
    elif made.variant == "scale":  # eqs. 6, 7
        z = affine(p["embedding.weight"], x, p["embedding.bias"])
        scale = affine(p["scale_weight"], z)
        for i in range(inputs):
            for o in range(outputs):
                kernel[i, o] = scale[o] * p["weight"][o, i]
    else:
        scale = affine(p["scale.weight"], x, p["scale.bias"])
        for i in range(inputs):
            for o in range(outputs):
                kernel[i, o] = scale[i] * p["weight"][o, i]
    if made.variant in ("dynamic", "scale"):  # b(z_b) of eqs. 5, 8
        bias_embedding = affine(p["bias.embedding.weight"], x)
        bias = affine(p["bias.readout.weight"], bias_embedding, p["bias.readout.bias"])
    else:
        bias = p["bias"]
    y = np.array([bias[o] + sum(x[i] * kernel[i, o] for i in range(inputs)) for o in range(outputs)])
    return kernel, bias, y


@VARIANTS
@pytest.mark.parametrize("embedding_size", [1, 3])
@pytest.mark.parametrize("outputs", [1, 4])
def test_forward_program_and_bias_agree_with_the_oracle(variant, embedding_size, outputs):
    made = head(variant, outputs=outputs, embedding_size=embedding_size)
    x = torch.randn(3, 5, dtype=torch.float64)
    y, program, bias = made(x), made.program(x), made.bias_for(x)
    for row in range(len(x)):
        for got, expected in zip((program, bias, y), oracle(made, x[row].numpy()), strict=True):
            np.testing.assert_allclose(got[row].detach().numpy(), expected, rtol=0, atol=1e-10)


def test_the_variants_by_hand():
    x = torch.tensor([[1.0, 2.0]])
    weight = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])  # [out, in]
    scale = torch.tensor([[2.0, 3.0]])
    torch.testing.assert_close(
        hn.apply_output_scaled_kernel(x, scale, weight), torch.tensor([[42.0, 6300.0]])
    )
    torch.testing.assert_close(hn.apply_input_scaled_kernel(x, scale, weight), torch.tensor([[62.0, 6200.0]]))
    kernels = torch.stack((weight, torch.eye(2)))
    torch.testing.assert_close(hn.apply_mixed_kernel(x, scale, kernels), torch.tensor([[45.0, 4206.0]]))
    kernel = hn.static_kernel(
        torch.tensor([2.0]),
        torch.tensor([[[1.0]], [[3.0]]]),
        torch.tensor([[0.0], [1.0]]),
        torch.tensor([[1.0], [10.0]]),
        torch.tensor([0.5, 0.0]),
    )  # a = (2, 7)
    torch.testing.assert_close(kernel, torch.tensor([[2.5, 20.0], [7.5, 70.0]]))


def test_scaling_is_mixing_with_kernels_that_share_one_matrix():
    x, z = torch.randn(6, 5), torch.randn(6, 3)
    scale_weight, weight = torch.randn(4, 3), torch.randn(4, 5)
    kernels = scale_weight.T.unsqueeze(-1) * weight  # W_k = diag(column k of W_dz) W
    torch.testing.assert_close(
        hn.apply_output_scaled_kernel(x, z @ scale_weight.T, weight), hn.apply_mixed_kernel(x, z, kernels)
    )
    torch.testing.assert_close(
        hn.output_scaled_kernel(z @ scale_weight.T, weight), hn.mixed_kernel(z, kernels)
    )


# --------------------------------------------------------------------------------------- properties


@settings(max_examples=50, deadline=None)
@given(
    variant=st.sampled_from(NAMES),
    inputs=st.integers(1, 7),
    outputs=st.integers(1, 7),
    embedding_size=st.integers(1, 5),
    hidden_size=st.none() | st.integers(1, 5),
    leading=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 2**16),
)
def test_invariants(variant, inputs, outputs, embedding_size, hidden_size, leading, seed):
    torch.manual_seed(seed)
    options = {"hidden_size": hidden_size} if variant == "static" else {}
    made = head(variant, inputs, outputs, embedding_size, **options)
    x = torch.randn(*leading, inputs, dtype=torch.float64)
    y, program, bias = made(x), made.program(x), made.bias_for(x)
    assert y.shape == bias.shape == (*leading, outputs)
    assert program.shape == (*leading, inputs, outputs)
    torch.testing.assert_close(y, (x.unsqueeze(-2) @ program).squeeze(-2) + bias)
    assert made.attention(x) is None
    assert made.aux_loss().item() == 0
    if variant == "static":
        rank = torch.linalg.matrix_rank(made.program(x.new_zeros(inputs)).detach(), atol=1e-9)
        assert rank <= (hidden_size or embedding_size) + 1


@VARIANTS
def test_gradcheck(variant):
    made = head(variant)
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    names, values = zip(*made.named_parameters(), strict=True)

    def call(x, *parameters):
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *values))


def test_the_static_kernel_does_not_depend_on_x():
    made = head("static")
    program = made.program(torch.randn(4, 5, dtype=torch.float64))
    assert not made.conditional
    torch.testing.assert_close(program, program[:1].expand_as(program), rtol=0, atol=0)
    assert made.diagnostics(torch.randn(4, 5, dtype=torch.float64)) == {}


@CONDITIONAL
def test_the_other_programs_depend_on_x(variant):
    made = head(variant)
    x = torch.randn(64, 5, dtype=torch.float64)
    program = made.program(x)
    assert made.conditional
    assert (program[0] - program[1]).abs().max() > 1e-3
    assert made.diagnostics(x)["input_variance"] > 0.01


class LargestTensor(TorchDispatchMode):
    """Remembers the number of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.entries = max(self.entries, result.numel())
        return result


@VARIANTS
def test_forward_never_holds_a_matrix_per_sample(variant):
    made = HyperNetHead(32, 16, variant=variant, embedding_size=2)
    x = torch.randn(64, 32)
    with LargestTensor() as forward:
        made(x)
    with LargestTensor() as program:
        made.program(x)
    assert program.entries == 64 * 32 * 16
    assert forward.entries <= max(64 * 32, 64 * 2 * 16, 2 * 32 * 16, 32 * 32)


# ---------------------------------------------------------------------------------------- the start


@pytest.mark.parametrize("embedding_size", [1, 4])
@pytest.mark.parametrize("outputs", [1, 6])
def test_scales_are_one_at_the_start(embedding_size, outputs):
    x = 10 * torch.randn(8, 5)
    by_output = HyperNetHead(5, outputs, variant="scale", embedding_size=embedding_size).layer
    torch.testing.assert_close(by_output.scale(x), torch.ones(8, outputs), rtol=0, atol=1e-5)
    by_input = HyperNetHead(5, outputs, variant="input-scale").layer
    torch.testing.assert_close(by_input.scale(x), torch.ones(8, 5), rtol=0, atol=0)


@CONDITIONAL
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 3), (3, 8), (1, 1)])
def test_conditional_variants_start_with_one_orthogonal_program(variant, inputs, outputs):
    made = HyperNetHead(inputs, outputs, variant=variant, output_scale=0.5)
    program = made.program(torch.randn(4, inputs)).detach()
    torch.testing.assert_close(program, program[:1].expand_as(program), rtol=0, atol=1e-5)
    singular_values = torch.linalg.svdvals(program)
    torch.testing.assert_close(singular_values, torch.full_like(singular_values, 0.5), rtol=0, atol=1e-5)


@VARIANTS
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 6), (64, 64), (6, 64)])
@pytest.mark.parametrize("options", [{}, {"embedding_size": 1}, {"embedding_size": 32}])
def test_outputs_start_on_the_scale_of_a_linear_layer(variant, inputs, outputs, options):
    x = torch.randn(256, inputs)
    y = HyperNetHead(inputs, outputs, variant=variant, **options)(x)
    linear = LinearHead(inputs, outputs)(x)
    assert 1 / 3 < (y.std() / linear.std()).item() < 3


def test_the_static_kernel_has_an_orthogonal_matrix_s_variance_at_the_start():
    for inputs, outputs in ((200, 50), (50, 200)):
        made = HyperNetHead(inputs, outputs, variant="static", embedding_size=64, output_scale=2.0)
        variance = made.program(torch.zeros(inputs)).detach().square().mean().item()
        assert variance == pytest.approx(4 / 200, rel=0.1)


@VARIANTS
def test_output_scale_multiplies_the_output_once_at_the_start(variant):
    torch.manual_seed(3)
    plain = HyperNetHead(6, 4, variant=variant)
    torch.manual_seed(3)
    small = HyperNetHead(6, 4, variant=variant, output_scale=0.01)
    x = torch.randn(7, 6)
    torch.testing.assert_close(small(x), 0.01 * plain(x), rtol=1e-4, atol=1e-7)
    assert small.output_scale == 0.01


@VARIANTS
@pytest.mark.parametrize("outputs", [1, 4])
def test_every_parameter_gets_a_gradient_at_the_start(variant, outputs):
    made = HyperNetHead(6, outputs, variant=variant)
    made(torch.randn(8, 6)).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def rank_of_learnt_embedding(made: HyperNetHead) -> int:
    """How many directions of z the embedding's weights have learnt to use after a few steps."""
    optimizer = torch.optim.SGD(made.parameters(), lr=0.05)
    x, target = torch.randn(64, 6, dtype=torch.float64), torch.randn(64, 5, dtype=torch.float64)
    for _ in range(5):
        optimizer.zero_grad()
        (made(x) - target).square().mean().backward()
        optimizer.step()
    return int(torch.linalg.matrix_rank(made.layer.embedding.weight.detach(), rtol=1e-6))


def test_the_paper_s_constant_start_keeps_all_embedding_entries_equal_and_ours_does_not():
    constant = HyperNetHead(6, 5, variant="scale", embedding_size=4).double()
    torch.nn.init.constant_(constant.layer.scale_weight, 0.1 / 4)  # A.2.3
    assert rank_of_learnt_embedding(constant) == 1
    for variant in ("scale", "dynamic"):
        assert rank_of_learnt_embedding(HyperNetHead(6, 5, variant=variant, embedding_size=4).double()) == 4


@CONDITIONAL
def test_conditional_variants_learn_a_product_of_inputs_that_no_linear_layer_can(variant):
    x = torch.randn(256, 3)
    target = x[:, :1] * x[:, 1:2]

    def loss_after_training(made):
        optimizer = torch.optim.Adam(made.parameters(), lr=0.03)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (made(x) - target).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert loss_after_training(HyperNetHead(3, 1, variant=variant)) < 0.01
    assert loss_after_training(LinearHead(3, 1)) > 0.5


# --------------------------------------------------------------------------------- parameter counts


def count(made: HyperNetHead) -> int:
    return sum(parameter.numel() for parameter in made.parameters())


def test_parameter_counts():
    i, o, z, d = 7, 5, 3, 2
    bias = z * i + o * z + o
    sizes = dict(embedding_size=z)
    assert count(HyperNetHead(i, o, variant="scale", **sizes)) == z * i + z + o * z + i * o + bias
    assert count(HyperNetHead(i, o, variant="dynamic", **sizes)) == z * i + z + z * i * o + bias
    assert count(HyperNetHead(i, o, variant="input-scale", **sizes)) == i * i + i + i * o + o
    static = HyperNetHead(i, o, variant="static", hidden_size=d, **sizes)
    assert count(static) == z + d * (z + 1) * i + o * (d + 1) + o


def test_the_static_kernel_has_the_paper_s_count():
    """Section 4.1, table 7: a kernel of 16 × 784 weights from 4 + 4,240 parameters, with d = N_z = 4."""
    made = HyperNetHead(16, 7 * 16 * 7, variant="static", embedding_size=4)
    assert count(made) - made.layer.bias.numel() == 4_244


def test_input_scales_have_the_count_of_the_neurocoder_paper_s_baseline():
    made = HyperNetHead(28, 1, variant="input-scale")
    recurrent = torch.nn.GRU(2, 28)
    assert count(made) == 812 + 29
    assert count(made) + sum(p.numel() for p in recurrent.parameters()) == 3_529


# ----------------------------------------------------------------------------------------- plumbing


@VARIANTS
def test_reset_draws_anew(variant):
    made = HyperNetHead(5, 4, variant=variant)
    x = torch.randn(3, 5)
    before = made(x)
    made.reset_parameters()
    assert (made(x) - before).abs().max() > 1e-3


def test_hidden_units_are_as_many_as_the_embedding_is_wide_unless_told():
    assert HyperNetHead(5, 4, variant="static", embedding_size=3).layer.out_weight.shape == (4, 3)
    assert HyperNetHead(5, 4, variant="static", hidden_size=7).layer.out_weight.shape == (4, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(variant="scales"), "unknown variant 'scales'; did you mean 'scale'"),
        (dict(variant="Static"), "unknown variant 'Static'; did you mean 'static'"),
        (dict(variant=None), "unknown variant 'None'; known: dynamic, input-scale, scale, static"),
        (dict(embedding_size=0), "embedding_size=0 must be an integer >= 1"),
        (dict(embedding_size=2.0), "embedding_size=2.0 must be an integer"),
        (dict(variant="static", hidden_size=0), "hidden_size=0 must be an integer >= 1"),
        (dict(hidden_size=3), "hidden_size=3 must be None: variant 'scale' has no hidden units"),
        (dict(output_scale=-1.0), "output_scale=-1.0 must be"),
        (dict(output_scale=math.nan), "output_scale=nan must be"),
    ],
)
def test_values_that_cannot_be_used_are_named(options, message):
    with pytest.raises(HeadError, match=message):
        HyperNetHead(5, 4, **options)
