"""Environment ids: which exist, and what a mistyped one was meant to be."""

import importlib
import warnings

import ale_py
import gymnasium as gym

from neurocoder.errors import NeurocoderError, near
from neurocoder.registration import GAME_SEQUENCE, NAMESPACE

gym.register_envs(ale_py)


class EnvError(NeurocoderError):
    """Raised when an environment id is unknown, not trusted, or cannot be used by an agent."""


def env_spec(env_id: str, *, trust: bool = True) -> gym.envs.registration.EnvSpec:
    """Return the registered specification of `env_id`.

    ``module:Name-v0`` imports `module`, which runs its code: ids that come from a file are looked up with
    ``trust=False``, which refuses that form.

    Raises
    ------
    EnvError
        The id is unknown (near names are offered), or names a module and is not trusted.
    """
    module, colon, name = env_id.rpartition(":")
    if colon:
        if not trust:
            raise EnvError(
                f"environment {env_id!r} comes from a file and would import module {module!r}; pass --trust "
                f"if you know that file"
            )
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a stranger's module raises
            raise EnvError(
                f"environment {env_id!r}: cannot import module {module!r} ({type(error).__name__}: {error})"
            ) from None
    if name in gym.registry:
        return gym.spec(name)
    versions = sorted(
        key for key in gym.registry if key.rpartition("-v")[0] == name.rpartition("-v")[0] != ""
    )
    hint = f"; did you mean {' or '.join(map(repr, versions))}?" if versions else near(name, gym.registry)
    raise EnvError(f"unknown environment {env_id!r}{hint} (all: neurocoder list envs)")


def is_atari(spec: gym.envs.registration.EnvSpec) -> bool:
    """Whether `spec` is a game of the Arcade Learning Environment."""
    return isinstance(spec.entry_point, str) and spec.entry_point.startswith("ale_py.")


def is_game_sequence(env_id: str) -> bool:
    """Whether `env_id` is Atari games one after the other: played under a protocol, as one game is."""
    return env_id.rpartition("-v")[0] == f"{NAMESPACE}/{GAME_SEQUENCE}"


def is_task(spec: gym.envs.registration.EnvSpec) -> bool:
    """Whether `spec` is a supervised task of this package: its info has targets."""
    return spec.namespace == NAMESPACE and not is_game_sequence(spec.id)


def env_ids() -> list[str]:
    """Return all usable ids, sorted, of each game and environment the newest version only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # registry look-ups warn about old versions
        newest: dict[str, gym.envs.registration.EnvSpec] = {}
        for spec in gym.registry.values():
            if is_atari(spec) and spec.namespace != "ALE":
                continue  # the same games under their older names
            key = f"{spec.namespace or ''}/{spec.name}"
            if key not in newest or (spec.version or 0) > (newest[key].version or 0):
                newest[key] = spec
    return sorted(spec.id for spec in newest.values())
