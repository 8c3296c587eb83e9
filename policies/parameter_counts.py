"""How many numbers a module learns, and how many of them it never reads."""

from typing import NamedTuple

from torch import nn

UNUSED = "carried but never used"
"""Name of the part that holds the parameters which a layer has but nothing reads (its ``unused_parameters``)."""


class ParameterCount(NamedTuple):
    """How many numbers a module learns. `parts` sum to `total`, in the order of registration, UNUSED last."""

    total: int
    used: int
    unused: int
    parts: dict[str, int]


def count_parameters(module: nn.Module) -> ParameterCount:
    """Return how many numbers `module` learns, by child: shared ones once, frozen ones too."""
    unused = {
        id(part.get_parameter(name))
        for part in module.modules()
        for name in getattr(part, "unused_parameters", ())
    }
    parts: dict[str, int] = {}
    n_unused = 0
    for name, parameter in module.named_parameters():
        if id(parameter) in unused:
            n_unused += parameter.numel()
        else:
            part = name.split(".")[0]
            parts[part] = parts.get(part, 0) + parameter.numel()
    n_used = sum(parts.values())
    if n_unused:
        parts[UNUSED] = n_unused
    return ParameterCount(n_used + n_unused, n_used, n_unused, parts)
