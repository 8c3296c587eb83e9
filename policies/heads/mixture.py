"""Mixtures of linear layers, y = Σ_p w_p (x W_p + b_p): what a mixture of experts and a program memory share.

Shape suffixes: B batch, P programs (or experts), I/O inputs and outputs of the layer.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

WIDE = 256
"""Outputs from which each program is a product of its own.

Measured on one core for 10 programs of 3,072 inputs and 512 outputs, 128 samples, both passes: 159 ms by itself, 230 side by
side, of which the copies take a third. With 256 outputs both take the same; with 10 outputs 1.3 and 0.5.
"""


class MixtureTrace(NamedTuple):
    """Which programs each input read. Leading dimensions are the input's; one read, so R = 1."""

    attention: Tensor
    """[..., 1, P], a distribution over the programs."""


def mixed_linear(
    x_BI: Float[Tensor, "B I"],
    weights_BP: Float[Tensor, "B P"],
    weight_PIO: Float[Tensor, "P I O"],
    bias_PO: Float[Tensor, "P O"],
) -> Float[Tensor, "B O"]:
    """y = Σ_p w_p (x W_p + b_p), without building Σ_p w_p W_p for any sample.

    All programs are applied, also those of weight zero: for layers as small as a head this is faster than gathering
    the samples of each program. Narrow ones are applied in one product of x with [W_1 .. W_P].
    """
    n_programs, n_inputs, n_outputs = weight_PIO.shape
    # under a transform (one row of each of many images) single products would read all programs once per image
    if n_outputs >= WIDE and not torch._C._are_functorch_transforms_active():
        y_PBO = x_BI.expand(n_programs, -1, -1) @ weight_PIO
        return (weights_BP.t().unsqueeze(-1) * y_PBO).sum(0) + weights_BP @ bias_PO
    side_by_side = weight_PIO.transpose(0, 1).reshape(n_inputs, n_programs * n_outputs)
    y_BPO = (x_BI @ side_by_side).view(-1, n_programs, n_outputs)
    return (weights_BP.unsqueeze(-2) @ y_BPO).squeeze(-2) + weights_BP @ bias_PO


def mixed_program(
    weights_BP: Float[Tensor, "B P"], weight_PIO: Float[Tensor, "P I O"]
) -> Float[Tensor, "B I O"]:
    """W = Σ_p w_p W_p, materialised."""
    return torch.tensordot(weights_BP, weight_PIO, dims=1)


def orthogonal_programs(weight_PIO: Tensor, gain: float) -> None:
    """Draw each program like the weight of an ordinary linear layer: orthogonal, times `gain`.

    A mean of P such matrices is smaller than each by about √P, and a fresh mixture is close to a mean. This is
    left as it is: an output layer that starts smaller is harmless, whereas programs drawn √P larger would stay
    too large once the attention learns to select one of them.
    """
    with torch.no_grad():
        for program in weight_PIO:
            nn.init.orthogonal_(program, gain=gain)
