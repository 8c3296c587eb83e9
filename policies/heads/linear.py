"""The plain head: one weight matrix for all inputs."""

import torch
from torch import Tensor, nn

from neurocoder.errors import lookup
from neurocoder.policies.heads.base import Head, HeadError, orthogonal, require_positive

INITS = ("orthogonal", "uniform")


class LinearHead(Head):
    """y = x W + b.

    Parameters
    ----------
    output_scale
        Of the first W.
    init
        ``"orthogonal"``, with b = 0; or ``"uniform"``: W and b as nn.Linear draws them, from ± 1 / sqrt(in_features).
    """

    conditional = False

    def __init__(
        self, in_features: int, out_features: int, *, output_scale: float = 1.0, init: str = "orthogonal"
    ) -> None:
        super().__init__(in_features, out_features)
        require_positive("output_scale", output_scale)
        lookup(dict.fromkeys(INITS), init, "init", HeadError)
        self.output_scale, self.init = output_scale, init
        self.layer = nn.Linear(in_features, out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.init == "orthogonal":
            orthogonal(self.layer, self.output_scale)
            return
        self.layer.reset_parameters()
        with torch.no_grad():
            self.layer.weight.mul_(self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        self.check(x)
        return self.layer(x)

    def program(self, x: Tensor) -> Tensor:
        """Return W for every x [..., in], as an expanded view [..., in, out]."""
        self.check(x)
        return self.layer.weight.t().expand(*x.shape[:-1], -1, -1)
