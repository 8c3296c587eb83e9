"""NeurocoderLinear: a linear layer whose weight matrix is composed for each input from stored programs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurocoder.policies.heads import program_memory as pm
from neurocoder.policies.heads.base import (
    HeadError,
    require_at_least,
    require_not_negative,
    require_positive,
)
from neurocoder.policies.heads.composed import ComposedHead, ProgramTrace
from neurocoder.policies.heads.controller import Controller
from neurocoder.policies.heads.fused import Prepared, Weights, fused_linear, prepare
from neurocoder.policies.heads.fused_parts import MAX_SHARPNESS, can_run_by_hand
from neurocoder.policies.heads.fused_steps import FEW_ROWS, fused_reads
from neurocoder.policies.heads.resizing import append_rows, keep_rows, orthogonal_rows


class NeurocoderLinear(ComposedHead):
    """The paper's recoded layer: y = x W(x), with W(x) composed by attention over a program memory.

    A drop-in for ``nn.Linear``: ``forward(x[..., in]) -> y[..., out]``, no bias (eq. 15 has none). The working
    program is evaluated in factored form; only :meth:`program` builds it.

    Parameters
    ----------
    in_features, out_features
        Sizes of x and y.
    slots
        P, the number of stored singular vectors and values.
    attention_heads, attention_steps
        H and J: components read per step, and recurrent steps. The program's rank is at most J·H.
    key_size
        K, width of queries and keys.
    least_used
        l_I of eq. 13: how many slots the usage-based attention considers. Has no effect with one step.
    controller_size
        Hidden size of the LSTM f_θ.
    sharpness
        Factor on the cosine in eq. 11. 1.0 is the paper as printed; a positive float, or ``"learnable"``
        (one softplus-positive value per memory, started at 1).
    residual
        Adds the residual program R of eq. 15.
    orthogonality
        a of eq. 2. Multiplies L_o = (‖M_U M_Uᵀ − I‖² + ‖M_V M_Vᵀ − I‖²)/P; the paper's values of `a` belong to
        another norm and do not carry over one to one.
    convex
        Normalises the usage-based attention, so that every row of the mixed attention sums to one.
    output_scale
        Multiplies M_V and R once, at initialisation. Policies use a small value, so that a fresh agent acts
        uniformly; a factor in the forward pass would slow learning by the same factor.
    openness
        Gives every slot a learned factor ≥ 0 on its attention, started at 1. :meth:`grow` adds it, with 0 for the
        new slots; ask for it here to load a layer that has grown.
    frozen_slots
        The first slots get no gradient. Set by ``grow(freeze_old=True)``.
    fixed_routing
        Queries and keys are not learned: the controller stays as it was drawn, and slots have the keys that :meth:`claim`
        gives them. So what is learned for some inputs leaves alone which slots others read. No gradient reaches x through what
        it reads. Not in the paper; one step only.

    Keys of U and V are a linear function of the slots' content (eq. 10), computed in every forward: another
    process may have changed the memory. Keys of S are learned directly: M_S has one column, so keys computed
    from it would lie on one line.

    With a fixed sharpness the layer runs :mod:`fused` (one step) or, on the CPU, :mod:`fused_steps`: several times
    faster and differentiable once. Set ``layer.fused = False`` where second derivatives are wanted, batches of
    gradients (``is_grads_batched``) or forward-mode ones.
    """

    fused = True
    key_nets = ("key_u", "key_v")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        slots: int = 80,
        attention_heads: int = 15,
        attention_steps: int = 1,
        key_size: int = 3,
        least_used: int = 5,
        controller_size: int = 32,
        sharpness: float | str = 1.0,
        residual: bool = True,
        orthogonality: float = 0.1,
        convex: bool = False,
        output_scale: float = 1.0,
        openness: bool = False,
        frozen_slots: int = 0,
        fixed_routing: bool = False,
    ) -> None:
        super().__init__(in_features, out_features)
        for name, value, least in (
            ("slots", slots, 1),
            ("attention_heads", attention_heads, 1),
            ("attention_steps", attention_steps, 1),
            ("key_size", key_size, 1),
            ("least_used", least_used, 1),
            ("controller_size", controller_size, 1),
            ("frozen_slots", frozen_slots, 0),
        ):
            require_at_least(name, value, least)
        if slots < least_used:
            raise HeadError(f"slots={slots} must be >= least_used={least_used}: eq. 13 picks among the slots")
        if frozen_slots > slots:
            raise HeadError(f"frozen_slots={frozen_slots} must be <= slots={slots}")
        if isinstance(sharpness, str):
            if sharpness != "learnable":
                raise HeadError(f"sharpness={sharpness!r}: expected a positive number or 'learnable'")
        else:
            require_positive("sharpness", sharpness)
        require_not_negative("orthogonality", orthogonality)
        require_positive("output_scale", output_scale)

        self.slots = slots
        self.attention_heads = attention_heads
        self.attention_steps = attention_steps
        self.key_size = key_size
        self.least_used = least_used
        self.orthogonality = orthogonality
        self.convex = convex
        self.output_scale = output_scale
        self.frozen_slots = frozen_slots
        self.fixed_routing = fixed_routing
        if fixed_routing and attention_steps > 1:
            raise HeadError(f"fixed_routing: attention_steps={attention_steps} must be 1")
        if fixed_routing and sharpness == "learnable":
            raise HeadError(
                "fixed_routing: sharpness='learnable' must be a number, for nothing would learn it"
            )
        self.shown: range | None = None
        """Slots that can be read now; None: all. Not kept with the parameters."""

        self.memory_u = nn.Parameter(torch.empty(slots, in_features))
        self.memory_v = nn.Parameter(torch.empty(slots, out_features))
        self.memory_s = nn.Parameter(torch.empty(slots, 1))
        self.key_u = None if fixed_routing else nn.Linear(in_features, key_size)
        self.key_v = None if fixed_routing else nn.Linear(out_features, key_size)
        self.key_s = None if fixed_routing else nn.Parameter(torch.empty(slots, key_size))
        self.slot_keys = nn.Parameter(torch.empty(slots, 3, key_size), False) if fixed_routing else None
        opens = openness or fixed_routing
        self.openness = nn.Parameter(torch.empty(slots), not fixed_routing) if opens else None
        # Convex attention without usage is the content's alone: a single step has no gates then.
        self.gated = not (convex and attention_steps == 1)
        n_outputs = 3 * (key_size + self.gated) * attention_heads  # rows: memory, key and gate, head
        self.controller = Controller(in_features, controller_size, n_outputs, attention_steps)
        self.controller.requires_grad_(not fixed_routing)
        self.fixed_sharpness = None if isinstance(sharpness, str) else float(sharpness)
        self.raw_sharpness = nn.Parameter(torch.empty(3)) if self.fixed_sharpness is None else None
        self.residual = nn.Parameter(torch.empty(in_features, out_features)) if residual else None
        self.residual_gate = nn.Linear(in_features, 1) if residual else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal memories (L_o starts at its floor), M_V and R times `output_scale`."""
        nn.init.orthogonal_(self.memory_u)
        nn.init.orthogonal_(self.memory_v, gain=self.output_scale)
        nn.init.normal_(self.memory_s)
        for keys in (self.key_s, self.slot_keys):
            if keys is not None:
                nn.init.normal_(keys)
        for layer in (self.key_u, self.key_v):
            if layer is not None:
                nn.init.normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.controller.reset_parameters()
        if self.openness is not None:
            nn.init.ones_(self.openness)
        if self.raw_sharpness is not None:
            nn.init.constant_(self.raw_sharpness, math.log(math.expm1(1.0)))  # softplus⁻¹(1)
        if self.residual is not None and self.residual_gate is not None:
            nn.init.orthogonal_(self.residual, gain=self.output_scale)
            nn.init.orthogonal_(self.residual_gate.weight, gain=0.01)
            nn.init.zeros_(self.residual_gate.bias)

    @property
    def sharpness(self) -> float | Tensor:
        """The factor on the cosine: a number, or [3, 1, 1, 1] for the memories U, V, S."""
        if self.raw_sharpness is None:
            assert self.fixed_sharpness is not None
            return self.fixed_sharpness
        return F.softplus(self.raw_sharpness)[:, None, None, None]

    def keys(self) -> Tensor:
        """Eq. 10. Keys of the slots of the memories U, V, S: [3, P, K]."""
        if self.slot_keys is not None:
            return self.slot_keys.transpose(0, 1)
        assert self.key_u is not None and self.key_v is not None and self.key_s is not None
        memory_u, memory_v = self.learned_rows(self.memory_u), self.learned_rows(self.memory_v)
        return torch.stack((self.key_u(memory_u), self.key_v(memory_v), self.learned_rows(self.key_s)))

    # ------------------------------------------------------------------------------------- forward

    def attend(self, x_BI: Tensor, keys: Tensor | None = None) -> Tensor:
        """Eqs. 9-14. Attention over the slots of the three memories, [3, B, R, P], memories ordered U, V, S.

        `keys` are :meth:`keys`, unless given. Where routing is fixed no gradient flows through it, to x neither.
        """
        keys = self.keys() if keys is None else keys
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fixed_routing):
            return self._attention(x_BI, keys)

    def _attention(self, x_BI: Tensor, keys: Tensor) -> Tensor:
        n_steps, n_heads, n_key = self.attention_steps, self.attention_heads, self.key_size
        openness = self._openness()
        # The controller sees x only, never what it read: the queries of all steps are there at once.
        output = torch.stack(self.controller(x_BI), dim=1)  # [B, J, 3 · (K + 1) · H]
        parts = output.view(-1, n_steps, 3, n_key + self.gated, n_heads).permute(2, 0, 1, 4, 3)
        query = parts[..., :n_key].flatten(2, 3)
        content = pm.content_attention(query, keys, self.sharpness, openness)  # [3, B, R, P]
        if not self.gated:
            return content
        gate = parts[..., n_key].flatten(2, 3)
        if n_steps == 1:  # no usage yet: l = 0, and eq. 14 reduces to its first term
            return torch.sigmoid(gate).unsqueeze(-1) * content
        steps: list[Tensor] = []
        used: Tensor | None = None
        for gate_now, content_now in zip(gate.split(n_heads, 2), content.split(n_heads, 2), strict=True):
            if used is None:
                weights = content_now if self.convex else torch.sigmoid(gate_now).unsqueeze(-1) * content_now
                used = weights
            else:
                lifted = pm.least_used_attention(used, self.least_used, openness)
                if self.convex:
                    lifted = lifted / lifted.sum(dim=-1, keepdim=True).clamp_min(1e-12)
                weights = pm.gated_attention(gate_now, content_now, lifted)
                used = pm.usage(used, weights)
            steps.append(weights)
        return torch.cat(steps, dim=-2)

    def _openness(self) -> Tensor | None:
        """Return the factors [P] on the slots' attention; None where all are 1."""
        openness = None if self.openness is None else pm.open_slots(self.learned_rows(self.openness))
        if self.shown is None:
            return openness
        shown = self.memory_s.new_zeros(self.slots)
        shown[self.shown.start : self.shown.stop] = 1
        return shown if openness is None else openness * shown

    @torch.no_grad()
    def claim(self, x: Tensor, classes: Tensor, slots: range) -> None:
        """Let inputs like x [B, in], of these `classes` [B], read `slots`: give these the keys that they ask for, and open them.

        Raises
        ------
        HeadError
            The routing is learned, or there are no such slots.
        """
        if self.slot_keys is None or self.openness is None:
            raise HeadError("claim: keys are learned here; ask for fixed_routing=True")
        if not 0 <= slots.start < slots.stop <= self.slots:
            raise HeadError(f"claim: {slots} must be slots in [0, {self.slots})")
        output = torch.stack(self.controller(self.flatten(x)))
        parts = output.view(-1, 3, self.key_size + self.gated, self.attention_heads).permute(1, 0, 3, 2)
        keys = pm.claimed_keys(parts[..., : self.key_size], classes, len(slots))
        self.slot_keys[slots.start : slots.stop] = keys.transpose(0, 1)
        self.openness[slots.start : slots.stop] = 1

    def compose(self, x_BI: Tensor, keys: Tensor | None = None) -> ProgramTrace:
        """Everything that x decides: attention (by `keys`), singular values and the residual's gate (sigmoid taken)."""
        attention_u, attention_v, attention_s = self.attend(x_BI, keys)
        sigma = pm.singular_values(pm.read(attention_s, self.learned_rows(self.memory_s)).squeeze(-1))
        if self.residual_gate is None:
            gate = x_BI.new_zeros(x_BI.shape[0])
        else:
            gate = torch.sigmoid(self.residual_gate(x_BI)).squeeze(-1)
        return ProgramTrace(attention_u, attention_v, attention_s, sigma, gate)

    def smallest_sigma(self, trace: ProgramTrace) -> Tensor:
        """σ_R of eq. 15."""
        return trace.sigma[..., -1]

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        if not self._fusable(x):
            return self.forward_with_trace(x)[0]
        x_BI = self.flatten(x)
        y = self._fused_step(x_BI) if self.attention_steps == 1 else self._fused_steps(x_BI)
        return y.view((*x.shape[:-1], self.out_features))

    def prepared(self) -> Callable[[Tensor], Tensor]:
        if self.attention_steps > 1 or not self._plain:
            return self
        with torch.no_grad():
            ready = prepare(self._weights())

        def act(x: Tensor) -> Tensor:
            if not self._fusable(x):
                return self(x)
            with torch.no_grad():
                return self._fused_step(self.flatten(x), ready).view((*x.shape[:-1], self.out_features))

        return act

    def _fused_step(self, x_BI: Tensor, prepared: Prepared | None = None) -> Tensor:
        """Return y [B, out] of a layer with one attention step."""
        assert self.fixed_sharpness is not None
        return fused_linear(x_BI, self._weights(), self.attention_heads, self.fixed_sharpness, prepared)

    def _weights(self) -> Weights:
        """Return what :mod:`fused` needs of a layer with one attention step."""
        assert self.key_u is not None and self.key_v is not None and self.key_s is not None
        gate = self.residual_gate
        return Weights(
            self.memory_u,
            self.memory_v,
            self.memory_s,
            self.key_u.weight,
            self.key_u.bias,
            self.key_v.weight,
            self.key_v.bias,
            self.key_s,
            self.controller.input.weight,
            self.controller.input.bias,
            self.controller.readout.weight,
            self.controller.readout.bias,
            self.residual,
            None if gate is None else gate.weight,
            None if gate is None else gate.bias,
        )

    def _fused_steps(self, x_BI: Tensor) -> Tensor:
        """Return y [B, out] of a layer with several attention steps."""
        assert self.fixed_sharpness is not None
        readout = self.controller.readout
        states = torch.cat(self.controller.states(x_BI))
        output = torch.addmm(readout.bias.unsqueeze(1), readout.weight, states.t())
        shape = (3, self.key_size + 1, self.attention_heads, self.attention_steps, len(x_BI))
        slots_PB, smallest_sigma_B = fused_reads(
            self.memory_u @ x_BI.t(),
            output.view(shape).transpose(2, 3).flatten(2, 3),
            self.keys(),
            self.memory_s.squeeze(-1),
            heads=self.attention_heads,
            least_used=self.least_used,
            sharpness=self.fixed_sharpness,
        )
        return self.put_out_by_hand(x_BI, slots_PB, smallest_sigma_B)

    @property
    def _plain(self) -> bool:
        """Whether this is a layer that :mod:`fused` or :mod:`fused_steps` knows."""
        return (
            self.fused
            and not self.convex
            and self.fixed_sharpness is not None
            and self.fixed_sharpness <= MAX_SHARPNESS
            and self.openness is None
            and self.shown is None
            and not self.frozen_slots
        )

    def _fusable(self, x: Tensor) -> bool:
        """Whether :mod:`fused` or :mod:`fused_steps` computes this layer for this input."""
        return (
            self._plain
            and can_run_by_hand(x, self.memory_u)
            # several steps ask, step by step, whether slots tie: no question for another device, nor for few rows
            and (self.attention_steps == 1 or (x.device.type == "cpu" and x[..., 0].numel() >= FEW_ROWS))
        )

    # --------------------------------------------------------------------------------------- study

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention of all three memories for x [B, in] as one tensor [3, B, R, P]."""
        return self.attend(self.flatten(x))

    def orthogonal_loss(self) -> Tensor:
        """Eq. 5. L_o of this layer, without its coefficient."""
        memories = (self.learned_rows(self.memory_u), self.learned_rows(self.memory_v))
        return pm.orthogonal_loss(memories[0]) + pm.orthogonal_loss(memories[1])

    def diagnostics(self, x: Tensor | None = None) -> dict[str, float]:
        """Those of all heads (see the base), and ``orthogonality_excess``: L_o above its floor."""
        floor = pm.orthogonal_loss_floor(self.slots, self.in_features, self.out_features)
        with torch.no_grad():
            excess = float(self.orthogonal_loss()) - floor
        return super().diagnostics(x) | {"orthogonality_excess": excess}

    # ------------------------------------------------------------------------------------ resizing

    def grow(
        self, n_slots: int, freeze_old: bool = False, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Add `n_slots` slots without changing the function (the growing memory of the paper's discussion).

        New rows of U and V are orthogonal to the old ones as far as the width leaves room. They start closed:
        their attention is multiplied by an openness of 0, whose gradient is not 0. Parameters stay the same
        objects, so that an optimiser keeps them.

        Parameters
        ----------
        n_slots
            How many slots to add, >= 1.
        freeze_old
            Rows of the old slots get no gradient any more (controller, key nets and residual still do). An
            optimiser with weight decay would go on shrinking them.
        optimizer
            The optimiser of this layer: its state grows too (zeros for new rows and, with `freeze_old`, for the
            old ones), and it is given the openness.

        Raises
        ------
        HeadError
            `n_slots` < 1, or an optimiser that does not hold this layer's memories.
        """
        require_at_least("n_slots", n_slots, 1)
        group = self._group(optimizer)
        old = self.slots
        if self.openness is None:
            self.openness = nn.Parameter(self.memory_s.new_ones(old))
            if group is not None:
                group["params"].append(self.openness)
        for parameter, rows in (
            (self.memory_u, orthogonal_rows(self.memory_u, n_slots)),
            (self.memory_v, orthogonal_rows(self.memory_v, n_slots)),
            (self.openness, self.openness.new_zeros(n_slots)),
            *(
                (drawn, torch.randn_like(drawn[:1].expand(n_slots, *drawn.shape[1:])))
                for drawn in (self.memory_s, self.key_s, self.slot_keys)
                if drawn is not None
            ),
        ):
            append_rows(parameter, rows, optimizer, forget_old=freeze_old)
        self.slots = old + n_slots
        if freeze_old:
            self.frozen_slots = old

    def mask(self, slots: Sequence[int]) -> None:
        """Close `slots`: they are read no more, and what is left shares their attention. Numbers stay as they are.

        For study, e.g. of what a program does: unlike :meth:`prune`, nothing is forgotten. It adds the openness.

        Raises
        ------
        HeadError
            A slot that is not there, or none would be left.
        """
        closed = sorted(set(slots))
        if closed and (closed[0] < 0 or closed[-1] >= self.slots):
            raise HeadError(f"mask={closed} must be slots in [0, {self.slots})")
        if len(closed) == self.slots:
            raise HeadError(f"mask={closed} leaves no slot")
        if self.openness is None:
            self.openness = nn.Parameter(self.memory_s.new_ones(self.slots))
        with torch.no_grad():
            self.openness[closed] = 0

    def prune(self, keep: Sequence[int] | Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Remove all slots but those in `keep`: their numbers, or a mask [P]. The optimiser's state follows.

        Raises
        ------
        HeadError
            A slot that is not there or is named twice, or fewer slots than `least_used`.
        """
        index = torch.as_tensor(keep)
        if index.dtype == torch.bool:
            if index.shape != (self.slots,):
                raise HeadError(f"keep has shape {tuple(index.shape)}, but a mask must be [{self.slots}]")
            index = index.nonzero().squeeze(-1)
        kept = sorted(int(i) for i in index)
        if len(set(kept)) < len(kept):
            raise HeadError(f"keep={kept} names a slot twice")
        if kept and (kept[0] < 0 or kept[-1] >= self.slots):
            raise HeadError(f"keep={kept} must be slots in [0, {self.slots})")
        if len(kept) < self.least_used:
            raise HeadError(f"keep={kept} leaves {len(kept)} slots, fewer than least_used={self.least_used}")
        self._group(optimizer)
        chosen = torch.tensor(kept, device=self.memory_u.device)
        tables = (self.memory_u, self.memory_v, self.memory_s, self.key_s, self.slot_keys, self.openness)
        for parameter in tables:
            if parameter is not None:
                keep_rows(parameter, chosen, optimizer)
        self.slots = len(kept)
        self.frozen_slots = sum(i < self.frozen_slots for i in kept)

    def _group(self, optimizer: torch.optim.Optimizer | None) -> dict[str, Any] | None:
        """Return the group of `optimizer` that holds the memories."""
        if optimizer is None:
            return None
        for group in optimizer.param_groups:
            if any(held is self.memory_s for held in group["params"]):
                return group
        raise HeadError(
            "optimizer does not hold this layer's memories: pass the one that was built with them"
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, slots={self.slots}, "
            f"attention_heads={self.attention_heads}, attention_steps={self.attention_steps}, "
            f"key_size={self.key_size}, residual={self.residual is not None}"
        )


def match_slots(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the program memories in `module` as many slots as they have in `tensors`, a state dict.

    Only those that can open and close slots: others never change their number.
    """
    for name, part in module.named_modules():
        if not isinstance(part, NeurocoderLinear) or part.openness is None:
            continue
        stored = tensors.get(f"{name}.openness" if name else "openness")
        if stored is None or stored.ndim != 1 or len(stored) < part.least_used:
            continue  # whoever loads them says what does not fit
        if len(stored) > part.slots:
            part.grow(len(stored) - part.slots)
        elif len(stored) < part.slots:
            part.prune(range(len(stored)))
