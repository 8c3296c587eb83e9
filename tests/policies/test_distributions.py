"""Action distributions against torch.distributions and counts."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import distributions as reference

from neurocoder.errors import ConfigError
from neurocoder.policies.distributions import make_distribution, n_action_parameters, to_env_action

SPACES = {
    "discrete": gym.spaces.Discrete(5, start=2),
    "multidiscrete": gym.spaces.MultiDiscrete([3, 2, 4]),
    "multibinary": gym.spaces.MultiBinary(4),
    "box": gym.spaces.Box(-0.5, 0.5, (2, 2), np.float32),
}


def reference_of(name, logits, log_std):
    if name == "discrete":
        return reference.Categorical(logits=logits)
    if name == "multibinary":
        return reference.Independent(reference.Bernoulli(logits=logits), 1)
    if name == "box":
        return reference.Independent(reference.Normal(logits, log_std.exp()), 1)
    return None


@pytest.mark.parametrize("name", SPACES)
def test_log_prob_and_entropy_agree_with_torch(name):
    space = SPACES[name]
    n = n_action_parameters(space)
    logits, log_std = torch.randn(6, 3, n), 0.3 * torch.randn(n)
    made = make_distribution(space, logits, log_std)
    action = made.sample()
    if name == "multidiscrete":
        parts = [reference.Categorical(logits=part) for part in logits.split([3, 2, 4], -1)]
        log_prob = sum(part.log_prob(action[..., i]) for i, part in enumerate(parts))
        entropy = sum(part.entropy() for part in parts)
    else:
        expected = reference_of(name, logits, log_std)
        log_prob = expected.log_prob(action.float() if name == "multibinary" else action)
        entropy = expected.entropy()
    torch.testing.assert_close(made.log_prob(action), log_prob)
    torch.testing.assert_close(made.entropy(), entropy.expand(6, 3))


def test_samples_follow_the_probabilities():
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(20_000, 3)
    drawn = make_distribution(gym.spaces.Discrete(3), logits, None).sample()
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.015, rtol=0)


@pytest.mark.parametrize("name", SPACES)
def test_samples_depend_on_the_generator_alone_and_fit_the_space(name):
    space = SPACES[name]
    n = n_action_parameters(space)
    made = make_distribution(space, torch.randn(8, n), torch.zeros(n))
    first, again = (made.sample(torch.Generator().manual_seed(5)) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first.float() != made.sample(torch.Generator().manual_seed(6)).float()).any()
    for action in (*to_env_action(space, first), *to_env_action(space, made.mode())):
        assert space.contains(action.astype(space.dtype)), action


def test_mode_is_the_most_probable_action():
    logits = torch.tensor([[0.1, 2.0, -1.0, 3.0, 0.0]])
    assert make_distribution(SPACES["discrete"], logits, None).mode().tolist() == [3]
    assert make_distribution(SPACES["multibinary"], logits[:, :4] - 1, None).mode().tolist() == [[0, 1, 0, 1]]
    split = torch.tensor([[0.0, 1.0, 0.5, 2.0, 0.0, 0.0, 0.0, 0.0, 9.0]])
    assert make_distribution(SPACES["multidiscrete"], split, None).mode().tolist() == [[1, 0, 3]]


@pytest.mark.parametrize(
    "space",
    [gym.spaces.Text(3), gym.spaces.Tuple([gym.spaces.Discrete(2)]), gym.spaces.Box(0, 9, (2,), np.int64)],
)
def test_other_spaces_are_refused(space):
    with pytest.raises(ConfigError, match="is not supported: expected Discrete"):
        n_action_parameters(space)
