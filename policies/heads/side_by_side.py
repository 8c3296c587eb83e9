"""Heads side by side: each has its share of the outputs, and nothing in common with the others but the input."""

import torch
from torch import Tensor, nn

from neurocoder.policies.heads.base import Head, HeadError, require_at_least
from neurocoder.policies.heads.factory import make_head


class HeadsSideBySide(Head):
    """y = [head_1(x), head_2(x), …]: a head for each of several tasks, as in scenario task of continual learning.

    Parameters
    ----------
    name
        Of the heads: one of ``HEADS``.
    in_features, out_features
        Sizes of x and y.
    heads
        How many there are; a divisor of `out_features`.
    options
        Of every head.

    Raises
    ------
    HeadError
        Outputs cannot be shared out evenly, or an option that the head cannot use.
    """

    def __init__(self, name: str, in_features: int, out_features: int, heads: int, **options: object) -> None:
        super().__init__(in_features, out_features)
        require_at_least("heads", heads, 1)
        if out_features % heads:
            raise HeadError(f"heads={heads} must divide the {out_features} outputs: each has as many")
        self.heads = nn.ModuleList(
            make_head(name, in_features, out_features // heads, **options) for _ in range(heads)
        )
        self.conditional = self._all()[0].conditional

    def _all(self) -> list[Head]:
        return [head for head in self.heads if isinstance(head, Head)]

    def reset_parameters(self) -> None:
        for head in self._all():
            head.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        return torch.cat([head(x) for head in self._all()], dim=-1)

    def forward_with_aux(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs, losses = zip(*(head.forward_with_aux(x) for head in self._all()), strict=True)
        return torch.cat(outputs, dim=-1), torch.stack(losses).sum()

    def program(self, x: Tensor) -> Tensor:
        return torch.cat([head.program(x) for head in self._all()], dim=-1)

    def aux_loss(self) -> Tensor:
        return torch.stack([head.aux_loss() for head in self._all()]).sum()

    def diagnostics(self, x: Tensor | None = None) -> dict[str, float]:
        """Return the means of the heads' diagnostics."""
        each = [head.diagnostics(x) for head in self._all()]
        return {key: sum(numbers[key] for numbers in each) / len(each) for key in each[0]}
