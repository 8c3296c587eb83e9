"""Pixels as a network's first layer should see them: each against its own mean and deviation.

Most of a game's picture never changes, and what counts may be a few pixels: Pong's ball covers one in two thousand.
In pixels / 255 the background is most of every sum that the first layer makes. Measured from the pixel's mean over
random play it is 0, and what moves stands out (Burda et al. 2019, arXiv 1810.12894, section 2.4, do so for one of
their networks, with running statistics, cut at ±5; here they are fixed and nothing is cut).

Before a game's first frames its stack has frames of zeros, which are no picture: they count as the mean. Otherwise every
pixel of theirs would stand out, and a network give ten times its usual features three steps in every game.
"""

import torch
from torch import Tensor, nn

from neurocoder.policies.blocks import BLOCK

LEAST_DEVIATION = 32.0
"""Grey levels: a pixel's deviation counts as no less, so that one which hardly ever changes is not blown up."""

FEW = 8
"""Below this many images what pads a stack is blanked out unasked: that is cheap there, and needs no branch, which
``torch.func`` could not take. From there on it would be half the time of the standardisation."""


def is_padding(frames: Tensor) -> Tensor:
    """Return bool [B, C, 1, 1]: which frames of uint8 images [B, C, H, W] are all 0."""
    return frames.amax((2, 3), keepdim=True) == 0


class PixelStandardisation(nn.Module):
    """``(pixel - mean) · factor`` for frames [B, C, H, W], 0 for padding; pixel / 255 until :meth:`fit` has seen some.

    ``mean`` and ``factor`` are [H, W, C], the order of channels-last images, and are not learned. They are whole grey
    levels and bfloat16 numbers, in whatever dtype: differences of grey levels are then exact in bfloat16, too.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.mean = nn.Parameter(torch.zeros(height, width, channels), requires_grad=False)
        self.factor = nn.Parameter(torch.full((height, width, channels), 1 / 255), requires_grad=False)

    @torch.no_grad()
    def fit(self, frames: Tensor) -> None:
        """Take over the mean of every pixel of uint8 frames [N, C, H, W], and one over its deviation; padding is left out."""
        padding = is_padding(frames).flatten(1)
        for channel, shown in enumerate(frames.unbind(1)):
            shown = shown[~padding[:, channel]].to(torch.float32)
            if len(shown):
                self.mean[..., channel] = shown.mean(0).round()
                deviation = shown.std(0, correction=0).clamp_min(LEAST_DEVIATION)
                self.factor[..., channel] = (1 / deviation).to(torch.bfloat16)

    def forward(self, frames: Tensor, image: Tensor) -> Tensor:
        """Return uint8 `frames` [B, C, H, W] standardised; `image` are the same as floats, and are overwritten."""
        image.sub_(self.mean.permute(2, 0, 1)).mul_(self.factor.permute(2, 0, 1))
        padding = is_padding(frames)
        few = torch.compiler.is_compiling() or len(frames) < FEW
        return image.masked_fill_(padding, 0) if few or padding.any() else image

    def of_blocks(self, frames: Tensor, blocks: Tensor) -> Tensor:
        """Return what :meth:`forward` does, cut into blocks (``neurocoder.policies.blocks``); `blocks` are overwritten."""
        height, width, channels = self.mean.shape

        def cut(numbers: Tensor) -> Tensor:
            parts = numbers.view(height // BLOCK, BLOCK, width // BLOCK, BLOCK, channels)
            return parts.to(blocks.dtype).permute(0, 2, 4, 1, 3).flatten(2).permute(2, 0, 1)

        blocks.sub_(cut(self.mean)).mul_(cut(self.factor))
        padding = is_padding(frames)
        return blocks.masked_fill_(padding.repeat_interleave(BLOCK**2, 1), 0) if padding.any() else blocks
