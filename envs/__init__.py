"""Environments: Atari under a recorded protocol, and any installed Gymnasium id, as batches."""

from neurocoder.envs.atari import PROTOCOLS, AtariEnvs, AtariProtocol, get_protocol, make_atari
from neurocoder.envs.registry import EnvError, env_ids, env_spec, is_atari
from neurocoder.envs.vector import make_vec

__all__ = [
    "PROTOCOLS",
    "AtariEnvs",
    "AtariProtocol",
    "EnvError",
    "env_ids",
    "env_spec",
    "get_protocol",
    "is_atari",
    "make_atari",
    "make_vec",
]
