"""The supervisor: starts the workers, takes what they report, replaces those that die or hang, ends them all."""

import contextlib
import pickle
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from neurocoder.agents.a3c import learning_rate
from neurocoder.agents.hogwild import Board, SharedModel, SharedUpdate
from neurocoder.agents.processes import child_context, spare_threads, torch_threads
from neurocoder.agents.rollout import NonFiniteLossError
from neurocoder.agents.worker import (
    Delivered,
    Failure,
    Farewell,
    Message,
    Notice,
    Record,
    Snapshot,
    TrainSpec,
    run_worker,
)
from neurocoder.errors import NeurocoderError

STARTUP_PATIENCE = 60.0
"""Seconds that a new worker may take for its first update: imports, environments, first-time costs."""
RECENT = 8
"""Updates of a worker that say how long it may be silent: a pause in one of them (Ctrl-Z) is forgotten soon."""
ASLEEP = 1.0
"""Seconds between two looks at the workers from which on this process may have been stopped itself."""


class WorkerError(NeurocoderError):
    """Raised when a worker failed, or too many died; names it, its exit code and what it said."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Standstill:
    """All workers wait, or have ended: the shared model holds still and can be saved with their snapshots."""

    agent_steps: int
    snapshots: list[Snapshot]


@dataclass(slots=True)
class _Seat:
    """One worker's place, whoever sits in it."""

    index: int
    process: BaseProcess
    connection: Connection
    said: Record | Delivered | Snapshot | Farewell | None = None
    """What it waits with, or its farewell; None while it works."""
    silences: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The longest between two signs of life in each of its last updates, seconds."""
    fault: str = ""
    """The error that it is ending with."""

    @property
    def ended(self) -> bool:
        return isinstance(self.said, Farewell)

    def patience(self, timeout: float) -> float:
        """Return the seconds without a sign of life after which this worker counts as hung."""
        if not self.silences:
            return max(timeout, STARTUP_PATIENCE)
        return max(timeout, 3 * max(self.silences))


def train(
    spec: TrainSpec, model: SharedModel, stop: threading.Event
) -> Iterator[Record | Standstill | Notice]:
    """Run all workers until `spec.total_steps`, yielding what happens as it happens.

    Setting `stop` ends the run after the updates in progress. The model may be saved whenever a
    :class:`Standstill` is in the consumer's hands; one comes every `spec.checkpoint_every` agent steps and
    one at the end. Leaving the generator early (an exception, ``close()``) ends all processes.

    Raises
    ------
    NonFiniteLossError
        A worker met a NaN; the shared model is as it was before.
    WorkerError
        A worker failed before its first update, or more than `spec.max_restarts` died or hung.
    """
    supervisor = _Supervisor(spec, model)
    try:
        with torch_threads(spare_threads(spec.a3c.workers)):
            yield from supervisor.run(stop)
    finally:
        supervisor.end()


@dataclass(slots=True)
class _Supervisor:
    spec: TrainSpec
    model: SharedModel
    board: Board = field(init=False)
    seats: list[_Seat] = field(default_factory=list)
    restarts: int = 0
    _started: list[BaseProcess] = field(default_factory=list)
    _looked: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        spec = self.spec
        self.board = Board(spec.a3c.workers, spec.resumed_at, self._next_checkpoint(spec.resumed_at))

    def _next_checkpoint(self, agent_steps: int) -> int:
        every = self.spec.checkpoint_every
        return (agent_steps // every + 1) * every if every else 0

    def _seat(self, index: int) -> _Seat:
        """Return a place with a new worker in it."""
        context = child_context()
        ours, theirs = context.Pipe()
        self.board.beat(index)
        process = context.Process(
            target=run_worker,
            args=(index, self.restarts, self.spec, self.model, self.board, theirs),
            name=f"worker-{index}",
            daemon=True,
        )
        self._started.append(process)  # before it starts: Ctrl-C may come before it has a seat
        process.start()
        theirs.close()  # ours now ends with EOF when the worker dies
        return _Seat(index, process, ours)

    def run(self, stop: threading.Event) -> Iterator[Record | Standstill | Notice]:
        for index in range(self.spec.a3c.workers):
            self.seats.append(self._seat(index))
        update = SharedUpdate(self.model, self.spec.a3c) if self.spec.a3c.sync else None
        while not all(seat.ended for seat in self.seats):
            if stop.is_set():
                self.board.stopping = True
            for seat in self._with_news():
                try:
                    message: Message = seat.connection.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    yield self._replace(seat, "died")
                    continue
                yield from self._take(seat, message, shared=update is not None)
            yield from self._replace_hung()
            if update is not None:
                yield from self._share(update)
            if any(isinstance(seat.said, Snapshot) for seat in self.seats) and all(
                isinstance(seat.said, Snapshot | Farewell) for seat in self.seats
            ):
                yield self._standstill()
                self.board.pausing = False
                self.board.checkpoint_at = self._next_checkpoint(self.board.agent_steps)
                self._go_on(self.seats)
        yield self._standstill()

    def _with_news(self) -> list[_Seat]:
        """Return the seats that have something to say, soon."""
        listening = {seat.connection: seat for seat in self.seats if not seat.ended}
        ready = wait(list(listening), timeout=0.2)
        return [listening[connection] for connection in ready if isinstance(connection, Connection)]

    def _take(self, seat: _Seat, message: Message, shared: bool) -> Iterator[Record | Notice]:
        match message:
            case Notice():
                yield message
            case Record():
                seat.silences.append(message.silence)
                if shared:
                    seat.said = message
                else:
                    yield message
            case Snapshot() | Farewell() | Delivered():
                seat.said = message
            case Failure(kind="nan", text=text):
                raise NonFiniteLossError(text)
            case Failure(text=text):
                if not seat.silences:
                    raise WorkerError(f"worker {seat.index} failed:\n{text}")
                seat.fault = text.strip().splitlines()[-1]  # it is replaced when its connection closes

    # ------------------------------------------------------------------------------------- one update for all

    def _share(self, update: SharedUpdate) -> Iterator[Record]:
        """Once no worker is on its way, apply the mean of the gradients delivered; let those who did go on.

        All take part, but for those that have just ended or, replaced in the middle of a rollout, wait for a
        checkpoint that the others have not reached yet.
        """
        delivered = [seat for seat in self.seats if isinstance(seat.said, Delivered | Record)]
        if not delivered or any(seat.said is None for seat in self.seats):
            return
        spec, board = self.spec, self.board
        ended = [seat.index for seat in delivered if isinstance(seat.said, Record)]
        each = spec.a3c.steps_per_rollout
        rate = learning_rate(spec.a3c, board.agent_steps + each * len(self.seats), spec.total_steps)
        norm = update.apply(rate, [seat.index for seat in delivered])
        board.steps[ended] += each
        board.updates[[seat.index for seat in delivered]] += 1
        board.pause_if_due()
        shared = {"grad_norm": norm, "learning_rate": rate}
        for seat in delivered:
            if isinstance(seat.said, Record):
                metrics = {**seat.said.metrics, **shared}
                yield replace(seat.said, agent_steps=board.agent_steps, metrics=metrics)
        self._go_on(delivered)

    def _standstill(self) -> Standstill:
        snapshots = []
        for seat in self.seats:
            assert isinstance(seat.said, Snapshot | Farewell)
            snapshots.append(seat.said.snapshot if isinstance(seat.said, Farewell) else seat.said)
        return Standstill(self.board.agent_steps, snapshots)

    def _go_on(self, seats: list[_Seat]) -> None:
        """Let those of `seats` who wait go on."""
        for seat in seats:
            if seat.said is not None and not seat.ended:
                seat.said = None
                self.board.beat(seat.index)
                with contextlib.suppress(OSError):  # if it died meanwhile, that is about to be read
                    seat.connection.send(True)

    # ------------------------------------------------------------------------------------------- who is alive

    def _replace_hung(self) -> Iterator[Notice]:
        now = time.monotonic()
        slept = now - self._looked > max(ASLEEP, self.spec.worker_timeout / 2)
        self._looked = now
        if slept:  # this process did (Ctrl-Z, a slow disk): what the workers did meanwhile is not known
            for seat in self.seats:
                self.board.beat(seat.index)
            return
        for seat in self.seats:
            if seat.said is not None or seat.connection.poll():
                continue
            silent = now - float(self.board.beats[seat.index])
            if silent > seat.patience(self.spec.worker_timeout):
                seat.process.kill()
                yield self._replace(seat, f"gave no sign of life for {silent:.0f} s and was killed")

    def _replace(self, seat: _Seat, what: str) -> Notice:
        """Put a new worker into the seat, with a new seed, or raise if that was done too often."""
        seat.process.join(5)
        seat.connection.close()
        code = seat.process.exitcode
        said = f", saying {seat.fault!r}," if seat.fault else ""
        where = f"at {self.board.agent_steps:,} agent steps"
        text = f"worker {seat.index} {what} (exit code {code}){said} {where}"
        if self.restarts >= self.spec.max_restarts:
            after = f" after {self.restarts} restarts" if self.restarts else ""
            raise WorkerError(f"{text}{after}; max_restarts = {self.spec.max_restarts}")
        self.restarts += 1
        self.board.pushing[seat.index] = 0
        self.seats[seat.index] = self._seat(seat.index)
        return Notice(f"{text}; replaced with a new seed", self.restarts)

    def end(self, patience: float = 10.0) -> None:
        """End all processes: those that said farewell by waiting, the others at once."""
        self.board.stopping = True
        for seat in self.seats:
            seat.connection.close()  # whoever waits for an answer gets none
        deadline = time.monotonic() + patience
        for seat in self.seats:
            if seat.ended:
                seat.process.join(max(0.0, deadline - time.monotonic()))
            if seat.process.is_alive():
                seat.process.kill()
            seat.process.join()
        for process in self._started:
            if process.is_alive():  # one without a seat
                process.kill()
                process.join()
