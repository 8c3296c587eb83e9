"""Encoders: one observation to one feature vector.

Image encoders take channels-first observations and scale uint8 by 1/255 themselves, so that frames stay
uint8 until they reach the network.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neurocoder.errors import ConfigError, lookup

# Below this many images oneDNN is faster on channels-first batches, above it on channels-last ones
# (measured on 2 cores, a3c network: 8 images 2.1 against 2.6 ms, 160 images 139 against 91 ms).
CHANNELS_LAST_FROM = 32


# Orthogonal initialisation presumes inputs of unit variance; pixels / 255 deviate by 0.15 to 0.25 in Atari
# frames. Without this gain all activations start four times smaller, and learning is slower by as much.
PIXEL_GAIN = 4.0


class Conv(NamedTuple):
    """One convolution: output channels, kernel, stride, padding, and whether 2×2 max-pooling follows."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    pool: bool = False


class ImageNet(NamedTuple):
    """Convolutions, and the width of the linear layer after them (None: the flattened map is the output)."""

    convolutions: tuple[Conv, ...]
    hidden: int | None


IMAGE_NETS: dict[str, ImageNet] = {
    # Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", section 8
    "a3c": ImageNet((Conv(16, 8, 4), Conv(32, 4, 2)), 256),
    # Mnih et al. 2015, "Human-level control through deep reinforcement learning"
    "nature": ImageNet((Conv(32, 8, 4), Conv(64, 4, 2), Conv(64, 3, 1)), 512),
    # The A3C network that Neurocoder's Atari runs most likely used: with LSTM 512 and linear heads it has
    # the paper's 3.2M parameters (Table 6); inferred, not stated there.
    "a3g": ImageNet(
        (Conv(32, 5, 1, 2, True), Conv(32, 5, 1, 1, True), Conv(64, 4, 1, 1, True), Conv(64, 3, 1, 1, True)),
        None,
    ),
}


def orthogonal_(module: nn.Module, gain: float = math.sqrt(2)) -> None:
    """Orthogonal weights and zero biases in `module`'s own linear or convolutional parameters."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.orthogonal_(module.weight, gain=gain)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """Base of all encoders: ``encoder(observation[B, ...]) -> features[B, out_features]``."""

    out_features: int


class ImageEncoder(Encoder):
    """Convolutions with ReLU (and max-pooling where the net has it), then an optional linear layer."""

    def __init__(self, shape: tuple[int, ...], net: ImageNet, name: str, scaled: bool) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        for conv in net.convolutions:
            layers.append(nn.Conv2d(channels, conv.channels, conv.kernel, conv.stride, conv.padding))
            if conv.pool:
                layers.append(nn.MaxPool2d(2))
            layers.append(nn.ReLU())
            height, width = (
                ((size + 2 * conv.padding - conv.kernel) // conv.stride + 1) // (2 if conv.pool else 1)
                for size in (height, width)
            )
            channels = conv.channels
            if height < 1 or width < 1:
                raise ConfigError(
                    f"encoder {name!r} needs larger images than {shape[1]}x{shape[2]}: nothing is left after "
                    f"its convolutions; use encoder 'mlp' or resize the observation"
                )
        self.convolutions = nn.Sequential(*layers)
        flat = channels * height * width
        self.hidden = nn.Sequential(nn.Linear(flat, net.hidden), nn.ReLU()) if net.hidden else nn.Identity()
        self.out_features = net.hidden or flat
        self.apply(orthogonal_)
        if scaled:
            first = self.convolutions[0].weight
            assert isinstance(first, Tensor)
            with torch.no_grad():
                first.mul_(PIXEL_GAIN)

    def forward(self, observation: Tensor) -> Tensor:
        """Map images [B, C, H, W] (uint8, or floats taken as they are) to features [B, out_features]."""
        weight = self.convolutions[0].weight
        assert isinstance(weight, Tensor)
        layout = torch.channels_last if len(observation) >= CHANNELS_LAST_FROM else torch.contiguous_format
        x = observation.to(dtype=weight.dtype, memory_format=layout)
        if observation.dtype == torch.uint8:
            x = x.mul_(1 / 255)  # the conversion made a copy
        return self.hidden(self.convolutions(x).flatten(1))


class MLPEncoder(Encoder):
    """Two hidden layers of 64 tanh units over the flattened observation."""

    def __init__(self, shape: tuple[int, ...], scaled: bool = False, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(math.prod(shape), width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()
        )
        self.out_features = width
        self.apply(orthogonal_)

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations [B, ...] to features [B, out_features]."""
        first = self.layers[0].weight
        assert isinstance(first, Tensor)
        x = observation.flatten(1).to(first.dtype)
        if observation.dtype == torch.uint8:
            x = x * (1 / 255)
        return self.layers(x)


def _image(name: str) -> Callable[[tuple[int, ...], bool], Encoder]:
    def build(shape: tuple[int, ...], scaled: bool) -> Encoder:
        if len(shape) != 3:
            raise ConfigError(
                f"encoder {name!r} needs image observations [channels, height, width], got shape {shape}; "
                f"use encoder 'mlp'"
            )
        return ImageEncoder(shape, IMAGE_NETS[name], name, scaled)

    return build


ENCODERS: dict[str, Callable[[tuple[int, ...], bool], Encoder]] = {
    **{name: _image(name) for name in IMAGE_NETS},
    "mlp": MLPEncoder,
}


def default_encoder(shape: tuple[int, ...]) -> str:
    """Return the name of the encoder that ``auto`` stands for: a3c for images, mlp for everything else."""
    return "a3c" if len(shape) == 3 else "mlp"


def make_encoder(name: str, shape: tuple[int, ...], scaled: bool = False) -> Encoder:
    """Return encoder `name` for observations of `shape` (without the batch dimension).

    `scaled` says that they are uint8, which the encoder divides by 255.
    """
    return lookup(ENCODERS, name, "encoder")(shape, scaled)
