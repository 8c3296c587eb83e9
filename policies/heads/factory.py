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


def options_for(name: str, out_features: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an actor's or a critic's head: those `given`, and what learning from rewards asks for.

    Attention is sharper (``SHARPNESS``), and there are at most as many attention heads as outputs. A program of more
    components is no larger a program (rank W <= outputs), but their singular values add up: a critic's only output is
    then steered by all at once, and its estimates swing. PPO on Acrobot learns in 50,000 steps with one component for
    the critic, and not at all with 15 (3 of 3 seeds each).
    """
    if name != "neurocoder":
        return dict(given)
    components = head_options(name)["attention_heads"]
    return {"attention_heads": min(components, out_features), "sharpness": SHARPNESS, **given}
