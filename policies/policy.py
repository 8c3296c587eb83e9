"""The composed policy: encoder → core → actor and critic heads, with explicit state."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from neurocoder.errors import ConfigError, lookup, require
from neurocoder.policies.cores import CORES, State, core_options, make_core
from neurocoder.policies.distributions import ActionDistribution, make_distribution, n_action_parameters
from neurocoder.policies.encoders import ENCODERS, default_encoder, encoder_options, make_encoder
from neurocoder.policies.heads import HEADS, Head, HeadsSideBySide, head_options, make_head, options_for
from neurocoder.policies.tape import Tape

# Multiplied into the heads' weights once, at initialisation, so that a fresh agent acts uniformly and
# predicts values near zero, and yet learns at full speed from there.
ACTOR_SCALE = dict.fromkeys(HEADS, 0.01) | {"neurocoder": 0.04}
CRITIC_SCALE = dict.fromkeys(HEADS, 0.01) | {"neurocoder": 0.05}


TABLES = ("first_heads", "head_config", "layers_head_config")
"""Options of cores and encoders that hold options themselves."""


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """What a policy is made of.

    ``head_config`` goes to both heads as it is (see ``head_options``); its ``output_scale``, if given,
    replaces the harmless one that actor and critic start with. Unless it says otherwise, Neurocoder heads have
    four attention heads, and sharper attention than in the paper (see ``options_for``).
    """

    encoder: str = "auto"
    """One of `neurocoder list encoders`, or auto: a3c for images, mlp for everything else."""
    core: str = "lstm"
    """none, lstm, gru or ntm."""
    core_size: int = 256
    """Units of the core."""
    head: str = "neurocoder"
    """Head of actor and critic; `neurocoder list heads` shows all."""
    head_config: dict[str, Any] = field(default_factory=dict)
    """Options of the head, e.g. slots = 80."""
    encoder_config: dict[str, Any] = field(default_factory=dict)
    """Options of the encoder, e.g. hidden = [512, 256]."""
    core_config: dict[str, Any] = field(default_factory=dict)
    """Options of the core, e.g. rows = 128."""
    critic: bool = True
    """Whether there is a value head. Without one the policy is a predictor: its only head starts at full scale, with
    the head's own defaults."""
    task_heads: int = 0
    """Heads of a predictor side by side, each with its share of the outputs. 0: one, or in scenario task of continual
    learning one for each task."""

    def __post_init__(self) -> None:
        for field_name, value, known in (
            ("encoder", self.encoder, {"auto": None, **ENCODERS}),
            ("core", self.core, CORES),
            ("head", self.head, HEADS),
        ):
            lookup(known, value, field_name)
        require(self.core_size >= 1, "policy.core_size", self.core_size, ">= 1")
        require(self.task_heads >= 0, "policy.task_heads", self.task_heads, ">= 0")
        alone = self.task_heads <= 1 or not self.critic
        require(
            alone, "policy.task_heads", self.task_heads, "0 or 1 with a critic: only predictors have several"
        )
        tables = [
            ("head", self.head, head_options(self.head), self.head_config),
            ("core", self.core, core_options(self.core), self.core_config),
        ]
        if self.encoder != "auto":
            tables.append(("encoder", self.encoder, encoder_options(self.encoder), self.encoder_config))
        for kind, name, options, given in tables:
            for option, value in given.items():
                lookup(options, option, f"option of {kind} {name!r}")
                usable = option not in TABLES or value is None or isinstance(value, Mapping)
                require(usable, f"policy.{kind}_config.{option}", value, "a table of options")

    def without_weights(self) -> "PolicyConfig":
        """Return the same, but that no weights file is read: what it held is about to be overwritten."""
        kept = {name: value for name, value in self.encoder_config.items() if name != "weights"}
        return replace(self, encoder_config=kept)


def spelled_out(config: PolicyConfig) -> PolicyConfig:
    """Return the same policy with every option written down: what is kept must not change with a version's defaults.

    Left out are options that are None, and the scale of a head's first weights, which is the actor's or the critic's.
    """
    head = options_for(config.head, config.head_config) if config.critic else config.head_config
    return replace(
        config,
        head_config=_all_options(head_options(config.head), head, "output_scale"),
        encoder_config=_all_options(encoder_options(config.encoder), config.encoder_config),
        core_config=_all_options(core_options(config.core), config.core_config),
    )


def _all_options(defaults: Mapping[str, Any], given: Mapping[str, Any], *unset: str) -> dict[str, Any]:
    """Return `given` over `defaults`, and the same of heads inside: the options `head` of ``head_config`` and its kind."""
    known = {name: value for name, value in defaults.items() if value is not None and name not in unset}
    found = {**known, **given}
    for name in ("head", "layers_head"):
        if name in found:
            inner = given.get(f"{name}_config") or {}
            found[f"{name}_config"] = _all_options(head_options(found[name]), inner)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


class PolicyOutput(NamedTuple):
    """logits [..., A]: parameters of the action distribution (a Box's means); value [...]: the critic's estimate.

    A policy without a critic has the value 0 everywhere.
    """

    logits: Tensor
    value: Tensor


class PolicyTrace(NamedTuple):
    """What each head's program memory did, and the core's memory; None for those without one."""

    actor: Any
    critic: Any
    core: Any = None


class Policy(nn.Module):
    """``output, state, trace = policy(observation, state, episode_start)``.

    ``config`` is what the policy is made of, with ``encoder="auto"`` resolved.

    Observations are [B, ...] with episode_start [B], or [T, B, ...] with episode_start [T, B]; state always
    has one row per batch element and is returned as it stands after the last step.

    Raises
    ------
    ConfigError
        An observation or action space that no encoder or distribution handles.
    """

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: PolicyConfig | None = None
    ) -> None:
        super().__init__()
        config = config or PolicyConfig()
        if not isinstance(observation_space, gym.spaces.Box):
            raise ConfigError(
                f"observation space {observation_space} is not supported: expected a Box (others are "
                f"flattened into one by neurocoder.envs.make_vec)"
            )
        self.observation_space = observation_space
        self.action_space = action_space
        shape = observation_space.shape
        if config.encoder == "auto":
            config = replace(config, encoder=default_encoder(shape))
        self.config = config
        self.encoder = make_encoder(
            config.encoder, shape, observation_space.dtype == np.uint8, **config.encoder_config
        )
        self.core = make_core(config.core, self.encoder.out_features, config.core_size, **config.core_config)
        n_parameters = n_action_parameters(action_space)
        self.critic: Head | None = None
        if config.critic:
            self.actor = self._head(n_parameters, ACTOR_SCALE)
            self.critic = self._head(1, CRITIC_SCALE)
        elif config.task_heads > 1:
            self.actor = HeadsSideBySide(
                config.head, self.core.out_features, n_parameters, config.task_heads, **config.head_config
            )
        else:
            self.actor = make_head(config.head, self.core.out_features, n_parameters, **config.head_config)
        self.log_std: Tensor | None = None
        if isinstance(action_space, gym.spaces.Box):
            self.log_std = torch.zeros(n_parameters)  # a predictor's stays as it is
            if config.critic:
                self.log_std = nn.Parameter(self.log_std)

    def _head(self, n_outputs: int, scales: dict[str, float]) -> Head:
        given = options_for(self.config.head, self.config.head_config)
        options = {"output_scale": scales[self.config.head], **given}
        return make_head(self.config.head, self.core.out_features, n_outputs, **options)

    def _value(self, logits: Tensor, value: Tensor | None) -> Tensor:
        return logits.new_zeros(logits.shape[:-1]) if value is None else value.squeeze(-1)

    def initial_state(self, batch_size: int) -> State:
        """Return the state at the start of an episode, for `batch_size` rows."""
        return self.core.initial_state(batch_size)

    def forward(
        self, observation: Tensor, state: State, episode_start: Tensor
    ) -> tuple[PolicyOutput, State, PolicyTrace]:
        leading = episode_start.shape
        features = self.encoder(observation.flatten(0, len(leading) - 1)).unflatten(0, leading)
        features, state, core = self.core.forward_explained(features, state, episode_start)
        features = _full(features)
        value, critic = None, None
        with torch.autocast(features.device.type, enabled=False):  # the heads are small: full precision
            logits, actor = self.actor.forward_explained(features)
            if self.critic is not None:
                value, critic = self.critic.forward_explained(features)
        return PolicyOutput(logits, self._value(logits, value)), state, PolicyTrace(actor, critic, core)

    def evaluate(
        self, observation: Tensor, state: State, episode_start: Tensor, tape: Tape | None = None
    ) -> tuple[PolicyOutput, Tensor, Tensor]:
        """Return output, features and the heads' auxiliary loss of this batch: forward as learners need it.

        The auxiliary loss (Neurocoder: a·L_o of each head; MoE: its balancing losses) is to be added once.
        With the `tape` of a rollout [T, B, ...] that these parameters acted in, the features are those kept
        there: nothing but the heads is computed again, and the gradients are the same. `state` is not used then.

        Raises
        ------
        TapeError
            The tape does not hold all T steps of B games.
        """
        if tape is None:
            features, _, auxiliary = self._features_with_aux(observation, state, episode_start)
        else:
            features, auxiliary = tape.features(self.encoder, self.core, observation), self.encoder.aux_loss()
        value = None
        with torch.autocast(features.device.type, enabled=False):
            logits, loss = self.actor.forward_with_aux(features)
            if self.critic is not None:
                value, critic_loss = self.critic.forward_with_aux(features)
                loss = loss + critic_loss
        return PolicyOutput(logits, self._value(logits, value)), features, loss + auxiliary

    def act(
        self, observation: Tensor, state: State, episode_start: Tensor, tape: Tape | None = None
    ) -> tuple[Tensor, State]:
        """Return the actor's logits and the next state: forward without critic and traces, for acting only.

        With a `tape`, the step [B, ...] is recorded for :meth:`evaluate`.

        Raises
        ------
        TapeError
            Autocast is on, and the tape is not lowered; or it was begun with another batch size.
        """
        if tape is None:
            features, state = self.features(observation, state, episode_start)
        else:
            features, state = tape.record(self.encoder, self.core, observation, state, episode_start)
        with torch.autocast(features.device.type, enabled=False):
            return (self.actor(features) if tape is None else tape.act(self.actor, features)), state

    def value(self, observation: Tensor, state: State, episode_start: Tensor) -> Tensor:
        """Return the critic's estimate [...] alone: forward without actor, next state and traces."""
        features, _ = self.features(observation, state, episode_start)
        with torch.autocast(features.device.type, enabled=False):
            value = None if self.critic is None else self.critic(features)
        return self._value(features, value)

    def features(self, observation: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        """Return what the heads see, and the next state."""
        leading = episode_start.shape
        features = self.encoder(observation.flatten(0, len(leading) - 1)).unflatten(0, leading)
        features, state = self.core(features, state, episode_start)
        return _full(features), state

    def _features_with_aux(
        self, observation: Tensor, state: State, episode_start: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        leading = episode_start.shape
        features, auxiliary = self.encoder.forward_with_aux(observation.flatten(0, len(leading) - 1))
        features, state = self.core(features.unflatten(0, leading), state, episode_start)
        features = _full(features)
        of_core = self.core.aux_loss(features)
        return features, state, auxiliary if of_core is None else auxiliary + of_core

    def distribution(self, logits: Tensor) -> ActionDistribution:
        """Return the distribution over actions for head outputs `logits` [..., A]."""
        return make_distribution(self.action_space, logits, self.log_std)

    def aux_loss(self) -> Tensor:
        """Return the part of the heads' auxiliary losses that depends on parameters only."""
        loss = self.actor.aux_loss() + self.encoder.aux_loss()
        return loss if self.critic is None else loss + self.critic.aux_loss()

    def diagnostics(self, features: Tensor) -> dict[str, float]:
        """Return both heads' diagnostics for what they see, prefixed ``actor/`` and ``critic/``."""
        numbers: dict[str, float] = {}
        with torch.autocast(features.device.type, enabled=False):
            for name, head in (("actor", self.actor), ("critic", self.critic)):
                if head is not None:
                    numbers |= {f"{name}/{key}": value for key, value in head.diagnostics(features).items()}
        return numbers


def _full(features: Tensor) -> Tensor:
    """Return `features` in float32 where autocast has made them bfloat16: the heads are small."""
    return features.float() if features.dtype == torch.bfloat16 else features
