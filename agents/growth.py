"""Program memories that gain slots from task to task, and lose those that are not used.

The paper proposes it (Le & Venkatesh 2020, discussion) and does not build it. New slots start closed and orthogonal to
the old ones (``NeurocoderLinear.grow``): when a task begins, the network is the one that ended the task before. What
methods remember of parameters follows them: new rows have no importance.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from neurocoder.agents.importance import Network, Samples
from neurocoder.errors import ConfigError
from neurocoder.policies import NeurocoderLinear

SLOT_PARAMETERS = ("memory_u", "memory_v", "memory_s", "key_s", "openness")
"""Parameters of a program memory that have a row for each slot."""
Places = Mapping[str, Tensor]
"""By name of a parameter: where each of its rows was before, -1 for a new one."""


def growing_heads(network: Network) -> dict[str, NeurocoderLinear]:
    """Return the program memories of `network`, by the name that their parameters begin with.

    Raises
    ------
    ConfigError
        There are none, or they are not made for it.
    """
    found = {f"{name}.": part for name, part in network.named_modules() if isinstance(part, NeurocoderLinear)}
    if not found:
        raise ConfigError(
            "continual.grow, continual.prune: this policy has no program memory; take policy.head='neurocoder'"
        )
    for name, head in found.items():
        if head.openness is None:
            raise ConfigError(
                f"continual.grow, continual.prune: {name.rstrip('.')} cannot open and close slots; set openness=true in "
                f"policy.head_config and policy.encoder_config.layers_head_config"
            )
    return found


COPIES = 4
"""Of every parameter that learns: itself, its gradient, and Adam's two means."""


def check_growth(heads: Mapping[str, NeurocoderLinear], n_slots: int, n_tasks: int) -> None:
    """Refuse a growth of `n_slots` between any two of `n_tasks` tasks that this machine's memory cannot hold.

    Raises
    ------
    ConfigError
        That many slots, with their gradients and Adam's means, are more than the machine has.
    """
    needed = 0
    for head in heads.values():
        width = (
            head.in_features + head.out_features + 1 + head.key_size + 1
        )  # rows of U, V, σ, key and openness
        needed += COPIES * head.memory_u.element_size() * width * (head.slots + n_slots * (n_tasks - 1))
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise ConfigError(
            f"continual.grow={n_slots}: after {n_tasks} tasks the program memories would take {needed / 2**30:,.0f} GiB, "
            f"and this machine has {there / 2**30:,.0f}; take fewer slots, or fewer tasks"
        )


def grow(
    heads: Mapping[str, NeurocoderLinear],
    n_slots: int,
    optimizer: torch.optim.Optimizer | None,
    *,
    freeze_old: bool = False,
) -> Places:
    """Add `n_slots` closed slots to each of `heads`; return where the rows of their parameters were."""
    places: dict[str, Tensor] = {}
    for name, head in heads.items():
        before = torch.arange(head.slots)
        head.grow(n_slots, freeze_old=freeze_old, optimizer=optimizer)
        rows = torch.cat((before, before.new_full((n_slots,), -1)))
        places |= {name + parameter: rows for parameter in SLOT_PARAMETERS}
    return places


def prune(
    heads: Mapping[str, NeurocoderLinear],
    usage: Mapping[str, Tensor],
    share: float,
    optimizer: torch.optim.Optimizer,
) -> Places:
    """Remove slots whose `usage` [P] is below `share` of an even one, 1 / P; return where the other rows were.

    As many as an attention needs to choose from stay: the most used.
    """
    places: dict[str, Tensor] = {}
    for name, head in heads.items():
        used = usage[name]
        keep = used * head.slots >= share
        least = max(1, head.least_used)
        if int(keep.sum()) < least:
            keep = torch.zeros_like(keep).index_fill(0, used.topk(least).indices, True)
        if bool(keep.all()):
            continue
        head.prune(keep, optimizer)
        rows = keep.nonzero().squeeze(-1)
        places |= {name + parameter: rows for parameter in SLOT_PARAMETERS}
    return places


def moved(tensor: Tensor, places: Tensor | None) -> Tensor:
    """Return `tensor` [P, ...] with its rows where `places` says, and zeros in new ones; as it is if that is None."""
    if places is None:
        return tensor
    rows = tensor[places.clamp_min(0).to(tensor.device)]
    return torch.where((places >= 0).to(tensor.device).view(-1, *[1] * (tensor.ndim - 1)), rows, 0)


def inputs_of(
    network: Network, heads: Mapping[str, NeurocoderLinear], observation: Tensor
) -> dict[str, Tensor]:
    """Return what each of `heads` sees when `network` sees `observation` [B, ...]: [B, in]."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: seen.__setitem__(name, inputs[0])

    hooks = [head.register_forward_pre_hook(keep(name)) for name, head in heads.items()]
    try:
        network(observation)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@torch.no_grad()
def claim(
    network: Network,
    heads: Mapping[str, NeurocoderLinear],
    slots: Callable[[NeurocoderLinear], range],
    images: Samples,
) -> None:
    """Let `images` read those `slots` of each of `heads` (``NeurocoderLinear.claim``), layer after layer."""
    for name, head in heads.items():  # in order: what a layer sees follows from the claims of those before it
        seen = inputs_of(network, {name: head}, images.observation)[name]
        head.claim(seen.flatten(0, -2), images.target, slots(head))


@torch.no_grad()
def usage(network: Network, heads: Mapping[str, NeurocoderLinear], observation: Tensor) -> dict[str, Tensor]:
    """Return how much every slot is read for `observation` [B, ...]: [P], the mean over images and components.

    Of the three memories (U, V, σ) the one that reads it most.
    """
    seen = inputs_of(network, heads, observation)
    found = {}
    for name, head in heads.items():
        _, trace = head.forward_with_trace(seen[name])
        read = torch.stack([part.flatten(0, -2).mean(0) for part in trace[:3]])
        found[name] = read.amax(0)
    return found
