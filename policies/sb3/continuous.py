"""Policies for SAC and TD3: the last layers of actor and critics are heads."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor

from neurocoder.policies.sb3.layers import HeadOptions, head_layers, refuse_sde, replace_linear


class NeurocoderSACActor(SACActor):
    """SAC's actor with heads for means and log standard deviations."""

    def __init__(self, *args: Any, head: str, head_kwargs: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_sde(self.use_sde)
        self.mu = replace_linear(self.mu, "mean", head, head_kwargs, acts=True)
        linear: Any = self.log_std  # SB3 declares what it is with gSDE
        self.log_std: Any = replace_linear(linear, "log_std", head, head_kwargs, acts=True)


class NeurocoderTD3Actor(TD3Actor):
    """TD3's actor with a head before its tanh."""

    def __init__(self, *args: Any, head: str, head_kwargs: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mu[-2] = replace_linear(self.mu[-2], "actor", head, head_kwargs, acts=True)


class NeurocoderContinuousCritic(ContinuousCritic):
    """Q-networks of SAC and TD3 with heads as last layers."""

    def __init__(self, *args: Any, head: str, head_kwargs: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for index, network in enumerate(self.q_networks):
            network[-1] = replace_linear(network[-1], f"q{index}", head, head_kwargs)  # type: ignore[index, operator]

    def forward(self, obs: Any, actions: Tensor) -> tuple[Tensor, ...]:
        with self._for_the_actor(actions):
            return super().forward(obs, actions)

    def q1_forward(self, obs: Any, actions: Tensor) -> Tensor:
        with self._for_the_actor(actions):
            return super().q1_forward(obs, actions)

    @contextmanager
    def _for_the_actor(self, actions: Tensor) -> Iterator[None]:
        """Leave the auxiliary losses out while `actions` are the actor's own: they would reach it through them."""
        layers = list(head_layers(self)) if actions.requires_grad else []
        for layer in layers:
            layer.carries_loss = False
        try:
            yield
        finally:
            for layer in layers:
                layer.carries_loss = True


class ContinuousHeads(HeadOptions):
    """Left of a policy of SAC or TD3: `actor_class` and the critic are built with heads."""

    actor_class: type

    def _arguments(
        self: Any, kwargs: dict[str, Any], extractor: BaseFeaturesExtractor | None
    ) -> dict[str, Any]:
        arguments = self._update_features_extractor(kwargs, extractor)
        return {**arguments, "head": self.head, "head_kwargs": self.head_kwargs}

    def make_actor(self: Any, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        return self.actor_class(**self._arguments(self.actor_kwargs, features_extractor)).to(self.device)

    def make_critic(self: Any, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        arguments = self._arguments(self.critic_kwargs, features_extractor)
        return NeurocoderContinuousCritic(**arguments).to(self.device)

    def _get_constructor_parameters(self: Any) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        return {**parameters, "share_features_extractor": self.share_features_extractor}


class NeurocoderSACPolicy(ContinuousHeads, SACPolicy):
    """SB3's MlpPolicy for SAC, with heads as last layers."""

    actor_class = NeurocoderSACActor


class NeurocoderTD3Policy(ContinuousHeads, TD3Policy):
    """SB3's MlpPolicy for TD3, with heads as last layers."""

    actor_class = NeurocoderTD3Actor
