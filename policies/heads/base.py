"""What every head is: a map from features to outputs that may carry an auxiliary loss and a trace."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neurocoder.errors import NeurocoderError
from neurocoder.policies.heads import diagnostics as dx


class HeadError(NeurocoderError, ValueError):
    """Raised when a head is built or fed with values that it cannot use; names field, value and expectation."""


def require_at_least(name: str, value: Any, least: int) -> None:
    """Raise :class:`HeadError` unless `value` is an integer >= `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise HeadError(f"{name}={value!r} must be an integer >= {least}")


def require_positive(name: str, value: Any) -> None:
    """Raise :class:`HeadError` unless `value` is a finite number > 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise HeadError(f"{name}={value!r} must be a finite number > 0")


def require_not_negative(name: str, value: Any) -> None:
    """Raise :class:`HeadError` unless `value` is a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise HeadError(f"{name}={value!r} must be a finite number >= 0")


class Head(nn.Module, ABC):
    """Base of all heads: ``head(x[..., in]) -> y[..., out]`` for any leading dimensions.

    A head is *conditional* if its weight matrix W depends on the input; :meth:`program` returns it. A NaN or an
    infinity in x spoils the outputs of its own row, as in ``nn.Linear``, and no other row's; nothing is replaced.
    """

    conditional = True

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        require_at_least("in_features", in_features, 1)
        require_at_least("out_features", out_features, 1)
        self.in_features = in_features
        self.out_features = out_features

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw all parameters anew."""

    @abstractmethod
    def program(self, x: Tensor) -> Tensor:
        """Return the weight matrix W [..., in, out] that x [..., in] meets: for study, never in forward."""

    def forward_with_trace(self, x: Tensor) -> tuple[Tensor, Any]:
        """Return y and what was decided for x; heads without conditional weights return None."""
        return self(x), None

    def forward_explained(self, x: Tensor) -> tuple[Tensor, Any]:
        """Return ``self(x)``, to the bit, and the trace that :meth:`forward_with_trace` gives for x."""
        return self.forward_with_trace(x)

    def prepared(self) -> Callable[[Tensor], Tensor]:
        """Return a function of x that gives ``self(x)``, up to rounding, without gradients, until a parameter changes.

        What depends on parameters only is computed now: for acting, which asks the same head many times.
        """
        return self

    def forward_with_aux(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and the auxiliary loss of this batch: what a learner adds to the task's, once per step."""
        return self(x), self.aux_loss()

    def aux_loss(self) -> Tensor:
        """The part of the auxiliary loss that depends on parameters only; zero unless the head says otherwise."""
        return next(self.parameters()).new_zeros(())

    def attention(self, x: Tensor) -> Tensor | None:
        """Return the weights [..., P] >= 0 with which x reads P stored programs, or None where none are stored."""
        return None

    def diagnostics(self, x: Tensor | None = None) -> dict[str, float]:
        """Detached numbers worth a curve; those about attention and programs need inputs x [..., in].

        ================= ====================================================================================
        attention_entropy mean entropy of the attention over log P: 1 is uniform, 0 is one slot
        slot_usage        perplexity of the mean attention over P: 1 if all slots are used alike, 1/P if one is
        effective_rank    of the mean program (Roy and Vetterli 2007): exp of its singular values' entropy
        input_variance    share of W's mean square that varies with the input: 0 is a static layer
        ================= ====================================================================================
        """
        numbers: dict[str, float] = {}
        if x is None:
            return numbers
        with torch.no_grad():
            x_BI = self.flatten(x)
            weights = self.attention(x_BI)
            if weights is not None:
                numbers["attention_entropy"] = float(dx.attention_entropy(weights))
                numbers["slot_usage"] = float(dx.slot_usage(weights))
            if self.conditional:
                mean, numbers["input_variance"] = dx.mean_and_variance_share(self.program, x_BI)
                numbers["effective_rank"] = float(dx.effective_rank(mean))
        return numbers

    def check(self, x: Tensor) -> None:
        """Raise :class:`HeadError` unless the last dimension of x is ``in_features``."""
        if x.shape[-1] != self.in_features:
            raise HeadError(
                f"in_features={self.in_features}, but the input's last dimension is {x.shape[-1]} "
                f"(shape {tuple(x.shape)})"
            )

    def flatten(self, x: Tensor) -> Tensor:
        """Return x as [B, in], after checking its last dimension."""
        self.check(x)
        return x.reshape(-1, self.in_features)


def orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    """Give `layer` an orthogonal weight times `gain` and a zero bias; return it."""
    nn.init.orthogonal_(layer.weight, gain=gain)
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
