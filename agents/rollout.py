"""Acting: an actor plays its games with a policy and hands out what happened, `n_steps` of every game at a time.

Shape suffixes: T time (n_steps), B batch (games of one actor).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neurocoder.envs import EpisodeRecorder, GameState
from neurocoder.errors import NeurocoderError
from neurocoder.policies import Policy, State, to_env_action
from neurocoder.policies.tape import Tape


class NonFiniteLossError(NeurocoderError):
    """Raised when a loss, a gradient (before it reaches the shared network) or an output is not finite."""

    exit_code = 1


class Episode(NamedTuple):
    """A whole episode that ended: raw return and length in agent steps."""

    raw_return: float
    length: int


@dataclass(slots=True)
class Rollout:
    """`n_steps` steps of one actor's games, as they were played.

    ======================= ======== ==================================================================
    observation             T, B, …  what the policy saw
    episode_start           T, B     bool: the first observation of a (training) episode
    action                  T, B, …  as the distribution drew it, also where the one before was repeated
    log_prob                T, B     log π(action) when it was drawn
    reward                  T, B     raw
    terminated, truncated   T, B     bool, never both
    truncation_value        T, B     V of the last observation where truncated, else 0
    bootstrap_value         B        V of the observation after the last step
    initial_state           B, …     recurrent state before the first step
    advantage, target       T, B     of the policy and of V, where they are known already, else None
    ======================= ======== ==================================================================

    ``tape`` holds what the trunk of the network computed, until the actor plays on; None if nothing was kept.
    """

    observation: Tensor
    episode_start: Tensor
    action: Tensor
    log_prob: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    truncation_value: Tensor
    bootstrap_value: Tensor
    initial_state: State
    advantage: Tensor | None = None
    target: Tensor | None = None
    tape: Tape | None = None
    episodes: list[Episode] = field(default_factory=list)
    emulation_seconds: float = 0.0
    acting_seconds: float = 0.0

    @property
    def n_games(self) -> int:
        """B."""
        return len(self.bootstrap_value)

    def games(self, index: Tensor) -> "Rollout":
        """Return the part of the rollout that games `index` played; without tape and episodes."""
        return Rollout(
            **{name: getattr(self, name).index_select(1, index) for name in PER_STEP},
            bootstrap_value=self.bootstrap_value[index],
            initial_state=tuple(part[index.to(part.device)] for part in self.initial_state),
        )

    def steps(self, index: Tensor) -> "Rollout":
        """Return steps `index` [N], counted through all games step by step, as N games of one step.

        For policies without memory, and with advantages and targets that are known: what followed is not in it.
        """
        assert self.advantage is not None and self.target is not None and not self.initial_state
        return Rollout(
            **{
                name: getattr(self, name).flatten(0, 1).index_select(0, index)[None]
                for name in (*PER_STEP, "advantage", "target")
            },
            bootstrap_value=torch.zeros(len(index)),
            initial_state=(),
        )

    def next_value(self, value_TB: Tensor) -> Tensor:
        """Return V of the state that each step led to, [T, B], given V of the states themselves."""
        following = torch.cat((value_TB[1:], self.bootstrap_value[None]))
        return torch.where(self.truncated, self.truncation_value, following)


PER_STEP = (
    "observation", "episode_start", "action", "log_prob",
    "reward", "terminated", "truncated", "truncation_value",
)  # fmt: skip


class ActorState(NamedTuple):
    """Where an actor stands between two rollouts. ``games`` is None where games cannot be restored.

    ``played`` [B, …] is what the games were last told; None before their first step.
    """

    generator: Tensor
    recurrent: State
    episode_start: Tensor
    played: Tensor | None
    games: list[GameState] | None


class Actor:
    """Plays the games of `envs` with `policy`, drawing actions with `generator`.

    After :meth:`reset` or :meth:`restore`, a rollout is one :meth:`begin`, `n_steps` times :meth:`act` and
    :meth:`receive` and one :meth:`finish`; :func:`play` does that. Emulators run from `act` to `receive`, so that two actors in
    turn keep both the processor of the network and those of the emulators busy. Between two rollouts the
    owner may change the policy in place. `beat` is called once a step: a sign of life.

    ``extra_sticky`` is the probability with which a game repeats the action of the step before, unless an episode
    begins. What was drawn counts as the action all the same: to the learner it is the environment that is less obedient. It is
    the owner's to change between two rollouts.
    """

    def __init__(
        self,
        policy: Policy,
        envs: EpisodeRecorder,
        generator: torch.Generator,
        *,
        tape: Tape | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.policy, self.envs, self.generator, self.tape = policy, envs, generator, tape
        self.extra_sticky = 0.0
        self._played: Tensor | None = None
        self._beat = beat
        self._device = next(policy.parameters()).device
        self._observations = torch.empty(0)
        """Of this rollout, [n_steps, B, …]. Each is copied as it comes, while the cache has it."""
        self._steps: list[tuple[Tensor, ...]] = []
        self._episodes: list[Episode] = []
        self._emulation = self._acting = 0.0

    def reset(self, seeds: Sequence[int]) -> None:
        """Start all games anew, one seed each."""
        observation, _ = self.envs.reset(seed=list(seeds))
        self._go_on_from(
            observation,
            self.policy.initial_state(self.envs.num_envs),
            torch.ones(self.envs.num_envs, dtype=torch.bool),
        )

    def state(self) -> ActorState:
        """Return what :meth:`restore` needs to go on from here, to the bit where the games allow it."""
        games = self.envs.get_state() if self.envs.exactly_resumable else None
        return ActorState(self.generator.get_state(), self._state, self._start, self._played, games)

    def restore(self, saved: ActorState) -> None:
        """Go on where :meth:`state` was called; ``saved.games`` must be there. They are played again, with heartbeats.

        Raises
        ------
        EnvError
            The games are not deterministic given their seeds and actions: :meth:`reset` starts them anew.
        """
        assert saved.games is not None
        self.generator.set_state(saved.generator)
        observation = self.envs.set_state(saved.games, self._beat)
        self._played = saved.played
        device = self._device
        self._go_on_from(observation, tuple(part.to(device) for part in saved.recurrent), saved.episode_start)

    def _go_on_from(self, observation: np.ndarray, state: State, start: Tensor) -> None:
        self._seen = torch.as_tensor(observation)
        self._state = self._initial_state = state
        self._start = start

    def begin(self, n_steps: int) -> None:
        """Make room for a rollout of `n_steps`."""
        self._observations = torch.empty(n_steps, *self._seen.shape, dtype=self._seen.dtype)

    @torch.no_grad()
    def act(self) -> None:
        """Draw an action for every game and set the games going."""
        began = perf_counter()
        device = self._device
        self._seen = self._observations[len(self._steps)].copy_(self._seen)
        logits, self._state = self.policy.act(
            self._seen.to(device), self._state, self._start.to(device), self.tape
        )
        if not logits.isfinite().all():
            raise NonFiniteLossError("the policy's outputs are not finite")
        action = self.policy.distribution(logits).sample(self.generator).cpu()
        self._pending = (self._start, action, logits)
        self._played = self._repeat_some(action)
        acted = perf_counter()
        self.envs.step_async(to_env_action(self.envs.single_action_space, self._played))
        self._acting += acted - began
        self._emulation += perf_counter() - acted
        self._beat()

    def _repeat_some(self, action: Tensor) -> Tensor:
        """Return `action` [B, …], or what was played before where that is to be repeated."""
        if not self.extra_sticky or self._played is None:
            return action
        draw = torch.rand(len(action), generator=self.generator, device=self._device).cpu()
        repeats = (draw < self.extra_sticky) & ~self._start
        return torch.where(repeats.view(-1, *[1] * (action.dim() - 1)), self._played, action)

    @torch.no_grad()
    def receive(self) -> None:
        """Wait for the games and note what came of the actions."""
        began = perf_counter()
        observation, reward, terminated, truncated, info = self.envs.step_wait()
        self._emulation += perf_counter() - began
        truncated = truncated & ~terminated
        last_value = torch.zeros(self.envs.num_envs)
        if truncated.any():
            where = torch.from_numpy(truncated)
            last_value[where] = self._value(info["final_obs"], torch.zeros_like(where))[where]
        self._steps.append(
            (
                *self._pending,
                torch.as_tensor(reward, dtype=torch.float32),
                torch.from_numpy(terminated),
                torch.from_numpy(truncated),
                last_value,
            )
        )
        self._episodes += [
            Episode(float(info["episode"]["r"][i]), int(info["episode"]["l"][i]))
            for i in np.flatnonzero(info["_episode"])
        ]
        self._seen = torch.as_tensor(observation)
        self._start = torch.from_numpy(terminated | truncated)

    @torch.no_grad()
    def finish(self) -> Rollout:
        """Return the steps since the last call as one rollout."""
        began = perf_counter()
        bootstrap = self._value(self._seen, self._start)
        columns = [torch.stack(column) for column in zip(*self._steps, strict=True)]
        start, action, logits, reward, terminated, truncated, last_value = columns
        distribution = self.policy.distribution(logits)
        log_prob = distribution.log_prob(action.to(self._device)).float().cpu()
        rollout = Rollout(
            observation=self._observations,
            episode_start=start,
            action=action,
            log_prob=log_prob,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            truncation_value=last_value,
            bootstrap_value=bootstrap,
            initial_state=self._initial_state,
            tape=self.tape,
            episodes=self._episodes,
            emulation_seconds=self._emulation,
            acting_seconds=self._acting + perf_counter() - began,
        )
        self._initial_state = self._state
        self._steps, self._episodes = [], []
        self._emulation = self._acting = 0.0
        return rollout

    def _value(self, observation: Any, start: Tensor) -> Tensor:
        """Return V of observations that follow the last action, [B]."""
        seen = torch.as_tensor(observation).to(self._device)
        return self.policy.value(seen, self._state, start.to(self._device)).float().cpu()


def play(actors: Sequence[Actor], n_steps: int) -> list[Rollout]:
    """Return `n_steps` of every actor's games. While one actor's emulators run, the next one thinks."""
    for actor in actors:
        actor.begin(n_steps)
        actor.act()
    for _ in range(n_steps - 1):
        for actor in actors:
            actor.receive()
            actor.act()
    for actor in actors:
        actor.receive()
    return [actor.finish() for actor in actors]


def rollouts(
    policy: Policy,
    envs: EpisodeRecorder,
    n_steps: int,
    seeds: Sequence[int],
    generator: torch.Generator,
) -> Iterator[Rollout]:
    """Play for ever from games started with `seeds`, yielding `n_steps` of every game at a time."""
    actor = Actor(policy, envs, generator)
    actor.reset(seeds)
    while True:
        yield from play([actor], n_steps)
