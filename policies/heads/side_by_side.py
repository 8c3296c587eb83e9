"""Heads side by side: each has its share of the outputs, and nothing in common with the others but the input."""

from collections.abc import Iterator
from contextlib import contextmanager

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
        self._asked = [True] * heads

    def _all(self) -> list[Head]:
        return [head for head in self.heads if isinstance(head, Head)]

    @contextmanager
    def only(self, outputs_O: Tensor) -> Iterator[None]:
        """Within this, run only the heads that have an output in `outputs_O` [out], a mask; outputs of the others are 0.

        Of their auxiliary losses there is the part that depends on parameters only. :meth:`program` and
        :meth:`diagnostics` are of all heads, always.
        """
        before = self._asked
        self._asked = outputs_O.view(len(self.heads), -1).any(1).tolist()
        try:
            yield
        finally:
            self._asked = before

    def reset_parameters(self) -> None:
        for head in self._all():
            head.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        nothing = self._nothing(x)
        each = zip(self._all(), self._asked, strict=True)
        return torch.cat([head(x) if asked else nothing for head, asked in each], dim=-1)

    def _nothing(self, x: Tensor) -> Tensor:
        return x.new_zeros((*x.shape[:-1], self.out_features // len(self.heads)))

    def forward_with_aux(self, x: Tensor) -> tuple[Tensor, Tensor]:
        nothing = self._nothing(x)
        each = [
            head.forward_with_aux(x) if asked else (nothing, head.aux_loss())
            for head, asked in zip(self._all(), self._asked, strict=True)
        ]
        outputs, losses = zip(*each, strict=True)
        return torch.cat(outputs, dim=-1), torch.stack(losses).sum()

    def program(self, x: Tensor) -> Tensor:
        return torch.cat([head.program(x) for head in self._all()], dim=-1)

    def aux_loss(self) -> Tensor:
        return torch.stack([head.aux_loss() for head in self._all()]).sum()

    def diagnostics(self, x: Tensor | None = None) -> dict[str, float]:
        """Return the means of the heads' diagnostics."""
        each = [head.diagnostics(x) for head in self._all()]
        return {key: sum(numbers[key] for numbers in each) / len(each) for key in each[0]}
