"""What the trainer's speed is compared with, each measured in processes of its own that work at the same time.

=========== =======================================================================================
Network     the network's own rate: forward and backward, no games, no optimiser
Emulators   the games' own rate: ale-py's vector environment under random actions, no network
SB3A2C      Stable-Baselines3's A2C with its CnnPolicy, default hyper-parameters, 16 games
=========== =======================================================================================

All rates are agent steps per second, of all processes together, once they are warm.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium as gym
import numpy as np
import torch

from neurocoder.agents.processes import child_context, exit_with_parent, processors
from neurocoder.envs import AtariEnvs, EpisodeRecorder
from neurocoder.errors import NeurocoderError
from neurocoder.policies import Policy, PolicyConfig

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback

WARM_UP = 3
"""Calls before the clock starts: the first ones allocate, and let oneDNN choose its kernels."""
SB3_WARM_UP = 5
"""Updates of Stable-Baselines3 before the clock starts."""
SB3_ENV = "ale_py:ALE/Pong-v5"  # with the module, which the processes of SubprocVecEnv have to import
SB3_ENV_KWARGS = {"frameskip": 1, "repeat_action_probability": 0.25}
"""Of the emulator: AtariWrapper does the skipping."""
BLOCK = 50
"""Steps of the emulators between two looks at the clock."""
SEED = 0


class BenchError(NeurocoderError):
    """Raised when a process that was to be measured failed or died."""

    exit_code = 1


class Work(Protocol):
    """What one process does; it must be picklable."""

    def rate(self, ready: Callable[[], object], seconds: float) -> float:
        """Set up, call `ready` when warm (it waits for the other processes), work for `seconds`.

        Returns the agent steps per second.
        """


def timed(step: Callable[[], int], ready: Callable[[], object], seconds: float) -> float:
    """Return what `step` counts per second, over whole calls of it that take at least `seconds`."""
    for _ in range(WARM_UP):
        step()
    ready()
    started = time.perf_counter()
    steps, elapsed = 0, 0.0
    while elapsed < seconds:
        steps += step()
        elapsed = time.perf_counter() - started
    return steps / elapsed


@dataclass(frozen=True, slots=True)
class Network:
    """Gradients of a policy for a batch [n_steps, n_envs], on one thread."""

    observation_space: gym.spaces.Box
    action_space: gym.Space
    policy: PolicyConfig
    n_steps: int
    n_envs: int
    precision: str

    def rate(self, ready: Callable[[], object], seconds: float) -> float:
        return timed(self.stepper(), ready, seconds)

    def stepper(self) -> Callable[[], int]:
        """Return a call that computes the gradients of one batch, and returns its agent steps."""
        torch.set_num_threads(1)
        torch.manual_seed(SEED)
        policy = Policy(self.observation_space, self.action_space, self.policy)
        batch = (self.n_steps, self.n_envs)
        shape = (*batch, *self.observation_space.shape)
        if self.observation_space.dtype == np.uint8:
            observation = torch.randint(256, shape, dtype=torch.uint8)
        else:
            observation = torch.randn(shape)
        start = torch.zeros(batch, dtype=torch.bool)
        state = policy.initial_state(self.n_envs)
        bf16 = torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")
        with torch.no_grad():
            output, _, _ = policy.evaluate(observation, state, start)
        d_logits, d_value = torch.randn_like(output.logits), torch.randn_like(output.value)

        def step() -> int:
            policy.zero_grad()
            with bf16:
                output, _, auxiliary = policy.evaluate(observation, state, start)
            outputs, gradients = [output.logits, output.value], [d_logits, d_value]
            if auxiliary.requires_grad:  # heads without an auxiliary loss return a constant
                outputs.append(auxiliary)
                gradients.append(torch.ones_like(auxiliary))
            torch.autograd.backward(outputs, gradients)
            return self.n_steps * self.n_envs

        return step


@dataclass(frozen=True, slots=True)
class Emulators:
    """The emulators of ``make_envs(n_envs)`` under random actions, without what is wrapped around them."""

    make_envs: Callable[[int], EpisodeRecorder]
    n_envs: int

    def rate(self, ready: Callable[[], object], seconds: float) -> float:
        envs = self.make_envs(self.n_envs).unwrapped
        assert isinstance(envs, AtariEnvs)
        native = envs.native
        try:
            native.reset(seed=SEED)
            random = np.random.default_rng(SEED)
            space = native.single_action_space
            assert isinstance(space, gym.spaces.Discrete)

            def step() -> int:
                for actions in random.integers(space.n, size=(BLOCK, self.n_envs)):
                    native.step(actions)
                return BLOCK * self.n_envs

            return timed(step, ready, seconds)
        finally:
            envs.close()


class CycleClock:
    """Times whole cycles of playing and learning, after the first `warm_up`; calls `ready` between the two."""

    def __init__(self, ready: Callable[[], object], seconds: float, warm_up: int = SB3_WARM_UP) -> None:
        self._ready, self._seconds = ready, seconds
        self._started = 0.0
        self.cycles = -warm_up - 1
        """Cycles that were timed; negative while it is warming up."""
        self.elapsed = 0.0
        """Seconds that they took."""

    def start_cycle(self) -> None:
        """Note that a cycle begins, and that the one before has ended."""
        self.cycles += 1
        if self.cycles == 0:
            self._ready()
            self._started = time.perf_counter()
        elif self.cycles > 0:
            self.elapsed = time.perf_counter() - self._started

    @property
    def running(self) -> bool:
        """Whether the training is to go on."""
        return self.elapsed < self._seconds


def sb3_callback(clock: CycleClock) -> "BaseCallback":
    """Return a callback with which a model of Stable-Baselines3 learns until `clock` has measured enough."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Meter(BaseCallback):
        def _on_rollout_start(self) -> None:
            clock.start_cycle()

        def _on_step(self) -> bool:
            return clock.running

    return Meter()


@dataclass(frozen=True, slots=True)
class SB3A2C:
    """Stable-Baselines3's A2C on the processor; `vec_env` is DummyVecEnv or SubprocVecEnv."""

    vec_env: str
    games: int = 16
    threads: int = field(default_factory=processors)
    """Of torch."""

    def rate(self, ready: Callable[[], object], seconds: float) -> float:
        with open(os.devnull, "w") as nowhere:  # its emulators' processes inherit this
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        from stable_baselines3 import A2C
        from stable_baselines3.common import vec_env
        from stable_baselines3.common.env_util import make_atari_env

        clock = CycleClock(ready, seconds)
        torch.set_num_threads(self.threads)
        games = make_atari_env(
            SB3_ENV,
            n_envs=self.games,
            seed=SEED,
            env_kwargs=SB3_ENV_KWARGS,
            vec_env_cls=getattr(vec_env, self.vec_env),
        )
        frames = vec_env.VecFrameStack(games, 4)
        try:
            model = A2C("CnnPolicy", frames, device="cpu", seed=SEED)
            model.learn(2**62, callback=sb3_callback(clock))
            return clock.cycles * model.n_steps * self.games / clock.elapsed
        finally:
            frames.close()


# ------------------------------------------------------------------------------------------ processes


def _run(work: Work, barrier: Any, seconds: float, connection: Connection) -> None:
    """Body of a measured process."""
    os.setpgrp()  # it is ended together with the processes that it starts
    exit_with_parent()
    try:
        connection.send(work.rate(barrier.wait, seconds))
    except Exception:  # whatever it is, the parent reports it
        connection.send(traceback.format_exc())


def rate_of(work: Work, n_processes: int, seconds: float) -> float:
    """Return the agent steps per second of `n_processes` that all do `work` at the same time.

    No process is left when this returns or raises.

    Raises
    ------
    BenchError
        One of them failed or died; the message names what it was doing and why.
    """
    name = type(work).__name__
    # As the trainer's workers; but Stable-Baselines3 starts with nothing of ours, and so do its own processes.
    context = multiprocessing.get_context("spawn") if isinstance(work, SB3A2C) else child_context()
    barrier = context.Barrier(n_processes)
    processes: list[BaseProcess] = []
    connections: dict[Connection, BaseProcess] = {}
    total = 0.0
    try:
        for _ in range(n_processes):
            ours, theirs = context.Pipe(duplex=False)
            # Not daemonic: Stable-Baselines3 starts processes of its own.
            processes.append(context.Process(target=_run, args=(work, barrier, seconds, theirs), name=name))
            processes[-1].start()
            theirs.close()  # ours now ends with EOF when the process dies
            connections[ours] = processes[-1]
        while connections:
            for connection in wait(list(connections)):
                assert isinstance(connection, Connection)
                process = connections.pop(connection)
                try:
                    said: float | str = connection.recv()
                except EOFError:
                    process.join()
                    raise BenchError(f"{name}: a process died (exit code {process.exitcode})") from None
                if isinstance(said, str):
                    raise BenchError(f"{name} failed:\n{said}")
                total += said
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                _kill(process)
    return total


def _kill(process: BaseProcess) -> None:
    """Kill a process that :func:`rate_of` started, and all that it has started itself."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not come to its own group yet
        process.kill()
    process.join()
