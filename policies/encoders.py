"""Encoders: one observation to one feature vector.

Image encoders take channels-first observations and scale uint8 by 1/255 themselves, so that frames stay
uint8 until they reach the network.

Features come in two ways: ``encoder(observation)``, by autograd, or ``record`` and ``backward_from``, for the
:class:`~neurocoder.policies.tape.Tape`, which computes the backward pass of many small forward passes at once.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurocoder.errors import ConfigError, lookup

CHANNELS_LAST_FROM = 32
"""From this many images on (and for nets that pool: always) batches are channels-last.

Measured per image on one core, channels-first against channels-last. Forward: a3c 171 : 177 µs at 8 images,
215 : 196 at 80; nature 528 : 570 and 428 : 320; a3g, whose pooling channels-first is slow, 3360 : 1693 at 8.
Backward at 80: a3c 261 : 214, nature 1208 : 867.
"""

CHUNK_VALUES = 5 << 19
"""``backward_from`` takes as many images at a time as have this many values (10 MiB in float32) in the largest
feature map: what lies between two layers then stays in the cache."""


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


Kept = tuple[Tensor, ...]
"""What a recorded forward pass leaves for the backward pass: tensors whose first dimension is the batch."""


class Encoder(nn.Module):
    """Base of all encoders: ``encoder(observation[B, ...]) -> features[B, out_features]``."""

    out_features: int

    def scaled(self, observation: Tensor) -> Tensor:
        """Return observations [B, ...] as the first layer takes them: floats, uint8 divided by 255."""
        raise NotImplementedError

    def stages(self) -> Iterator[nn.Module]:
        """Yield the layers in the order in which ``forward`` applies them to what :meth:`scaled` returned."""
        raise NotImplementedError

    def record(self, observation: Tensor) -> tuple[Tensor, Kept]:
        """Return the features, and what :meth:`backward_from` needs beside the observation; without autograd."""
        return self(observation), ()

    def backward_from(self, observation: Tensor, kept: Kept, grad_features: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of ``parameters()``, given those of the features [B, out_features].

        `kept` is what :meth:`record` kept of these observations; rows of several calls may be joined, since
        observations are independent. This one, of the base class, computes the forward pass again.
        """
        parameters = {name: p.detach().requires_grad_() for name, p in self.named_parameters()}
        with torch.enable_grad():
            features = torch.func.functional_call(self, parameters, observation)
        return torch.autograd.grad(features, tuple(parameters.values()), grad_features)


def _channels_last(images: Tensor) -> Tensor:
    """Return images [B, C, H, W] in channels-last memory."""
    if images.dtype == torch.uint8 and not images.is_contiguous(memory_format=torch.channels_last):
        return torch.stack(images.unbind(1), -1).movedim(
            -1, 1
        )  # a third of the time of `to`, for few channels
    return images.to(memory_format=torch.channels_last)


class ImageEncoder(Encoder):
    """Convolutions with ReLU (and max-pooling where the net has it), then an optional linear layer."""

    def __init__(self, shape: tuple[int, ...], net: ImageNet, name: str, scaled: bool) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        self._unpooled: list[list[int]] = []  # height and width of what goes into each pooling
        self._largest = math.prod(shape)  # values in the largest map
        for conv in net.convolutions:
            layers.append(nn.Conv2d(channels, conv.channels, conv.kernel, conv.stride, conv.padding))
            height, width = (
                (size + 2 * conv.padding - conv.kernel) // conv.stride + 1 for size in (height, width)
            )
            channels = conv.channels
            self._largest = max(self._largest, channels * height * width)
            if conv.pool:
                layers.append(nn.MaxPool2d(2))
                self._unpooled.append([height, width])
                height, width = height // 2, width // 2
            layers.append(nn.ReLU())
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
        return self.hidden(self.convolutions(self.scaled(observation)).flatten(1))

    def stages(self) -> Iterator[nn.Module]:
        yield from self.convolutions
        yield nn.Flatten(1)
        if isinstance(self.hidden, nn.Sequential):
            yield from self.hidden

    def scaled(self, observation: Tensor) -> Tensor:
        weight = self.convolutions[0].weight
        assert isinstance(weight, Tensor)
        many = not torch.compiler.is_compiling() and len(observation) >= CHANNELS_LAST_FROM
        layout = torch.channels_last if many or self._unpooled else torch.contiguous_format
        if layout == torch.channels_last and observation.dtype == torch.uint8:
            x = _channels_last(observation).to(weight.dtype)
        else:
            x = observation.to(dtype=weight.dtype, memory_format=layout)
        return x.mul_(1 / 255) if observation.dtype == torch.uint8 else x  # the conversion made a copy

    def record(self, observation: Tensor) -> tuple[Tensor, Kept]:
        """Return the features and, layer by layer, where poolings found their maxima and what ReLUs gave."""
        kept = []
        x = self.scaled(observation)
        for layer in self.convolutions:
            if isinstance(layer, nn.MaxPool2d):
                x, where = F.max_pool2d(x, 2, return_indices=True)
                kept.append(where.int())  # int64 would take twice the memory, and longer to copy
            else:
                x = layer(x)
            if isinstance(layer, nn.ReLU):
                kept.append(x)
        features = self.hidden(x.flatten(1))
        if isinstance(self.hidden, nn.Sequential):
            kept.append(features)
        return features, tuple(kept)

    def backward_from(self, observation: Tensor, kept: Kept, grad_features: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of ``parameters()``, given those of the features: the chain rule, by hand."""
        gradients = tuple(torch.zeros_like(parameter) for parameter in self.parameters())
        images = len(grad_features)
        n_chunks = min(images, -(-images * self._largest // CHUNK_VALUES))
        chunks = (part.tensor_split(n_chunks) for part in (grad_features, observation, *kept))
        for grad_chunk, *kept_chunk in zip(*chunks, strict=True):
            self._accumulate(grad_chunk, kept_chunk, list(gradients))
        if observation.dtype == torch.uint8:
            gradients[0].mul_(1 / 255)  # cheaper than to scale the images
        return gradients

    def _accumulate(self, grad: Tensor, kept: list[Tensor], gradients: list[Tensor]) -> None:
        """Add what a chunk of images contributes; uses up both lists, from the last layer to the first.

        `kept` begins with the images.
        """
        if isinstance(self.hidden, nn.Sequential):
            linear = self.hidden[0]
            assert isinstance(linear, nn.Linear)
            grad = torch.ops.aten.threshold_backward(grad, kept.pop(), 0)
            gradients.pop().add_(grad.sum(0))
            gradients.pop().addmm_(grad.t(), kept[-1].flatten(1))
            grad = grad @ linear.weight
        # `to` and not `contiguous`, which takes a single channel for channels-last, whatever its strides
        maps = [_channels_last(part) for part in kept]
        unpooled = self._unpooled.copy()
        grad = grad.reshape(kept[-1].shape).to(memory_format=torch.channels_last)
        for layer in reversed(self.convolutions):
            if isinstance(layer, nn.ReLU):
                grad = torch.ops.aten.threshold_backward(grad, maps.pop(), 0)
            elif isinstance(layer, nn.MaxPool2d):
                pooled = torch.empty(  # of which only shape and layout count
                    (*grad.shape[:2], *unpooled.pop()),
                    dtype=grad.dtype,
                    device=grad.device,
                    memory_format=torch.channels_last,
                )
                grad = torch.ops.aten.max_pool2d_with_indices_backward(
                    grad,
                    pooled,
                    kernel_size=[2, 2],
                    stride=[2, 2],
                    padding=[0, 0],
                    dilation=[1, 1],
                    ceil_mode=False,
                    indices=maps.pop().long(),
                )
            else:
                assert isinstance(layer, nn.Conv2d)
                grad, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                    grad,
                    maps[-1].to(layer.weight.dtype),
                    layer.weight,
                    bias_sizes=[layer.out_channels],
                    stride=layer.stride,
                    padding=layer.padding,
                    dilation=layer.dilation,
                    transposed=False,
                    output_padding=[0, 0],
                    groups=1,
                    output_mask=[len(maps) > 1, True, True],  # the images need no gradient
                )
                gradients.pop().add_(grad_bias)
                gradients.pop().add_(grad_weight)


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
        return self.layers(self.scaled(observation))

    def stages(self) -> Iterator[nn.Module]:
        yield from self.layers

    def scaled(self, observation: Tensor) -> Tensor:
        first = self.layers[0].weight
        assert isinstance(first, Tensor)
        x = observation.flatten(1).to(first.dtype)
        return x * (1 / 255) if observation.dtype == torch.uint8 else x


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
