"""Recording while Stable-Baselines3 trains.

from neurocoder.runs.replay.callback import ReplayCallback

model.learn(1_000_000, callback=ReplayCallback("ALE/Pong-v5", every=100_000))
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from neurocoder.envs import WatchedGame, env_spec, get_protocol, is_atari
from neurocoder.errors import ConfigError, require
from neurocoder.runs.config import EvaluationConfig
from neurocoder.runs.replay.agents import Agent, player_of_policy
from neurocoder.runs.replay.episode import Source
from neurocoder.runs.replay.recorder import Recording, free_name, record_episode
from neurocoder.runs.sb3_model import SB3Model


class ReplayCallback(BaseCallback):
    """Record an episode every `every` environment steps, for ``neurocoder watch``.

    It is played in a game of its own, ``make_watched(env)``, whose observations the policy must take: for Atari those of
    ``neurocoder.envs.sb3.make_atari``. Training goes on as if nothing had happened: random numbers, too.

    Parameters
    ----------
    env
        Environment id.
    every
        Environment steps between two episodes; the first is recorded at the start.
    logs, name
        Episodes are folders of ``<logs>/<env>/<name>/episodes``; the name is algorithm and time unless given.
    preset
        Atari protocol; machado2018 unless given.
    seed
        Of every episode: what changes is the agent.
    deterministic
        Take the most probable action instead of sampling.

    Raises
    ------
    ConfigError, EnvError
        A value is out of range or the environment unknown; or, when learning starts, the policy is for other spaces.
    """

    def __init__(
        self,
        env: str,
        every: int = 100_000,
        *,
        logs: str | Path = "logs",
        name: str | None = None,
        preset: str | None = None,
        seed: int = 0,
        deterministic: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        require(every >= 1, "every", every, ">= 1")
        require(0 <= seed < 2**31, "seed", seed, "in [0, 2^31)")
        atari = is_atari(env_spec(env))
        if preset is not None and not atari:
            raise ConfigError(f"preset={preset!r} is for Atari games, and {env!r} is none")
        self.env, self.every, self.seed, self.deterministic = env, every, seed, deterministic
        self.protocol = get_protocol(preset or "machado2018") if atari else None
        self.logs, self.name = Path(logs), name
        self.episodes: list[Path] = []
        """What was recorded so far."""
        self._game: WatchedGame | None = None
        self._next_at = 0

    def _on_training_start(self) -> None:
        name = self.name or f"{type(self.model).__name__}-{time.strftime('%Y%m%d-%H%M%S')}"
        policy = self.model.policy
        model = SB3Model(Path(name), policy, self.env, self.protocol)
        self._agent = Agent(
            env=self.env,
            protocol=self.protocol,
            source=Source(name, self.num_timesteps, ""),
            episodes=self.logs / self.env.replace("/", "-").replace(":", "-") / name / "episodes",
            make_player=lambda seed: player_of_policy(policy, seed, self.deterministic),
            check=model.check,
            deterministic=self.deterministic,
            stuck_after=EvaluationConfig().stuck_after,
            discount=getattr(self.model, "gamma", None),
            masked=[],
            trust=True,
        )
        self._game = self._agent.make_game()
        self._next_at = self.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next_at:
            self._next_at = self.num_timesteps + self.every
            self._record()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._record()
        assert self._game is not None
        self._game.close()

    def _record(self) -> None:
        assert self._game is not None
        source = replace(self._agent.source, checkpoint=self.num_timesteps)
        agent = replace(self._agent, source=source)
        folder = free_name(agent.episodes, agent.episode_name(self.seed))
        training = self.model.policy.training
        with _own_random_numbers():
            player = agent.make_player(self.seed)
            record_episode(player, self._game, folder, agent.info(self.seed), Recording(agent.stuck_after))
        self.model.policy.set_training_mode(training)
        self.episodes.append(folder)


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Leave the generators of Python, NumPy and torch as they are, whatever is drawn inside."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
