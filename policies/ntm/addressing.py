"""The Neural Turing Machine's heads: one equation of the paper, one pure function.

Source: A. Graves, G. Wayne and I. Danihelka, "Neural Turing Machines", 2014 (arXiv 1410.5401). Equation numbers
are the paper's. A *weighting* says how much a head attends to each row of the memory: it is >= 0 and sums to one
(eq. 1).

Shape suffixes used in this package:

====== ==================================================================
T, B   time, batch
F, C   inputs and units of the controller
R, W   read heads, write heads
H      all heads, H = R + W, the read heads first
N, M   rows of the memory and their width
S      shifts a head can make, S = 2 · shift_range + 1
Z      numbers that the controller emits for all heads
====== ==================================================================

Two guards are not in the paper, and change nothing else: norms are √(|x|² + ε²), so that a row or key of zeros has
a cosine (0) and a gradient; and eq. 9 takes powers of at least ``SMALLEST``, as softmax(γ log w), which neither
overflows nor divides zero by zero, however large γ is.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-8
"""Added, squared, to squared norms."""

SMALLEST = 1e-12
"""The least weight that is sharpened: log 0 has no gradient."""


class HeadSizes(NamedTuple):
    """What the heads of one machine are, and how many numbers they ask of the controller."""

    read_heads: int
    write_heads: int
    width: int
    shift_range: int

    @property
    def heads(self) -> int:
        """H."""
        return self.read_heads + self.write_heads

    @property
    def shifts(self) -> int:
        """S."""
        return 2 * self.shift_range + 1

    @property
    def parts(self) -> tuple[int, int, int, int]:
        """How Z is made up: what tanh, sigmoid, softplus and softmax are taken of."""
        written = self.write_heads * self.width
        return (
            self.heads * self.width + written,  # keys, add vectors
            written + self.heads,  # erase vectors, gates
            2 * self.heads,  # strengths, sharpenings - 1
            self.heads * self.shifts,  # from +shift_range to -shift_range
        )


class HeadParameters(NamedTuple):
    """What the heads do in one step (section 3 of the paper).

    =============== ============= ==================================================================
    key             [..., H, M]   k, what to look for; in (-1, 1)
    strength        [..., H]      β >= 0 of the search
    gate            [..., H]      g in (0, 1): 1 attends to what was found, 0 to where the head was
    shift           [..., H, S]   s, a distribution over shifts by -shift_range … +shift_range
    sharpening      [..., H]      γ >= 1
    erase           [..., W, M]   e in (0, 1)
    add             [..., W, M]   a in (-1, 1)
    =============== ============= ==================================================================
    """

    key: Tensor
    strength: Tensor
    gate: Tensor
    shift: Tensor
    sharpening: Tensor
    erase: Tensor
    add: Tensor


def head_parameters(raw_Z: Float[Tensor, "*leading Z"], sizes: HeadSizes) -> HeadParameters:
    """Return what the controller's numbers mean, each in its range."""
    n_written = sizes.write_heads * sizes.width
    squashed, opened, positive, shifts = raw_Z.split(sizes.parts, -1)
    squashed, opened, positive = torch.tanh(squashed), torch.sigmoid(opened), F.softplus(positive)
    n_keys = sizes.heads * sizes.width
    vectors = (-1, sizes.width)
    return HeadParameters(
        key=squashed[..., :n_keys].unflatten(-1, vectors),
        strength=positive[..., : sizes.heads],
        gate=opened[..., n_written:],
        shift=torch.softmax(shifts.unflatten(-1, (-1, sizes.shifts)), -1).flip(-1),
        sharpening=1 + positive[..., sizes.heads :],
        erase=opened[..., :n_written].unflatten(-1, vectors),
        add=squashed[..., n_keys:].unflatten(-1, vectors),
    )


def read(weighting_BRN: Float[Tensor, "B R N"], memory_BNM: Float[Tensor, "B N M"]) -> Float[Tensor, "B R M"]:
    """Eq. 2. r = Σᵢ w(i) M(i)."""
    return weighting_BRN @ memory_BNM


def erase(
    memory_BNM: Float[Tensor, "B N M"],
    weighting_BWN: Float[Tensor, "B W N"],
    erase_BWM: Float[Tensor, "B W M"],
) -> Float[Tensor, "B N M"]:
    """Eq. 3. M̃(i) = M(i) ∏_w (1 - w(i) e): the erasures of several heads commute."""
    for weighting_BN, erase_BM in zip(weighting_BWN.unbind(1), erase_BWM.unbind(1), strict=True):
        memory_BNM = memory_BNM * (1 - weighting_BN.unsqueeze(-1) * erase_BM.unsqueeze(-2))
    return memory_BNM


def add(
    memory_BNM: Float[Tensor, "B N M"], weighting_BWN: Float[Tensor, "B W N"], add_BWM: Float[Tensor, "B W M"]
) -> Float[Tensor, "B N M"]:
    """Eq. 4. M(i) = M̃(i) + Σ_w w(i) a."""
    return memory_BNM + weighting_BWN.transpose(-1, -2) @ add_BWM


def write(
    memory_BNM: Float[Tensor, "B N M"],
    weighting_BWN: Float[Tensor, "B W N"],
    erase_BWM: Float[Tensor, "B W M"],
    add_BWM: Float[Tensor, "B W M"],
) -> Float[Tensor, "B N M"]:
    """Eqs. 3, 4. All heads erase, then all heads add: their order does not matter."""
    return add(erase(memory_BNM, weighting_BWN, erase_BWM), weighting_BWN, add_BWM)


def content_weighting(
    key_BHM: Float[Tensor, "B H M"], strength_BH: Float[Tensor, "B H"], memory_BNM: Float[Tensor, "B N M"]
) -> Float[Tensor, "B H N"]:
    """Eq. 5. softmax over rows of β·K[k, M(i)]."""
    return torch.softmax(strength_BH.unsqueeze(-1) * cosine(key_BHM, memory_BNM), -1)


def cosine(key_BHM: Float[Tensor, "B H M"], memory_BNM: Float[Tensor, "B N M"]) -> Float[Tensor, "B H N"]:
    """Eq. 6. K[u, v] = u·v / (|u| |v|), with the guard of this module."""
    return directions(key_BHM) @ directions(memory_BNM).transpose(-1, -2)


def directions(x_BIM: Float[Tensor, "B I M"]) -> Float[Tensor, "B I M"]:
    """x / √(|x|² + ε²)."""
    return x_BIM * torch.rsqrt(x_BIM.square().sum(-1, keepdim=True) + EPSILON**2)


def interpolate(
    content_BHN: Float[Tensor, "B H N"], previous_BHN: Float[Tensor, "B H N"], gate_BH: Float[Tensor, "B H"]
) -> Float[Tensor, "B H N"]:
    """Eq. 7. w_g = g·w_c + (1 - g)·w_{t-1}."""
    return torch.lerp(previous_BHN, content_BHN, gate_BH.unsqueeze(-1))


def shift(weighting_BHN: Float[Tensor, "B H N"], shift_BHS: Float[Tensor, "B H S"]) -> Float[Tensor, "B H N"]:
    """Eq. 8. w̃(i) = Σⱼ w(j) s(i - j), indices modulo N: the weighting moves by j rows to the share s(j)."""
    furthest = shift_BHS.shape[-1] // 2
    moved = [
        torch.roll(weighting_BHN, offset, -1) * shift_BHS[..., offset + furthest, None]
        for offset in range(-furthest, furthest + 1)
    ]
    return torch.stack(moved).sum(0)


def sharpen(
    weighting_BHN: Float[Tensor, "B H N"], sharpening_BH: Float[Tensor, "B H"]
) -> Float[Tensor, "B H N"]:
    """Eq. 9. w(i)^γ / Σⱼ w(j)^γ, with the guard of this module."""
    return torch.softmax(sharpening_BH.unsqueeze(-1) * weighting_BHN.clamp_min(SMALLEST).log(), -1)


def address(
    parameters: HeadParameters, memory_BNM: Float[Tensor, "B N M"], previous_BHN: Float[Tensor, "B H N"]
) -> Float[Tensor, "B H N"]:
    """Eqs. 5-9, figure 2. The weightings of all heads, given those of the step before."""
    content = content_weighting(parameters.key, parameters.strength, memory_BNM)
    gated = interpolate(content, previous_BHN, parameters.gate)
    return sharpen(shift(gated, parameters.shift), parameters.sharpening)
