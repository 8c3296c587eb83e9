"""The models that may stand behind Table 6, as lists of layers: not wired, since only their sizes matter."""

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from neurocoder.policies import Policy, PolicyConfig
from neurocoder.policies.heads import ReleasedNeurocoderLinear

Layer = Callable[[int, int], nn.Module]


def named(**layers: nn.Module) -> nn.ModuleDict:
    """Return `layers` as one module, in this order."""
    return nn.ModuleDict(layers)


def plain(in_features: int, out_features: int) -> nn.Module:
    """Return a linear layer without bias: the hidden layers of the release's MLPs."""
    return nn.Linear(in_features, out_features, bias=False)


def mlp(*widths: int, bias: bool = False, layer: Layer | None = None, last: Layer | None = None) -> nn.Module:
    """Return layers between `widths`: linear ones, with `bias` or without, unless `layer` (or `last`) says else."""
    layer = layer or (nn.Linear if bias else plain)
    makers = [layer] * (len(widths) - 2) + [last or layer]
    sizes = zip(makers, widths[:-1], widths[1:], strict=True)
    return named(**{f"layer{n}": make(i, o) for n, (make, i, o) in enumerate(sizes, start=1)})


def recurrent(size: int, output: nn.Module, **others: nn.Module) -> nn.Module:
    """Return the polynomial task's network: a GRU that sees x and the last y, and an output layer."""
    return named(gru=nn.GRU(2, size), **others, output=output)


def a3c(n_actions: int, actor: nn.Module | None = None, critic: nn.Module | None = None) -> nn.Module:
    """Return our policy of the paper's size, with linear heads unless others are given."""
    frames = gym.spaces.Box(-np.inf, np.inf, (1, 80, 80), np.float32)
    config = PolicyConfig(encoder="a3g", core="lstm", core_size=512, head="linear")
    policy = Policy(frames, gym.spaces.Discrete(n_actions), config)
    critic = critic or policy.critic
    assert critic is not None
    return named(encoder=policy.encoder, core=policy.core, actor=actor or policy.actor, critic=critic)


def minimal_neurocoder(
    in_features: int, out_features: int, slots: int, key_size: int, units: int
) -> nn.Module:
    """Return the parts that the paper's text requires of the MNIST model, and no more."""
    return named(
        memory_u=plain(in_features, slots),
        memory_v=plain(out_features, slots),
        memory_s=plain(1, slots),
        key_u=nn.Linear(in_features, key_size),
        key_v=nn.Linear(out_features, key_size),
        key_s=nn.Linear(1, key_size),
        controller=nn.LSTM(in_features, units),
    )


def without_component_map(layer: ReleasedNeurocoderLinear) -> nn.Module:
    """Return `layer` less its component map."""
    layer.component_map = None
    return layer


def mixture_of_experts(in_features: int, out_features: int, n_experts: int = 10) -> nn.Module:
    """Return linear experts with the two gates of Shazeer et al. 2017: of the logits and of their noise."""
    experts = nn.ModuleList(nn.Linear(in_features, out_features) for _ in range(n_experts))
    return named(experts=experts, gate=plain(in_features, n_experts), noise=plain(in_features, n_experts))


class ReleasedNSM(nn.Module):
    """The parameters of the release's Neural Stored-program Memory layer (its forward is not reproduced).

    Programs are rows [key | vec W], read by content: a key net and a strength. The nets of three other ways to
    address them, and of keys computed from a program's singular vectors, are made but not called.
    """

    unused_parameters: tuple[str, ...]

    def __init__(
        self, in_features: int, out_features: int, *, programs: int, key_size: int = 5, singular: int = 15
    ) -> None:
        super().__init__()
        self.programs = nn.Parameter(torch.empty(programs, key_size + in_features * out_features))
        self.key = nn.Linear(in_features, key_size)
        self.strength = nn.Linear(in_features, 1)
        rank = min(in_features, out_features)
        self.never_called = named(
            address=nn.Linear(in_features, programs),
            address_of_singular=nn.Linear(in_features, programs * singular),
            address_of_rest=nn.Linear(in_features, programs),
            keys_of_singular=nn.Linear(in_features, key_size * (singular + 1)),
            code_length=nn.Linear(in_features, out_features),
            descriptor=nn.Linear(rank * singular // 2 * 3, key_size),
            descriptor_of_triples=nn.Linear(2 * out_features + 1, key_size),
        )
        names = (name for name, _ in self.named_parameters())
        self.unused_parameters = tuple(name for name in names if name.startswith("never_called."))


def lenet(head: nn.Module) -> nn.Module:
    """Return two convolutions of 5×5 (each followed by pooling) on 32×32 images, and four fully connected layers."""
    hidden = mlp(50 * 8 * 8, 500, 500, 500)
    return named(conv1=nn.Conv2d(3, 20, 5), conv2=nn.Conv2d(20, 50, 5), hidden=hidden, head=head)


def convolution(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    """Return a convolution without bias, and the batch normalisation of its outputs."""
    return [nn.Conv2d(in_channels, out_channels, kernel, bias=False), nn.BatchNorm2d(out_channels)]


def densenet(head: Callable[[int], nn.Module], growth: int = 12, layers_per_block: int = 32) -> nn.Module:
    """Return Huang et al. 2017: three dense blocks, transitions that keep the width, BN before convolutions."""
    width = 16
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, bias=False)]
    for block in range(3):
        for _ in range(layers_per_block):
            layers += [nn.BatchNorm2d(width), nn.Conv2d(width, growth, 3, bias=False)]
            width += growth
        layers.append(nn.BatchNorm2d(width))
        if block < 2:
            layers.append(nn.Conv2d(width, width, 1, bias=False))
    return named(features=nn.Sequential(*layers), head=head(width))


def resnet18(head: nn.Module) -> nn.Module:
    """Return He et al. 2016, for ImageNet: eight blocks of two 3×3 convolutions, 1000 outputs; and `head`."""
    layers = convolution(3, 64, 7)
    width = 64
    for channels in (64, 128, 256, 512):
        layers += convolution(width, channels, 3) + convolution(channels, channels, 3)
        if width != channels:
            layers += convolution(width, channels, 1)  # the shortcut
        layers += convolution(channels, channels, 3) + convolution(channels, channels, 3)
        width = channels
    return named(features=nn.Sequential(*layers), classifier=nn.Linear(width, 1000), head=head)
