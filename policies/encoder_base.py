"""What every encoder is: a map from one observation to one feature vector."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from neurocoder.errors import ConfigError

# Orthogonal initialisation presumes inputs of unit variance; pixels / 255 deviate by 0.15 to 0.25 in Atari
# frames. Without this gain all activations start four times smaller, and learning is slower by as much.
PIXEL_GAIN = 4.0

Kept = tuple[Tensor, ...]
"""What a recorded forward pass leaves for the backward pass: tensors whose first dimension is the batch."""


class Encoder(nn.Module):
    """Base of all encoders: ``encoder(observation[B, ...]) -> features[B, out_features]``.

    An encoder whose layers are heads carries an auxiliary loss, and decides something for every input:
    :meth:`forward_with_aux` and :meth:`traces`. The others' loss is zero, and their traces are none.
    """

    out_features: int

    @property
    def repeatable(self) -> bool:
        """Whether a second forward pass of the same observations gives the same features and changes nothing.

        Not so with batch normalisation in training, which counts every batch, nor where noise is drawn. Such an
        encoder cannot be recorded on a :class:`~neurocoder.policies.tape.Tape`.
        """
        return True

    @property
    def lowerable(self) -> bool:
        """Whether a copy of it with bfloat16 parameters computes what it would compute itself under autocast."""
        return False

    @property
    def standardizes(self) -> bool:
        """Whether :meth:`scaled` measures what is observed against what :meth:`fit` has seen."""
        return False

    def fit(self, observation: Tensor) -> None:
        """Take over what :meth:`scaled` shall know of the observations [N, ...] to come; nothing, unless it says so."""

    def scaled(self, observation: Tensor) -> Tensor:
        """Return observations [B, ...] as the first layer takes them: floats, uint8 divided by 255 or standardised."""
        raise NotImplementedError

    def stages(self) -> Iterator[nn.Module]:
        """Yield the layers in the order in which ``forward`` applies them to what :meth:`scaled` returned.

        What calibration shall scale comes as ``nn.Linear`` or ``nn.Conv2d``, with a bias; what it shall leave as
        it is, as any other module.
        """
        raise NotImplementedError

    def aux_loss(self) -> Tensor:
        """The part of the auxiliary loss that depends on parameters only; zero without heads inside."""
        parameter = next(self.parameters(), None)
        return torch.zeros(()) if parameter is None else parameter.new_zeros(())

    def forward_with_aux(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and the auxiliary loss of this batch: what a learner adds to the task's, once per step."""
        return self(observation), self.aux_loss()

    def traces(self, observation: Tensor) -> list[Any]:
        """Return what each head inside decided for these observations, first layer first."""
        return []

    def record(self, observation: Tensor) -> tuple[Tensor, Kept]:
        """Return the features, and what :meth:`backward_from` needs beside the observation; without autograd.

        Raises
        ------
        ConfigError
            The encoder is not :attr:`repeatable` now.
        """
        if not self.repeatable:
            raise ConfigError(
                f"{type(self).__name__} cannot be recorded on a tape in training mode: a second forward pass "
                f"would change its running statistics, or draw other noise; act and evaluate without a tape, or "
                f"freeze it"
            )
        return self(observation), ()

    def backward_from(
        self, observation: Tensor, kept: Kept, grad_features: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``parameters()``, given those of the features [B, out_features].

        They are in the parameters' dtype, or in float32 where that is lower. `kept` is what :meth:`record` kept of
        these observations; rows of several calls may be joined, since observations are independent. This one, of
        the base class, computes the forward pass again, and has None for parameters that take no gradient.
        """
        learned = {n: p.detach().requires_grad_() for n, p in self.named_parameters() if p.requires_grad}
        if not learned:
            return tuple(None for _ in self.parameters())
        with torch.enable_grad():
            features = torch.func.functional_call(self, learned, observation)
        gradients = dict(
            zip(learned, torch.autograd.grad(features, tuple(learned.values()), grad_features), strict=True)
        )
        return tuple(gradients.get(name) for name, _ in self.named_parameters())


def as_floats(observation: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `observation` as `dtype`: uint8 divided by 255, anything else as it is."""
    x = observation.to(dtype)
    return x * (1 / 255) if observation.dtype == torch.uint8 else x


def image_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return `shape` as channels, height and width, or say that encoder `name` cannot take it."""
    if len(shape) != 3:
        raise ConfigError(
            f"encoder {name!r} needs image observations [channels, height, width], got shape {shape}; "
            f"use encoder 'mlp'"
        )
    channels, height, width = shape
    return channels, height, width


def orthogonal_(module: nn.Module, gain: float = math.sqrt(2)) -> None:
    """Orthogonal weights and zero biases in `module`'s own linear or convolutional parameters."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.orthogonal_(module.weight, gain=gain)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def he_(module: nn.Module) -> None:
    """Weights of He et al. 2015, eq. 14, in `module`'s own convolutions: normal, of variance 2 / (k² · outputs).

    Outputs are those that one input channel feeds: in a depthwise convolution a single one.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
