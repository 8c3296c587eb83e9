"""Controllers: what decides, from the input and from what was read before, what the heads do.

Each has a forward pass and a backward pass by hand, split where sequences need it: the input's share of all steps
is one product (``input``), and so is the gradient of every weight; a step adds what is fed back.

Suffixes are those of :mod:`addressing`, and D for what is fed back, G for the units' preactivations.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kept = tuple[Tensor, ...]

Cell = tuple[Tensor, ...]
"""An LSTM's cell [B, C]; without one, nothing."""


class Controller(nn.Module):
    """Base of both: ``input`` maps x [..., F] to preactivations [..., G], ``feedback`` what is fed back, [..., D]."""

    n_kept: int
    """How many tensors :meth:`advance` keeps."""

    def __init__(self, in_features: int, size: int, n_fed_back: int, n_gates: int) -> None:
        super().__init__()
        self.size = size
        self.input = nn.Linear(in_features, n_gates * size)
        self.feedback = nn.Linear(n_fed_back, n_gates * size, bias=False)
        for layer in (self.input, self.feedback):
            for block in layer.weight.split(size):
                nn.init.orthogonal_(block)
        nn.init.zeros_(self.input.bias)

    def start(self) -> tuple[Tensor, ...]:
        """Return its own state at the start of an episode, each [1, C]: (hidden, cell), or nothing."""
        return ()

    def fed_back(self, output: Tensor) -> Tensor:
        """Return what the next step sees of a step's `output` [B, C + R·M]: hidden units, then reads."""
        raise NotImplementedError

    def from_fed_back(self, grad_BD: Tensor) -> Tensor:
        """Return the gradient of the output, given that of what was fed back."""
        raise NotImplementedError

    def advance(self, preactivation_BG: Tensor, cell: Cell) -> tuple[Tensor, Cell, Kept]:
        """Return hidden [B, C], the next cell, and what :meth:`slopes` needs."""
        raise NotImplementedError

    def slopes(self, kept: Kept) -> Kept:
        """Return what :meth:`retreat` needs, [T, ...], given what was kept of all steps."""
        raise NotImplementedError

    def retreat(self, slopes: Kept, grad_hidden: Tensor, grad_cell: Cell) -> tuple[Tensor, Cell]:
        """Return the gradients of a step's preactivations [B, G] and of the cell before it."""
        raise NotImplementedError


class LSTMController(Controller):
    """An LSTM; its hidden units are fed back, too. Gates are ordered output, input, forget, candidate."""

    n_kept = 4

    def __init__(self, in_features: int, size: int, n_read: int) -> None:
        super().__init__(in_features, size, size + n_read, 4)
        self.start_hidden = nn.Parameter(torch.zeros(size))
        self.start_cell = nn.Parameter(torch.zeros(size))

    def start(self) -> tuple[Tensor, ...]:
        return torch.tanh(self.start_hidden)[None], self.start_cell[None]

    def fed_back(self, output: Tensor) -> Tensor:
        return output

    def from_fed_back(self, grad_BD: Tensor) -> Tensor:
        return grad_BD

    def advance(self, preactivation_BG: Tensor, cell: Cell) -> tuple[Tensor, Cell, Kept]:
        (before,) = cell
        gates, candidate = preactivation_BG.split((3 * self.size, self.size), -1)
        gates, candidate = torch.sigmoid(gates), torch.tanh(candidate)
        output_gate, input_gate, forget_gate = gates.chunk(3, -1)
        after = torch.addcmul(forget_gate * before, input_gate, candidate)
        squashed = torch.tanh(after)
        return output_gate * squashed, (after,), (gates, candidate, before, squashed)

    def slopes(self, kept: Kept) -> Kept:
        gates, candidate, cell, squashed = kept
        output_gate, input_gate, forget_gate = gates.chunk(3, -1)
        of_cell = torch.stack(
            (
                candidate * input_gate * (1 - input_gate),
                cell * forget_gate * (1 - forget_gate),
                input_gate * (1 - candidate.square()),
            ),
            -2,
        )
        of_output_gate = squashed * output_gate * (1 - output_gate)
        return of_cell, of_output_gate, output_gate * (1 - squashed.square()), forget_gate

    def retreat(self, slopes: Kept, grad_hidden: Tensor, grad_cell: Cell) -> tuple[Tensor, Cell]:
        of_cell, of_output_gate, cell_slope, forget_gate = slopes
        grad = torch.addcmul(grad_cell[0], grad_hidden, cell_slope)
        of_others = (of_cell * grad.unsqueeze(1)).flatten(1)
        return torch.cat((grad_hidden * of_output_gate, of_others), 1), (grad * forget_gate,)


class FeedForwardController(Controller):
    """One layer of tanh units without a state: the memory, and what was read, is all that is remembered."""

    n_kept = 1

    def __init__(self, in_features: int, size: int, n_read: int) -> None:
        super().__init__(in_features, size, n_read, 1)

    def fed_back(self, output: Tensor) -> Tensor:
        return output[..., self.size :]

    def from_fed_back(self, grad_BD: Tensor) -> Tensor:
        return F.pad(grad_BD, (self.size, 0))

    def advance(self, preactivation_BG: Tensor, cell: Cell) -> tuple[Tensor, Cell, Kept]:
        hidden = torch.tanh(preactivation_BG)
        return hidden, (), (hidden,)

    def slopes(self, kept: Kept) -> Kept:
        return (1 - kept[0].square(),)

    def retreat(self, slopes: Kept, grad_hidden: Tensor, grad_cell: Cell) -> tuple[Tensor, Cell]:
        return grad_hidden * slopes[0], ()


CONTROLLERS: dict[str, type[LSTMController] | type[FeedForwardController]] = {
    "lstm": LSTMController,
    "feedforward": FeedForwardController,
}
