"""MoEHead: a mixture of linear experts, of which noisy gating selects a few for each input.

Source: N. Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", 2017
(arXiv 1701.06538). Equation numbers are the paper's: 1-7 of its text, 8-11 of its appendix A. Shape suffixes are
those of :mod:`mixture`, with P experts.

Scores stay logits until the last step: the softmax comes after the selection (eq. 3), and eq. 9 compares logits
with logits. Widespread implementations take a softmax first and then compare its shares with logits, which makes
their load an estimate of nothing.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neurocoder.policies.heads.base import (
    Head,
    HeadError,
    require_at_least,
    require_not_negative,
    require_positive,
)
from neurocoder.policies.heads.mixture import (
    MixtureTrace,
    mixed_linear,
    mixed_program,
    orthogonal_programs,
)

SMALLEST = 1e-12
"""Least divisor, so that a spread that underflows or an empty batch yields neither NaN nor its gradient."""


def noisy_scores(
    clean_BP: Float[Tensor, "B P"], spread_BP: Float[Tensor, "B P"], noise_BP: Float[Tensor, "B P"]
) -> Float[Tensor, "B P"]:
    """Eq. 4. H = x W_g + ε·softplus(x W_noise), with `spread_BP` the softplus already taken and ε ~ N(0, 1)."""
    return clean_BP + noise_BP * spread_BP


def keep_top_k(scores_BP: Float[Tensor, "B P"], k: int) -> Float[Tensor, "B P"]:
    """Eq. 5. The k largest scores of each row, −∞ elsewhere. Ties go to the lower index: exactly k remain."""
    order = scores_BP.argsort(dim=-1, descending=True, stable=True)
    return scores_BP.scatter(-1, order[:, k:], -torch.inf)


def top_k_gates(scores_BP: Float[Tensor, "B P"], k: int) -> Float[Tensor, "B P"]:
    """Eq. 3. G = softmax(KeepTopK(H, k)): k shares that sum to one, zeros elsewhere."""
    return torch.softmax(keep_top_k(scores_BP, k), dim=-1)


def importance(gates_BP: Float[Tensor, "B P"]) -> Float[Tensor, "P"]:
    """Eq. 6. What the batch gives to each expert: Σ_x G(x)."""
    return gates_BP.sum(0)


def kth_excluding(scores_BP: Float[Tensor, "B P"], k: int) -> Float[Tensor, "B P"]:
    """Of eq. 8. For each expert i, the k-th largest score among the others; needs k < P.

    Without an expert of the k best, the (k+1)-th moves up; without any other, the k-th stays.
    """
    order = scores_BP.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    kth, next_one = scores_BP.gather(-1, order[:, k - 1 : k + 1]).split(1, dim=-1)
    return torch.where(rank < k, next_one, kth)


def load(
    clean_BP: Float[Tensor, "B P"],
    spread_BP: Float[Tensor, "B P"],
    scores_BP: Float[Tensor, "B P"],
    k: int,
) -> Float[Tensor, "P"]:
    """Eqs. 8-10. Expected number of samples per expert, if the noise of that expert alone were drawn again:

    Loadᵢ = Σ_x Φ(((x W_g)ᵢ − kth_excluding(H, k, i)) / softplus((x W_noise)ᵢ)).
    """
    margin_BP = clean_BP - kth_excluding(scores_BP, k)
    return torch.special.ndtr(margin_BP / spread_BP.clamp_min(SMALLEST)).sum(0)


def squared_cv(amount_P: Float[Tensor, "P"]) -> Float[Tensor, ""]:
    """Of eqs. 7 and 11. CV² = variance / mean², with the population's variance (divided by P, not P − 1)."""
    return amount_P.var(correction=0) / amount_P.mean().square().clamp_min(SMALLEST)


class Routing(NamedTuple):
    """One pass of the gating network over a batch."""

    clean: Tensor
    """[B, P], x W_g."""
    spread: Tensor | None
    """[B, P], standard deviation of the noise; None if none was added."""
    scores: Tensor
    """[B, P], H of eq. 4; `clean` if no noise was added."""
    gates: Tensor
    """[B, P], G of eq. 3."""


class MoEHead(Head):
    """y = Σᵢ G(x)ᵢ (x Wᵢ + bᵢ) with G zero for all but `top_k` experts (eq. 1).

    Parameters
    ----------
    in_features, out_features
        Sizes of x and y.
    experts
        P, at least 2: the gate of a single expert is constant.
    top_k
        k, at least 2, as in the paper: the gate of a single chosen expert is 1 whatever its score, and the
        task would never teach the gating network anything. With ``top_k = experts`` all experts are mixed.
    balance
        Weight of both balancing losses (eqs. 7 and 11).
    output_scale
        Multiplies the experts' weights once, at initialisation.

    Noise is drawn in training mode only (``head.train()``), from torch's global generator, as in dropout.
    :meth:`program` and :meth:`attention` never draw any; in training mode they therefore differ from what
    :meth:`forward` used, which :meth:`forward_with_trace` returns.

    W_g and W_noise start at zero, as in the paper: the noise alone routes a fresh head in training mode. In
    evaluation mode all its scores are tied, and it uses the first `top_k` experts for every input.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        experts: int = 10,
        top_k: int = 4,
        balance: float = 0.01,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features)
        require_at_least("experts", experts, 2)
        require_at_least("top_k", top_k, 2)
        if top_k > experts:
            raise HeadError(f"top_k={top_k} must be <= experts={experts}")
        require_not_negative("balance", balance)
        require_positive("output_scale", output_scale)
        self.experts = experts
        self.top_k = top_k
        self.balance = balance
        self.output_scale = output_scale

        self.gate = nn.Parameter(torch.empty(in_features, experts))
        self.noise = nn.Parameter(torch.empty(in_features, experts))
        self.weight = nn.Parameter(torch.empty(experts, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(experts, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each expert an orthogonal linear layer times `output_scale`; W_g, W_noise and biases zero."""
        orthogonal_programs(self.weight, self.output_scale)
        for parameter in (self.gate, self.noise, self.bias):
            nn.init.zeros_(parameter)

    def route(self, x_BI: Tensor, noisy: bool) -> Routing:
        """Eqs. 3-5. Run the gating network once, with a draw of the noise if `noisy`."""
        clean = x_BI @ self.gate
        if noisy:
            spread = F.softplus(x_BI @ self.noise)
            scores = noisy_scores(clean, spread, torch.randn_like(clean))
        else:
            spread, scores = None, clean
        return Routing(clean, spread, scores, top_k_gates(scores, self.top_k))

    def mix(self, x: Tensor) -> tuple[Tensor, Routing]:
        """Eq. 1. Return y [..., out] and the gating pass that made it."""
        x_BI = self.flatten(x)
        routing = self.route(x_BI, noisy=self.training)
        y = mixed_linear(x_BI, routing.gates, self.weight, self.bias)
        return y.view((*x.shape[:-1], self.out_features)), routing

    def balancing_loss(self, routing: Routing) -> Tensor:
        """Eqs. 7 and 11. balance·(CV(Importance)² + CV(Load)²) of one gating pass.

        The load is the chance that noise would select an expert. Without noise it is a step function of the
        parameters, and with ``top_k = experts`` it is one for all; then the importance alone counts.
        """
        if self.balance == 0:
            return self.aux_loss()
        loss = squared_cv(importance(routing.gates))
        if routing.spread is not None and self.top_k < self.experts:
            loss = loss + squared_cv(load(routing.clean, routing.spread, routing.scores, self.top_k))
        return self.balance * loss

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        return self.mix(x)[0]

    def forward_with_trace(self, x: Tensor) -> tuple[Tensor, MixtureTrace]:
        """Return y [..., out] and the gates of the same pass, noise included in training mode."""
        y, routing = self.mix(x)
        return y, MixtureTrace(routing.gates.view((*x.shape[:-1], 1, self.experts)))

    def forward_with_aux(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and the balancing losses of this batch, both of one gating pass.

        The losses are a matter of the whole batch, over all leading dimensions: a NaN in one row spoils them.
        """
        y, routing = self.mix(x)
        return y, self.balancing_loss(routing)

    def attention(self, x: Tensor) -> Tensor:
        """Return the noise-free gates of x [..., in], [..., 1, P]."""
        gates = self.route(self.flatten(x), noisy=False).gates
        return gates.view((*x.shape[:-1], 1, self.experts))

    def program(self, x: Tensor) -> Tensor:
        """Return W = Σᵢ Gᵢ Wᵢ of the noise-free gates, [..., in, out]: for study, never in forward."""
        gates = self.route(self.flatten(x), noisy=False).gates
        program = mixed_program(gates, self.weight)
        return program.view((*x.shape[:-1], self.in_features, self.out_features))

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, experts={self.experts}, "
            f"top_k={self.top_k}, balance={self.balance}"
        )
