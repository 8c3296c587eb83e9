"""NSMHead: a linear layer read from a memory of whole programs, by the likeness of a query to their keys.

Source: H. Le, T. Tran and S. Venkatesh, "Neural Stored-program Memory", ICLR 2020 (arXiv 1906.08862), and for the
two losses on the keys the authors' release (github.com/thaihungle/NSM), which calls them pl1 and pl2. Shape
suffixes are those of :mod:`mixture`, with K the width of keys and queries.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neurocoder.policies.heads import program_memory as pm
from neurocoder.policies.heads.base import (
    Head,
    orthogonal,
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


def cosine(a_NK: Float[Tensor, "N K"], b_PK: Float[Tensor, "P K"]) -> Float[Tensor, "N P"]:
    """cos(a, b) of each row of a with each row of b."""
    return F.normalize(a_NK, dim=-1) @ F.normalize(b_PK, dim=-1).T


def program_attention(
    query_BK: Float[Tensor, "B K"], key_PK: Float[Tensor, "P K"], strength_B: Float[Tensor, "B"]
) -> Float[Tensor, "B P"]:
    """The paper's program read, its weights: softmax over programs of softplus(b)·cos(tanh(q), tanh(k))."""
    likeness_BP = cosine(torch.tanh(query_BK), torch.tanh(key_PK))
    return torch.softmax(F.softplus(strength_B).unsqueeze(-1) * likeness_BP, dim=-1)


def key_diversity_loss(key_PK: Float[Tensor, "P K"]) -> Float[Tensor, ""]:
    """The release's pl1: mean cosine over the pairs of distinct keys, between −1/(P − 1) and 1."""
    n_keys = len(key_PK)
    return cosine(key_PK, key_PK).triu(diagonal=1).sum() / (n_keys * (n_keys - 1) / 2)


def key_orthogonality_loss(key_PK: Float[Tensor, "P K"]) -> Float[Tensor, ""]:
    """The release's pl2, but squared and divided by P as Neurocoder's: ‖K Kᵀ − I‖²_F / P."""
    return pm.orthogonal_loss(key_PK)


class NSMHead(Head):
    """y = Σ_p w_p (x W_p + b_p), with w the attention of x over the keys of P stored programs.

    Parameters
    ----------
    in_features, out_features
        Sizes of x and y.
    programs
        P, at least 2: the attention over a single program is constant.
    key_size
        K, at least 2: the cosine of numbers is their sign, which no gradient moves.
    key_diversity
        Weight of :func:`key_diversity_loss`. The release starts at 0.1 and decays it; here it is constant.
    key_orthogonality
        Weight of :func:`key_orthogonality_loss`.
    output_scale
        Multiplies the programs' weights once, at initialisation.

    Both losses are on the keys as stored, before tanh, as in the release.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        programs: int = 10,
        key_size: int = 5,
        key_diversity: float = 0.0,
        key_orthogonality: float = 0.0,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features)
        require_at_least("programs", programs, 2)
        require_at_least("key_size", key_size, 2)
        require_not_negative("key_diversity", key_diversity)
        require_not_negative("key_orthogonality", key_orthogonality)
        require_positive("output_scale", output_scale)
        self.programs = programs
        self.key_size = key_size
        self.key_diversity = key_diversity
        self.key_orthogonality = key_orthogonality
        self.output_scale = output_scale

        self.query = nn.Linear(in_features, key_size)
        self.strength = nn.Linear(in_features, 1)
        self.key = nn.Parameter(torch.empty(programs, key_size))
        self.weight = nn.Parameter(torch.empty(programs, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(programs, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each program an orthogonal linear layer times `output_scale`; orthogonal keys, query and strength."""
        # The release draws all programs as one Xavier matrix, with a program of in·out entries as a row. Next to
        # Xavier programs they come out too small, by about √(in·out / (in + out)): 11 times for 256 × 256.
        orthogonal_programs(self.weight, self.output_scale)
        nn.init.zeros_(self.bias)
        # Keys as far apart as P of them in K dimensions can be: key_orthogonality_loss starts at its floor.
        nn.init.orthogonal_(self.key)
        orthogonal(self.strength, 1.0)
        orthogonal(self.query, 1.0)
        # Not zero: x = 0 would have a query without direction, where the cosine's gradient explodes.
        nn.init.normal_(self.query.bias, std=0.1)

    def attend(self, x_BI: Tensor) -> Tensor:
        """Return the attention of each row over the programs, [B, P]."""
        return program_attention(self.query(x_BI), self.key, self.strength(x_BI).squeeze(-1))

    def forward_with_trace(self, x: Tensor) -> tuple[Tensor, MixtureTrace]:
        """Return y [..., out] and the attention of the same pass."""
        x_BI = self.flatten(x)
        weights = self.attend(x_BI)
        y = mixed_linear(x_BI, weights, self.weight, self.bias)
        shape = x.shape[:-1]
        return y.view((*shape, self.out_features)), MixtureTrace(weights.view((*shape, 1, self.programs)))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        return self.forward_with_trace(x)[0]

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention of x [..., in] over the programs, [..., 1, P]."""
        return self.attend(self.flatten(x)).view((*x.shape[:-1], 1, self.programs))

    def program(self, x: Tensor) -> Tensor:
        """Return W = Σ_p w_p W_p, [..., in, out]: for study, never in forward."""
        program = mixed_program(self.attend(self.flatten(x)), self.weight)
        return program.view((*x.shape[:-1], self.in_features, self.out_features))

    def aux_loss(self) -> Tensor:
        """The weighted losses on the keys; the first can be negative."""
        loss = super().aux_loss()
        if self.key_diversity > 0:
            loss = loss + self.key_diversity * key_diversity_loss(self.key)
        if self.key_orthogonality > 0:
            loss = loss + self.key_orthogonality * key_orthogonality_loss(self.key)
        return loss

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, programs={self.programs}, "
            f"key_size={self.key_size}, key_diversity={self.key_diversity}, "
            f"key_orthogonality={self.key_orthogonality}"
        )
