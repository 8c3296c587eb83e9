"""An auxiliary task for image encoders: features that tell where everything is.

Rewards say little about what is seen. After five million steps of Pong by rewards alone, the place of the agent's own paddle could be
read from the ``a3c`` encoder's features no better than to 17 lines, a paddle's height. So a linear decoder paints the
newest frame from the features, coarsely, and what it leaves unexplained is added to the loss: 4 lines after two million
steps (root mean square, least squares on frames of other games; one agent each). Where things go is painted as what changed since the
frame before. That rewards alone are too little to see by is the
point of Shelhamer et al. 2016, "Loss is its own Reward", arXiv 1612.07307; Yarats et al. 2021, arXiv 1910.01741, decode pixels as well.
Acting does without it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CELLS = 21
"""Cells in each row and column of what is painted: 4 × 4 pixels of an Atari frame each."""

FIRST_SCALE = 0.1
"""Gain of the decoder's first weights: it begins with little more than nothing painted."""


def coarse(frames: Tensor) -> Tensor:
    """Return frames [N, H, W], the mean of each of ``CELLS`` × ``CELLS`` cells (fewer in smaller frames), as [N, cells]."""
    height, width = frames.shape[-2:]
    cells = min(CELLS, height), min(CELLS, width)
    return F.adaptive_avg_pool2d(frames[:, None], cells).flatten(1)


def unexplained_variance(painted: Tensor, wanted: Tensor) -> Tensor:
    """Return Σ (painted − wanted)² / Σ (wanted − mean over the batch)², both [N, cells]: 1 for painting the mean.

    Where nothing varies the denominator is 1.
    """
    variation = (wanted - wanted.mean(0)).square().sum()
    variation = torch.where(variation > 0, variation, torch.ones_like(variation))
    return (painted - wanted).square().sum() / variation


class Reconstruction(nn.Module):
    """A linear decoder from features to coarse `pictures` of `height` × `width` pixels."""

    def __init__(self, in_features: int, height: int, width: int, pictures: int = 1) -> None:
        super().__init__()
        self.decoder = nn.Linear(in_features, pictures * min(CELLS, height) * min(CELLS, width))
        nn.init.orthogonal_(self.decoder.weight, FIRST_SCALE)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return what is painted from features [N, F]: [N, cells of all pictures]."""
        return self.decoder(features)

    def loss(self, features: Tensor, *pictures: Tensor) -> Tensor:
        """Return the share of the variance of `pictures` [N, H, W] that painting them from `features` [N, F] leaves: the mean of theirs."""
        painted = self(features).chunk(len(pictures), dim=1)
        shares = [
            unexplained_variance(mine, coarse(picture))
            for mine, picture in zip(painted, pictures, strict=True)
        ]
        return torch.stack(shares).mean()
