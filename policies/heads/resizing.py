"""Memories that gain and lose rows, and optimisers that follow."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def orthogonal_rows(memory_PD: Tensor, n: int) -> Tensor:
    """Return n new rows [n, D], orthonormal up to the memory's mean row norm and orthogonal to its rows.

    R^D has room for D − rank(memory) such rows; those beyond are orthogonal among themselves only.
    """
    with torch.no_grad():
        memory = memory_PD.double()
        width = memory.shape[1]
        _, values, directions = torch.linalg.svd(memory, full_matrices=True)
        rank = int((values > values.max() * max(memory.shape) * torch.finfo(memory_PD.dtype).eps).sum())
        free = directions[rank:]  # an orthonormal basis of what no row has a part in
        n_free = min(n, len(free))
        mixed = nn.init.orthogonal_(memory.new_empty(n_free, len(free))) @ free if n_free else free[:0]
        rest = nn.init.orthogonal_(memory.new_empty(n - n_free, width)) if n > n_free else free[:0]
        return (torch.cat((mixed, rest)) * memory.norm(dim=1).mean()).to(memory_PD.dtype)


def append_rows(
    parameter: nn.Parameter, rows: Tensor, optimizer: torch.optim.Optimizer | None, forget_old: bool = False
) -> None:
    """Add `rows` to `parameter`, and zeros to its optimiser state; `forget_old` zeroes what is there too."""

    def grow_state(state: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(state) if forget_old else state, torch.zeros_like(rows)))

    _resize(parameter, torch.cat((parameter.detach(), rows)), grow_state, optimizer)


def keep_rows(parameter: nn.Parameter, index: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    """Keep the rows `index` of `parameter` and of its optimiser state."""
    _resize(parameter, parameter.detach()[index], lambda state: state[index], optimizer)


def _resize(
    parameter: nn.Parameter,
    value: Tensor,
    resize_state: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Give `parameter` a new value in place: it stays the object that optimisers hold.

    State tensors of the parameter's shape (averages of gradients) follow; others (step counts) stay.
    """
    shape = parameter.shape
    parameter.data = value
    parameter.grad = None
    state = {} if optimizer is None else optimizer.state.get(parameter, {})
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.shape == shape:
            state[name] = resize_state(tensor)
