"""NTMCore: a controller with a memory that it reads and writes, as the core of a policy.

The order of a step is fixed here, since the paper leaves it open: the controller sees the input and what was read
in the step before; all heads address the memory as the step before left it; reads come first, then writes; the
output is [h_t; r_t]. The numbers that the controller sends to its heads are computed by any of the package's heads
(``make_head``): ``linear`` is the Neural Turing Machine, ``nsm`` the Neural Universal Turing Machine of Le, Tran and
Venkatesh (ICLR 2020).

At the start of an episode every head attends to row 0, an LSTM's state and what was read are learned, and the memory
is what `memory_init` says. The paper learns the first weightings, too, which ties the number of parameters to the
number of rows; with a fixed one, no parameter depends on it, and a trained machine runs with any memory.

    state (memory [B, N, M], weightings [B, H, N], reads [B, R, M], and with an LSTM hidden [B, C], cell [B, C])
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurocoder.errors import ConfigError, lookup
from neurocoder.policies.cores import Core, Kept, State
from neurocoder.policies.heads import make_head
from neurocoder.policies.heads.base import Head
from neurocoder.policies.heads.linear import LinearHead
from neurocoder.policies.ntm import addressing
from neurocoder.policies.ntm.addressing import HeadParameters, HeadSizes, head_parameters
from neurocoder.policies.ntm.beginnings import CONSTANT, FIXED_MEMORIES, MEMORY_INITS, first_biases
from neurocoder.policies.ntm.by_hand import Access, AccessFunction
from neurocoder.policies.ntm.controllers import CONTROLLERS, Controller
from neurocoder.policies.ntm.sequence import Inner, Sequence, Weights, advance, any_start, backward, started


class NTMTrace(NamedTuple):
    """What the machine did: [T, B, ...], or [B, ...] for a single step.

    ================ ================ ====================================================
    read_weighting   [.., R, N]       where the read heads attended
    write_weighting  [.., W, N]       where the write heads attended
    reads            [.., R, M]       what was read, before the step's writes
    memory           [.., N, M]       after the step's writes
    heads            HeadParameters   what the heads were told; read heads come first
    ================ ================ ====================================================
    """

    read_weighting: Tensor
    write_weighting: Tensor
    reads: Tensor
    memory: Tensor
    heads: HeadParameters


class NTMCore(Core):
    """A Neural Turing Machine; the output [h; r] has ``size + read_heads * width`` features.

    Parameters
    ----------
    in_features, size
        Inputs and units of the controller.
    rows, width
        N and M of the memory. No parameter depends on N: :meth:`resize` changes it at any time.
    read_heads, write_heads
        R and W, at least one each.
    controller
        ``"lstm"`` or ``"feedforward"``.
    shift_range
        A head moves by at most so many rows in a step.
    memory_init
        What is in the memory when an episode starts. ``"constant"``: 1e-6 everywhere, not learned; ``"learned"``:
        the same learned vector in every row; ``"random"``: normal numbers of deviation 0.5, always the same ones;
        ``"positions"``: the row's number in sines and cosines (Vaswani et al. 2017, section 3.5), so that content can
        address a place, and rows nearby are alike; ``"binary"``: the row's number in bits, ± 0.5, the lowest first, and
        0 in the columns that are left.
    first_heads
        What the heads do before they have learned, through the biases of a linear `head`: ``strength``, ``gate``,
        ``sharpening`` and ``erase`` of :class:`HeadParameters`, and ``stay``, the weight of the shift by 0. What is not
        said is what zeros make: 0.69, 0.5, 1.69, 0.5, and all shifts alike. A machine that is to look things up by
        content in a memory that holds addresses wants 10, 0.95 and, so as not to erase them, 0.02.
    head, head_config
        Name and options of the layer that maps the controller's units to what its heads do.

    Sequences have a backward pass by hand, differentiable once; set ``core.by_hand = False`` where second
    derivatives are wanted. Autocast does not reach inside: addressing needs full precision.

    Raises
    ------
    ConfigError
        An unknown name or option, a size below 1, or a memory with fewer rows than a head has shifts.
    """

    by_hand = True

    def __init__(
        self,
        in_features: int,
        size: int,
        *,
        rows: int = 128,
        width: int = 20,
        read_heads: int = 1,
        write_heads: int = 1,
        controller: str = "lstm",
        shift_range: int = 1,
        memory_init: str = "constant",
        first_heads: Mapping[str, float] | None = None,
        head: str = "linear",
        head_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_features)
        for name, value, least in (
            ("size", size, 1),
            ("width", width, 1),
            ("read_heads", read_heads, 1),
            ("write_heads", write_heads, 1),
            ("shift_range", shift_range, 0),
        ):
            _require_integer(name, value, least)
        lookup(dict.fromkeys(MEMORY_INITS), memory_init, "memory_init")
        self.size = size
        self.sizes = HeadSizes(read_heads, write_heads, width, shift_range)
        self.memory_init = memory_init
        self.resize(rows)
        self.out_features = size + read_heads * width
        self.controller: Controller = lookup(CONTROLLERS, controller, "controller")(
            in_features, size, read_heads * width
        )
        self.head = make_head(head, size, sum(self.sizes.parts), **(head_config or {}))
        if first_heads:
            self._begin(first_heads)
        self.start_reads = nn.Parameter(torch.zeros(read_heads * width))
        learned = memory_init == "learned"
        self.start_memory = nn.Parameter(torch.full((width,), CONSTANT)) if learned else None

    @torch.no_grad()
    def _begin(self, first_heads: Mapping[str, float]) -> None:
        if not isinstance(self.head, LinearHead):
            raise ConfigError("first_heads are the biases of a linear layer: they need head='linear'")
        self.head.layer.bias.copy_(first_biases(first_heads, self.sizes))

    def resize(self, rows: int) -> None:
        """Give memories of `rows` rows to the states that are made from now on."""
        _require_integer("rows", rows, 1)
        shifts = self.sizes.shifts
        if rows < shifts:
            raise ConfigError(f"rows={rows} must be >= {shifts}, the shifts of shift_range={shifts // 2}")
        self.rows = rows

    @contextmanager
    def resized(self, rows: int) -> Iterator[None]:
        """Give memories of `rows` rows to the states that are made inside."""
        own = self.rows
        self.resize(rows)
        try:
            yield
        finally:
            self.rows = own

    # ------------------------------------------------------------------------------------------- state

    @torch.no_grad()
    def initial_state(self, batch_size: int) -> State:
        """Return the state at the start of an episode, for `batch_size` rows, without a gradient.

        What is learned of it gets its gradient in ``forward``, where `episode_start` says that an episode starts.
        """
        start = self._start(self.rows)
        return self._outer(tuple(part.repeat(batch_size, *[1] * (part.ndim - 1)) for part in start))

    def reset(self, state: State, episode_start: Tensor) -> State:
        return self._outer(started(self._inner(state), self._start(state[0].shape[1]), episode_start))

    def _start(self, rows: int) -> Inner:
        """Return the state at the start of an episode, one row."""
        like = self.start_reads
        if self.start_memory is not None:
            memory = self.start_memory[None, :, None].expand(1, self.sizes.width, rows)
        elif self.memory_init in FIXED_MEMORIES:
            fixed = FIXED_MEMORIES[self.memory_init](rows, self.sizes.width)
            memory = torch.from_numpy(fixed).to(like).t()[None]
        else:
            memory = like.new_full((1, self.sizes.width, rows), CONSTANT)
        weighting = like.new_zeros(1, self.sizes.heads, rows)
        weighting[..., 0] = 1
        reads = torch.tanh(like)[None]
        own = self.controller.start()
        hidden = own[0] if own else like.new_zeros(1, self.size)
        return memory, weighting, torch.cat((hidden, reads), -1), *own[1:]

    def _inner(self, state: State) -> Inner:
        memory, weighting, reads, *own = state
        hidden = own[0] if own else reads.new_zeros(reads.shape[0], self.size)
        return (
            memory.transpose(1, 2).contiguous(),
            weighting,
            torch.cat((hidden, reads.flatten(1)), -1),
            *own[1:],
        )

    def _outer(self, inner: Inner) -> State:
        memory, weighting, output, *cell = inner
        hidden, reads = output.split((self.size, output.shape[-1] - self.size), -1)
        outer = (memory.transpose(1, 2), weighting, reads.unflatten(-1, (-1, self.sizes.width)))
        return (*outer, hidden, *cell) if cell else outer

    # ----------------------------------------------------------------------------------------- forward

    def forward(self, features: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        device = features.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self(features.to(self.start_reads.dtype), state, episode_start)
        if features.ndim == 2:
            output, state = self(features[None], state, episode_start[None])
            return output[0], state
        if not self.by_hand or torch.compiler.is_compiling():
            return self._unroll(features, state, episode_start, plain_access)
        if not isinstance(self.head, LinearHead):
            return self._unroll(features, state, episode_start, self._access_by_hand)
        inner, start = self._inner(state), self._start(state[0].shape[1])
        output, *last = Sequence.apply(
            self.controller, self.sizes, features, episode_start, *self._weights(), *start, *inner
        )
        return output, self._outer(tuple(last))

    def forward_with_trace(
        self, features: Tensor, state: State, episode_start: Tensor
    ) -> tuple[Tensor, State, NTMTrace]:
        """Return output and next state as :meth:`forward` does, and what the machine did."""
        device = features.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.forward_with_trace(features.to(self.start_reads.dtype), state, episode_start)
        single = features.ndim == 2
        if single:
            features, episode_start = features[None], episode_start[None]
        steps = list(self._steps(features, state, episode_start, plain_access))
        output = torch.stack([step.output for step in steps])
        memory, weighting = (torch.stack([step.state[k] for step in steps]) for k in range(2))
        heads = head_parameters(torch.stack([step.raw for step in steps]), self.sizes)
        if single:
            output, memory, weighting = output[0], memory[0], weighting[0]
            heads = HeadParameters(*(part[0] for part in heads))
        read_weighting, write_weighting = weighting.split(self.sizes[:2], -2)
        trace = NTMTrace(
            read_weighting=read_weighting,
            write_weighting=write_weighting,
            reads=output[..., self.size :].unflatten(-1, (-1, self.sizes.width)),
            memory=memory.transpose(-1, -2),
            heads=heads,
        )
        return output, self._outer(steps[-1].state), trace

    def forward_explained(
        self, features: Tensor, state: State, episode_start: Tensor
    ) -> tuple[Tensor, State, NTMTrace]:
        trace = self.forward_with_trace(features, state, episode_start)[2]
        return *self(features, state, episode_start), trace  # by hand, they differ in their last bits

    def _unroll(
        self, features: Tensor, state: State, episode_start: Tensor, access: "AccessBy"
    ) -> tuple[Tensor, State]:
        outputs = []
        for step in self._steps(features, state, episode_start, access):
            outputs.append(step.output)
        return torch.stack(outputs), self._outer(step.state)

    def _steps(
        self, features: Tensor, state: State, episode_start: Tensor, access: "AccessBy"
    ) -> Iterator["_Step"]:
        """Yield what each step leaves."""
        inner, start = self._inner(state), self._start(state[0].shape[1])
        projected = self.controller.input(features)
        for preactivation, start_B, anew in zip(
            projected.unbind(), episode_start.unbind(), any_start(episode_start), strict=True
        ):
            memory, weighting, output, *cell = started(inner, start, start_B) if anew else inner
            fed_back = self.controller.feedback(self.controller.fed_back(output))
            hidden, after, _ = self.controller.advance(preactivation + fed_back, tuple(cell))
            raw = self.head(hidden)
            reads, memory, weighting = access(raw, memory, weighting, self.sizes)
            output = torch.cat((hidden, reads.flatten(1)), -1)
            inner = (memory, weighting, output, *after)
            yield _Step(output, raw, inner)

    @staticmethod
    def _access_by_hand(raw: Tensor, memory: Tensor, previous: Tensor, sizes: HeadSizes) -> Access:
        return Access(*AccessFunction.apply(raw, memory, previous, sizes))

    # ------------------------------------------------------------------------------- for learners

    def aux_loss(self, output: Tensor) -> Tensor:
        """Return the auxiliary loss of the layer in front of the heads, for this batch's output [..., out]."""
        if type(self.head).forward_with_aux is Head.forward_with_aux:
            return self.head.aux_loss()
        return self.head.forward_with_aux(output[..., : self.size])[1]

    def record(self, features: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State, Kept]:
        if not isinstance(self.head, LinearHead):
            return super().record(features, state, episode_start)
        weights, inner = self._weights(), self._inner(state)
        if any_start(episode_start[None])[0]:
            inner = started(inner, self._start(state[0].shape[1]), episode_start)
        projected = F.linear(features, weights.input, weights.bias)
        inner, kept = advance(self.controller, self.sizes, weights, projected, inner)
        return inner[2], self._outer(inner), (features, episode_start, *kept)

    def backward_from(self, kept: Kept, grad_output: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not isinstance(self.head, LinearHead):
            return super().backward_from(kept, grad_output)
        features, episode_start, *rest = kept
        weights = self._weights()
        with torch.enable_grad():
            start = self._start(rest[-1].shape[-1])
        learned = [k for k, part in enumerate(start) if part.requires_grad]
        nothing = tuple(
            torch.zeros_like(part).expand(grad_output.shape[1], -1, *part.shape[2:]) for part in start
        )
        gradients = backward(
            self.controller,
            self.sizes,
            weights,
            features,
            episode_start,
            tuple(rest),
            grad_output,
            nothing,
            learned,
        )
        known = dict(zip(map(id, weights), gradients.weights, strict=True))
        starts = [p for p in self.parameters() if id(p) not in known]
        known |= zip(
            map(id, starts),
            torch.autograd.grad([start[k] for k in learned], starts, [gradients.start[k] for k in learned]),
            strict=True,
        )
        return gradients.features, tuple(known[id(parameter)] for parameter in self.parameters())

    def _weights(self) -> Weights:
        assert isinstance(self.head, LinearHead)
        controller, layer = self.controller, self.head.layer
        return Weights(
            controller.input.weight,
            controller.input.bias,
            controller.feedback.weight,
            layer.weight,
            layer.bias,
        )

    def extra_repr(self) -> str:
        return (
            f"rows={self.rows}, width={self.sizes.width}, read_heads={self.sizes.read_heads}, "
            f"write_heads={self.sizes.write_heads}, shift_range={self.sizes.shift_range}, "
            f"memory_init={self.memory_init!r}"
        )


AccessBy = Callable[[Tensor, Tensor, Tensor, HeadSizes], Access]


class _Step(NamedTuple):
    """What a step leaves: output [B, C + R·M], the controller's numbers [B, Z], state."""

    output: Tensor
    raw: Tensor
    state: Inner


def plain_access(raw_BZ: Tensor, memory_BMN: Tensor, previous_BHN: Tensor, sizes: HeadSizes) -> Access:
    """Return what the heads do, by the equations as they are printed."""
    parameters, memory_BNM = head_parameters(raw_BZ, sizes), memory_BMN.transpose(1, 2)
    weighting = addressing.address(parameters, memory_BNM, previous_BHN)
    reading, writing = weighting.split(sizes[:2], 1)
    written = addressing.write(memory_BNM, writing, parameters.erase, parameters.add)
    return Access(addressing.read(reading, memory_BNM), written.transpose(1, 2), weighting)


def _require_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} must be an integer >= {least}")
