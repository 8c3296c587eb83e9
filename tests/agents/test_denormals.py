"""Denormal numbers are zeros while learning, and only then; what is learned does not change by it."""

import copy

import pytest
import torch
from torch import nn

from neurocoder.agents import denormals


def test_they_are_zero_within_and_not_outside():
    with denormals.as_zero():
        assert denormals.are_zero()
        with denormals.as_zero():
            assert denormals.are_zero()
        assert denormals.are_zero()  # the inner one leaves things as they were
    assert not denormals.are_zero()
    with pytest.raises(KeyError), denormals.as_zero():
        raise KeyError
    assert not denormals.are_zero()


def test_what_adam_learns_is_the_same_to_the_bit():
    """One weight has a gradient at the first step only: its moments go through the denormals to 0."""
    torch.manual_seed(0)
    fresh = nn.Linear(3, 2)
    learned, smallest = [], []
    for flushed in (False, True):
        layer = copy.deepcopy(fresh)
        optimizer = torch.optim.Adam(layer.parameters(), 1e-3, fused=True)
        x = torch.tensor([[1.0, -2.0, 3.0]])
        with denormals.as_zero() if flushed else torch.enable_grad():
            for step in range(1_000):
                optimizer.zero_grad()
                layer(x * torch.tensor([1.0, 1.0, float(step == 0)])).square().sum().backward()
                optimizer.step()
        learned.append(torch.cat([parameter.detach().flatten() for parameter in layer.parameters()]))
        smallest.append(float(optimizer.state[layer.weight]["exp_avg"][0, 2]))
    assert torch.equal(*learned)
    assert 0 < abs(smallest[0]) < torch.finfo(torch.float32).tiny  # it would have been one
    assert smallest[1] == 0
