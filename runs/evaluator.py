"""Evaluation while training: a process of its own that scores the run's checkpoints, one after the other.

It plays whole games under the run's protocol, sharing nothing with the workers but the processor, to which they
go first. Workers in step (``--sync``) wait for each other, so that one which is held up holds up all: there it takes only the
time that nobody else wants, as long as that is enough. Whatever happens to it, training goes on: what went wrong comes
back as a line of text.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, Self

import gymnasium as gym
import numpy as np
import torch

from neurocoder.agents.player import Step, game_seeds
from neurocoder.agents.processes import child_context, exit_with_parent
from neurocoder.errors import NeurocoderError
from neurocoder.runs.checkpoint import write_evaluation
from neurocoder.runs.config import TrainConfig
from neurocoder.runs.replay.agents import agent_of
from neurocoder.runs.replay.picks import EvaluationRecorder
from neurocoder.runs.scoring import MAX_GAMES, Score, append_score, score_checkpoint

MAX_RESTARTS = 3
"""How often a dead evaluator is replaced in one run."""

MakeEnvs = Callable[[int], gym.vector.VectorEnv]


class EvaluatorReport(NamedTuple):
    """What has come of the evaluations since the last report."""

    scores: list[Score]
    notes: list[str]
    """Lines for people: checkpoints that were skipped or could not be scored, deaths of the evaluator."""


def evaluation_seed(seed: int) -> int:
    """Return the seed of all evaluations of a run: checkpoints are compared on the same games.

    It differs from the seeds of the workers, and from the one that ``neurocoder eval`` takes by default, so that
    a score of the best checkpoint is not of the games that made it the best.
    """
    words = np.random.SeedSequence(entropy=seed, spawn_key=(0xE7A1,)).generate_state(1, np.uint32)
    return int(words[0] >> 1)


# ------------------------------------------------------------------------------------------- child


@dataclass(frozen=True, slots=True)
class _Remark:
    """What went wrong beside an evaluation, which goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class _Failure:
    """An evaluation that gave no score. After a `fatal` one the process ends."""

    text: str
    fatal: bool


def _step_aside(idle: bool) -> None:
    """Let the workers go first; if `idle`, always: two workers in step, two processors and one evaluation at nice 10 made
    1,520 steps a second, with one in idle time 1,700 (without any 1,760), and the evaluation took 60 s in place of 44.
    """
    if idle and hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            return
    os.nice(10)


def _run_evaluator(
    run: Path, config: TrainConfig, make_envs: MakeEnvs, idle: bool, connection: Connection
) -> None:
    """Body of the evaluator's process: a score or a failure for every checkpoint that comes, until the pipe ends.

    The score goes out first; then the games are written that are to be kept.
    """
    exit_with_parent()
    _step_aside(idle)
    torch.set_num_threads(1)
    every, recorded = config.evaluation.record_every, -1
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            path: Path = connection.recv()
            with contextlib.ExitStack() as stack:
                recorder = None
                if every and int(path.name) // every > recorded:
                    recorded = int(path.name) // every
                    recorder = _recorder(run, path, config, stack)
                answer = _attempt(path, config, make_envs, recorder)
                connection.send(answer)
                if isinstance(answer, _Failure) and answer.fatal:
                    sys.exit(1)
                if isinstance(recorder, EvaluationRecorder) and not isinstance(answer, _Failure):
                    try:
                        recorder.keep()
                    except (NeurocoderError, OSError) as error:
                        connection.send(_Remark(f"games of checkpoint {path.name} are not recorded: {error}"))


def _recorder(
    run: Path, path: Path, config: TrainConfig, stack: contextlib.ExitStack
) -> EvaluationRecorder | None:
    games = min(config.evaluation.episodes, MAX_GAMES)
    seeds = game_seeds(evaluation_seed(config.seed), games)
    try:
        return stack.enter_context(EvaluationRecorder(agent_of(run, path, config), seeds))
    except OSError:  # a full disk; the evaluation matters more
        return None


def _attempt(
    path: Path, config: TrainConfig, make_envs: MakeEnvs, watch: Callable[[Step], None] | None
) -> Score | _Failure:
    started = time.monotonic()
    seed = evaluation_seed(config.seed)
    try:
        score = score_checkpoint(
            path, config, config.evaluation, make_envs, seed=seed, source="training", watch=watch
        )
    except NeurocoderError as error:  # a damaged checkpoint; the next one may be whole
        return _Failure(str(error), fatal=False)
    except Exception as error:  # whatever it is, the parent reports it
        return _Failure(f"{type(error).__name__}: {error}".splitlines()[0], fatal=True)
    return {**score, "seconds": round(time.monotonic() - started, 3)}


# ------------------------------------------------------------------------------------------ parent


class Evaluator:
    """Scores checkpoints of a run in its own process, which the first one starts.

    Scores are written where they belong: as a line of the run's ``evaluations.jsonl`` and as the checkpoint's
    ``evaluation.json``. Nothing here waits for the process, unless it is asked to. Use as a context manager:
    leaving it ends the process at once.
    """

    def __init__(self, run: Path, config: TrainConfig, make_envs: MakeEnvs) -> None:
        self.run = run
        self.config = config
        self.make_envs = make_envs
        self.skipped = 0
        """Checkpoints that were not scored because newer ones came while they waited."""
        self._idle = config.a3c.sync
        """Whether its process takes only time that nobody else wants."""
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._playing: Path | None = None
        self._waiting: Path | None = None
        self._last_words = ""
        self._deaths = 0
        self._scores: list[Score] = []
        self._notes: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pending(self) -> set[int]:
        """Agent steps of the checkpoints whose scores are still to come: they must not be deleted."""
        return {int(path.name) for path in (self._playing, self._waiting) if path is not None}

    def submit(self, checkpoint: Path) -> None:
        """Have `checkpoint` scored. One may wait while another is played; a newer one takes its place.

        If idle time is not enough even for that, a process that takes more begins with the newest.
        """
        self._collect()
        if self._deaths > MAX_RESTARTS:
            return
        if self._playing is None:
            self._play(checkpoint)
            return
        if self._waiting is not None and self._idle:
            self._hurry(self._playing, self._waiting)
            self._play(checkpoint)
            return
        if self._waiting is not None:
            self.skipped += 1
            self._notes.append(
                f"the evaluator is busy with checkpoint {self._playing.name}: checkpoint {self._waiting.name} "
                f"is not evaluated ({self.skipped} skipped so far)"
            )
        self._waiting = checkpoint

    def _hurry(self, *given_up: Path) -> None:
        """Give up what was to be played, and have the next process take a larger share of the processors."""
        self.skipped += len(given_up)
        self._notes.append(
            f"there is not enough idle time for evaluations: checkpoints {' and '.join(path.name for path in given_up)} are "
            f"not evaluated ({self.skipped} skipped so far); from now on they take time from the workers"
        )
        self._idle = False
        self._playing = self._waiting = None
        self._end()

    def poll(self, timeout: float = 0.0) -> EvaluatorReport:
        """Return what has come since the last report, at once, or after up to `timeout` seconds if that is nothing."""
        if not self._scores and not self._notes:
            self._collect(timeout)
        report = EvaluatorReport(self._scores, self._notes)
        self._scores, self._notes = [], []
        return report

    def close(self, timeout: float = 0.0) -> EvaluatorReport:
        """Give what is pending up to `timeout` seconds, end the process, and return the last report."""
        deadline = time.monotonic() + timeout
        while self.pending and (left := deadline - time.monotonic()) > 0:
            self._collect(min(left, 1.0))
        for path in (self._playing, self._waiting):
            if path is not None:
                self._notes.append(f"checkpoint {path.name} is not evaluated: the run is over")
        self._playing = self._waiting = None
        self._end()
        return self.poll()

    def _collect(self, timeout: float = 0.0) -> None:
        """Take all that the process has sent, and note whether it has died."""
        while self._connection is not None and self._connection.poll(timeout):
            timeout = 0.0
            try:
                answer = self._connection.recv()
            except (EOFError, OSError):
                self._bury()
                continue
            if isinstance(answer, _Failure) and answer.fatal:
                self._last_words = answer.text  # the end of the pipe follows
                continue
            if isinstance(answer, _Remark):
                self._notes.append(answer.text)
                continue
            path, self._playing = self._playing, None
            assert path is not None
            if isinstance(answer, _Failure):
                self._notes.append(f"checkpoint {path.name} is not evaluated: {answer.text}")
            else:
                self._keep(path, answer)
            self._play_waiting()

    def _keep(self, path: Path, score: Score) -> None:
        self._scores.append(score)
        try:
            append_score(self.run, score)
            write_evaluation(path, score)
        except OSError as error:
            self._notes.append(f"the score of checkpoint {path.name} cannot be written: {error}")

    def _play(self, checkpoint: Path) -> None:
        self._playing = checkpoint
        if self._connection is None:
            try:
                self._connection = self._start()
            except OSError as error:
                self._lose(f"the evaluator cannot be started: {error}")
                return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(
                checkpoint
            )  # if it has just died, the end of the pipe says so to whoever collects

    def _play_waiting(self) -> None:
        if self._waiting is not None:
            checkpoint, self._waiting = self._waiting, None
            self._play(checkpoint)

    def _start(self) -> Connection:
        context = child_context()
        ours, theirs = context.Pipe()
        arguments = (self.run, self.config, self.make_envs, self._idle, theirs)
        process = context.Process(target=_run_evaluator, args=arguments, name="evaluator", daemon=True)
        try:
            process.start()
        finally:
            theirs.close()  # ours now ends with EOF when the process dies
        self._process = process
        return ours

    def _bury(self) -> None:
        """Report the death of the process, and go on with a new one if a checkpoint waits."""
        assert self._process is not None
        self._process.join(5)
        self._lose(f"the evaluator died (exit code {self._process.exitcode})")

    def _lose(self, what: str) -> None:
        self._end()
        victim, self._playing = self._playing, None
        during = f" with checkpoint {victim.name}" if victim is not None else ""
        reason = f": {self._last_words}" if self._last_words else ""
        self._last_words = ""
        self._deaths += 1
        if self._deaths > MAX_RESTARTS:
            self._waiting = None
            reason += f"; it has had {MAX_RESTARTS} restarts, this run is evaluated no more"
        self._notes.append(what + during + reason)
        self._play_waiting()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()  # it holds nothing that could be lost
            self._process.join()
            self._process.close()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
