"""The plain head: one weight matrix for all inputs."""

from torch import Tensor, nn

from neurocoder.policies.heads.base import Head, orthogonal, require_positive


class LinearHead(Head):
    """y = x W + b, with an orthogonal W times `output_scale` and b = 0 at the start."""

    conditional = False

    def __init__(self, in_features: int, out_features: int, *, output_scale: float = 1.0) -> None:
        super().__init__(in_features, out_features)
        require_positive("output_scale", output_scale)
        self.output_scale = output_scale
        self.layer = nn.Linear(in_features, out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        orthogonal(self.layer, self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        self.check(x)
        return self.layer(x)

    def program(self, x: Tensor) -> Tensor:
        """Return W for every x [..., in], as an expanded view [..., in, out]."""
        self.check(x)
        return self.layer.weight.t().expand(*x.shape[:-1], -1, -1)
