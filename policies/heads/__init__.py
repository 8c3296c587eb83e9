"""Heads: the last layer of a policy. ``make_head`` builds any of them by name."""

from neurocoder.policies.heads.base import Head, HeadError
from neurocoder.policies.heads.factory import HEADS, head_options, make_head
from neurocoder.policies.heads.linear import LinearHead
from neurocoder.policies.heads.neurocoder import NeurocoderLinear, ProgramTrace

__all__ = [
    "HEADS",
    "Head",
    "HeadError",
    "LinearHead",
    "NeurocoderLinear",
    "ProgramTrace",
    "head_options",
    "make_head",
]
