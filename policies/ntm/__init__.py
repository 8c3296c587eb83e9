"""The Neural Turing Machine: a controller that reads and writes a memory by attention."""

from neurocoder.policies.ntm.addressing import HeadParameters
from neurocoder.policies.ntm.core import NTMCore, NTMTrace

__all__ = ["HeadParameters", "NTMCore", "NTMTrace"]
