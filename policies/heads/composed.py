"""What layers have in common whose weights are composed, for each input, from a program memory."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neurocoder.policies.heads import program_memory as pm
from neurocoder.policies.heads.base import Head


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


class PutOut(NamedTuple):
    """What a layer puts out, and by which factors."""

    y_BO: Tensor
    slots_BP: Tensor
    """Of the rows of M_V."""
    residual_scale_B: Tensor
    """Of the residual program; zeros without one."""


class ComposedHead(Head):
    """y = x W(x), W(x) = Σₙ σₙ uₙ vₙᵀ + gate·σ_R·R: evaluated in factored form, from what :meth:`compose` decides."""

    slots: int
    key_size: int
    orthogonality: float
    memory_u: nn.Parameter
    memory_v: nn.Parameter
    residual: nn.Parameter | None
    residual_gate: nn.Linear | None
    key_nets: tuple[str, str]
    """Names of the linear layers that make keys of M_U and of M_V, where these are not None."""
    frozen_slots = 0
    """The first slots get no gradient."""

    @abstractmethod
    def keys(self) -> Tensor:
        """Return the keys of the slots of the memories U, V, S: [3, P, K]."""

    @abstractmethod
    def compose(self, x_BI: Tensor, keys: Tensor | None = None) -> ProgramTrace:
        """Return everything that x decides, attention by `keys` (None: :meth:`keys`)."""

    @abstractmethod
    def smallest_sigma(self, trace: ProgramTrace) -> Tensor:
        """σ_R of eq. 15."""

    @abstractmethod
    def orthogonal_loss(self) -> Tensor:
        """L_o of this layer, without its coefficient."""

    def learned_rows(self, memory: Tensor) -> Tensor:
        """Return a memory [P, ...] through whose frozen rows no gradient flows."""
        if not self.frozen_slots:
            return memory
        return torch.cat((memory[: self.frozen_slots].detach(), memory[self.frozen_slots :]))

    def put_out(self, x_BI: Tensor, trace: ProgramTrace, score_BP: Tensor) -> PutOut:
        """Return what the layer puts out for x with what was decided, and its ``score`` M_U x."""
        slots_BP = pm.slots_put_out(score_BP, trace.attention_u, trace.attention_v, trace.sigma)
        y_BO = slots_BP @ self.learned_rows(self.memory_v)
        scale_B = trace.residual_gate * self.smallest_sigma(trace)
        if self.residual is not None:
            y_BO = y_BO + scale_B.unsqueeze(-1) * (x_BI @ self.residual)
        return PutOut(y_BO, slots_BP, scale_B)

    def put_out_by_hand(self, x_BI: Tensor, slots_PB: Tensor, smallest_sigma_B: Tensor) -> Tensor:
        """Return y [B, out] from what a layer by hand reads: what multiplies the rows of M_V, and σ_R."""
        y_BO = slots_PB.t() @ self.memory_v
        if self.residual is None or self.residual_gate is None:
            return y_BO
        gate_B1 = torch.sigmoid(self.residual_gate(x_BI))
        return y_BO + gate_B1 * smallest_sigma_B.unsqueeze(-1) * (x_BI @ self.residual)

    def forward_with_trace(self, x: Tensor) -> tuple[Tensor, ProgramTrace]:
        """Return y [..., out] and the trace of the same pass."""
        x_BI = self.flatten(x)
        trace = self.compose(x_BI)
        y_BO = self.put_out(x_BI, trace, x_BI @ self.learned_rows(self.memory_u).T).y_BO
        shape = x.shape[:-1]
        parts = (part.view((*shape, *part.shape[1:])) for part in trace)
        return y_BO.view((*shape, self.out_features)), ProgramTrace(*parts)

    def forward_explained(self, x: Tensor) -> tuple[Tensor, ProgramTrace]:
        return self(x), self.forward_with_trace(x)[1]  # by hand, y differs in its last bits

    def trace(self, x: Tensor) -> ProgramTrace:
        """Return attention, singular values and gate for x [..., in], detached."""
        with torch.no_grad():
            return self.forward_with_trace(x)[1]

    def program(self, x: Tensor) -> Tensor:
        """Return the working program W [..., in, out] of eq. 15, materialised: for study, never in forward."""
        trace = self.compose(self.flatten(x))
        program = pm.working_program(
            pm.read(trace.attention_u, self.learned_rows(self.memory_u)),
            trace.sigma,
            pm.read(trace.attention_v, self.learned_rows(self.memory_v)),
        )
        if self.residual is not None:
            program = pm.integrate(program, trace.residual_gate, self.smallest_sigma(trace), self.residual)
        return program.view((*x.shape[:-1], self.in_features, self.out_features))

    def aux_loss(self) -> Tensor:
        """a·L_o, to be added to the task's loss once per step (eq. 2)."""
        return self.orthogonality * self.orthogonal_loss()
