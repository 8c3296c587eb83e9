"""Heads side by side: each is the head that it would be alone."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from neurocoder.errors import ConfigError
from neurocoder.policies import HEADS, Policy, PolicyConfig
from neurocoder.policies.heads import HeadError, HeadsSideBySide

OPTIONS = {"neurocoder": {"slots": 6, "least_used": 2, "attention_heads": 2}}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_its_own(name):
    both = HeadsSideBySide(name, 5, 6, 3, **OPTIONS.get(name, {})).double().eval()
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    y, loss = both.forward_with_aux(x)
    parts = [head.forward_with_aux(x) for head in both.heads]
    torch.testing.assert_close(y, torch.cat([part for part, _ in parts], dim=-1))
    torch.testing.assert_close(loss, sum(auxiliary for _, auxiliary in parts))
    torch.testing.assert_close(both.aux_loss(), sum(head.aux_loss() for head in both.heads))
    torch.testing.assert_close(both(x), y)
    assert both.forward_with_trace(x)[1] is None and both.conditional == both.heads[0].conditional
    assert both.program(x).shape == (4, 2, 5, 6)
    torch.testing.assert_close(both.program(x)[..., 2:4], both.heads[1].program(x))
    numbers = [head.diagnostics(x) for head in both.heads]
    for key, value in both.diagnostics(x).items():
        assert value == pytest.approx(np.mean([number[key] for number in numbers]))
    first = [parameter.clone() for parameter in both.parameters()]
    both.reset_parameters()
    assert any((a != b).any() for a, b in zip(first, both.parameters(), strict=True))


@pytest.mark.parametrize("name", ["linear", "neurocoder"])
def test_only_those_heads_run_whose_outputs_are_asked_for(name):
    both = HeadsSideBySide(name, 5, 6, 3, **OPTIONS.get(name, {})).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    whole, loss = both.forward_with_aux(x)
    called = []
    for number, head in enumerate(both.heads):
        head.register_forward_hook(lambda *_, number=number: called.append(number))
    with both.only(torch.tensor([False, True, False, False, True, True])):
        parts, same = both.forward_with_aux(x)
        torch.testing.assert_close(parts, both(x))
    assert called == [0, 2, 0, 2]
    torch.testing.assert_close(same, loss)
    torch.testing.assert_close(parts[:, [0, 1, 4, 5]], whole[:, [0, 1, 4, 5]])
    assert not parts[:, 2:4].any()
    torch.testing.assert_close(both(x), whole)  # all of them again


def test_outputs_are_shared_out_evenly():
    with pytest.raises(HeadError, match="heads=4 must divide the 6 outputs"):
        HeadsSideBySide("linear", 5, 6, 4)
    with pytest.raises(HeadError, match="heads=0"):
        HeadsSideBySide("linear", 5, 6, 0)


def test_predictors_alone_have_several():
    space = gym.spaces.Box(-1, 1, (3,), np.float32)
    config = PolicyConfig(core="none", head="linear", critic=False, task_heads=2)
    policy = Policy(space, gym.spaces.Discrete(4), config)
    assert len(policy.actor.heads) == 2
    with pytest.raises(ConfigError, match=r"policy\.task_heads=2 must be 0 or 1 with a critic"):
        PolicyConfig(task_heads=2)
