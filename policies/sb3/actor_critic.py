"""Policies for A2C, PPO and sb3-contrib's TRPO."""

from copy import copy
from typing import Any

import torch
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import Schedule

from neurocoder.errors import ConfigError
from neurocoder.policies.heads import MoEHead
from neurocoder.policies.sb3.layers import (
    HeadOptions,
    add_auxiliary_loss,
    fused_adam,
    refuse_sde,
    replace_linear,
)


class ActorCriticHeads(HeadOptions):
    """Left of an actor-critic policy of SB3: its ``action_net`` and ``value_net`` are heads."""

    action_net: Any
    value_net: Any

    def _build(self: Any, lr_schedule: Schedule) -> None:
        refuse_sde(self.use_sde)
        super()._build(lr_schedule)  # type: ignore[misc]
        # Only now: SB3's orthogonal initialisation would have gone into the heads, and its optimiser not.
        self.action_net = replace_linear(self.action_net, "actor", self.head, self.head_kwargs, acts=True)
        self.value_net = replace_linear(self.value_net, "critic", self.head, self.head_kwargs)
        options = fused_adam(self.optimizer_class, self.optimizer_kwargs)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **options)

    def _get_action_dist_from_latent(self: Any, *args: Any, **kwargs: Any) -> Distribution:
        """As SB3 has it, but on a distribution of its own.

        SB3 writes into ``self.action_dist``: a policy that has learned would hold a graph, and could not be copied.
        """
        blank = self.action_dist
        self.action_dist = copy(blank)
        try:
            return super()._get_action_dist_from_latent(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.action_dist = blank

    def _get_constructor_parameters(self: Any) -> dict[str, Any]:
        # SB3 leaves this one out: a policy saved alone would come back with the critic's extractor for both
        shared = {"share_features_extractor": self.share_features_extractor}
        return {**super()._get_constructor_parameters(), **shared}


class FeedForwardHeads(ActorCriticHeads):
    """What TRPO needs beyond :class:`ActorCriticHeads`."""

    def get_distribution(self: Any, *args: Any, **kwargs: Any) -> Distribution:
        """As SB3 has it; with gradients on, for TRPO, which alone differentiates it.

        TRPO takes second derivatives of the divergence, and climbs an objective made of log_prob: the actor's
        auxiliary loss is taken off there. Its line search does not see it.

        Raises
        ------
        ConfigError
            The head is ``moe``, whose auxiliary loss and noise belong to a batch, not to the parameters.
        """
        if not (self.training and torch.is_grad_enabled()):
            return super().get_distribution(*args, **kwargs)  # type: ignore[misc]
        layer = self.action_net
        if isinstance(layer.head, MoEHead):
            raise ConfigError(
                "head='moe' with TRPO: its noise would be a divergence from itself; use another head"
            )
        layer.twice_differentiable = True
        try:
            distribution = super().get_distribution(*args, **kwargs)  # type: ignore[misc]
        finally:
            layer.twice_differentiable = False
        log_prob, loss = distribution.log_prob, layer.head.aux_loss()
        if loss.requires_grad:
            distribution.log_prob = lambda actions: add_auxiliary_loss(log_prob(actions), -loss)
        return distribution


class NeurocoderPolicy(FeedForwardHeads, ActorCriticPolicy):
    """SB3's MlpPolicy for A2C, PPO and TRPO, with heads for actor and critic."""


class NeurocoderCnnPolicy(FeedForwardHeads, ActorCriticCnnPolicy):
    """SB3's CnnPolicy for A2C, PPO and TRPO, with heads for actor and critic."""


class NeurocoderMultiInputPolicy(FeedForwardHeads, MultiInputActorCriticPolicy):
    """SB3's MultiInputPolicy (Dict observations) for A2C, PPO and TRPO, with heads for actor and critic."""
