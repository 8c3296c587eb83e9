"""A model saved by Stable-Baselines3, and the environment that it is to play in."""

from dataclasses import dataclass
from pathlib import Path

from stable_baselines3.common.policies import BasePolicy

from neurocoder.envs import AtariProtocol, EpisodeRecorder, WatchedGame, env_spec, get_protocol, is_atari
from neurocoder.errors import ConfigError
from neurocoder.policies.sb3.zips import load_policy


@dataclass(frozen=True, slots=True)
class SB3Model:
    """A policy out of a zip; `protocol` is None if `env` is no Atari game."""

    path: Path
    policy: BasePolicy
    env: str
    protocol: AtariProtocol | None

    def check(self, envs: EpisodeRecorder | WatchedGame) -> None:
        """Raise :class:`ConfigError` unless the policy was made for the spaces of `envs`."""
        has, needs = envs.single_observation_space, self.policy.observation_space
        if has.shape != needs.shape or has.dtype != needs.dtype:
            raise ConfigError(f"{self.path}: its policy has observations {needs}, {self.env} has {has} here")
        if envs.single_action_space != self.policy.action_space:
            raise ConfigError(
                f"{self.path}: its policy has actions {self.policy.action_space}, "
                f"{self.env} has {envs.single_action_space}"
            )


def open_sb3_model(path: Path, env: str | None, preset: str | None, *, trust: bool, device: str) -> SB3Model:
    """Read the zip at `path`, for `env`, an Atari game under protocol `preset` (machado2018 unless given).

    Raises
    ------
    ConfigError
        There is no such file, `trust` or `env` is missing, or it is no model; see ``load_policy``.
    EnvError
        `env` is unknown.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if not trust:
        raise ConfigError(
            f"{path}: a zip of Stable-Baselines3 holds pickles, which run code when they are read; "
            f"give --trust if you know where it comes from"
        )
    if env is None:
        raise ConfigError(
            f"{path}: a zip of Stable-Baselines3 does not say which environment it is for; give --env ID"
        )
    atari = is_atari(env_spec(env))
    if preset is not None and not atari:
        raise ConfigError(f"--preset is for Atari games, and {env!r} is none")
    protocol = get_protocol(preset or "machado2018") if atari else None
    return SB3Model(path, load_policy(path, device), env, protocol)
