"""NeurocoderLinear: a linear layer whose weight matrix is composed for each input from stored programs."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurocoder.policies.heads import program_memory as pm
from neurocoder.policies.heads.base import Head, HeadError, require_at_least


class ProgramTrace(NamedTuple):
    """What the program memory did for each input. Leading dimensions are the input's.

    ============== ======== ==============================================
    attention_u    [.., R, P]  weights that read the left singular vectors
    attention_v    [.., R, P]  weights that read the right singular vectors
    attention_s    [.., R, P]  weights that read the singular values
    sigma          [.., R]     singular values, strictly decreasing
    residual_gate  [..]        share of the residual program (zeros without one)
    ============== ======== ==============================================

    R = attention_steps × attention_heads, ordered step-major.
    """

    attention_u: Tensor
    attention_v: Tensor
    attention_s: Tensor
    sigma: Tensor
    residual_gate: Tensor


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
        from_input = self.input(x_BI)
        hidden = cell = None
        outputs = []
        for _ in range(self.steps):
            preactivation = from_input
            if hidden is not None and self.recurrent is not None:
                preactivation = preactivation + self.recurrent(hidden)
            parts = preactivation.split(self.size, dim=-1)
            fresh = torch.sigmoid(parts[0]) * torch.tanh(parts[2])
            cell = fresh if cell is None else torch.sigmoid(parts[3]) * cell + fresh
            hidden = torch.sigmoid(parts[1]) * torch.tanh(cell)
            outputs.append(self.readout(hidden))
        return outputs


class NeurocoderLinear(Head):
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

    Keys of U and V are a linear function of the slots' content (eq. 10), computed in every forward: another
    process may have changed the memory. Keys of S are learned directly: M_S has one column, so keys computed
    from it would lie on one line.
    """

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
    ) -> None:
        super().__init__(in_features, out_features)
        for name, value, least in (
            ("slots", slots, 1),
            ("attention_heads", attention_heads, 1),
            ("attention_steps", attention_steps, 1),
            ("key_size", key_size, 1),
            ("least_used", least_used, 1),
            ("controller_size", controller_size, 1),
        ):
            require_at_least(name, value, least)
        if attention_steps > 1 and slots < least_used:
            raise HeadError(f"slots={slots} must be >= least_used={least_used}: eq. 13 picks among the slots")
        if isinstance(sharpness, str):
            if sharpness != "learnable":
                raise HeadError(f"sharpness={sharpness!r}: expected a positive number or 'learnable'")
        elif not (math.isfinite(sharpness) and sharpness > 0):
            raise HeadError(f"sharpness={sharpness} must be a positive, finite number or 'learnable'")
        if not (math.isfinite(orthogonality) and orthogonality >= 0):
            raise HeadError(f"orthogonality={orthogonality} must be a finite number >= 0")
        if not (math.isfinite(output_scale) and output_scale > 0):
            raise HeadError(f"output_scale={output_scale} must be a finite number > 0")

        self.slots = slots
        self.attention_heads = attention_heads
        self.attention_steps = attention_steps
        self.key_size = key_size
        self.least_used = least_used
        self.orthogonality = orthogonality
        self.convex = convex
        self.output_scale = output_scale

        self.memory_u = nn.Parameter(torch.empty(slots, in_features))
        self.memory_v = nn.Parameter(torch.empty(slots, out_features))
        self.memory_s = nn.Parameter(torch.empty(slots, 1))
        self.key_u = nn.Linear(in_features, key_size)
        self.key_v = nn.Linear(out_features, key_size)
        self.key_s = nn.Parameter(torch.empty(slots, key_size))
        self.controller = Controller(
            in_features, controller_size, 3 * attention_heads * (key_size + 1), attention_steps
        )
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
        nn.init.normal_(self.key_s)
        for layer in (self.key_u, self.key_v):
            nn.init.normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.controller.reset_parameters()
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

    def attend(self, x_BI: Tensor) -> Tensor:
        """Eqs. 9-14. Attention over the slots of the three memories, [3, B, R, P], memories ordered U, V, S."""
        n_heads, n_key = self.attention_heads, self.key_size
        key_3PK = torch.stack((self.key_u(self.memory_u), self.key_v(self.memory_v), self.key_s))
        used: Tensor | None = None
        steps = []
        for output in self.controller(x_BI):
            parts = output.view(-1, 3, n_heads, n_key + 1).transpose(0, 1)  # [3, B, H, K + 1]
            content = pm.content_attention(parts[..., :n_key], key_3PK, self.sharpness)
            gate = parts[..., n_key]
            if used is not None:
                lifted = pm.least_used_attention(used, self.least_used)
                if self.convex:
                    lifted = lifted / lifted.sum(dim=-1, keepdim=True).clamp_min(1e-12)
                weights = pm.gated_attention(gate, content, lifted)
            elif self.convex:
                weights = content
            else:  # no usage yet: l = 0, and eq. 14 reduces to its first term
                weights = torch.sigmoid(gate).unsqueeze(-1) * content
            used = weights if used is None else pm.usage(used, weights)
            steps.append(weights)
        return steps[0] if len(steps) == 1 else torch.cat(steps, dim=-2)

    def compose(self, x_BI: Tensor) -> ProgramTrace:
        """Everything that x decides: attention, singular values and the residual's gate (sigmoid taken)."""
        attention_u, attention_v, attention_s = self.attend(x_BI)
        sigma = pm.singular_values(pm.read(attention_s, self.memory_s).squeeze(-1))
        if self.residual_gate is None:
            gate = x_BI.new_zeros(len(x_BI))
        else:
            gate = torch.sigmoid(self.residual_gate(x_BI)).squeeze(-1)
        return ProgramTrace(attention_u, attention_v, attention_s, sigma, gate)

    def forward_with_trace(self, x: Tensor) -> tuple[Tensor, ProgramTrace]:
        """Return y [..., out] and the trace of the same pass."""
        x_BI = self.flatten(x)
        trace = self.compose(x_BI)
        y = pm.apply_program(
            x_BI, trace.attention_u, trace.attention_v, trace.sigma, self.memory_u, self.memory_v
        )
        if self.residual is not None:
            y = y + (trace.residual_gate * trace.sigma[:, -1]).unsqueeze(-1) * (x_BI @ self.residual)
        shape = x.shape[:-1]
        return y.view((*shape, self.out_features)), ProgramTrace(
            *(t.view((*shape, *t.shape[1:])) for t in trace)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        return self.forward_with_trace(x)[0]

    def trace(self, x: Tensor) -> ProgramTrace:
        """Return attention, singular values and gate for x [..., in], detached."""
        with torch.no_grad():
            return self.forward_with_trace(x)[1]

    def program(self, x: Tensor) -> Tensor:
        """Return the working program W [..., in, out] of eq. 15, materialised: for study, never in forward."""
        x_BI = self.flatten(x)
        trace = self.compose(x_BI)
        program = pm.working_program(
            pm.read(trace.attention_u, self.memory_u), trace.sigma, pm.read(trace.attention_v, self.memory_v)
        )
        if self.residual is not None:
            program = pm.integrate(program, trace.residual_gate, trace.sigma[:, -1], self.residual)
        return program.view((*x.shape[:-1], self.in_features, self.out_features))

    def orthogonal_loss(self) -> Tensor:
        """Eq. 5. L_o of this layer, without its coefficient."""
        return pm.orthogonal_loss(self.memory_u) + pm.orthogonal_loss(self.memory_v)

    def aux_loss(self) -> Tensor:
        """a·L_o, to be added to the task's loss once per step (eq. 2)."""
        return self.orthogonality * self.orthogonal_loss()

    def diagnostics(self, trace: ProgramTrace | None = None) -> dict[str, float]:
        """Detached numbers worth a curve: L_o above its floor and, of a trace, normalised attention entropy."""
        with torch.no_grad():
            floor = pm.orthogonal_loss_floor(self.slots, self.in_features, self.out_features)
            numbers = {"orthogonality_excess": float(self.orthogonal_loss()) - floor}
            if trace is not None:
                attention = torch.stack((trace.attention_u, trace.attention_v, trace.attention_s))
                numbers["attention_entropy"] = float(pm.attention_entropy(attention))
        return numbers

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, slots={self.slots}, "
            f"attention_heads={self.attention_heads}, attention_steps={self.attention_steps}, "
            f"key_size={self.key_size}, residual={self.residual is not None}"
        )
