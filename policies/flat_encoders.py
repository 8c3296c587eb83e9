"""Encoders of flattened observations: hidden layers, which may be heads, or a fixed random projection."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from neurocoder.errors import ConfigError, lookup
from neurocoder.policies.encoder_base import Encoder, as_floats, orthogonal_
from neurocoder.policies.heads import Head, MoEHead, head_options, make_head
from neurocoder.policies.heads.linear import INITS


def full_precision(x: Tensor) -> torch.autocast:
    """Return a context without autocast: heads are small, and a policy's run so, too."""
    return torch.autocast(x.device.type, enabled=False)


ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class MLPEncoder(Encoder):
    """Hidden layers over the flattened observation; two of 64 tanh units unless the options say otherwise.

    Parameters
    ----------
    hidden
        Widths of the layers. Without any, the features are the observation.
    activation
        tanh or relu, after every layer.
    bias
        Whether the layers have biases. A head has what it has.
    init
        ``"orthogonal"``, with biases 0; or ``"uniform"``: as nn.Linear draws them, from ± 1 / sqrt(inputs).
    layers_head
        A head's name: every layer is one ("all layers recoded"), with options `layers_head_config`. None: they are
        ``nn.Linear``.

    Raises
    ------
    ConfigError
        A value that cannot be used, or options that exclude each other.
    HeadError
        An unknown head, or options that it cannot use.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        scaled: bool = False,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        bias: bool = True,
        init: str = "orthogonal",
        layers_head: str | None = None,
        layers_head_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(hidden, list | tuple) or not all(type(n) is int and n >= 1 for n in hidden):
            raise ConfigError(f"hidden={hidden!r} must be a list of integers >= 1 (encoder 'mlp')")
        nonlinearity = lookup(ACTIVATIONS, activation, "activation")
        lookup(dict.fromkeys(INITS), init, "init")
        if layers_head is None and layers_head_config:
            raise ConfigError("layers_head_config is for layers_head, which is not given (encoder 'mlp')")
        if layers_head is not None:
            head_options(layers_head)  # an unknown name is told without a layer, too
            if not bias:
                raise ConfigError("bias=False is for layers without layers_head: heads have what they have")
        widths = (math.prod(shape), *hidden)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            if layers_head is None:
                layers.append(nn.Linear(n_in, n_out, bias=bias))
            else:
                layers.append(make_head(layers_head, n_in, n_out, **(layers_head_config or {})))
            layers.append(nonlinearity())
        self.layers = nn.Sequential(*layers)
        self.out_features = widths[-1]
        if init == "orthogonal":
            for layer in self.layers:  # and not `apply`: heads have drawn their own parameters
                orthogonal_(layer)
        self._biased = bias
        self._recoded = layers_head is not None

    @property
    def repeatable(self) -> bool:
        noisy = any(isinstance(layer, MoEHead) for layer in self.layers)
        return not (noisy and self.training)

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations [B, ...] to features [B, out_features]."""
        x = self.scaled(observation)
        if not self._recoded:
            return self.layers(x)
        with full_precision(x):
            return self.layers(x)

    def aux_loss(self) -> Tensor:
        heads = (layer for layer in self.layers if isinstance(layer, Head))
        return sum((head.aux_loss() for head in heads), super().aux_loss())

    def forward_with_aux(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        if not self._recoded:
            return super().forward_with_aux(observation)
        features, losses = self._each_head(observation, lambda head, x: head.forward_with_aux(x))
        return features, sum(losses, super().aux_loss())

    def traces(self, observation: Tensor) -> list[Any]:
        if not self._recoded:
            return []
        return self._each_head(observation, lambda head, x: head.forward_with_trace(x))[1]

    def _each_head(
        self, observation: Tensor, apply: Callable[[Head, Tensor], tuple[Tensor, Any]]
    ) -> tuple[Tensor, list[Any]]:
        """Return the features, and what `apply` returned beside the outputs of each head on the way."""
        x, others = self.scaled(observation), []
        with full_precision(x):
            for layer in self.layers:
                if isinstance(layer, Head):
                    x, other = apply(layer, x)
                    others.append(other)
                else:
                    x = layer(x)
        return x, others

    def stages(self) -> Iterator[nn.Module]:
        if self._biased:
            yield from self.layers
        else:
            yield self.layers  # as a whole: without biases there is nothing to shift

    def scaled(self, observation: Tensor) -> Tensor:
        first = next(self.parameters(), None)
        if first is not None:
            dtype = first.dtype
        else:
            dtype = observation.dtype if observation.is_floating_point() else torch.get_default_dtype()
        return as_floats(observation.flatten(1), dtype)


class ProjectionEncoder(Encoder):
    """A fixed random projection of the flattened observation: z = x U, which nothing learns.

    Le & Venkatesh 2020, appendix, "Image classification-linear Main Network", there without the distribution of U: here
    normal with variance 1 / inputs, so that z varies as much as x.

    Parameters
    ----------
    features
        Width of z.
    seed
        Of U, which is part of the checkpoint.
    """

    projection: Tensor

    def __init__(
        self, shape: tuple[int, ...], scaled: bool = False, *, features: int = 200, seed: int = 0
    ) -> None:
        super().__init__()
        if type(features) is not int or features < 1:
            raise ConfigError(f"features={features!r} must be an integer >= 1 (encoder 'projection')")
        n_inputs = math.prod(shape)
        drawn = torch.randn(n_inputs, features, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("projection", drawn / math.sqrt(n_inputs))
        self.out_features = features

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations [B, ...] to z [B, features]."""
        return self.scaled(observation) @ self.projection

    def stages(self) -> Iterator[nn.Module]:
        yield self

    def scaled(self, observation: Tensor) -> Tensor:
        return as_floats(observation.flatten(1), self.projection.dtype)
