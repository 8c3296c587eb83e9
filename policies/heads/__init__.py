"""Heads: the last layer of a policy. ``make_head`` builds any of them by name."""

from neurocoder.policies.heads.base import Head, HeadError
from neurocoder.policies.heads.composed import ComposedHead, ProgramTrace
from neurocoder.policies.heads.factory import HEADS, head_options, make_head, options_for
from neurocoder.policies.heads.hypernet import HyperNetHead
from neurocoder.policies.heads.linear import LinearHead
from neurocoder.policies.heads.lowrank import LowRankHead
from neurocoder.policies.heads.mixture import MixtureTrace
from neurocoder.policies.heads.moe import MoEHead
from neurocoder.policies.heads.neurocoder import NeurocoderLinear, match_slots
from neurocoder.policies.heads.nsm import NSMHead
from neurocoder.policies.heads.released import ReleasedNeurocoderLinear
from neurocoder.policies.heads.side_by_side import HeadsSideBySide

__all__ = [
    "HEADS",
    "ComposedHead",
    "Head",
    "HeadError",
    "HeadsSideBySide",
    "HyperNetHead",
    "LinearHead",
    "LowRankHead",
    "MixtureTrace",
    "MoEHead",
    "NSMHead",
    "NeurocoderLinear",
    "ProgramTrace",
    "ReleasedNeurocoderLinear",
    "head_options",
    "make_head",
    "match_slots",
    "options_for",
]
