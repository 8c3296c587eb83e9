"""Heads by name."""

import inspect
from collections.abc import Mapping
from typing import Any

from neurocoder.errors import lookup, near
from neurocoder.policies.heads.base import Head, HeadError
from neurocoder.policies.heads.hypernet import HyperNetHead
from neurocoder.policies.heads.linear import LinearHead
from neurocoder.policies.heads.lowrank import LowRankHead
from neurocoder.policies.heads.moe import MoEHead
from neurocoder.policies.heads.neurocoder import NeurocoderLinear
from neurocoder.policies.heads.nsm import NSMHead
from neurocoder.policies.heads.released import ReleasedNeurocoderLinear

HEADS: dict[str, type[Head]] = {
    "linear": LinearHead,
    "lowrank": LowRankHead,
    "neurocoder": NeurocoderLinear,
    "neurocoder-released": ReleasedNeurocoderLinear,
    "nsm": NSMHead,
    "moe": MoEHead,
    "hypernet": HyperNetHead,
}


def head_options(name: str) -> dict[str, Any]:
    """Return the options of head `name` with their defaults."""
    parameters = inspect.signature(lookup(HEADS, name, "head", HeadError)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def make_head(name: str, in_features: int, out_features: int, **options: Any) -> Head:
    """Return head `name` mapping [..., in_features] to [..., out_features].

    Raises
    ------
    HeadError
        An unknown name or option (near names are offered), or a value that the head cannot use.
    """
    known = head_options(name)
    for option in options:
        if option not in known:
            raise HeadError(f"head {name!r} has no option {option!r}{near(option, known)}")
    return HEADS[name](in_features, out_features, **options)


SHARPNESS = 5.0
"""Of the attention in actors' and critics' heads.

At the paper's 1 (eq. 11 as printed), attention over 80 slots is nearly flat: all slots learn the same, and A2C on CartPole
goes up and down and never settles. From 5 on the slots are told apart, and it stays at the top with each of three seeds.
"""


COMPONENTS = 4
"""Attention heads of actors' and critics' heads.

Singular values add up over a program's components: with the paper's 15 a critic's estimates swing, and PPO on Acrobot does not
learn (3 of 3 seeds); with a single one it learns, but begins late with some seeds. With four, A2C on CartPole and PPO on Acrobot
are as fast as a linear layer, or faster.
"""


def options_for(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an actor's or a critic's head: those `given`, over what learning from rewards asks for."""
    return (
        {"attention_heads": COMPONENTS, "sharpness": SHARPNESS, **given}
        if name == "neurocoder"
        else dict(given)
    )
