"""What all SB3 policies here share: a head where SB3 has an ``nn.Linear``, and its auxiliary loss in the gradient."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neurocoder.errors import ConfigError
from neurocoder.policies.heads import HEADS, Head, make_head, options_for

# Multiplied into the heads' weights once, at initialisation. A fresh agent acts nearly uniformly; what estimates
# returns starts about as large as SB3's own (gain 1; a program's attention and smallest singular value make it three
# times smaller), as PPO's learning rate takes long to grow weights to returns of a hundred and more. With 0.01 and 0.03
# instead, PPO took 72,000 steps on CartPole; with these about as many as the stock policy.
ACTOR_SCALE = dict.fromkeys(HEADS, 0.01) | {"neurocoder": 0.3}
ESTIMATE_SCALE = dict.fromkeys(HEADS, 1.0) | {"neurocoder": 3.0}

# What SB3's learning rates ask for beyond `options_for`. Singular values add up over the attention heads: with four, a
# critic moves too far for PPO on Acrobot, which none of four seeds solves in 64,000 steps, three of them with two heads
# in 40,000 (the stock policy: all in 64,000). The gradients of SB3's averaged losses are small: beside them the layer's
# own weight of 0.1 is large; PPO on CartPole takes 27,000 steps in the median of six seeds with two heads, 14,000 with a
# tenth of that weight, too (the stock policy: 26,000).
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"neurocoder": {"attention_heads": 2, "orthogonality": 0.01}}


class _AuxiliaryLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        return gradient, gradient.new_ones(())


def add_auxiliary_loss(y: Tensor, loss: Tensor) -> Tensor:
    """Return `y` as it is; whoever differentiates a scalar made of it differentiates that scalar + `loss`, too.

    The scalar's own value does not change: SB3's ``train/loss`` is the loss without the auxiliary part. Under a
    ``GradScaler`` or gradient accumulation, which scale a loss that they see, the auxiliary part is not scaled.
    """
    return _AuxiliaryLoss.apply(y, loss)


class HeadLayer(nn.Module):
    """A head in the place of an ``nn.Linear`` of SB3: ``layer(x[..., in]) -> y[..., out]``.

    In training mode with gradients on, which in SB3 is inside ``train()`` only, each forward pass carries the
    head's auxiliary loss into the gradient, once. ``moe``'s noise is there in training mode only, so that PPO's first
    ratio is not quite 1 with it. ``role`` names the layer in curves: ``actor``, ``critic``, …
    """

    def __init__(self, head: Head, role: str) -> None:
        super().__init__()
        self.head, self.role = head, role

    @property
    def in_features(self) -> int:
        """As ``nn.Linear`` has it."""
        return self.head.in_features

    @property
    def out_features(self) -> int:
        """As ``nn.Linear`` has it."""
        return self.head.out_features

    twice_differentiable = False
    """Compute the head so that its gradient has a gradient, and leave its auxiliary loss alone."""
    carries_loss = True
    """Whether the auxiliary loss is to reach the gradient."""
    last_loss: Tensor | None = None
    """The auxiliary loss of the last batch that was learned from, a number without a graph."""

    def forward(self, x: Tensor) -> Tensor:
        if self.twice_differentiable:
            return self.head.forward_with_trace(x)[0]
        if not (self.training and torch.is_grad_enabled()):
            return self.head(x)
        y, loss = self.head.forward_with_aux(x)
        if not self.carries_loss:
            return y
        self.last_loss = loss.detach()
        return add_auxiliary_loss(y, loss) if loss.requires_grad else y


def head_layers(module: nn.Module) -> Iterator[HeadLayer]:
    """Yield the head layers of `module` that learn: those of target networks are left out."""
    for name, part in module.named_modules():
        if isinstance(part, HeadLayer) and "_target" not in name:
            yield part


class HeadOptions:
    """Left of an SB3 policy class: takes ``head`` and ``head_kwargs``, and keeps them for ``save`` and ``load``.

    Raises
    ------
    ConfigError
        `head_kwargs` is no dictionary, or state-dependent exploration is asked for.
    HeadError
        An unknown head or option, or a value that the head cannot use; near names are offered.
    """

    def __init__(
        self,
        *args: Any,
        head: str = "neurocoder",
        head_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(head_kwargs, Mapping | None):
            raise ConfigError(f"head_kwargs={head_kwargs!r} must be a dictionary, e.g. dict(slots=30)")
        # SB3 builds its layers inside __init__, so these must be there before; nn.Module allows plain values.
        self.head, self.head_kwargs = head, dict(head_kwargs or {})
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()  # type: ignore[misc]
        return {**parameters, "head": self.head, "head_kwargs": self.head_kwargs}


def replace_linear(
    linear: nn.Module, role: str, head: str, head_kwargs: Mapping[str, Any], *, acts: bool = False
) -> HeadLayer:
    """Return the layer that takes the place of `linear`; `acts`: its outputs choose actions, so it starts harmless."""
    assert isinstance(linear, nn.Linear)
    scales = ACTOR_SCALE if acts else ESTIMATE_SCALE
    options = {
        "output_scale": scales.get(head),
        **options_for(head, {**DEFAULTS.get(head, {}), **head_kwargs}),
    }
    layer = HeadLayer(make_head(head, linear.in_features, linear.out_features, **options), role)
    return layer.to(linear.weight.device)


def fused_adam(optimizer_class: type[torch.optim.Optimizer], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` of an optimiser, and for Adam that all of its arithmetic is done in one pass, unless they say how.

    A head has more tensors than the layer whose place it takes, and PyTorch's default goes through them one by one.
    """
    said = {"fused", "foreach", "capturable", "differentiable"} & options.keys()
    fused = optimizer_class in (torch.optim.Adam, torch.optim.AdamW) and not said
    return {**options, "fused": True} if fused else dict(options)


def refuse_sde(used: bool) -> None:
    """Raise :class:`ConfigError` if state-dependent exploration is `used`."""
    if used:
        raise ConfigError(
            "use_sde=True: gSDE draws its noise for the weights of a last nn.Linear, and a head composes its "
            "weights for every input; use use_sde=False, or SB3's own policy"
        )
