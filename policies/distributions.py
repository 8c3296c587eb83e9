"""Action distributions, one per kind of action space.

Each class is built from the policy head's outputs and offers the same five operations on tensors with any
leading dimensions: ``sample(generator)``, ``mode()``, ``log_prob(action)``, ``entropy()``, ``probs()``.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from neurocoder.errors import ConfigError


class ActionDistribution(Protocol):
    """What the learners and players need of a distribution over actions."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor: ...
    def mode(self) -> Tensor: ...
    def log_prob(self, action: Tensor) -> Tensor: ...
    def entropy(self) -> Tensor: ...


class Categorical:
    """Discrete actions. logits [..., A]; actions [...], int64."""

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = F.log_softmax(logits.float(), dim=-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        flat = self.log_probs.exp().flatten(0, -2)
        drawn = torch.multinomial(flat, 1, generator=generator)
        return drawn.view(self.log_probs.shape[:-1])

    def mode(self) -> Tensor:
        return self.log_probs.argmax(dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_probs.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(dim=-1)


class MultiCategorical:
    """MultiDiscrete actions: independent categoricals. logits [..., Σnvec]; actions [..., len(nvec)], int64."""

    def __init__(self, logits: Tensor, sizes: Sequence[int]) -> None:
        self.parts = [Categorical(part) for part in logits.split(list(sizes), dim=-1)]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return torch.stack([part.sample(generator) for part in self.parts], dim=-1)

    def mode(self) -> Tensor:
        return torch.stack([part.mode() for part in self.parts], dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return sum(
            (part.log_prob(action[..., i]) for i, part in enumerate(self.parts)),
            start=torch.zeros((), device=action.device),
        )

    def entropy(self) -> Tensor:
        return sum((part.entropy() for part in self.parts[1:]), start=self.parts[0].entropy())


class Bernoulli:
    """MultiBinary actions: independent bits. logits [..., n]; actions [..., n], int64 of 0 and 1."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.float()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(torch.sigmoid(self.logits), generator=generator).long()

    def mode(self) -> Tensor:
        return (self.logits > 0).long()

    def log_prob(self, action: Tensor) -> Tensor:
        bits = action.to(self.logits.dtype)
        return -F.binary_cross_entropy_with_logits(self.logits, bits, reduction="none").sum(dim=-1)

    def entropy(self) -> Tensor:
        p = torch.sigmoid(self.logits)
        return F.binary_cross_entropy_with_logits(self.logits, p, reduction="none").sum(dim=-1)


class DiagonalGaussian:
    """Box actions: independent normals. mean [..., n]; log_std [n]; actions [..., n], float, not yet clipped."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean.float()
        self.log_std = log_std.float().expand_as(self.mean)

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        z = (action - self.mean) / self.log_std.exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=-1)


def n_action_parameters(space: gym.Space) -> int:
    """Return how many outputs the actor's head needs for actions of `space`.

    Raises
    ------
    ConfigError
        The space is none of Discrete, MultiDiscrete, MultiBinary and Box with floats.
    """
    match space:
        case gym.spaces.Discrete():
            return int(space.n)
        case gym.spaces.MultiDiscrete() if space.nvec.ndim == 1:
            return int(space.nvec.sum())
        case gym.spaces.MultiBinary():
            return math.prod(space.shape)
        case gym.spaces.Box() if np.issubdtype(space.dtype, np.floating):
            return math.prod(space.shape)
    raise ConfigError(
        f"action space {space} is not supported: expected Discrete, MultiDiscrete, MultiBinary or a Box of floats"
    )


def make_distribution(space: gym.Space, parameters: Tensor, log_std: Tensor | None) -> ActionDistribution:
    """Return the distribution over actions of `space` for head outputs `parameters` [..., n]."""
    if isinstance(space, gym.spaces.Box):
        assert log_std is not None
        return DiagonalGaussian(parameters, log_std)
    match space:
        case gym.spaces.Discrete():
            return Categorical(parameters)
        case gym.spaces.MultiDiscrete():
            return MultiCategorical(parameters, [int(n) for n in space.nvec])
        case _:
            return Bernoulli(parameters)


def to_env_action(space: gym.Space, action: Tensor) -> np.ndarray:
    """Return a batch of actions in the space's own dtype, shape and range, ready for a vector environment."""
    array = action.detach().cpu().numpy()
    if isinstance(space, gym.spaces.Discrete):
        return array + int(space.start)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return (array + space.start).astype(space.dtype)
    array = array.reshape(len(array), *(space.shape or ()))
    if isinstance(space, gym.spaces.Box):
        array = np.clip(array, space.low, space.high)
    return array.astype(space.dtype)
