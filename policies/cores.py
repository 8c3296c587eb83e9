"""Cores: what a policy remembers between steps. State goes in and comes out; nothing hides in a module."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from neurocoder.errors import lookup, require

State = tuple[Tensor, ...]
"""Recurrent state: tensors whose first dimension is the batch; empty for a core without memory."""


def reset_state(state: State, episode_start: Tensor) -> State:
    """Zero the rows of `state` whose episode starts (`episode_start` [B], bool)."""
    keep = ~episode_start
    return tuple(part * keep.view(-1, *[1] * (part.ndim - 1)).to(part.dtype) for part in state)


class Core(nn.Module):
    """Base of all cores, and the core without memory: features pass through unchanged."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.out_features = in_features

    def initial_state(self, batch_size: int) -> State:
        """Return the state at the start of an episode, for `batch_size` rows."""
        return ()

    def step(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance one step: features [B, in] and state to output [B, out] and next state."""
        return features, state

    def forward(self, features: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        """Advance over features [B, in] or [T, B, in], zeroing the state wherever an episode starts."""
        if not state:
            return features, state
        if features.ndim == 2:
            return self.step(features, reset_state(state, episode_start))
        outputs = []
        for features_t, start_t in zip(features, episode_start, strict=True):
            output, state = self.step(features_t, reset_state(state, start_t))
            outputs.append(output)
        return torch.stack(outputs), state


class LSTMCore(Core):
    """An LSTM; state is (hidden, cell), each [B, size]."""

    def __init__(self, in_features: int, size: int) -> None:
        super().__init__(in_features)
        self.out_features = size
        self.cell = nn.LSTMCell(in_features, size)
        _orthogonal_cell(self.cell, size)

    def initial_state(self, batch_size: int) -> State:
        zeros = self.cell.weight_hh.new_zeros(batch_size, self.out_features)
        return zeros, zeros.clone()

    def step(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, cell = self.cell(features, (state[0], state[1]))
        return hidden, (hidden, cell)


class GRUCore(Core):
    """A GRU; state is (hidden,), [B, size]."""

    def __init__(self, in_features: int, size: int) -> None:
        super().__init__(in_features)
        self.out_features = size
        self.cell = nn.GRUCell(in_features, size)
        _orthogonal_cell(self.cell, size)

    def initial_state(self, batch_size: int) -> State:
        return (self.cell.weight_hh.new_zeros(batch_size, self.out_features),)

    def step(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        hidden = self.cell(features, state[0])
        return hidden, (hidden,)


def _orthogonal_cell(cell: nn.LSTMCell | nn.GRUCell, size: int) -> None:
    """Orthogonal weights per gate, zero biases."""
    for weight in (cell.weight_ih, cell.weight_hh):
        for block in weight.split(size):
            nn.init.orthogonal_(block)
    nn.init.zeros_(cell.bias_ih)
    nn.init.zeros_(cell.bias_hh)


CORES: dict[str, Callable[[int, int], Core]] = {
    "none": lambda in_features, size: Core(in_features),
    "lstm": LSTMCore,
    "gru": GRUCore,
}


def make_core(name: str, in_features: int, size: int) -> Core:
    """Return core `name` over `in_features` with `size` units (ignored by ``"none"``)."""
    require(size >= 1, "policy.core_size", size, ">= 1")
    return lookup(CORES, name, "core")(in_features, size)
