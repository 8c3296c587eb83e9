"""A player for policies of Stable-Baselines3."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from neurocoder.agents.player import Decision, GamePlayer
from neurocoder.policies.sb3.layers import head_layers


class SB3Player(GamePlayer):
    """Plays with an SB3 `policy`, recurrent ones included, sampling actions unless `deterministic`.

    SB3 draws from the process's own generators, which `seed` sets. Policies without a distribution (DQN, QR-DQN, TD3),
    whose exploration belongs to their algorithms, are always greedy: then ``deterministic`` is True.

    With `explain` a decision holds more than the action, as far as the policy has it: logits and value of actor-critic
    policies, action values of DQN and QR-DQN, and the traces of our heads. The actions are the same.
    """

    def __init__(
        self, policy: BasePolicy, *, deterministic: bool = False, seed: int = 0, explain: bool = False
    ) -> None:
        self.policy = policy
        self.deterministic = deterministic or not isinstance(policy, ActorCriticPolicy | SACPolicy)
        self.explain = explain
        set_random_seed(seed % 2**32)

    def _begin(self, num_envs: int) -> None:
        self._state: tuple[np.ndarray, ...] | None = None
        self._critic_state: tuple[Tensor, Tensor] | None = None

    def _decide(self, observation: np.ndarray, start: np.ndarray) -> Decision:
        if not self.explain:
            return Decision(self._predict(observation, start))
        before = self._state
        with _listening(self.policy) as heard, torch.no_grad():
            action = self._predict(observation, start)
            value = self._value(observation, start, before, heard)
            traces = {
                layer.role: trace
                for layer in head_layers(self.policy)
                if (inputs := heard.inputs.get(layer)) is not None
                and (trace := layer.head.forward_with_trace(inputs)[1]) is not None
            }
        policy = self.policy
        if isinstance(policy, ActorCriticPolicy):
            return Decision(action, heard.outputs[policy.action_net], value, traces=traces)
        if isinstance(policy, DQNPolicy):
            values = heard.outputs[policy.q_net.q_net]
        elif isinstance(policy, QRDQNPolicy):
            quantiles = heard.outputs[policy.quantile_net.quantile_net]
            values = quantiles.unflatten(-1, (policy.quantile_net.n_quantiles, -1)).mean(dim=1)
        else:
            return Decision(action, traces=traces)
        return Decision(action, None, values.amax(dim=-1), values, traces)

    def _predict(self, observation: np.ndarray, start: np.ndarray) -> Tensor:
        action, self._state = self.policy.predict(
            observation, self._state, episode_start=start, deterministic=self.deterministic
        )
        return torch.as_tensor(action)

    def _value(
        self,
        observation: np.ndarray,
        start: np.ndarray,
        before: tuple[np.ndarray, ...] | None,
        heard: "_Heard",
    ) -> Tensor | None:
        """Return the critic's estimate [B], given the actor's state `before` this step."""
        policy = self.policy
        if not isinstance(policy, ActorCriticPolicy):
            return None
        seen: Any = policy.obs_to_tensor(observation)[0]
        if not isinstance(policy, RecurrentActorCriticPolicy):
            return policy.predict_values(seen).flatten()
        starts = torch.as_tensor(start, dtype=torch.float32, device=policy.device)
        critic = policy.lstm_critic
        lstm = policy.lstm_actor if critic is None else critic
        if critic is not None:  # its state is carried on here: SB3's predict knows the actor's only
            state = self._critic_state
        elif before is not None:
            hidden, cell = (torch.as_tensor(part, device=policy.device) for part in before)
            state = (hidden, cell)
        else:
            state = None
        if state is None:
            zeros = torch.zeros((lstm.num_layers, len(start), lstm.hidden_size), device=policy.device)
            state = (zeros, zeros)
        value = policy.predict_values(seen, state, starts).flatten()
        if critic is not None:
            _, self._critic_state = heard.outputs[critic]
        return value


class _Heard:
    def __init__(self) -> None:
        self.inputs: dict[nn.Module, Tensor] = {}
        self.outputs: dict[nn.Module, Any] = {}

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.inputs[module], self.outputs[module] = inputs[0], output


@contextmanager
def _listening(policy: BasePolicy) -> Iterator[_Heard]:
    """Yield what each layer of `policy` was last given and said."""
    heard = _Heard()
    hooks = [module.register_forward_hook(heard) for module in policy.modules()]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()
