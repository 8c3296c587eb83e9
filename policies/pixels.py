"""Pixels as a network's first layer should see them: each against its own mean and deviation.

Most of a game's picture never changes, and what counts may be a few pixels: Pong's ball covers one in two thousand.
In pixels / 255 the background is most of every sum that the first layer makes. Measured from the pixel's mean over
random play it is 0, and what moves stands out (Burda et al. 2019, arXiv 1810.12894, section 2.4, do so for one of
their networks, with running statistics, cut at ±5; here they are fixed and nothing is cut).
"""

import torch
from torch import Tensor, nn

LEAST_DEVIATION = 32.0
"""Grey levels: a pixel's deviation counts as no less, so that one which hardly ever changes is not blown up."""


class PixelStandardisation(nn.Module):
    """``(pixel - mean) · factor`` for images [B, C, H, W]; pixel / 255 until :meth:`fit` has seen some.

    ``mean`` and ``factor`` are [H, W, C], the order of channels-last images, and are not learned. They are whole grey
    levels and bfloat16 numbers, in whatever dtype: differences of grey levels are then exact in bfloat16, too.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.mean = nn.Parameter(torch.zeros(height, width, channels), requires_grad=False)
        self.factor = nn.Parameter(torch.full((height, width, channels), 1 / 255), requires_grad=False)

    @torch.no_grad()
    def fit(self, observation: Tensor) -> None:
        """Take over the mean of every pixel of images [N, C, H, W], and one over its deviation."""
        pixels = observation.movedim(1, -1).to(torch.float32)
        self.mean.copy_(pixels.mean(0).round())
        deviation = pixels.std(0, correction=0).clamp_min(LEAST_DEVIATION)
        self.factor.copy_((1 / deviation).to(torch.bfloat16))

    def forward(self, image: Tensor) -> Tensor:
        """Return floating-point images [B, C, H, W], standardised: in place, where they take no gradient."""
        mean, factor = self.mean.permute(2, 0, 1), self.factor.permute(2, 0, 1)
        if image.requires_grad:
            return (image - mean) * factor
        return image.sub_(mean).mul_(factor)
