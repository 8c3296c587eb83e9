"""What the layers by hand share: when they run, scratch memory, unit vectors, parts of a batch."""

import math
import threading

import torch
from torch import Tensor

from neurocoder.policies.heads.program_memory import SMALLEST_NORM

MAX_SHARPNESS = 40.0
"""exp(±40) and sums of a million of them are safe in float32: up to here no softmax needs its maximum subtracted."""

LOG2_E = 1 / math.log(2)
"""exp(x) = 2^(x·log₂ e), and torch's power of two takes a third of the time of its exp."""

LANES = 16
"""float32 numbers in a vector of AVX-512."""


def can_run_by_hand(x: Tensor, weight: Tensor) -> bool:
    """Whether this is a call that a layer by hand may take: for `x`, of a layer with `weight`."""
    return (
        # compilers fuse the equations themselves, and transforms need to see them
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not (torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type))
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() > 0
    )


class Scratch(threading.local):
    """Memory that a thread keeps for tensors that do not outlive a call, by place and dtype; on a GPU for one stream."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def __call__(self, place: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialised tensor, valid until the next call for the same `place`."""
        key, size = (place, like.device, like.dtype), math.prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer) < size:
            with torch.inference_mode(False):  # it is written to outside of inference, too
                buffer = self._buffers[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return buffer[:size].view(shape)


scratch = Scratch()


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return left * right in the shape of `left`, in scratch memory."""
    return torch.mul(left, right, out=scratch("product", left.shape, left))


def matrix_product(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """Return left @ right, which BLAS takes several times as long for where right has few columns, or left has one.

    Fewer columns than a vector has lanes are better off as rows (measured: [640, 512] @ [512, 6] takes 384 us, its transpose
    89), and what is no sum is no job for it (10 times slower). The result is contiguous: it may be a parameter's gradient, and
    optimisers that go through memory side by side expect it laid out as the parameter is.
    """
    if left_MK.shape[1] == 1:
        return left_MK * right_KN
    if right_KN.shape[1] < LANES:
        return torch.mm(right_KN.t(), left_MK.t()).t().contiguous()
    return torch.mm(left_MK, right_KN)


def unit_vectors(v: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return v / |v| and 1 / |v| along `dim`."""
    inverse = v.square().sum(dim, keepdim=True).sqrt_().clamp_min_(SMALLEST_NORM).reciprocal_()
    return v * inverse, inverse


def unit_backward(gradient: Tensor, unit: Tensor, inverse: Tensor, dim: int) -> Tensor:
    """Return the gradient of v, given that of v / |v| (which is used up)."""
    return gradient.addcmul_(unit, (unit * gradient).sum(dim, keepdim=True), value=-1).mul_(inverse)


def parts_of(batch: int, per_row: int, largest: int) -> list[slice]:
    """Cut `batch` rows of `per_row` numbers into parts of at most `largest` numbers, and at least one row."""
    size = max(1, min(batch, largest // per_row))
    return [slice(start, min(batch, start + size)) for start in range(0, batch, size)]


def joined(pieces: list[Tensor]) -> Tensor:
    """Return the results of all parts side by side along their last dimension."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)
