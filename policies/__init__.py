"""Everything that maps (observation, state) to (output, state, trace)."""

from neurocoder.policies.calibration import calibrate
from neurocoder.policies.cores import CORES, State
from neurocoder.policies.distributions import to_env_action
from neurocoder.policies.encoders import ENCODERS
from neurocoder.policies.heads import HEADS, NeurocoderLinear, ProgramTrace, head_options, make_head
from neurocoder.policies.parameter_counts import count_parameters
from neurocoder.policies.policy import Policy, PolicyConfig, PolicyOutput, PolicyTrace, spelled_out

__all__ = [
    "CORES",
    "ENCODERS",
    "HEADS",
    "NeurocoderLinear",
    "Policy",
    "PolicyConfig",
    "PolicyOutput",
    "PolicyTrace",
    "ProgramTrace",
    "State",
    "calibrate",
    "count_parameters",
    "head_options",
    "make_head",
    "spelled_out",
    "to_env_action",
]
