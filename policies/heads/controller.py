"""The controller of a composed layer: what it asks its program memory at every step."""

import torch
from torch import Tensor, nn


class Controller(nn.Module):
    """f_θ of eq. 9: an LSTM that sees the same input at every step and emits queries and gates.

    h₀ = c₀ = 0, so the first step needs neither the recurrent weights nor the forget gate. With a single
    step they would never receive a gradient, and so they do not exist.
    """

    def __init__(self, in_features: int, size: int, n_outputs: int, steps: int) -> None:
        super().__init__()
        self.size = size
        self.steps = steps
        self.n_gates = 3 if steps == 1 else 4  # input, output, candidate [, forget]
        self.input = nn.Linear(in_features, self.n_gates * size)
        self.recurrent = nn.Linear(size, self.n_gates * size, bias=False) if steps > 1 else None
        self.readout = nn.Linear(size, n_outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.input, self.recurrent):
            if layer is not None:
                for block in layer.weight.split(self.size):
                    nn.init.orthogonal_(block)
        nn.init.zeros_(self.input.bias)
        nn.init.orthogonal_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def forward(self, x_BI: Tensor) -> list[Tensor]:
        """Return the readout of each step, `steps` tensors [B, n_outputs]."""
        return [self.readout(hidden) for hidden in self.states(x_BI)]

    def states(self, x_BI: Tensor) -> list[Tensor]:
        """Return the hidden state of each step, `steps` tensors [B, size]."""
        from_input = self.input(x_BI)
        hidden = cell = None
        states = []
        for _ in range(self.steps):
            preactivation = from_input
            if hidden is not None and self.recurrent is not None:
                preactivation = preactivation + self.recurrent(hidden)
            parts = preactivation.split(self.size, dim=-1)
            fresh = torch.sigmoid(parts[0]) * torch.tanh(parts[2])
            cell = fresh if cell is None else torch.sigmoid(parts[3]) * cell + fresh
            hidden = torch.sigmoid(parts[1]) * torch.tanh(cell)
            states.append(hidden)
        return states
