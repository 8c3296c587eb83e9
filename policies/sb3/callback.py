"""Curves of what the programs do, in SB3's own logger."""

from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from neurocoder.errors import require
from neurocoder.policies.sb3.layers import HeadLayer, head_layers


class _LastInputs:
    """Forward hook that keeps what each head layer saw last while learning.

    An object of its own, so that a policy that is copied or pickled in the meantime takes nothing else along.
    """

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}

    def __call__(self, layer: HeadLayer, inputs: tuple[Any, ...]) -> None:
        if layer.training and torch.is_grad_enabled():
            self.of[layer.role] = inputs[0].detach()


class ProgramCallback(BaseCallback):
    """Log each head's diagnostics under ``train/<role>/`` and their auxiliary losses' sum as ``train/aux_loss``.

        model.learn(1_000_000, callback=ProgramCallback())

    They are those of the last batch learned from. `every`: environment steps between two records, as each costs
    about as much as a few forward passes. What the numbers say: ``neurocoder.policies.Head.diagnostics``.

    Raises
    ------
    ConfigError
        `every` < 1; or, when learning starts, the policy has no head of ours.
    """

    def __init__(self, every: int = 1000, verbose: int = 0) -> None:
        super().__init__(verbose)
        require(every >= 1, "every", every, ">= 1")
        self.every = every
        self._recorded_at = 0
        self._inputs = _LastInputs()
        self._hooks: list[RemovableHandle] = []

    def _on_training_start(self) -> None:
        layers = list(head_layers(self.model.policy))
        require(bool(layers), "policy", type(self.model.policy).__name__, "one of neurocoder.policies.sb3")
        self._forget()  # a training that was interrupted has not ended
        self._hooks = [layer.register_forward_pre_hook(self._inputs) for layer in layers]
        self._recorded_at = self.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self._inputs.of and self.num_timesteps - self._recorded_at >= self.every:
            self._recorded_at = self.num_timesteps
            self._record()

    def _on_training_end(self) -> None:
        if self._inputs.of:
            self._record()
        self._forget()

    def _forget(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._inputs.of.clear()

    @torch.no_grad()
    def _record(self) -> None:
        auxiliary = 0.0
        for layer in head_layers(self.model.policy):
            x = self._inputs.of.get(layer.role)
            if x is None:  # TD3's actor learns later than its critics
                continue
            auxiliary += 0.0 if layer.last_loss is None else float(layer.last_loss)
            for name, value in layer.head.diagnostics(x).items():
                self.logger.record(f"train/{layer.role}/{name}", value)
        self.logger.record("train/aux_loss", auxiliary)
