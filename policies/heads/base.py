"""What every head is: a map from features to outputs that may carry an auxiliary loss and a trace."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from neurocoder.errors import NeurocoderError


class HeadError(NeurocoderError, ValueError):
    """Raised when a head is built or fed with values that it cannot use; names field, value and expectation."""


def require_at_least(name: str, value: Any, least: int) -> None:
    """Raise :class:`HeadError` unless `value` is an integer >= `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise HeadError(f"{name}={value!r} must be an integer >= {least}")


class Head(nn.Module, ABC):
    """Base of all heads: ``head(x[..., in]) -> y[..., out]`` for any leading dimensions."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        require_at_least("in_features", in_features, 1)
        require_at_least("out_features", out_features, 1)
        self.in_features = in_features
        self.out_features = out_features

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw all parameters anew."""

    def forward_with_trace(self, x: Tensor) -> tuple[Tensor, Any]:
        """Return y and what was decided for x; heads without conditional weights return None."""
        return self(x), None

    def aux_loss(self) -> Tensor:
        """Loss to be added to the task's, once per step; zero unless the head says otherwise."""
        return next(self.parameters()).new_zeros(())

    def diagnostics(self, trace: Any = None) -> dict[str, float]:
        """Detached numbers worth a curve."""
        return {}

    def flatten(self, x: Tensor) -> Tensor:
        """Return x as [B, in], after checking its last dimension."""
        if x.shape[-1] != self.in_features:
            raise HeadError(
                f"in_features={self.in_features}, but the input's last dimension is {x.shape[-1]} "
                f"(shape {tuple(x.shape)})"
            )
        return x.reshape(-1, self.in_features)


def orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    """Give `layer` an orthogonal weight times `gain` and a zero bias; return it."""
    nn.init.orthogonal_(layer.weight, gain=gain)
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
