"""The control of limited rank: one matrix for all inputs, of no higher rank than a working program."""

import torch
from torch import Tensor, nn

from neurocoder.policies.heads.base import Head, HeadError, require_at_least, require_positive


class LowRankHead(Head):
    """y = x U V + b with U [in, rank] and V [rank, out].

    Neurocoder's working program P is a sum of attention_steps · attention_heads outer products, chosen for each
    input. With `rank` set to that number this head has the same limit of rank and no choice: a gain over
    ``LinearHead`` that both show is owed to the limit, not to the programs.

    Parameters
    ----------
    in_features, out_features
        Sizes of x and y.
    rank
        Largest rank that W = U V can have; at most min(in_features, out_features).
    bias
        Whether b exists; it starts at zero.
    output_scale
        Multiplies V once, at the start. U has orthonormal columns and V orthonormal rows, so `rank` singular
        values of W start at `output_scale` and the others are 0; with full rank W starts as ``LinearHead``'s does.
    """

    conditional = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int = 1,
        bias: bool = True,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features)
        require_at_least("rank", rank, 1)
        full_rank = min(in_features, out_features)
        if rank > full_rank:
            raise HeadError(f"rank={rank} must be <= min(in_features, out_features)={full_rank}")
        if not isinstance(bias, bool):
            raise HeadError(f"bias={bias!r} must be True or False")
        require_positive("output_scale", output_scale)
        self.rank = rank
        self.output_scale = output_scale
        self.u = nn.Parameter(torch.empty(in_features, rank))
        self.v = nn.Parameter(torch.empty(rank, out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal U and V, V times `output_scale`, b = 0."""
        nn.init.orthogonal_(self.u)
        nn.init.orthogonal_(self.v, gain=self.output_scale)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out], through the `rank` numbers x U."""
        y_BO = self.flatten(x) @ self.u @ self.v
        if self.bias is not None:
            y_BO = y_BO + self.bias
        return y_BO.view((*x.shape[:-1], self.out_features))

    def program(self, x: Tensor) -> Tensor:
        """Return U V for every x [..., in], as an expanded view [..., in, out]."""
        self.check(x)
        return (self.u @ self.v).expand(*x.shape[:-1], -1, -1)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}"
        )
