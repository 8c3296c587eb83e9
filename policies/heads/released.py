"""ReleasedNeurocoderLinear: what the authors' public code computes, departures from their paper included.

For comparison only; :class:`NeurocoderLinear` is the layer to use. Sources: the paper (arXiv 2009.11443, equation
numbers below) and the release github.com/thaihungle/Neurocoder, whose equations are written anew here. Shape
suffixes are those of :mod:`program_memory`. Where release and paper differ (the project's notes number these and
others that are not about this layer):

== ================================================================= ===========================================
 # release                                                           paper
== ================================================================= ===========================================
 1 the "cosine" is divided by the key size K                         cosine (eq. 11)
 2 it is multiplied by 10 in recurrent reads, by nothing otherwise   no factor
 3 0 steps: three linear query nets; no LSTM, no gates, no usage     LSTM and gates, also for J = 1
 4 content attention is divided by its largest weight                eq. 14 takes the distribution
 5 one gate per slot, from x, shared by steps and heads; it weighs   one gate per step and head, from the LSTM,
   the usage-based attention                                         weighing the content attention (eq. 14)
 6 usage is the maximum over heads too; l = 1 − m where strictly     per head; l = max(m) − m, ties included
   above the (l_I + 1)-th largest, so that ties can leave none; at   (eqs. 12, 13); l₁ = 0
   the first step, l is one on the first l_I slots
 7 singular values are summed from the first component on: flipped   summed from the last component on (eq. 8)
   after the sum in recurrent reads, left rising with 0 steps
 8 keys of S are always learned columns; those of U and V too,       a key net for each (eq. 10)
   unless content_keys
 9 L_o: unsquared Frobenius norms of the rows [key | value]          norm not stated, over the values (eq. 5)
10 a = 1                                                             a = 10 for Split MNIST
14 the LSTM has 3HK + 1 units, which are queries and gate logit      hidden size 8 for MNIST
15 its initial state is learned                                      h₀ = 0 (eq. 9)
16 a component map and a bias are carried, but never used            neither
17 the residual's gate is the LSTM's last unit after the last step   f_φ(x) (eq. 15)
   (0 steps: a linear function of x)
== ================================================================= ===========================================
"""

import math

import torch
from jaxtyping import Float
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
from neurocoder.policies.heads.fused_parts import can_run_by_hand
from neurocoder.policies.heads.fused_released import fused_released_read

NORM_OFFSET = 1e-6
"""Added to each norm, and to the product of both, in the release's cosine."""

RECURRENT_SHARPNESS = 10.0
"""Factor on the release's cosine in recurrent reads (departure 2)."""


def scaled_cosine(
    query_BHK: Float[Tensor, "*M B H K"], key_PK: Float[Tensor, "*M P K"]
) -> Float[Tensor, "*M B H P"]:
    """In place of eq. 11's cosine (departure 1): q·k / (K (‖q‖ + δ)(‖k‖ + δ) + δ), about a K-th of it.

    The release repeats each norm K times before it takes their inner product, hence the K.
    """
    product = query_BHK.flatten(-3, -2) @ key_PK.transpose(-1, -2)
    product = product.view((*query_BHK.shape[:-1], key_PK.shape[-2]))
    query_norm = query_BHK.norm(dim=-1).unsqueeze(-1) + NORM_OFFSET
    key_norm = key_PK.norm(dim=-1)[..., None, None, :] + NORM_OFFSET
    return product / (query_BHK.shape[-1] * query_norm * key_norm + NORM_OFFSET)


def peak_normalised(weights_BHP: Float[Tensor, "*M B H P"]) -> Float[Tensor, "*M B H P"]:
    """Departure 4. Every row divided by its largest weight: the row's maximum is one, not its sum."""
    return weights_BHP / weights_BHP.amax(dim=-1, keepdim=True)


def slot_gated_attention(
    gate_BP: Float[Tensor, "*M B P"],
    content_BHP: Float[Tensor, "*M B H P"],
    least_used_BP: Float[Tensor, "*M B P"],
) -> Float[Tensor, "*M B H P"]:
    """In place of eq. 14 (departure 5): w_i = (1 − sigmoid(gᵢ)) cᵢ + sigmoid(gᵢ) lᵢ, with a gate for each slot."""
    share = torch.sigmoid(gate_BP).unsqueeze(-2)
    return (1 - share) * content_BHP + share * least_used_BP.unsqueeze(-2)


def unused_share(usage_BP: Float[Tensor, "*M B P"], least_used: int) -> Float[Tensor, "*M B P"]:
    """In place of eq. 13 (departure 6): 1 − mᵢ where it exceeds the (l_I + 1)-th largest, 0 elsewhere.

    These are `least_used` slots, or fewer where values are equal. The choice gets no gradient.
    """
    unused = 1 - usage_BP
    threshold = unused.detach().topk(least_used + 1, dim=-1).values[..., -1:]
    return unused * (unused > threshold)


def rising_values(score_BR: Float[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    """In place of eq. 8 (departure 7): σ₁ = softplus(s₁), σₙ = σₙ₋₁ + softplus(sₙ), strictly increasing."""
    return F.softplus(score_BR).cumsum(-1)


def joint_orthogonal_loss(key_PK: Float[Tensor, "P K"], memory_PD: Float[Tensor, "P D"]) -> Float[Tensor, ""]:
    """In place of eq. 5 (departure 9): ‖A Aᵀ − I‖_F of the rows A = [key | value], not squared."""
    gram = key_PK @ key_PK.T + memory_PD @ memory_PD.T
    return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).norm()


class ReleasedNeurocoderLinear(ComposedHead):
    """The layer of the authors' release: y = x W(x), evaluated in factored form.

    Alone among the heads it carries parameters that nothing reads, because the release does and Table 6 counts
    them; :attr:`unused_parameters` names them.

    Parameters
    ----------
    in_features, out_features
        Sizes of x and y.
    slots, attention_heads, key_size
        P, H and K.
    attention_steps
        J of the recurrent read. 0 is the read of the release's Split MNIST model: one step, linear query nets, no
        usage (departure 3).
    least_used
        l_I; 0 leaves usage and slot gates out. Has no effect with 0 steps.
    content_keys
        Keys of U and V are a linear function of the slots' content (the release's "cb"); if False, they are the
        learned columns in front of the values ("lk").
    residual
        Adds the residual program R of eq. 15.
    orthogonality
        a of eq. 2.
    output_scale
        Multiplies the values of V, and R, once at initialisation. The release knows only 1.

    The release keeps keys and values in one matrix per memory. They are separate parameters here, drawn within
    the bound that Xavier's rule gives to the whole: a value is then never mistaken for a key.

    With 0 steps the layer runs :mod:`fused_released`, faster and differentiable once. Set ``layer.fused = False`` where
    second derivatives are wanted, batches of gradients (``is_grads_batched``) or forward-mode ones.
    """

    fused = True
    key_nets = ("key_net_u", "key_net_v")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        slots: int = 50,
        attention_heads: int = 10,
        attention_steps: int = 0,
        key_size: int = 5,
        least_used: int = 5,
        content_keys: bool = True,
        residual: bool = False,
        orthogonality: float = 1.0,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features)
        for name, value, least in (
            ("slots", slots, 1),
            ("attention_heads", attention_heads, 1),
            ("attention_steps", attention_steps, 0),
            ("key_size", key_size, 1),
            ("least_used", least_used, 0),
        ):
            require_at_least(name, value, least)
        for name, value in (("content_keys", content_keys), ("residual", residual)):
            if not isinstance(value, bool):
                raise HeadError(f"{name}={value!r} must be True or False")
        if attention_steps and slots <= least_used:
            raise HeadError(
                f"slots={slots} must be > least_used={least_used}: the release compares with the slot after them"
            )
        require_not_negative("orthogonality", orthogonality)
        require_positive("output_scale", output_scale)

        self.slots = slots
        self.attention_heads = attention_heads
        self.attention_steps = attention_steps
        self.key_size = key_size
        self.least_used = least_used
        self.content_keys = content_keys
        self.orthogonality = orthogonality
        self.output_scale = output_scale

        self.memory_u = nn.Parameter(torch.empty(slots, in_features))
        self.memory_v = nn.Parameter(torch.empty(slots, out_features))
        self.memory_s = nn.Parameter(torch.empty(slots, 1))
        self.key_u = nn.Parameter(torch.empty(slots, key_size))  # with content_keys, only L_o sees these
        self.key_v = nn.Parameter(torch.empty(slots, key_size))  # (departure 9) and not the attention
        self.key_s = nn.Parameter(torch.empty(slots, key_size))
        self.key_net_u = nn.Linear(in_features, key_size) if content_keys else None
        self.key_net_v = nn.Linear(out_features, key_size) if content_keys else None
        self.residual = nn.Parameter(torch.empty(in_features, out_features)) if residual else None

        n_query = attention_heads * key_size
        self.queries: nn.ModuleList | None = None
        self.residual_gate: nn.Linear | None = None
        self.controller: nn.LSTMCell | None = None
        self.initial_state: nn.Parameter | None = None
        self.slot_gate: nn.Linear | None = None
        self.component_map: nn.Linear | None = None
        if attention_steps == 0:
            self.queries = nn.ModuleList(nn.Linear(in_features, n_query) for _ in range(3))
            self.residual_gate = nn.Linear(in_features, 1)
        else:
            n_units = 3 * n_query + 1
            self.controller = nn.LSTMCell(in_features, n_units)
            self.initial_state = nn.Parameter(torch.empty(2, n_units))  # h₀ and c₀
            if least_used:
                self.slot_gate = nn.Linear(in_features, 3 * slots)
            self.component_map = nn.Linear(n_units, in_features)  # carried, never used
        self.bias = nn.Parameter(torch.empty(out_features))  # carried, never used
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the release draws them; values of V and R times `output_scale`."""
        for key, memory, scale in (
            (self.key_u, self.memory_u, 1.0),
            (self.key_v, self.memory_v, self.output_scale),
            (self.key_s, self.memory_s, 1.0),
        ):
            bound = math.sqrt(6 / (self.slots + self.key_size + memory.shape[1]))
            nn.init.uniform_(key, -bound, bound)
            nn.init.uniform_(memory, -bound * scale, bound * scale)
        for layer in (self.key_net_u, self.key_net_v, self.slot_gate, self.component_map):
            if layer is not None:
                layer.reset_parameters()
        for layer in (*(self.queries or ()), self.residual_gate):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=0.01)
        if self.controller is not None:
            bound = 5 / math.sqrt(self.in_features + self.controller.hidden_size)
            nn.init.uniform_(self.controller.weight_ih, -bound, bound)
            nn.init.uniform_(self.controller.weight_hh, -bound, bound)
            nn.init.zeros_(self.controller.bias_ih)
            nn.init.zeros_(self.controller.bias_hh)
        if self.initial_state is not None:
            nn.init.normal_(self.initial_state, std=0.05)
        if self.residual is None:
            nn.init.zeros_(self.bias)
        else:
            nn.init.xavier_uniform_(self.residual, gain=self.output_scale)
            nn.init.normal_(self.bias, std=0.01)

    @property
    def unused_parameters(self) -> list[str]:
        """Names of the parameters that never get a gradient, as in :meth:`named_parameters`."""
        unused = {"bias", "component_map"}
        if self.residual is None:
            unused.add("residual_gate")
        if self.content_keys and self.orthogonality == 0:
            unused |= {"key_u", "key_v"}
        return [name for name, _ in self.named_parameters() if name.split(".")[0] in unused]

    # ------------------------------------------------------------------------------------- forward

    def keys(self) -> Tensor:
        """Departure 8. Keys of the slots of the memories U, V, S: [3, P, K]."""
        if self.key_net_u is None or self.key_net_v is None:
            return torch.stack((self.key_u, self.key_v, self.key_s))
        return torch.stack((self.key_net_u(self.memory_u), self.key_net_v(self.memory_v), self.key_s))

    def attend(self, x_BI: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return attention [3, B, R, P] over the slots of U, V, S, and the residual gate's logit [B].

        `keys` are :meth:`keys`, unless given.
        """
        keys = self.keys() if keys is None else keys
        return self.attend_once(x_BI, keys) if self.attention_steps == 0 else self.attend_in_steps(x_BI, keys)

    def attend_once(self, x_BI: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Departure 3. Attention by content alone, with queries linear in x."""
        assert self.queries is not None and self.residual_gate is not None
        shape = (self.attention_heads, self.key_size)
        query = torch.stack([query(x_BI).unflatten(-1, shape) for query in self.queries])
        attention = torch.softmax(scaled_cosine(query, keys), dim=-1)
        return attention, self.residual_gate(x_BI).squeeze(-1)

    def attend_in_steps(self, x_BI: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Departures 2, 4-6, 14, 15, 17. The recurrent read, components ordered step-major."""
        assert self.controller is not None and self.initial_state is not None
        # as many as there are rows, also where a transform hides rows: LSTMCell needs all of one shape
        hidden, cell = self.initial_state.unsqueeze(1) + torch.zeros_like(x_BI[:, :1])
        shape = (3, self.attention_heads, self.key_size)
        gate = None
        if self.slot_gate is not None:
            gate = self.slot_gate(x_BI).unflatten(-1, (3, self.slots)).transpose(0, 1)  # [3, B, P]
            first = (torch.arange(self.slots, device=x_BI.device) < self.least_used).to(x_BI.dtype)
            least_used = first.expand_as(gate)
            usage = torch.zeros_like(gate)
        steps = []
        for _ in range(self.attention_steps):
            hidden, cell = self.controller(x_BI, (hidden, cell))
            query = hidden[:, :-1].unflatten(-1, shape).transpose(0, 1)  # [3, B, H, K]
            weights = torch.softmax(RECURRENT_SHARPNESS * scaled_cosine(query, keys), dim=-1)
            if gate is not None:
                weights = slot_gated_attention(gate, peak_normalised(weights), least_used)
                usage = torch.maximum(usage, weights.amax(dim=-2))
                least_used = unused_share(usage, self.least_used)
            steps.append(weights)
        return torch.cat(steps, dim=-2), hidden[:, -1]

    def compose(self, x_BI: Tensor, keys: Tensor | None = None) -> ProgramTrace:
        """Everything that x decides, attention by `keys`. Singular values rise with 0 steps and fall otherwise (departure 7)."""
        (attention_u, attention_v, attention_s), gate_logit = self.attend(x_BI, keys)
        sigma = rising_values(pm.read(attention_s, self.memory_s).squeeze(-1))
        if self.attention_steps:
            sigma = sigma.flip(-1)
        gate = torch.zeros_like(gate_logit) if self.residual is None else torch.sigmoid(gate_logit)
        return ProgramTrace(attention_u, attention_v, attention_s, sigma, gate)

    def smallest_sigma(self, trace: ProgramTrace) -> Tensor:
        """σ_R of eq. 15: the last singular value in recurrent reads, the first with 0 steps (departure 7)."""
        return trace.sigma[..., -1 if self.attention_steps else 0]

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        by_hand = self.fused and self.attention_steps == 0 and not self.frozen_slots
        if not by_hand or not can_run_by_hand(x, self.memory_u):
            return self.forward_with_trace(x)[0]
        return self._fused_read(self.flatten(x)).view((*x.shape[:-1], self.out_features))

    def _fused_read(self, x_BI: Tensor) -> Tensor:
        """Return y [B, out] of a layer with 0 steps."""
        assert self.queries is not None
        shape = (self.attention_heads, self.key_size)
        query = torch.stack([net(x_BI).t().unflatten(0, shape) for net in self.queries])
        slots_PB, smallest_sigma_B = fused_released_read(
            self.memory_u @ x_BI.t(),
            query.transpose(1, 2),
            self.keys(),
            self.memory_s.squeeze(-1),
            offset=NORM_OFFSET,
        )
        return self.put_out_by_hand(x_BI, slots_PB, smallest_sigma_B)

    # --------------------------------------------------------------------------------------- study

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention of all three memories for x [B, in] as one tensor [3, B, R, P]."""
        return self.attend(self.flatten(x))[0]

    def orthogonal_loss(self) -> Tensor:
        """Departure 9. L_o of this layer, without its coefficient."""
        return joint_orthogonal_loss(self.key_u, self.memory_u) + joint_orthogonal_loss(
            self.key_v, self.memory_v
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, slots={self.slots}, "
            f"attention_heads={self.attention_heads}, attention_steps={self.attention_steps}, "
            f"key_size={self.key_size}, content_keys={self.content_keys}, "
            f"residual={self.residual is not None}"
        )
