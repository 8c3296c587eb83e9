"""Encoders of images by convolutions: the networks of A3C and of DQN, and the one of the paper's Atari runs.

They take channels-first images and scale uint8 by 1/255 themselves, or standardise them pixel by pixel, so that frames
stay uint8 until they reach the network.

Features come in two ways: ``encoder(observation)``, by autograd, or ``record`` and ``backward_from``, for the
:class:`~neurocoder.policies.tape.Tape`, which computes the backward pass of many small forward passes at once.
"""

import math
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurocoder.errors import ConfigError
from neurocoder.policies.blocks import BLOCK, to_blocks
from neurocoder.policies.encoder_base import PIXEL_GAIN, Encoder, Kept, orthogonal_
from neurocoder.policies.pixels import PixelStandardisation

CHANNELS_LAST_FROM = 32
"""From this many images on (and for nets that pool: always) batches are channels-last.

Measured per image on one core, channels-first against channels-last. Forward: a3c 171 : 177 µs at 8 images,
215 : 196 at 80; nature 528 : 570 and 428 : 320; a3g, whose pooling channels-first is slow, 3360 : 1693 at 8.
Backward at 80: a3c 261 : 214, nature 1208 : 867.
"""

STANDARDISED_FROM = 8
"""The same where pixels are standardised: their means are channels-last, too.

A3c on one core with AVX-512 and bfloat16, per image, channels-last against channels-first: 126 : 138 µs at 8 images, 94 :
101 at 16; with bfloat16 weights 88 : 166 and 63 : 144, under autocast 121 : 145 and 83 : 104.
"""

BLOCKS_FROM = 64
"""Where pixels are standardised, images are cut into blocks from this many on: means and factors must be cut as well. Acting
with 16 images takes 158 µs an image that way, and 150 with whole images; learning from 128 takes 178, and 217."""

CHUNK_VALUES = 5 << 19
"""``backward_from`` takes as many images at a time as have this many values (10 MiB in float32) in the largest
feature map: what lies between two layers then stays in the cache."""


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


def _cuts_blocks(conv: Conv, shape: tuple[int, int, int]) -> bool:
    """Return whether the first convolution is one of blocks: its stride theirs, and nothing cut in two or padded."""
    whole = all(size % BLOCK == 0 for size in (*shape[1:], conv.kernel))
    return whole and conv.stride == BLOCK and conv.padding == 0


def _channels_last(images: Tensor) -> Tensor:
    """Return images [B, C, H, W] in channels-last memory."""
    if images.dtype == torch.uint8 and not images.is_contiguous(memory_format=torch.channels_last):
        return torch.stack(images.unbind(1), -1).movedim(
            -1, 1
        )  # a third of the time of `to`, for few channels
    return images.to(memory_format=torch.channels_last)


class ImageEncoder(Encoder):
    """Convolutions with ReLU (and max-pooling where the net has it), then an optional linear layer.

    With `standardize`, uint8 images are standardised pixel by pixel (``neurocoder.policies.pixels``) as soon as
    ``fit`` has seen some; floats are taken as they are all the same.
    """

    def __init__(
        self, shape: tuple[int, int, int], net: ImageNet, name: str, scaled: bool, standardize: bool = False
    ) -> None:
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
        self._cuts_blocks = _cuts_blocks(net.convolutions[0], shape)
        flat = channels * height * width
        self.hidden = nn.Sequential(nn.Linear(flat, net.hidden), nn.ReLU()) if net.hidden else nn.Identity()
        self.out_features = net.hidden or flat
        self.apply(orthogonal_)
        self.pixels = PixelStandardisation(shape) if standardize and scaled else None
        if scaled and self.pixels is None:
            first = self.convolutions[0].weight
            assert isinstance(first, Tensor)
            with torch.no_grad():
                first.mul_(PIXEL_GAIN)

    def forward(self, observation: Tensor) -> Tensor:
        """Map images [B, C, H, W] (uint8, or floats taken as they are) to features [B, out_features]."""
        x = self._first_maps(observation)
        for layer in islice(self.convolutions, 1, None):
            x = layer(x)
        return self.hidden(x.flatten(1))

    @property
    def lowerable(self) -> bool:
        return True

    def _first_maps(self, observation: Tensor) -> Tensor:
        """Return what the first convolution makes of the observation."""
        first = self.convolutions[0]
        assert isinstance(first, nn.Conv2d)
        blocks = self._blocks(observation)
        if blocks is None:
            return first(self.scaled(observation))
        weight = first.weight.to(blocks.dtype)
        if self.pixels is None:
            weight = weight * (1 / 255)  # a hundredth of the work of scaling the images
        return F.conv2d(blocks, F.pixel_unshuffle(weight, BLOCK), first.bias)

    def _blocks(self, observation: Tensor) -> Tensor | None:
        """Return the images in bfloat16, cut into blocks (``neurocoder.policies.blocks``), where that is worth it.

        Standardised if pixels are, else as they are: grey levels from 0 to 255.
        """
        weight = self.convolutions[0].weight
        assert isinstance(weight, Tensor)
        device = observation.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if not self._cuts_blocks or dtype != torch.bfloat16 or device != "cpu" or transformed:
            return None
        if observation.dtype != torch.uint8 or (self.pixels is not None and len(observation) < BLOCKS_FROM):
            return None
        blocks = to_blocks(observation).to(dtype)
        return blocks if self.pixels is None else self.pixels.of_blocks(observation, blocks)

    def stages(self) -> Iterator[nn.Module]:
        yield from self.convolutions
        yield nn.Flatten(1)
        if isinstance(self.hidden, nn.Sequential):
            yield from self.hidden

    def scaled(self, observation: Tensor) -> Tensor:
        weight = self.convolutions[0].weight
        assert isinstance(weight, Tensor)
        enough = CHANNELS_LAST_FROM if self.pixels is None else STANDARDISED_FROM
        many = not torch.compiler.is_compiling() and len(observation) >= enough
        layout = torch.channels_last if many or self._unpooled else torch.contiguous_format
        if layout == torch.channels_last and observation.dtype == torch.uint8:
            x = _channels_last(observation).to(weight.dtype)
        else:
            x = observation.to(dtype=weight.dtype, memory_format=layout)
        if observation.dtype != torch.uint8:
            return x
        # in place: the conversion made a copy
        return x.mul_(1 / 255) if self.pixels is None else self.pixels(observation, x)

    @property
    def standardizes(self) -> bool:
        return self.pixels is not None

    def fit(self, observation: Tensor) -> None:
        if self.pixels is not None:
            self.pixels.fit(observation)

    def record(self, observation: Tensor) -> tuple[Tensor, Kept]:
        """Return the features and, layer by layer, where poolings found their maxima and what ReLUs gave."""
        kept = []
        x = self._first_maps(observation)
        for layer in islice(self.convolutions, 1, None):
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

    def backward_from(
        self, observation: Tensor, kept: Kept, grad_features: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``parameters()``, given those of the features: the chain rule, by hand."""
        learned = (*self.convolutions.parameters(), *self.hidden.parameters())
        dtype = learned[0].dtype
        # sums over chunks in bfloat16 would lose what each adds
        sums = torch.float32 if dtype == torch.bfloat16 else dtype
        gradients = tuple(torch.zeros_like(p, dtype=sums) for p in learned)
        grad_features = grad_features.to(dtype)
        images = len(grad_features)
        n_chunks = min(images, -(-images * self._largest // CHUNK_VALUES))
        chunks = (part.tensor_split(n_chunks) for part in (grad_features, observation, *kept))
        for grad_chunk, *kept_chunk in zip(*chunks, strict=True):
            self._accumulate(grad_chunk, kept_chunk, list(gradients))
        if self.pixels is not None:
            return (*gradients, *(None for _ in self.pixels.parameters()))
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
            flat, of_weight = kept[-1].flatten(1), gradients.pop()
            if of_weight.dtype == grad.dtype:
                of_weight.addmm_(grad.t(), flat)
            else:
                of_weight.add_(grad.t() @ flat)
            grad = grad @ linear.weight
        images, *maps = kept
        blocks = self._blocks(images)
        # `to` and not `contiguous`, which takes a single channel for channels-last, whatever its strides
        maps = [_channels_last(part) for part in maps]
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
                if maps:
                    seen, weight, stride = maps[-1], layer.weight, layer.stride
                elif blocks is not None:
                    seen, weight, stride = blocks, F.pixel_unshuffle(layer.weight, BLOCK), (1, 1)
                else:
                    seen, weight, stride = self._as_seen(images), layer.weight, layer.stride
                grad, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                    grad,
                    seen,
                    weight,
                    bias_sizes=[layer.out_channels],
                    stride=stride,
                    padding=layer.padding,
                    dilation=layer.dilation,
                    transposed=False,
                    output_padding=[0, 0],
                    groups=1,
                    output_mask=[bool(maps), True, True],  # the images need no gradient
                )
                if seen is blocks:
                    grad_weight = F.pixel_shuffle(grad_weight, BLOCK)
                gradients.pop().add_(grad_bias)
                gradients.pop().add_(grad_weight)

    def _as_seen(self, images: Tensor) -> Tensor:
        """Return channels-last floats, standardised if pixels are, else as they are."""
        weight = self.convolutions[0].weight
        assert isinstance(weight, Tensor)
        seen = _channels_last(images).to(weight.dtype)
        return seen if self.pixels is None or images.dtype != torch.uint8 else self.pixels(images, seen)
