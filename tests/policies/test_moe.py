"""The mixture of experts against float64 loops, hand numbers and re-drawn noise."""

import math

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurocoder.policies.heads import HeadError, moe
from neurocoder.policies.heads.moe import MoEHead


def head(experts=5, top_k=3, *, trained=True, **options) -> MoEHead:
    made = MoEHead(4, 3, experts=experts, top_k=top_k, **options).double()
    if trained:  # away from the start, where all scores are tied
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return made


class WithAux(torch.nn.Module):
    """Its forward is the head's forward_with_aux."""

    def __init__(self, made: MoEHead) -> None:
        super().__init__()
        self.head = made

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.head.forward_with_aux(x)


def inputs(*leading: int) -> torch.Tensor:
    return torch.randn(*leading, 4, dtype=torch.float64)


# -------------------------------------------------------------------------------------- the oracle


def phi(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2


def squared_cv(amounts: list[float]) -> float:
    mean = sum(amounts) / len(amounts)
    return sum((amount - mean) ** 2 for amount in amounts) / len(amounts) / mean**2


def oracle(made: MoEHead, x: np.ndarray, noise: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, float]:
    """y, gates and balancing losses, sample by sample and expert by expert."""
    gate, spread_weight, weight, bias = (
        p.detach().numpy() for p in (made.gate, made.noise, made.weight, made.bias)
    )
    n, k = made.experts, made.top_k
    y, gates, loads = np.zeros((len(x), made.out_features)), np.zeros((len(x), n)), [0.0] * n
    for b, sample in enumerate(x):
        clean = [sum(sample[j] * gate[j, i] for j in range(len(sample))) for i in range(n)]
        spread = [
            math.log1p(math.exp(sum(sample[j] * spread_weight[j, i] for j in range(len(sample)))))
            for i in range(n)
        ]
        score = [clean[i] + (0.0 if noise is None else noise[b, i] * spread[i]) for i in range(n)]
        chosen = sorted(range(n), key=lambda i, score=score: -score[i])[:k]
        total = sum(math.exp(score[i]) for i in chosen)
        for i in chosen:
            gates[b, i] = math.exp(score[i]) / total
            for o in range(made.out_features):
                expert = bias[i, o] + sum(sample[j] * weight[i, j, o] for j in range(len(sample)))
                y[b, o] += gates[b, i] * expert
        if k < n:
            for i in range(n):
                threshold = sorted((score[j] for j in range(n) if j != i), reverse=True)[k - 1]
                loads[i] += phi((clean[i] - threshold) / spread[i])
    loss = squared_cv(list(gates.sum(0)))
    if noise is not None and k < n:
        loss += squared_cv(loads)
    return y, gates, made.balance * loss


@pytest.mark.parametrize(("experts", "top_k"), [(5, 3), (5, 2), (4, 4), (2, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_output_gates_and_losses_agree_with_the_oracle(experts, top_k, training):
    made = head(experts, top_k, balance=0.7).train(training)
    x = inputs(6)
    torch.manual_seed(5)
    y, aux = made.forward_with_aux(x)
    torch.manual_seed(5)
    y_again, trace = made.forward_with_trace(x)
    torch.manual_seed(5)
    noise = torch.randn(6, experts, dtype=torch.float64).numpy() if training else None
    expected_y, expected_gates, expected_aux = oracle(made, x.numpy(), noise)
    np.testing.assert_allclose(y.detach().numpy(), expected_y, rtol=0, atol=1e-10)
    np.testing.assert_allclose(y_again.detach().numpy(), expected_y, rtol=0, atol=1e-10)
    np.testing.assert_allclose(trace.attention[:, 0].detach().numpy(), expected_gates, rtol=0, atol=1e-10)
    assert aux.item() == pytest.approx(expected_aux, abs=1e-10)


def test_attention_and_program_are_free_of_noise():
    made, x = head(), inputs(6)
    assert made.training
    _, gates, _ = oracle(made, x.numpy(), None)
    np.testing.assert_allclose(made.attention(x)[:, 0].detach().numpy(), gates, rtol=0, atol=1e-10)
    expected = np.stack(
        [sum(g * w for g, w in zip(row, made.weight.detach().numpy(), strict=True)) for row in gates]
    )
    np.testing.assert_allclose(made.program(x).detach().numpy(), expected, rtol=0, atol=1e-10)


def test_all_experts_without_noise_are_the_dense_soft_mixture():
    made, x = head(6, 6).eval(), inputs(5)
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for b, sample in enumerate(x):
        share = torch.softmax(sample @ made.gate, dim=0)
        for i in range(6):
            expected[b] += share[i].detach() * (sample @ made.weight[i] + made.bias[i]).detach()
    torch.testing.assert_close(made(x).detach(), expected, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------ hand numbers


def test_gates_and_load_by_hand_where_an_early_softmax_would_go_wrong():
    """Scores log 8, log 4, log 2, log 2 and k = 2: gates 2/3 and 1/3; thresholds log 2, log 2, log 4, log 4.

    A softmax before the selection gives 1/2 and 1/4 (or, with another after it, other shares again), and
    makes thresholds of 1/8 and 1/4, which mean nothing beside logits.
    """
    scores = torch.log(torch.tensor([[8.0, 4.0, 2.0, 2.0]], dtype=torch.float64))
    gates = moe.top_k_gates(scores, 2)
    np.testing.assert_allclose(gates[0].numpy(), [2 / 3, 1 / 3, 0, 0], atol=1e-12)
    spread = torch.full_like(scores, math.log(2))  # as at the start: softplus(0)
    loads = moe.load(scores, spread, scores, 2)
    np.testing.assert_allclose(loads.numpy(), [phi(2), phi(1), phi(-1), phi(-1)], atol=1e-12)


def test_a_shift_of_all_scores_changes_neither_gates_nor_load():
    """Shares, unlike logits, do not move with a shift: a load that mixed both would."""
    scores, noise = torch.randn(2, 6, 5, dtype=torch.float64)
    spread = torch.rand_like(scores) + 0.1
    shift = torch.randn(6, 1, dtype=torch.float64)
    noisy, shifted = moe.noisy_scores(scores, spread, noise), moe.noisy_scores(scores + shift, spread, noise)
    torch.testing.assert_close(moe.top_k_gates(shifted, 2), moe.top_k_gates(noisy, 2))
    torch.testing.assert_close(
        moe.load(scores + shift, spread, shifted, 2), moe.load(scores, spread, noisy, 2)
    )


def test_noisy_scores_by_hand():
    scores = moe.noisy_scores(
        torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 3.0]]), torch.tensor([[2.0, -1.0]])
    )
    torch.testing.assert_close(scores, torch.tensor([[2.0, -1.0]]))


def test_keep_top_k_breaks_ties_by_index():
    kept = moe.keep_top_k(torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0]]), 3)
    torch.testing.assert_close(kept, torch.tensor([[1.0, 3.0, -torch.inf, 3.0, -torch.inf]]))


def test_importance_and_squared_cv_by_hand():
    gates = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75], [0.25, 0.5, 0.25]])
    amounts = moe.importance(gates)
    torch.testing.assert_close(amounts, torch.tensor([1.0, 1.0, 1.0]))
    assert moe.squared_cv(amounts).item() == 0
    # mean 2, squared differences 1, 0, 1: population variance 2/3 (sample variance 1)
    assert moe.squared_cv(torch.tensor([1.0, 2.0, 3.0])).item() == pytest.approx(2 / 3 / 4)
    assert moe.squared_cv(torch.tensor([4.0, 0.0])).item() == pytest.approx(1)  # one expert takes all: P - 1


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_kth_excluding_agrees_with_brute_force(data):
    n = data.draw(st.integers(2, 7))
    k = data.draw(st.integers(1, n - 1))
    # few distinct values, so that ties are common
    row = data.draw(st.lists(st.integers(-2, 2).map(float), min_size=n, max_size=n))
    expected = [sorted(row[:i] + row[i + 1 :], reverse=True)[k - 1] for i in range(n)]
    assert moe.kth_excluding(torch.tensor([row]), k)[0].tolist() == expected


def test_load_of_two_experts_in_closed_form():
    clean, spread, scores = torch.tensor([[[0.3, -0.1]], [[0.5, 2.0]], [[0.9, -0.4]]], dtype=torch.float64)
    loads = moe.load(clean, spread, scores, 1)
    np.testing.assert_allclose(loads.numpy(), [phi((0.3 + 0.4) / 0.5), phi((-0.1 - 0.9) / 2)], atol=1e-12)


def test_load_is_how_often_fresh_noise_of_one_expert_selects_it():
    n, k, draws = 5, 2, 20_000
    clean, noise = torch.randn(2, 4, n, dtype=torch.float64)
    spread = torch.rand(4, n, dtype=torch.float64) + 0.2
    expected = moe.load(clean, spread, moe.noisy_scores(clean, spread, noise), k)
    for i in range(n):
        fresh = noise.repeat(draws, 1)
        fresh[:, i] = torch.randn(4 * draws, dtype=torch.float64)
        scores = moe.noisy_scores(clean.repeat(draws, 1), spread.repeat(draws, 1), fresh)
        selected = (moe.top_k_gates(scores, k)[:, i] > 0).sum().item() / draws
        assert expected[i].item() == pytest.approx(selected, abs=0.03)


# -------------------------------------------------------------------------------------- properties


@settings(max_examples=30, deadline=None)
@given(
    n_inputs=st.integers(1, 6),
    n_outputs=st.integers(1, 6),
    sizes=st.integers(2, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n))),
    leading=st.lists(st.integers(0, 3), max_size=3),
    training=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_exactly_k_gates_that_sum_to_one(n_inputs, n_outputs, sizes, leading, training, seed):
    torch.manual_seed(seed)
    experts, top_k = sizes
    made = MoEHead(n_inputs, n_outputs, experts=experts, top_k=top_k).double().train(training)
    x = torch.randn(*leading, n_inputs, dtype=torch.float64)
    y, trace = made.forward_with_trace(x)
    assert y.shape == (*leading, n_outputs)
    for gates in (trace.attention, made.attention(x)):
        assert gates.shape == (*leading, 1, experts)
        assert ((gates > 0).sum(-1) == top_k).all()
        torch.testing.assert_close(gates.sum(-1), torch.ones_like(gates[..., 0]))
    assert made.program(x).shape == (*leading, n_inputs, n_outputs)
    assert torch.isfinite(made.forward_with_aux(x)[1])


def test_without_biases_the_output_is_x_times_the_program():
    made, x = head().eval(), inputs(2, 3)
    with torch.no_grad():
        made.bias.zero_()
    torch.testing.assert_close(made(x), (x.unsqueeze(-2) @ made.program(x)).squeeze(-2))


def test_rows_are_independent_without_noise_and_a_nan_stays_in_its_own():
    made, x = head().eval(), inputs(4)
    together = made(x)
    torch.testing.assert_close(together, torch.stack([made(row) for row in x]))
    spoilt = x.clone()
    spoilt[1, 2] = torch.nan
    y = made(spoilt)
    assert y[1].isnan().all()
    keep = [0, 2, 3]
    torch.testing.assert_close(y[keep], together[keep], rtol=0, atol=0)


def test_noise_is_drawn_in_training_mode_only():
    made, x = head(), inputs(4)
    assert (made(x) - made(x)).abs().max() > 1e-6
    made.eval()
    torch.testing.assert_close(made(x), made(x), rtol=0, atol=0)


@pytest.mark.parametrize(("experts", "top_k"), [(10, 4), (4, 4), (3, 2)])
def test_every_parameter_of_a_fresh_head_gets_a_gradient_in_training_mode(experts, top_k):
    made = MoEHead(6, 4, experts=experts, top_k=top_k, balance=0.0)  # from the task alone
    made(torch.randn(16, 6)).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_balancing_losses_alone_reach_the_gating_weights_only():
    made = head()
    made.forward_with_aux(inputs(8))[1].backward()
    assert made.gate.grad.abs().max() > 0 and made.noise.grad.abs().max() > 0
    assert made.weight.grad is None and made.bias.grad is None


def test_without_noise_the_noise_weights_get_no_gradient_and_the_load_does_not_count():
    made, x = head(balance=2.0).eval(), inputs(8)
    y, aux = made.forward_with_aux(x)
    (y.sum() + aux).backward()
    assert made.noise.grad is None
    assert aux.item() == pytest.approx(2 * squared_cv(made.attention(x).sum((0, 1)).tolist()))


@pytest.mark.parametrize(("top_k", "training"), [(2, True), (6, False)])
def test_gradients_of_the_balancing_losses_balance(top_k, training):
    """Two experts are favoured for every input; descent on the losses alone spreads the load.

    Without noise the losses see the chosen experts only, so that case mixes them all.
    """
    made = head(6, top_k, balance=1.0, trained=False).train(training)
    x = inputs(128)
    x[:, -1] = 1  # a constant feature, whose weights favour the two
    with torch.no_grad():
        made.gate.normal_(std=0.1)
        made.gate[-1, :2] += 1.5
        made.noise[-1] = -1.0
    before = made.forward_with_aux(x)[1]
    (gradient,) = torch.autograd.grad(before, made.gate)
    assert gradient[-1, :2].sum() > 0 > gradient[-1, 2:].sum()
    optimizer = torch.optim.SGD([made.gate, made.noise], lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        loss = made.forward_with_aux(x)[1]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * before.item()


@pytest.mark.parametrize(("experts", "top_k"), [(5, 3), (4, 4)])
def test_gradcheck_without_noise(experts, top_k):
    made = head(experts, top_k).eval()
    names, values = zip(*((n, p) for n, p in made.named_parameters() if n != "noise"), strict=True)

    def call(x, *parameters):
        named = {f"head.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(WithAux(made), named, (x,))

    assert torch.autograd.gradcheck(call, (inputs(3).requires_grad_(), *values))


def test_gradcheck_of_the_load():
    clean, raw, noise = torch.randn(3, 4, 5, dtype=torch.float64)

    def call(clean, raw):
        spread = torch.nn.functional.softplus(raw)
        return moe.load(clean, spread, moe.noisy_scores(clean, spread, noise), 2)

    assert torch.autograd.gradcheck(call, (clean.requires_grad_(), raw.requires_grad_()))


def test_noise_that_underflows_leaves_finite_gradients():
    made = MoEHead(4, 3)
    with torch.no_grad():
        made.gate.normal_()
        made.noise.fill_(-200.0)
    y, aux = made.forward_with_aux(torch.ones(5, 4))
    (y.sum() + aux).backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


# ------------------------------------------------------------------------ start, copies, compilers


@pytest.fixture
def _unchecked(monkeypatch):
    """The checks of shapes that run in every other test are not made to be traced."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_a_fresh_head_has_orthogonal_experts_and_a_silent_gating_network():
    made = MoEHead(6, 4, output_scale=0.5).double()
    for expert in made.weight:
        assert (expert.T @ expert - 0.25 * torch.eye(4)).abs().max() < 1e-5
    assert not made.gate.any() and not made.noise.any() and not made.bias.any()
    torch.testing.assert_close(
        made.attention(torch.randn(6).double())[0, :4], torch.full((4,), 0.25).double()
    )


def test_output_scale_multiplies_the_output_once_at_the_start():
    torch.manual_seed(3)
    plain = MoEHead(6, 4).eval()
    torch.manual_seed(3)
    small = MoEHead(6, 4, output_scale=0.01).eval()
    x = torch.randn(5, 6)
    torch.testing.assert_close(small(x), 0.01 * plain(x))


def test_aux_loss_of_the_parameters_is_zero_and_so_is_an_unweighted_balance():
    assert head().aux_loss().item() == 0
    assert head(balance=0.0).forward_with_aux(inputs(4))[1].item() == 0


def test_an_empty_batch_has_no_loss_and_finite_gradients():
    made = head()
    y, aux = made.forward_with_aux(inputs(0))
    assert y.shape == (0, 3) and aux.item() == 0
    (y.sum() + aux).backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_outputs_losses_and_gradients_keep_the_dtype(dtype):
    made = MoEHead(6, 4).to(dtype)
    y, aux = made.forward_with_aux(torch.randn(8, 6, dtype=dtype))
    (y.sum() + aux).backward()
    assert {y.dtype, aux.dtype, made.gate.grad.dtype} == {dtype}
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


@pytest.mark.usefixtures("_unchecked")
def test_compiles_without_graph_breaks():
    made, x = head(), inputs(3)
    compiled = torch.compile(made.forward_with_aux, backend="aot_eager", fullgraph=True)
    torch.manual_seed(2)
    expected = made.forward_with_aux(x)
    torch.manual_seed(2)
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(experts=1), "experts=1 must be an integer >= 2"),
        (dict(top_k=1), "top_k=1 must be an integer >= 2"),
        (dict(experts=3, top_k=4), "top_k=4 must be <= experts=3"),
        (dict(balance=-0.1), "balance=-0.1 must be"),
        (dict(balance=math.nan), "balance=nan must be"),
        (dict(output_scale=0.0), "output_scale=0.0 must be"),
    ],
)
def test_values_that_cannot_be_used_are_named(options, message):
    with pytest.raises(HeadError, match=message):
        MoEHead(4, 3, **options)
