"""Players: play episodes with a policy and own the recurrent state while they do."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from neurocoder.policies import Policy, to_env_action


class Decision(NamedTuple):
    """What a policy said and did, for a batch of B games.

    ============== ======== ================================================================================
    action         [B, ...] taken
    logits         [B, A]   parameters of the distribution that it was drawn from; None if there is none
    value          [B]      the critic's estimate, or the largest action value; None if there is neither
    action_values  [B, A]   of a policy that has them instead of a distribution
    traces                  what the program memory of each head did, by the head's name; heads without one are
                            not in it
    ============== ======== ================================================================================
    """

    action: Tensor
    logits: Tensor | None = None
    value: Tensor | None = None
    action_values: Tensor | None = None
    traces: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Step:
    """One step of all games: what was seen, what was decided, what came of it.

    Games that are `stuck` [num_envs] are cut after this step: the next one is the first of a new game.
    """

    observation: np.ndarray
    decision: Decision
    action: np.ndarray
    """As the environments took it."""
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    stuck: np.ndarray
    info: dict[str, Any]
    told: dict[str, Any]
    """The ``info`` that came with `observation`: of a task, its target."""


class StuckGames:
    """Says which games stand still: `limit` agent steps without a reward other than 0 or a lost life.

    ``info["lives"]`` is looked at where there is one. With limit 0 no game ever counts as stuck.
    """

    def __init__(self, num_envs: int, limit: int) -> None:
        self.limit = limit
        self._idle = np.zeros(num_envs, dtype=np.int64)
        self._lives = np.zeros(num_envs, dtype=np.int64)

    def __call__(self, reward: np.ndarray, ended: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Return bool [num_envs] after a step with `reward` that `ended` some episodes; those count anew."""
        lives = np.asarray(info.get("lives", self._lives))
        active = (reward != 0) | (lives < self._lives) | ended
        self._lives = lives.copy()
        self._idle = np.where(active, 0, self._idle + 1)
        if not self.limit:
            return np.zeros_like(active)
        stuck = self._idle >= self.limit
        self._idle[stuck] = 0
        return stuck


class GamePlayer(ABC):
    """Plays a batch of games with whatever :meth:`_decide` decides."""

    def play(self, envs: gym.vector.VectorEnv, seeds: list[int], *, stuck_after: int = 0) -> Iterator[Step]:
        """Play for ever from games started with `seeds` (one per game), yielding every step.

        A game that stands still for `stuck_after` agent steps (see :class:`StuckGames`) is cut and the next
        one begins.
        """
        observation, told = envs.reset(seed=seeds)  # type: ignore[arg-type]  # one per game
        self._begin(envs.num_envs)
        start = np.ones(envs.num_envs, dtype=bool)
        stuck_games = StuckGames(envs.num_envs, stuck_after)
        while True:
            decision = self._decide(observation, start)
            action = to_env_action(envs.single_action_space, decision.action)
            following, reward, terminated, truncated, info = envs.step(action)
            stuck = stuck_games(reward, terminated | truncated, info)
            yield Step(observation, decision, action, reward, terminated, truncated, stuck, info, told)
            observation, told = following, info
            if stuck.any():  # the other games go on where they are
                observation, told = envs.reset(options={"reset_mask": stuck})
            start = terminated | truncated | stuck

    @abstractmethod
    def _begin(self, num_envs: int) -> None:
        """Forget the games before: `num_envs` new ones start."""

    @abstractmethod
    def _decide(self, observation: np.ndarray, start: np.ndarray) -> Decision:
        """Return what to do, given what is seen and which games [num_envs] have just started."""


class Player(GamePlayer):
    """Plays with `policy` (in evaluation mode), sampling actions unless `deterministic`.

    With `explain` a decision holds the critic's value and the traces, too. The actions are the same.
    """

    def __init__(
        self, policy: Policy, *, deterministic: bool = False, seed: int = 0, explain: bool = False
    ) -> None:
        self.policy = policy.eval()
        self.deterministic = deterministic
        self.explain = explain
        self.device = next(policy.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def _begin(self, num_envs: int) -> None:
        self._state = self.policy.initial_state(num_envs)

    @torch.no_grad()
    def _decide(self, observation: np.ndarray, start: np.ndarray) -> Decision:
        seen = torch.as_tensor(observation).to(self.device)
        started = torch.from_numpy(start).to(self.device)
        if not self.explain:
            logits, self._state = self.policy.act(seen, self._state, started)
            return Decision(self._draw(logits), logits)
        output, self._state, trace = self.policy(seen, self._state, started)
        traces = {name: of for name, of in trace._asdict().items() if of is not None}
        value = None if self.policy.critic is None else output.value
        return Decision(self._draw(output.logits), output.logits, value, traces=traces)

    def _draw(self, logits: Tensor) -> Tensor:
        distribution = self.policy.distribution(logits)
        return distribution.mode() if self.deterministic else distribution.sample(self.generator)


@dataclass(frozen=True, slots=True)
class EvaluatedEpisode:
    """A whole game: raw return, length in agent steps, and what cut it short, if anything did."""

    raw_return: float
    length: int
    stuck: bool
    """Cut because it stood still."""
    truncated: bool
    """Cut at the frame cap (Atari) or the environment's time limit."""


def game_seeds(seed: int, n_envs: int) -> list[int]:
    """Return the seeds of the `n_envs` games of an evaluation with `seed`."""
    words = np.random.SeedSequence(seed).generate_state(n_envs, np.uint32)
    return [int(word) >> 1 for word in words]  # the emulator takes 31 bits


def evaluate(
    player: GamePlayer,
    envs: gym.vector.VectorEnv,
    episodes: int,
    seed: int,
    *,
    stuck_after: int = 0,
    watch: Callable[[Step], None] | None = None,
) -> list[EvaluatedEpisode]:
    """Return `episodes` whole episodes with raw returns, in the order of their seeds.

    Every game of the batch plays the same number of episodes (the last round may be partial), so that short
    episodes are not favoured. A game in which nothing happens for `stuck_after` agent steps (0: however
    long) is cut there and counts with what it has. `watch` is called with every step.
    """
    n_envs = envs.num_envs
    quota = np.full(n_envs, episodes // n_envs)
    quota[: episodes % n_envs] += 1
    played: list[list[EvaluatedEpisode]] = [[] for _ in range(n_envs)]
    raw_return = np.zeros(n_envs)
    length = np.zeros(n_envs, dtype=np.int64)
    for step in player.play(envs, game_seeds(seed, n_envs), stuck_after=stuck_after):
        if watch is not None:
            watch(step)
        raw_return += step.reward
        length += 1
        ended = step.info["_episode"] | step.stuck
        for row in np.flatnonzero(ended):
            if len(played[row]) < quota[row]:
                cut = bool(step.truncated[row] and not step.terminated[row])
                played[row].append(
                    EvaluatedEpisode(float(raw_return[row]), int(length[row]), bool(step.stuck[row]), cut)
                )
        raw_return[ended] = 0
        length[ended] = 0
        if all(len(games) == n for games, n in zip(played, quota, strict=True)):
            break
    return [games[i] for i in range(int(quota.max())) for games in played if i < len(games)]
