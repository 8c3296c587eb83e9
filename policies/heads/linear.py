"""The plain head: one weight matrix for all inputs."""

import math

from torch import Tensor, nn

from neurocoder.policies.heads.base import Head, HeadError, orthogonal


class LinearHead(Head):
    """y = x W + b, with an orthogonal W times `output_scale` and b = 0 at the start."""

    def __init__(self, in_features: int, out_features: int, *, output_scale: float = 1.0) -> None:
        super().__init__(in_features, out_features)
        if not (math.isfinite(output_scale) and output_scale > 0):
            raise HeadError(f"output_scale={output_scale} must be a finite number > 0")
        self.output_scale = output_scale
        self.layer = nn.Linear(in_features, out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        orthogonal(self.layer, self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        return self.layer(x)
