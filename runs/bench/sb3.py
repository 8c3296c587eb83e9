"""Stable-Baselines3's PPO on Pong: its own CnnPolicy, and ours with each head, in the same rounds."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NamedTuple

from neurocoder.agents.processes import processors
from neurocoder.runs.bench import layer, peers

GAMES = 8
HYPERPARAMETERS: dict[str, Any] = {
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 4,
    "ent_coef": 0.01,
    "clip_range": 0.1,
}
"""The RL Zoo's for Atari (rl_zoo3 2.9.2)."""
WARM_UP = 1
"""Cycles before the clock runs: each plays a thousand agent steps and learns from them four times."""
STOCK = "CnnPolicy"
ENVS = ("make_atari_env", "native")
"""SB3's own games behind AtariWrapper, and ale-py's native batch (``neurocoder.envs.sb3.make_atari``)."""


@dataclass(frozen=True, slots=True)
class SB3PPO:
    """PPO with the stock policy (`head` None) or ours; whole cycles of playing and learning are timed."""

    head: str | None
    envs: str
    threads: int

    def rate(self, ready: Callable[[], object], seconds: float) -> float:
        import torch
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_atari_env
        from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

        from neurocoder.envs.sb3 import make_atari
        from neurocoder.policies.sb3 import NeurocoderCnnPolicy

        clock = peers.CycleClock(ready, seconds, WARM_UP)
        torch.set_num_threads(self.threads)
        games: VecEnv
        if self.envs == "native":
            games = make_atari("ALE/Pong-v5", GAMES, seed=peers.SEED, num_threads=self.threads)
        else:
            games = VecFrameStack(
                make_atari_env(peers.SB3_ENV, GAMES, seed=peers.SEED, env_kwargs=peers.SB3_ENV_KWARGS), 4
            )
        policy: Any = STOCK if self.head is None else NeurocoderCnnPolicy
        policy_kwargs = None if self.head is None else {"head": self.head}
        try:
            model = PPO(
                policy, games, device="cpu", seed=peers.SEED, policy_kwargs=policy_kwargs, **HYPERPARAMETERS
            )
            model.learn(2**62, callback=peers.sb3_callback(clock))
            return clock.cycles * model.n_steps * GAMES / clock.elapsed
        finally:
            games.close()


class Row(NamedTuple):
    """Agent steps per second: the median, slowest and fastest round; and over the stock policy's median."""

    policy: str
    envs: str
    steps_per_second: float
    low: float
    high: float
    of_stock: float


def contenders(heads: Sequence[str], envs: Sequence[str], threads: int) -> list[SB3PPO]:
    """Return all that is measured: with each kind of games, the stock policy first."""
    return [SB3PPO(head, kind, threads) for kind in envs for head in (None, *heads)]


def measure(compared: Sequence[SB3PPO], repeats: int, seconds: float) -> Iterator[tuple[SB3PPO, float]]:
    """Yield every rate, round by round; every other round goes backwards, so that a drift hits all alike."""
    for round_ in range(repeats):
        for work in compared if round_ % 2 == 0 else reversed(compared):
            yield work, peers.rate_of(work, 1, seconds)


def summarize(rates: dict[SB3PPO, list[float]]) -> list[Row]:
    """Return a row for each contender, in order."""
    middle = {work: statistics.median(found) for work, found in rates.items()}
    stock = {work.envs: middle[work] for work in rates if work.head is None}
    return [
        Row(
            STOCK if work.head is None else f"Neurocoder{STOCK}, {work.head}",
            work.envs,
            middle[work],
            min(found),
            max(found),
            middle[work] / stock[work.envs],
        )
        for work, found in rates.items()
    ]


def protocol(seconds: float, repeats: int, threads: int) -> dict[str, Any]:
    """Return what the numbers mean, to be kept beside them; to be called before measuring."""
    return {
        "env": "ALE/Pong-v5, sticky 0.25",
        "algorithm": f"PPO, {GAMES} games, {HYPERPARAMETERS}",
        "threads": threads,
        "seconds": seconds,
        "repeats": repeats,
        "processors": processors(),
        "load": layer.load(),
        "unit": "agent steps per second, 4 frames each; whole cycles of playing and learning",
        "warm-up": f"{WARM_UP} cycle",
    }


def versions() -> dict[str, str]:
    """Return the versions on which the numbers depend."""
    return {
        **layer.versions(),
        **{name: metadata.version(name) for name in ("stable-baselines3", "ale-py", "gymnasium")},
    }
