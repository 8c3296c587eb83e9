"""A worker: one process that plays its own games and learns from them, update by update."""

import random
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from neurocoder.agents import denormals
from neurocoder.agents.a3c import (
    A3CConfig,
    assessed,
    extra_sticky,
    learning_rate,
    loss_and_metrics,
    with_entropy_of,
)
from neurocoder.agents.allocation import keep_freed_memory
from neurocoder.agents.hogwild import Board, LocalCopy, SharedModel
from neurocoder.agents.importance import Network, Penalty
from neurocoder.agents.processes import exit_with_parent
from neurocoder.agents.rollout import Actor, ActorState, Episode, NonFiniteLossError, Rollout, play
from neurocoder.envs import EnvError, EpisodeRecorder, GameState
from neurocoder.policies import Policy, PolicyConfig
from neurocoder.policies.tape import Tape

DIAGNOSED = 8
"""Every how many updates the heads' diagnostics are computed: they take as long as a fifth of the learning."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where one worker stands between two updates: arrays and JSON values only.

    Random number generators, recurrent states and, where the environments allow it, the very games.
    """

    worker: int
    arrays: dict[str, np.ndarray]
    data: dict[str, Any]

    @property
    def has_games(self) -> bool:
        """Whether the games go on where they were; otherwise they start anew."""
        return bool(self.data["games"])


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """What a training run is told. `make_envs(num_envs)` must be picklable."""

    make_envs: Callable[[int], EpisodeRecorder]
    observation_space: gym.Space
    action_space: gym.Space
    policy: PolicyConfig
    a3c: A3CConfig
    total_steps: int
    seed: int
    device: str = "cpu"
    precision: str = "fp32"
    checkpoint_every: int = 0
    max_restarts: int = 0
    worker_timeout: float = 10.0
    resumed_at: int = 0
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    """Where the workers of a resumed run stood."""
    penalty: Penalty | None = None
    """What is added to every update's loss so that earlier games are not forgotten."""


@dataclass(frozen=True, slots=True)
class Record:
    """One update of one worker. `agent_steps` is the run's count after it."""

    worker: int
    agent_steps: int
    metrics: dict[str, float]
    episodes: list[Episode]
    silence: float = 0.0
    """Seconds: the longest that it took from one sign of life to the next."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What people should know: a worker was replaced, or its games start anew after all."""

    text: str
    restarts: int = 0
    """Workers replaced in this session so far."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a worker ended: ``nan`` or ``error``, and the words for it."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Farewell:
    """A worker's last word, when the run's steps are used up or it was told to stop."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Delivered:
    """A gradient for the update that all share is there, and it is not the last of its rollout."""

    worker: int


Message = Record | Delivered | Snapshot | Notice | Failure | Farewell


def worker_seeds(
    seed: int, worker: int, n_envs: int, resumed_at: int = 0, restarts: int = 0
) -> tuple[int, list[int]]:
    """Return a worker's seed for actions and one seed per game, from one tree over the whole run."""
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(worker, resumed_at, restarts))
    words = sequence.generate_state(n_envs + 1, np.uint32) >> 1  # the emulator takes 31 bits
    return int(words[0]), [int(word) for word in words[1:]]


def run_worker(
    index: int, restarts: int, spec: TrainSpec, model: SharedModel, board: Board, connection: Connection
) -> None:
    """Body of a worker process: send what comes of every update; wait for an answer where one is due."""
    exit_with_parent()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        with denormals.as_zero():
            worker = Worker(index, restarts, spec, model, board)
            for message in worker.messages():
                connection.send(message)
                if isinstance(message, Snapshot | Delivered) or (
                    spec.a3c.sync and isinstance(message, Record)
                ):
                    connection.recv()
                    worker.beat(waited=True)
    except (BrokenPipeError, EOFError, ConnectionResetError):
        pass  # the supervisor is done with this worker
    except NonFiniteLossError as error:
        where = f"worker {index} at {board.agent_steps:,} agent steps"
        connection.send(Failure("nan", f"{where}: {error}"))
    except Exception:  # whatever it is, the supervisor reports it
        connection.send(Failure("error", traceback.format_exc()))


class Worker:
    """Plays, learns and pushes until the run's steps are used up."""

    def __init__(self, index: int, restarts: int, spec: TrainSpec, model: SharedModel, board: Board) -> None:
        config = spec.a3c
        self.index, self.spec, self.model, self.board = index, spec, model, board
        action_seed, env_seeds = worker_seeds(
            spec.seed, index, config.envs_per_worker, spec.resumed_at, restarts
        )
        torch.manual_seed(action_seed)
        np.random.seed(action_seed)
        random.seed(action_seed)
        self._device = torch.device(spec.device)
        self._policy = Policy(spec.observation_space, spec.action_space, spec.policy.without_weights()).to(
            self._device
        )
        self._network = Network(self._policy)
        self._local = LocalCopy(self._policy, model, config)
        self._precision = torch.autocast(self._device.type, torch.bfloat16, enabled=spec.precision == "bf16")
        self._updates_before = float(model.updates) - int(board.updates.sum())
        size = config.envs_per_worker // config.env_groups
        lowered = spec.precision == "bf16"
        trunk = self._policy.encoder, self._policy.core
        assesses = config.minibatches > 1 and not (self._policy.initial_state(1) or config.vtrace)
        keeps = (config.keeps_acting_pass or assesses) and Tape.can_record(*trunk, lowered=lowered)
        self._actors = [
            Actor(
                self._policy,
                spec.make_envs(size),
                torch.Generator(self._device).manual_seed(action_seed + group),
                tape=Tape(config.n_steps, lowered=lowered, differentiable=config.keeps_acting_pass)
                if keeps
                else None,
                beat=self.beat,
            )
            for group in range(config.env_groups)
        ]
        self._env_seeds = [env_seeds[i * size : (i + 1) * size] for i in range(config.env_groups)]
        self._snapshot = None if restarts else spec.snapshots.get(index)
        self._beaten, self._silence = time.monotonic(), 0.0

    def beat(self, waited: bool = False) -> None:
        """Give a sign of life, and note how long it took since the last one, unless this worker `waited` for others."""
        now = time.monotonic()
        if not waited:
            self._silence = max(self._silence, now - self._beaten)
        self._beaten = now
        self.board.beat(self.index)

    def messages(self) -> Iterator[Message]:
        """Yield a record for every update, a snapshot whenever a pause is asked for, and a farewell."""
        try:
            yield from self._start()
            while not (self.board.stopping or self.board.agent_steps >= self.spec.total_steps):
                if self.board.pausing:
                    yield self.snapshot()
                else:
                    yield from self._update()
            yield Farewell(self.snapshot())
        finally:
            for actor in self._actors:
                actor.envs.close()

    def _start(self) -> Iterator[Notice]:
        """Start the games, or go on from a snapshot."""
        snapshot = self._snapshot
        if snapshot is not None:
            restore_generators(snapshot)
        for group, actor in enumerate(self._actors):
            if snapshot is not None and snapshot.has_games:
                try:
                    actor.restore(unpack_actor(snapshot, group))
                    continue
                except EnvError as error:
                    yield Notice(f"worker {self.index}: {error}; its games start anew")
            actor.reset(self._env_seeds[group])
        self.beat()

    def snapshot(self) -> Snapshot:
        """Return where this worker stands, for a checkpoint."""
        return take_snapshot(self.index, [actor.state() for actor in self._actors])

    def _update(self) -> Iterator[Delivered | Record]:
        """Play one rollout and learn from it."""
        config, index = with_entropy_of(self.spec.a3c, self.board.agent_steps), self.index
        self._silence = 0.0
        began = time.perf_counter()
        self._pull()
        sharing = time.perf_counter() - began
        sticky = extra_sticky(config, self.board.agent_steps, self.spec.total_steps)
        for actor in self._actors:
            actor.extra_sticky = sticky
        with self._precision:
            rollouts = play(self._actors, config.n_steps)
        diagnostics = int(self.model.updates) % DIAGNOSED == 0
        learning = 0.0
        numbers: list[dict[str, float]] = []
        for update, parts in enumerate(self._minibatches(rollouts), start=1):
            clock = [time.perf_counter()]
            if not config.keeps_acting_pass:
                self._pull()
            clock.append(time.perf_counter())
            numbers += self._learn(parts, config, diagnostics and update == 1)
            clock.append(time.perf_counter())
            if config.sync:
                self._local.deliver(self.model.gradients[index])
                if update < config.updates_per_rollout:
                    asked = time.perf_counter()
                    yield Delivered(index)
                    waited = time.perf_counter() - asked  # for others: no work of this worker's
                    began += waited
                    clock = [moment + waited for moment in clock]
            else:
                numbers.append(self._push(played=update == config.updates_per_rollout))
            clock.append(time.perf_counter())
            self.beat()
            pulling, learned, pushing = (after - before for before, after in pairwise(clock))
            learning += learned
            sharing += pulling + pushing
        metrics = means(numbers) | {
            "time/emulation": sum(rollout.emulation_seconds for rollout in rollouts),
            "time/acting": sum(rollout.acting_seconds for rollout in rollouts),
            "time/learning": learning,
            "time/sharing": sharing,
            "time/update": time.perf_counter() - began,
        }
        if config.extra_sticky:
            metrics["extra_sticky"] = sticky
        episodes = [episode for rollout in rollouts for episode in rollout.episodes]
        yield Record(index, self.board.agent_steps, metrics, episodes, self._silence)

    def _minibatches(self, rollouts: list[Rollout]) -> Iterator[list[Rollout]]:
        """Yield what each update is to learn from: a part of every actor's steps, or of its games."""
        config = self.spec.a3c
        if config.minibatches == 1:
            yield from [rollouts] * config.epochs
            return
        # V-trace weighs a game's steps by the policy of the update, which no advantage computed before can
        single_steps = not (rollouts[0].initial_state or config.vtrace)
        if single_steps:
            with self._precision:
                rollouts = [assessed(self._policy, rollout, config) for rollout in rollouts]
        parts = config.games_per_rollout * (config.n_steps if single_steps else 1)
        for _ in range(config.epochs):
            orders = [torch.randperm(parts).chunk(config.minibatches) for _ in rollouts]
            for chunks in zip(*orders, strict=True):
                yield [
                    rollout.steps(chunk) if single_steps else rollout.games(chunk)
                    for rollout, chunk in zip(rollouts, chunks, strict=True)
                ]

    def _learn(self, rollouts: list[Rollout], config: A3CConfig, diagnostics: bool) -> list[dict[str, float]]:
        """Accumulate the gradient of the mean loss; return the numbers of each rollout."""
        numbers = []
        for rollout in rollouts:
            with self._precision:
                loss, metrics = loss_and_metrics(self._policy, rollout, config, diagnostics=diagnostics)
            (loss / len(rollouts)).backward()
            numbers.append(metrics)
        if self.spec.penalty is not None:
            penalty = self.spec.penalty(self._network)
            if penalty.requires_grad:
                penalty.backward()
            numbers[-1]["penalty"] = penalty.item()
        self.beat()
        return numbers

    def _pull(self) -> None:
        self._updates_seen = int(self.board.updates.sum())
        self._local.pull()

    def _push(self, *, played: bool) -> dict[str, float]:
        """Apply the gradient to the shared model, and tell what happened to it meanwhile.

        `played`: count the rollout's agent steps, which is learned from now.

        ``policy_lag``: updates of others since this worker's parameters were copied. ``overlapping_updates``:
        1 if another worker was writing at the same moment, so that some numbers of either may be lost.
        ``lost_updates``: how often the optimiser's own counter lost one, over all workers.
        """
        config, board, index = self.spec.a3c, self.board, self.index
        agent_steps = board.agent_steps + config.steps_per_rollout  # as if each update were the last
        rate = learning_rate(config, agent_steps, self.spec.total_steps)
        updates = int(board.updates.sum())
        board.pushing[index] = 1
        busy = int(board.pushing.sum()) > 1
        norm = self._local.push(rate)
        overlapped = busy or int(board.pushing.sum()) > 1 or int(board.updates.sum()) != updates
        board.pushing[index] = 0
        board.updates[index] += 1
        if played:
            board.steps[index] += config.steps_per_rollout
        board.pause_if_due()
        lost = int(board.updates.sum()) - (float(self.model.updates) - self._updates_before)
        return {
            "grad_norm": norm,
            "learning_rate": rate,
            "policy_lag": float(updates - self._updates_seen),
            "overlapping_updates": float(overlapped),
            "lost_updates": max(0.0, lost),
        }


def means(numbers: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every number over those that have it."""
    columns: dict[str, list[float]] = {}
    for row in numbers:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: sum(column) / len(column) for name, column in columns.items()}


# --------------------------------------------------------------------------------------- snapshots


def take_snapshot(worker: int, actors: list[ActorState]) -> Snapshot:
    """Return a worker's snapshot: Python's, NumPy's and torch's generators, and its actors."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    arrays: dict[str, np.ndarray] = {
        "random/python": np.array(words, dtype=np.int64),
        "random/numpy": np.array(keys, dtype=np.int64),
        "random/torch": torch.get_rng_state().numpy(),
    }
    data: dict[str, Any] = {
        "python": [version, gauss],
        "numpy": [position, has_gauss, cached],
        "games": all(actor.games is not None for actor in actors),
        "actors": [],
    }
    for group, actor in enumerate(actors):
        arrays[f"{group}/generator"] = actor.generator.numpy()
        arrays[f"{group}/episode_start"] = actor.episode_start.numpy()
        if actor.played is not None:
            arrays[f"{group}/played"] = actor.played.numpy()
        for part, tensor in enumerate(actor.recurrent):
            arrays[f"{group}/recurrent/{part}"] = tensor.cpu().numpy()
        games = []
        for number, game in enumerate(actor.games or ()):
            fields = game._asdict()
            for name, value in fields.items():
                if isinstance(value, np.ndarray):
                    arrays[f"{group}/game/{number}/{name}"] = value
            games.append({k: v for k, v in fields.items() if not isinstance(v, np.ndarray)})
        data["actors"].append({"recurrent": len(actor.recurrent), "games": games})
    return Snapshot(worker, arrays, data)


def restore_generators(snapshot: Snapshot) -> None:
    """Set Python's, NumPy's and torch's generators of this process."""
    arrays, data = snapshot.arrays, snapshot.data
    version, gauss = data["python"]
    random.setstate((version, tuple(arrays["random/python"].tolist()), gauss))
    position, has_gauss, cached = data["numpy"]
    np.random.set_state(("MT19937", arrays["random/numpy"].astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.from_numpy(arrays["random/torch"]))


def unpack_actor(snapshot: Snapshot, group: int) -> ActorState:
    """Return where actor `group` stood; its games must be in the snapshot."""
    arrays, data = snapshot.arrays, snapshot.data["actors"][group]
    games = []
    for number, numbers in enumerate(data["games"]):
        prefix = f"{group}/game/{number}/"
        stored: dict[str, Any] = {
            name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)
        }
        games.append(GameState(**numbers, **stored))
    played = arrays.get(f"{group}/played")
    return ActorState(
        generator=torch.from_numpy(arrays[f"{group}/generator"]),
        recurrent=tuple(
            torch.from_numpy(arrays[f"{group}/recurrent/{part}"]) for part in range(data["recurrent"])
        ),
        episode_start=torch.from_numpy(arrays[f"{group}/episode_start"]),
        played=None if played is None else torch.from_numpy(played),
        games=games,
    )
