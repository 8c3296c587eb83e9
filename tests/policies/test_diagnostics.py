"""Numbers about conditional weights, by hand and in closed form."""

import math

import pytest
import torch

from neurocoder.policies import HEADS, make_head
from neurocoder.policies.heads import diagnostics as dx


def test_entropy_is_one_for_uniform_and_zero_for_one_slot():
    assert dx.attention_entropy(torch.full((2, 3, 5), 0.1)).item() == pytest.approx(1)
    assert dx.attention_entropy(torch.eye(4)[None]).item() == pytest.approx(0, abs=1e-6)
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert dx.attention_entropy(half).item() == pytest.approx(math.log(2) / math.log(4))


def test_slot_usage_is_about_the_mean_and_not_about_each_input():
    assert dx.slot_usage(torch.eye(4)).item() == pytest.approx(1)
    assert dx.slot_usage(torch.eye(4)[:1].expand(9, 4)).item() == pytest.approx(1 / 4)
    assert dx.slot_usage(torch.eye(4)[:2]).item() == pytest.approx(2 / 4)


def test_effective_rank_counts_equal_singular_values():
    assert dx.effective_rank(torch.diag(torch.tensor([3.0, 3.0, 0.0]))).item() == pytest.approx(2, abs=1e-4)
    assert dx.effective_rank(torch.ones(5, 3)).item() == pytest.approx(1, abs=1e-3)
    p = 4 / 5
    expected = math.exp(-(p * math.log(p) + (1 - p) * math.log(1 - p)))
    assert dx.effective_rank(torch.diag(torch.tensor([4.0, 1.0]))).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_variance_share_agrees_with_the_sample_variance(at_once, monkeypatch):
    monkeypatch.setattr(dx, "NUMBERS_AT_ONCE", at_once)
    programs = torch.randn(6, 3, 2, dtype=torch.float64)
    index = torch.arange(6, dtype=torch.float64)[:, None]
    mean, share = dx.mean_and_variance_share(lambda x: programs[x[:, 0].long()], index)
    torch.testing.assert_close(mean, programs.mean(0))
    spread = (programs - programs.mean(0)).square().sum() / programs.square().sum()
    assert share == pytest.approx(float(spread))


@pytest.mark.parametrize("name", HEADS)
def test_every_conditional_head_reports(name):
    head = make_head(name, 12, 5)
    head.eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    numbers = head.diagnostics(torch.randn(4, 6, 12))
    if not head.conditional:
        assert not numbers
        return
    assert 0 < numbers["input_variance"] < 1
    assert 1 <= numbers["effective_rank"] <= 5 + 1e-6
    if head.attention(torch.randn(2, 12)) is not None:
        assert 0 < numbers["attention_entropy"] <= 1 + 1e-6
        assert 0 < numbers["slot_usage"] <= 1 + 1e-6
    assert all(math.isfinite(value) for value in numbers.values())


def test_a_layer_that_ignores_its_input_has_no_variance():
    head = make_head("neurocoder", 12, 5)
    with torch.no_grad():
        head.controller.readout.weight.zero_()
        head.residual_gate.weight.zero_()
    numbers = head.diagnostics(torch.randn(30, 12))
    assert numbers["input_variance"] == pytest.approx(0, abs=1e-6)


def test_the_excess_of_the_orthogonal_loss_needs_no_input():
    head = make_head("neurocoder", 12, 5)
    assert head.diagnostics() == {"orthogonality_excess": pytest.approx(0, abs=1e-5)}
