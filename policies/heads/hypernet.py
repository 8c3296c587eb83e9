"""HyperNetHead: a linear layer whose weights another, smaller network generates.

Source: D. Ha, A. Dai and Q. V. Le, "HyperNetworks", ICLR 2017 (arXiv 1609.09106). Equation and section numbers
are the paper's. The variant "input-scale" is the baseline of Le and Venkatesh 2020 (arXiv 2009.11443), whose
equation is inferred from the parameter count that they report.

Shape suffixes used in this module:

====== ===============================================
B      batch
I, O   inputs, outputs of the layer
Z      width of an embedding z, the paper's N_z
D      hidden units of the static hypernetwork, d
====== ===============================================

What differs from the paper:

* The paper's dynamic hypernetwork is a recurrent cell beside the main one. A head has no state of its own, so its
  embeddings are linear in the features: eq. 6 with x in place of the cell's output ĥ. A generated b is then
  linear in x too, b(z_b) = W_bz W_bx x + b₀.
* The paper's static hypernetwork serves many layers of a convolutional network. Here it serves one, with kernels
  of 1×1, and a plain bias b is added.
* The scales d start at 1, so that a fresh head is a plain linear layer but for a small b(z_b); the paper starts
  them at 0.1, for the gradient flow of its recurrent network (A.2.3).
* The paper starts the embedding's weights at 0, its bias at 1 and all of W_dz at one constant (A.2.3). Then the
  Z entries of z and the Z columns of W_dz get equal gradients and stay equal forever, as if Z were 1. Here W_dz
  (and the kernels W_k) are random, shifted to the sum that makes the scales 1 (and W(z) orthogonal).
* The paper starts W_bz at 0, which keeps the embedding z_b from learning at the first step; here W_bz is small.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neurocoder.errors import lookup
from neurocoder.policies.heads.base import Head, HeadError, require_at_least, require_positive

SMALL = 0.01
"""Standard deviation of the weights that start small, as in the paper (A.2.3)."""


# ---------------------------------------------------------------------------------------- equations


def static_kernel(
    z_Z: Float[Tensor, "Z"],
    hidden_weight_IDZ: Float[Tensor, "I D Z"],
    hidden_bias_ID: Float[Tensor, "I D"],
    out_weight_OD: Float[Tensor, "O D"],
    out_bias_O: Float[Tensor, "O"],
) -> Float[Tensor, "I O"]:
    """Eq. 2. aᵢ = Wᵢ z + Bᵢ; row i of the kernel is W_out aᵢ + B_out. Its rank is at most D + 1."""
    hidden_ID = hidden_weight_IDZ @ z_Z + hidden_bias_ID
    return hidden_ID @ out_weight_OD.T + out_bias_O


def mixed_kernel(z_BZ: Float[Tensor, "B Z"], kernels_ZOI: Float[Tensor, "Z O I"]) -> Float[Tensor, "B I O"]:
    """Eq. 5. W(z) = ⟨W_hz, z⟩ = Σₖ zₖ Wₖ, materialised."""
    return torch.einsum("bz,zoi->bio", z_BZ, kernels_ZOI)


def apply_mixed_kernel(
    x_BI: Float[Tensor, "B I"], z_BZ: Float[Tensor, "B Z"], kernels_ZOI: Float[Tensor, "Z O I"]
) -> Float[Tensor, "B O"]:
    """Eq. 5 applied to x without building W(z): Σₖ zₖ (x Wₖ), one matrix product for all kernels."""
    outputs_BZO = F.linear(x_BI, kernels_ZOI.flatten(0, 1)).unflatten(-1, kernels_ZOI.shape[:2])
    return (z_BZ.unsqueeze(-2) @ outputs_BZO).squeeze(-2)


def output_scaled_kernel(
    scale_BO: Float[Tensor, "B O"], weight_OI: Float[Tensor, "O I"]
) -> Float[Tensor, "B I O"]:
    """Eq. 7. Output o's weights times d_o (the paper's rows, the columns of W [in, out]), materialised."""
    return scale_BO.unsqueeze(-2) * weight_OI.T


def apply_output_scaled_kernel(
    x_BI: Float[Tensor, "B I"], scale_BO: Float[Tensor, "B O"], weight_OI: Float[Tensor, "O I"]
) -> Float[Tensor, "B O"]:
    """Eq. 8. d ⊙ (x W)."""
    return scale_BO * F.linear(x_BI, weight_OI)


def input_scaled_kernel(
    scale_BI: Float[Tensor, "B I"], weight_OI: Float[Tensor, "O I"]
) -> Float[Tensor, "B I O"]:
    """Le and Venkatesh's baseline. Input i's weights times d_i, materialised."""
    return scale_BI.unsqueeze(-1) * weight_OI.T


def apply_input_scaled_kernel(
    x_BI: Float[Tensor, "B I"], scale_BI: Float[Tensor, "B I"], weight_OI: Float[Tensor, "O I"]
) -> Float[Tensor, "B O"]:
    """Le and Venkatesh's baseline. (d ⊙ x) W."""
    return F.linear(scale_BI * x_BI, weight_OI)


# ----------------------------------------------------------------------------------------- variants


class GeneratedLayer(nn.Module, ABC):
    """One way to generate the weights of y = x W + b; `x_BI` is a flat batch."""

    conditional = True

    @abstractmethod
    def reset_parameters(self, output_scale: float) -> None:
        """Draw all parameters anew; W and what b adds to y are proportional to `output_scale`."""

    @abstractmethod
    def forward(self, x_BI: Tensor) -> Tensor:
        """Map x [B, in] to y [B, out]."""

    @abstractmethod
    def program(self, x_BI: Tensor) -> Tensor:
        """Return W [B, in, out], materialised."""

    @abstractmethod
    def bias_for(self, x_BI: Tensor) -> Tensor:
        """Return b [B, out]."""


class GeneratedBias(nn.Module):
    """b(z_b) = W_bz z_b + b₀ of eqs. 5 and 8, with z_b of eq. 6 (which has no bias of its own)."""

    def __init__(self, in_features: int, out_features: int, embedding_size: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(in_features, embedding_size, bias=False)
        self.readout = nn.Linear(embedding_size, out_features)

    def reset_parameters(self, output_scale: float) -> None:
        nn.init.normal_(self.embedding.weight, std=SMALL)
        nn.init.normal_(self.readout.weight, std=SMALL * output_scale)
        nn.init.zeros_(self.readout.bias)

    def forward(self, x_BI: Tensor) -> Tensor:
        return self.readout(self.embedding(x_BI))


class StaticLayer(GeneratedLayer):
    """Section 3.1: the kernel is generated from a learned embedding of the layer, the same for all inputs."""

    conditional = False

    def __init__(self, in_features: int, out_features: int, embedding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(embedding_size))
        self.hidden_weight = nn.Parameter(torch.empty(in_features, hidden_size, embedding_size))
        self.hidden_bias = nn.Parameter(torch.empty(in_features, hidden_size))
        self.out_weight = nn.Parameter(torch.empty(out_features, hidden_size))
        self.out_bias = nn.Parameter(torch.empty(out_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def reset_parameters(self, output_scale: float) -> None:
        """Hidden units of variance 1, and W with entries of the variance that an orthogonal matrix has."""
        out_features, hidden_size = self.out_weight.shape
        width = math.sqrt(len(self.embedding))
        nn.init.orthogonal_(self.embedding.unsqueeze(0), gain=width)  # a random direction, of norm √Z
        nn.init.normal_(self.hidden_weight, std=1 / width)
        std = 1 / math.sqrt(hidden_size * max(len(self.hidden_weight), out_features))
        nn.init.normal_(self.out_weight, std=output_scale * std)
        for bias in (self.hidden_bias, self.out_bias, self.bias):
            nn.init.zeros_(bias)

    def kernel(self) -> Tensor:
        """Return W [in, out]."""
        return static_kernel(
            self.embedding, self.hidden_weight, self.hidden_bias, self.out_weight, self.out_bias
        )

    def forward(self, x_BI: Tensor) -> Tensor:
        return x_BI @ self.kernel() + self.bias

    def program(self, x_BI: Tensor) -> Tensor:
        return self.kernel().expand(len(x_BI), -1, -1)

    def bias_for(self, x_BI: Tensor) -> Tensor:
        return self.bias.expand(len(x_BI), -1)


class DynamicLayer(GeneratedLayer):
    """Section 3.2, full form: W(z) is a mixture of Z kernels.

    No further static kernel is added: the bias b_z of z = W_zx x + b_z already gives W(z) the constant part
    Σₖ b_zₖ Wₖ.
    """

    def __init__(self, in_features: int, out_features: int, embedding_size: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(in_features, embedding_size)
        self.kernels = nn.Parameter(torch.empty(embedding_size, out_features, in_features))
        self.bias = GeneratedBias(in_features, out_features, embedding_size)

    def reset_parameters(self, output_scale: float) -> None:
        """z = 1 for every x, and kernels whose sum is orthogonal times `output_scale`."""
        make_constant(self.embedding, 1.0)
        n_kernels, out_features, in_features = self.kernels.shape
        start = nn.init.orthogonal_(torch.empty_like(self.kernels[0]), gain=output_scale)
        nn.init.normal_(
            self.kernels, std=output_scale / math.sqrt(n_kernels * max(in_features, out_features))
        )
        shift_to_sum(self.kernels, start, dim=0)
        self.bias.reset_parameters(output_scale)

    def forward(self, x_BI: Tensor) -> Tensor:
        return apply_mixed_kernel(x_BI, self.embedding(x_BI), self.kernels) + self.bias(x_BI)

    def program(self, x_BI: Tensor) -> Tensor:
        return mixed_kernel(self.embedding(x_BI), self.kernels)

    def bias_for(self, x_BI: Tensor) -> Tensor:
        return self.bias(x_BI)


class OutputScaledLayer(GeneratedLayer):
    """Section 3.2, memory-efficient form: one weight matrix, each output scaled by d(z) = W_dz z."""

    def __init__(self, in_features: int, out_features: int, embedding_size: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(in_features, embedding_size)
        self.scale_weight = nn.Parameter(torch.empty(out_features, embedding_size))
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = GeneratedBias(in_features, out_features, embedding_size)

    def reset_parameters(self, output_scale: float) -> None:
        """d = 1 for every x, W orthogonal times `output_scale`."""
        make_constant(self.embedding, 1.0)
        nn.init.normal_(self.scale_weight, std=1 / math.sqrt(self.scale_weight.shape[1]))
        shift_to_sum(self.scale_weight, torch.ones_like(self.scale_weight[:, 0]), dim=1)
        nn.init.orthogonal_(self.weight, gain=output_scale)
        self.bias.reset_parameters(output_scale)

    def scale(self, x_BI: Tensor) -> Tensor:
        """Eqs. 6, 8. d(z) [B, out]."""
        return F.linear(self.embedding(x_BI), self.scale_weight)

    def forward(self, x_BI: Tensor) -> Tensor:
        return apply_output_scaled_kernel(x_BI, self.scale(x_BI), self.weight) + self.bias(x_BI)

    def program(self, x_BI: Tensor) -> Tensor:
        return output_scaled_kernel(self.scale(x_BI), self.weight)

    def bias_for(self, x_BI: Tensor) -> Tensor:
        return self.bias(x_BI)


class InputScaledLayer(GeneratedLayer):
    """Le and Venkatesh's baseline: one weight matrix, each input scaled by d(x), linear in x, no embedding."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.scale = nn.Linear(in_features, in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def reset_parameters(self, output_scale: float) -> None:
        """d = 1 for every x, W orthogonal times `output_scale`, b = 0."""
        make_constant(self.scale, 1.0)
        nn.init.orthogonal_(self.weight, gain=output_scale)
        nn.init.zeros_(self.bias)

    def forward(self, x_BI: Tensor) -> Tensor:
        return apply_input_scaled_kernel(x_BI, self.scale(x_BI), self.weight) + self.bias

    def program(self, x_BI: Tensor) -> Tensor:
        return input_scaled_kernel(self.scale(x_BI), self.weight)

    def bias_for(self, x_BI: Tensor) -> Tensor:
        return self.bias.expand(len(x_BI), -1)


def make_constant(layer: nn.Linear, value: float) -> None:
    """Let `layer` return `value` for every input: weight 0, bias `value`."""
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, value)


def shift_to_sum(parts: Tensor, total: Tensor, dim: int) -> None:
    """Shift the slices of `parts` along `dim`, all by the same tensor, so that they sum to `total`."""
    with torch.no_grad():
        parts.add_((total - parts.sum(dim)).div(parts.shape[dim]).unsqueeze(dim))


# --------------------------------------------------------------------------------------------- head


class HyperNetHead(Head):
    """y = x W + b, with W (and for two variants b) generated by a hypernetwork.

    =========== ============================================ ==================== =========================
    variant     W [in, out]                                  b [out]              source
    =========== ============================================ ==================== =========================
    static      row i is W_out (Wᵢ z + Bᵢ) + B_out           b                    section 3.1, eq. 2
    dynamic     Σₖ zₖ Wₖ, z = W_zx x + b_z                   W_bz (W_bx x) + b₀   section 3.2, eqs. 5, 6
    scale       W ⊙ d over columns, d = W_dz (W_zx x + b_z)  W_bz (W_bx x) + b₀   section 3.2, eqs. 6 to 8
    input-scale W ⊙ d over rows, d = W_dx x + b_d            b                    Le and Venkatesh 2020
    =========== ============================================ ==================== =========================

    No variant builds W for each sample to compute y. The static kernel does not depend on x, and only for that
    variant is `conditional` False. A generated b is no part of :meth:`program`; :meth:`bias_for` returns it.

    Parameters
    ----------
    in_features, out_features
        Sizes of x and y.
    variant
        One of the table's.
    embedding_size
        N_z, the width of z; "input-scale" has no z and does not use it.
    hidden_size
        d, the hidden units of the static hypernetwork, for variant "static" only; None is `embedding_size`, the
        paper's choice. The static kernel's rank is at most d + 1.
    output_scale
        Multiplies, once at the start, the weights that y is proportional to: W_out, W_k or W, and W_bz.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        variant: str = "scale",
        embedding_size: int = 4,
        hidden_size: int | None = None,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features)
        require_at_least("embedding_size", embedding_size, 1)
        if hidden_size is not None:
            require_at_least("hidden_size", hidden_size, 1)
        require_positive("output_scale", output_scale)
        sizes = in_features, out_features
        variants: dict[str, Callable[[], GeneratedLayer]] = {
            "static": lambda: StaticLayer(*sizes, embedding_size, hidden_size or embedding_size),
            "dynamic": lambda: DynamicLayer(*sizes, embedding_size),
            "scale": lambda: OutputScaledLayer(*sizes, embedding_size),
            "input-scale": lambda: InputScaledLayer(*sizes),
        }
        make_layer = lookup(variants, str(variant), "variant", HeadError)
        if hidden_size is not None and variant != "static":
            raise HeadError(
                f"hidden_size={hidden_size} must be None: variant {variant!r} has no hidden units"
            )
        self.variant = variant
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.output_scale = output_scale
        self.layer = make_layer()
        self.conditional = self.layer.conditional
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew; every variant starts with weights like a plain linear layer's."""
        self.layer.reset_parameters(self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to y [..., out]."""
        return self.layer(self.flatten(x)).view((*x.shape[:-1], self.out_features))

    def program(self, x: Tensor) -> Tensor:
        """Return the generated W [..., in, out], materialised: for study, never in forward."""
        shape = (*x.shape[:-1], self.in_features, self.out_features)
        return self.layer.program(self.flatten(x)).reshape(shape)

    def bias_for(self, x: Tensor) -> Tensor:
        """Return b [..., out], the part of y that is not x W."""
        return self.layer.bias_for(self.flatten(x)).reshape((*x.shape[:-1], self.out_features))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, variant={self.variant!r}"
