"""Cores: what a policy remembers between steps. State goes in and comes out; nothing hides in a module.

A sequence is computed in two ways: ``core(features, state, episode_start)``, or ``record`` for each step and one
``backward_from`` at the end, for the :class:`~neurocoder.policies.tape.Tape`. LSTM and GRU have one backward pass
through time for both, by hand: per step it does only what depends on the step after; gradients of weights and
features are one matrix product over all steps. Products are in the weights' precision, which may be bfloat16, and all
else in that of the state.

Shape suffixes: T time, B batch, F features, H units, G all gates (4H for an LSTM, 3H for a GRU).
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from neurocoder.errors import ConfigError, lookup, near, require

State = tuple[Tensor, ...]
"""Recurrent state: tensors whose first dimension is the batch; empty for a core without memory."""

Kept = tuple[Tensor, ...]
"""What a recorded step leaves for the backward pass: tensors [B, ...], or [T, B, ...] for a sequence."""


def product(a: Tensor, weight: Tensor) -> Tensor:
    """Return a @ weight, computed in the weight's precision, in a's."""
    return (a.to(weight.dtype) @ weight).to(a.dtype)


def reset_state(state: State, episode_start: Tensor) -> State:
    """Zero the rows of `state` whose episode starts (`episode_start` [B], bool)."""
    return tuple(part.masked_fill(episode_start.view(-1, *[1] * (part.ndim - 1)), 0) for part in state)


class Core(nn.Module):
    """Base of all cores, and the core without memory: features pass through unchanged."""

    def __init__(self, in_features: int, size: int | None = None) -> None:
        super().__init__()
        self.out_features = in_features

    @property
    def lowerable(self) -> bool:
        """Whether ``record`` and ``backward_from`` of a copy of it with bfloat16 parameters keep its state in float32."""
        return type(self) is Core

    def initial_state(self, batch_size: int) -> State:
        """Return the state at the start of an episode, for `batch_size` rows."""
        return ()

    def reset(self, state: State, episode_start: Tensor) -> State:
        """Return `state` with the rows whose episode starts (`episode_start` [B], bool) as in ``initial_state``."""
        return reset_state(state, episode_start)

    def step(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance one step: features [B, in] and state to output [B, out] and next state."""
        return features, state

    def forward(self, features: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        """Advance over features [B, in] or [T, B, in], resetting the state wherever an episode starts."""
        if not state:
            return features, state
        if features.ndim == 2:
            return self.step(features, self.reset(state, episode_start))
        outputs = []
        for features_t, start_t in zip(features, episode_start, strict=True):
            output, state = self.step(features_t, self.reset(state, start_t))
            outputs.append(output)
        return torch.stack(outputs), state

    def forward_with_trace(
        self, features: Tensor, state: State, episode_start: Tensor
    ) -> tuple[Tensor, State, Any]:
        """Return output and next state as :meth:`forward` does, and what the core's memory did; None without one."""
        return *self(features, state, episode_start), None

    def forward_explained(
        self, features: Tensor, state: State, episode_start: Tensor
    ) -> tuple[Tensor, State, Any]:
        """Return output and next state as :meth:`forward` does, to the bit, and the trace of the same steps."""
        return self.forward_with_trace(features, state, episode_start)

    def aux_loss(self, output: Tensor) -> Tensor | None:
        """Return what this core adds to the loss of a batch with this output [..., out]; None: nothing."""
        return None

    def record(self, features: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State, Kept]:
        """Advance one step, and return also what :meth:`backward_from` needs; without autograd."""
        output, next_state = self(features, state, episode_start)
        return output, next_state, (features, episode_start, *state)

    def backward_from(self, kept: Kept, grad_output: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the gradients of the features [T, B, in] and of ``parameters()``, given those of the output.

        `kept` is what :meth:`record` kept, [T, B, ...]; the state before the first step gets no gradient
        (truncated backpropagation through time). This one, of the base class, computes the forward pass again.
        """
        features, episode_start, *states = kept
        if not states:
            return grad_output, ()
        features = features.detach().requires_grad_()
        parameters = {name: p.detach().requires_grad_() for name, p in self.named_parameters()}
        inputs = (features, tuple(part[0] for part in states), episode_start)
        with torch.enable_grad():
            output, _ = torch.func.functional_call(self, parameters, inputs)
        gradients = torch.autograd.grad(output, (features, *parameters.values()), grad_output)
        return gradients[0], gradients[1:]


class CellWeights(NamedTuple):
    """A cell's parameters, in the order of its ``parameters()``; rows are gates in PyTorch's order."""

    ih_GF: Tensor
    hh_GH: Tensor
    bias_ih_G: Tensor
    bias_hh_G: Tensor


class RecurrentCore(Core):
    """Base of LSTM and GRU: a PyTorch cell, and sequences of it with the backward pass by hand."""

    cell: nn.LSTMCell | nn.GRUCell

    @property
    def lowerable(self) -> bool:
        return True

    @staticmethod
    def advance(projected_BG: Tensor, state: State, weights: CellWeights) -> tuple[State, Kept]:
        """Return next state (its first part is the output) and what was computed on the way.

        `projected` is ``features @ ih.T + bias_ih``, `state` has been reset.
        """
        raise NotImplementedError

    @staticmethod
    def through_time(
        computed: Kept,
        states: State,
        episode_start_TB: Tensor,
        hh_GH: Tensor,
        grad_output_TBH: Tensor,
        grad_state: State,
    ) -> tuple[Tensor, Tensor, State]:
        """Return the gradients of what both projections gave, [T, B, G] each (of features; of hidden), and of
        the initial state.

        `computed` and `states` are [T, B, ...]: what :meth:`advance` returned and was given; `grad_state` is
        the gradient of the last state.
        """
        raise NotImplementedError

    def forward(self, features: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        # Compilers trace, and autocast casts, only the plain formula.
        if (
            features.ndim == 2
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled(features.device.type)
        ):
            return super().forward(features, state, episode_start)
        output, *last = _Sequence.apply(self, features, episode_start, *self.cell.parameters(), *state)
        return output, tuple(last)

    def record(self, features: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State, Kept]:
        weights = CellWeights(*self.cell.parameters())
        state = reset_state(state, episode_start)
        projected = F.linear(features.to(weights.ih_GF.dtype), weights.ih_GF, weights.bias_ih_G)
        projected = projected.to(state[0].dtype)
        next_state, computed = self.advance(projected, state, weights)
        return next_state[0], next_state, (features, episode_start, *state, *computed)

    def backward_from(self, kept: Kept, grad_output: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        weights = CellWeights(*self.cell.parameters())
        # nothing after the last step has a gradient
        zeros = tuple(part.to(grad_output.dtype) for part in self.initial_state(grad_output.shape[1]))
        grad_features, gradients, _ = _sequence_backward(self, weights, kept, grad_output, zeros)
        return grad_features, gradients


def _sequence_backward(
    core: RecurrentCore, weights: CellWeights, kept: Kept, grad_output: Tensor, grad_state: State
) -> tuple[Tensor, CellWeights, State]:
    """Return the gradients of features [T, B, F], weights and initial state."""
    features, episode_start, *rest = kept
    states, computed = tuple(rest[: len(grad_state)]), tuple(rest[len(grad_state) :])
    grad_projected, grad_inner, grad_initial = core.through_time(
        computed, states, episode_start, weights.hh_GH, grad_output, grad_state
    )
    grad_projected_NG, grad_inner_NG = grad_projected.flatten(0, 1), grad_inner.flatten(0, 1)
    dtype = weights.ih_GF.dtype
    gradients = CellWeights(
        product(grad_projected_NG.t(), features.flatten(0, 1).to(dtype)),
        product(grad_inner_NG.t(), states[0].flatten(0, 1).to(dtype)),
        grad_projected_NG.sum(0),
        grad_inner_NG.sum(0),
    )
    return product(grad_projected_NG, weights.ih_GF).view_as(features), gradients, grad_initial


class _Sequence(torch.autograd.Function):
    """A recurrent core over [T, B, F]: what ``record`` does, for all steps."""

    @staticmethod
    def forward(
        ctx: Any, core: RecurrentCore, features_TBF: Tensor, episode_start_TB: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        weights, state = CellWeights(*rest[:4]), rest[4:]
        projected_TBG = F.linear(features_TBF, weights.ih_GF, weights.bias_ih_G)
        outputs, steps = [], []
        for projected_BG, start_B in zip(projected_TBG, episode_start_TB, strict=True):
            state = reset_state(state, start_B)
            next_state, computed = core.advance(projected_BG, state, weights)
            steps.append((*state, *computed))
            state = next_state
            outputs.append(state[0])
        kept = (torch.stack(column) for column in zip(*steps, strict=True))
        ctx.core = core
        ctx.save_for_backward(*weights, features_TBF, episode_start_TB, *kept)
        return torch.stack(outputs), *state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *grad_state: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        weights, kept = CellWeights(*saved[:4]), saved[4:]
        grad_features, gradients, grad_initial = _sequence_backward(
            ctx.core, weights, kept, grad_output, grad_state
        )
        return None, grad_features, None, *gradients, *grad_initial


class LSTMCore(RecurrentCore):
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

    @staticmethod
    def advance(projected_BG: Tensor, state: State, weights: CellWeights) -> tuple[State, Kept]:
        hidden, cell = state
        inner = torch.addmm(weights.bias_hh_G, hidden.to(weights.hh_GH.dtype), weights.hh_GH.t())
        gates = inner.to(hidden.dtype).add_(projected_BG)
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4, -1)
        gates[:, : 2 * hidden.shape[1]].sigmoid_()
        candidate.tanh_()
        output_gate.sigmoid_()
        next_cell = (forget_gate * cell).addcmul_(input_gate, candidate)
        squashed = next_cell.tanh()
        return (output_gate * squashed, next_cell), (gates, squashed)

    @staticmethod
    def through_time(
        computed: Kept,
        states: State,
        episode_start_TB: Tensor,
        hh_GH: Tensor,
        grad_output_TBH: Tensor,
        grad_state: State,
    ) -> tuple[Tensor, Tensor, State]:
        gates_TBG, squashed_TBH = computed
        input_gate, forget_gate, candidate, output_gate = gates_TBG.chunk(4, -1)
        # By how much each gate's input moves the next cell (the first three) or hidden (output gate, cell).
        slope = torch.stack(
            (
                candidate * input_gate * (1 - input_gate),
                states[1] * forget_gate * (1 - forget_gate),
                input_gate * (1 - candidate.square()),
                squashed_TBH * output_gate * (1 - output_gate),
            ),
            2,
        )
        cell_slope = output_gate * (1 - squashed_TBH.square())
        grad_gates = torch.empty_like(slope)
        grad_hidden, grad_cell = grad_state
        for t in reversed(range(len(slope))):
            grad_hidden = grad_hidden + grad_output_TBH[t]
            grad_cell = torch.addcmul(grad_cell, grad_hidden, cell_slope[t])
            torch.mul(grad_cell.unsqueeze(1), slope[t, :, :3], out=grad_gates[t, :, :3])
            torch.mul(grad_hidden, slope[t, :, 3], out=grad_gates[t, :, 3])
            before = (product(grad_gates[t].flatten(1), hh_GH), grad_cell * forget_gate[t])
            grad_hidden, grad_cell = reset_state(before, episode_start_TB[t])
        grad_TBG = grad_gates.flatten(2)
        return grad_TBG, grad_TBG, (grad_hidden, grad_cell)


class GRUCore(RecurrentCore):
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

    @staticmethod
    def advance(projected_BG: Tensor, state: State, weights: CellWeights) -> tuple[State, Kept]:
        (hidden,) = state
        size = hidden.shape[1]
        inner = torch.addmm(weights.bias_hh_G, hidden.to(weights.hh_GH.dtype), weights.hh_GH.t())
        inner = inner.to(hidden.dtype)
        gates = (inner[:, : 2 * size] + projected_BG[:, : 2 * size]).sigmoid_()
        reset_gate, update_gate = gates.chunk(2, -1)
        inner_candidate = inner[:, 2 * size :]
        candidate = torch.addcmul(projected_BG[:, 2 * size :], reset_gate, inner_candidate).tanh_()
        return (torch.lerp(candidate, hidden, update_gate),), (gates, inner_candidate, candidate)

    @staticmethod
    def through_time(
        computed: Kept,
        states: State,
        episode_start_TB: Tensor,
        hh_GH: Tensor,
        grad_output_TBH: Tensor,
        grad_state: State,
    ) -> tuple[Tensor, Tensor, State]:
        gates_TBG, inner_candidate, candidate = computed
        reset_gate, update_gate = gates_TBG.chunk(2, -1)
        # By how much each projection moves the next hidden.
        candidate_slope = (1 - update_gate) * (1 - candidate.square())
        inner_slope = torch.stack(
            (
                candidate_slope * inner_candidate * reset_gate * (1 - reset_gate),
                (states[0] - candidate) * update_gate * (1 - update_gate),
                candidate_slope * reset_gate,
            ),
            2,
        )
        grad_hidden = torch.empty_like(grad_output_TBH)
        grad_inner = torch.empty_like(inner_slope)
        (following,) = grad_state
        for t in reversed(range(len(inner_slope))):
            torch.add(grad_output_TBH[t], following, out=grad_hidden[t])
            torch.mul(grad_hidden[t].unsqueeze(1), inner_slope[t], out=grad_inner[t])
            before = torch.addcmul(product(grad_inner[t].flatten(1), hh_GH), grad_hidden[t], update_gate[t])
            (following,) = reset_state((before,), episode_start_TB[t])
        grad_inner_TBG = grad_inner.flatten(2)
        n_gates = gates_TBG.shape[-1]
        grad_projected = torch.cat((grad_inner_TBG[..., :n_gates], grad_hidden * candidate_slope), -1)
        return grad_projected, grad_inner_TBG, (following,)


class StackedCore(Core):
    """Cores one above another: the output is the last one's, the state that of all, in their order."""

    def __init__(self, layers: Sequence[Core]) -> None:
        super().__init__(layers[-1].out_features)
        self.layers = nn.ModuleList(layers)

    @property
    def lowerable(self) -> bool:
        return all(core.lowerable for core in self._cores())

    def initial_state(self, batch_size: int) -> State:
        return tuple(part for core in self._cores() for part in core.initial_state(batch_size))

    def reset(self, state: State, episode_start: Tensor) -> State:
        parts = zip(self._cores(), self._split(state), strict=True)
        return tuple(part for core, own in parts for part in core.reset(own, episode_start))

    def step(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        following: list[Tensor] = []
        for core, own in zip(self._cores(), self._split(state), strict=True):
            features, own = core.step(features, own)
            following += own
        return features, tuple(following)

    def forward(self, features: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        following: list[Tensor] = []
        for core, own in zip(self._cores(), self._split(state), strict=True):
            features, own = core(features, own, episode_start)
            following += own
        return features, tuple(following)

    def record(self, features: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State, Kept]:
        following: list[Tensor] = []
        kept: list[Tensor] = []
        for core, own in zip(self._cores(), self._split(state), strict=True):
            features, own, step = core.record(features, own, episode_start)
            following += own
            kept += step
        return features, tuple(following), tuple(kept)

    def backward_from(self, kept: Kept, grad_output: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        gradients: tuple[Tensor, ...] = ()
        for core, own in reversed(list(zip(self._cores(), self._split(kept), strict=True))):
            grad_output, below = core.backward_from(own, grad_output)
            gradients = below + gradients
        return grad_output, gradients

    def _cores(self) -> Iterator[Core]:
        return iter(self.layers)  # type: ignore[arg-type]  # nn.ModuleList does not say what is in it

    def _split(self, parts: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        """Return each layer's part: all layers are alike."""
        n = len(parts) // len(self.layers)
        return [parts[k : k + n] for k in range(0, len(parts), n)]


def _orthogonal_cell(cell: nn.LSTMCell | nn.GRUCell, size: int) -> None:
    """Orthogonal weights per gate, zero biases."""
    for weight in (cell.weight_ih, cell.weight_hh):
        for block in weight.split(size):
            nn.init.orthogonal_(block)
    nn.init.zeros_(cell.bias_ih)
    nn.init.zeros_(cell.bias_hh)


def _stacked(kind: type[RecurrentCore], in_features: int, size: int, layers: int) -> Core:
    require(layers >= 1, "policy.core_config.layers", layers, ">= 1")
    cores = [kind(size if layer else in_features, size) for layer in range(layers)]
    return StackedCore(cores) if layers > 1 else cores[0]


def _lstm(in_features: int, size: int, *, layers: int = 1) -> Core:
    return _stacked(LSTMCore, in_features, size, layers)


def _gru(in_features: int, size: int, *, layers: int = 1) -> Core:
    return _stacked(GRUCore, in_features, size, layers)


def _ntm() -> type[Core]:
    from neurocoder.policies.ntm import NTMCore  # which is built from this module

    return NTMCore


CORES: dict[str, Callable[[], Callable[..., Core]]] = {
    "none": lambda: Core,
    "lstm": lambda: _lstm,
    "gru": lambda: _gru,
    "ntm": _ntm,
}
"""What makes each core, when called: keyword-only parameters are options."""


def core_options(name: str) -> dict[str, Any]:
    """Return the options of core `name` with their defaults."""
    parameters = inspect.signature(lookup(CORES, name, "core")()).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def make_core(name: str, in_features: int, size: int, **options: Any) -> Core:
    """Return core `name` over `in_features` with `size` units (ignored by ``"none"``).

    Raises
    ------
    ConfigError
        An unknown name or option (near names are offered), or a value that the core cannot use.
    """
    require(size >= 1, "policy.core_size", size, ">= 1")
    known = core_options(name)
    for option in options:
        if option not in known:
            raise ConfigError(f"core {name!r} has no option {option!r}{near(option, known)}")
    return CORES[name]()(in_features, size, **options)
