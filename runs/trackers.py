"""Trackers: consumers of a run's records. One makes rows of them, the others show or keep the rows."""

import contextlib
import csv
import math
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from neurocoder.agents.rollout import Episode
from neurocoder.agents.worker import Record
from neurocoder.runs.scoring import Score

Row = dict[str, float]
"""One row of progress: column name to number. Time columns are `seconds`, `steps_per_second` and
`time/…` (seconds of an update, on average)."""

WINDOW = 100
"""Episodes in the running mean of returns."""


class RowMaker:
    """Turns records into a row every `log_every` agent steps, the same rows for the same records."""

    def __init__(self, log_every: int, agent_steps: int = 0, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.log_every = log_every
        self.agent_steps = agent_steps
        self.updates = int(state.get("updates", 0))
        self.episodes = int(state.get("episodes", 0))
        self.restarts = int(state.get("restarts", 0))
        self._recent: deque[Episode] = deque((Episode(*pair) for pair in state.get("recent", ())), WINDOW)
        self._elapsed_before = float(state.get("seconds", 0.0))
        self._started = time.monotonic()
        self._sums: defaultdict[str, float] = defaultdict(float, state.get("sums", {}))
        self._counts: defaultdict[str, int] = defaultdict(int, state.get("counts", {}))  # not all have all
        self._last_row_steps = agent_steps
        self._last_row_seconds = self._elapsed_before

    @property
    def seconds(self) -> float:
        """Seconds of training, over all sessions of the run."""
        return self._elapsed_before + time.monotonic() - self._started

    @property
    def mean_return(self) -> float | None:
        """Mean raw return of the last episodes, None before the first has ended."""
        return sum(e.raw_return for e in self._recent) / len(self._recent) if self._recent else None

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on with the same numbers."""
        return {
            "updates": self.updates,
            "episodes": self.episodes,
            "restarts": self.restarts,
            "sums": dict(self._sums),
            "counts": dict(self._counts),
            "recent": [list(episode) for episode in self._recent],
            "seconds": round(self.seconds, 3),
            "mean_return": self.mean_return,
        }

    def add(self, record: Record) -> Row | None:
        """Count `record`; return a row if it completed one."""
        previous = self.agent_steps
        self.agent_steps = max(self.agent_steps, record.agent_steps)
        self.updates += 1
        self.episodes += len(record.episodes)
        self._recent.extend(record.episodes)
        for name, value in record.metrics.items():
            self._sums[name] += value
            self._counts[name] += 1
        if self.agent_steps // self.log_every == previous // self.log_every:
            return None
        return self._row()

    def _row(self) -> Row:
        seconds = self.seconds
        nan = float("nan")
        row: Row = {
            "agent_steps": self.agent_steps,
            "updates": self.updates,
            "episodes": self.episodes,
            "restarts": self.restarts,
            "mean_return": nan if self.mean_return is None else self.mean_return,
            "mean_length": sum(e.length for e in self._recent) / len(self._recent) if self._recent else nan,
            **{name: total / self._counts[name] for name, total in self._sums.items()},
            "steps_per_second": (self.agent_steps - self._last_row_steps)
            / max(1e-9, seconds - self._last_row_seconds),
            "seconds": seconds,
        }
        self._sums.clear()
        self._counts.clear()
        self._last_row_steps = self.agent_steps
        self._last_row_seconds = seconds
        return row


class Tracker(Protocol):
    """Takes rows as they are made."""

    def add(self, row: Row) -> None: ...
    def close(self) -> None: ...


class CsvTracker:
    """Keeps all rows in progress.csv, dropping those after the step at which a run is resumed.

    Raises
    ------
    OSError
        It cannot be written: the old rows are all there, and nothing beside them.
    """

    def __init__(self, path: Path, resumed_at: int = 0) -> None:
        self.path = path
        self._writer: csv.DictWriter[str] | None = None
        partial = path.with_name(f".{path.name}.partial")
        self._file = partial.open("w", newline="", encoding="utf-8")
        try:
            for row in _rows_until(path, resumed_at):
                self._write(row)
            self._file.flush()
            partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):  # closing writes what is left
                self._file.close()
            partial.unlink(missing_ok=True)
            raise

    def _write(self, row: dict[str, Any]) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(row), restval="", extrasaction="ignore")
            self._writer.writeheader()
        self._writer.writerow(row)

    def add(self, row: Row) -> None:
        self._write({name: _number(value) for name, value in row.items()})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _rows_until(path: Path, agent_steps: int) -> list[dict[str, str]]:
    """Return the rows up to `agent_steps`; a last one that was torn does not count."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    return [row for row in rows if row["agent_steps"].isdecimal() and int(row["agent_steps"]) <= agent_steps]


def _number(value: float) -> str:
    if math.isnan(value):
        return ""  # not known yet
    return str(value) if isinstance(value, int) else f"{value:.6g}"


class TensorBoardTracker:
    """Keeps all rows as TensorBoard scalars over agent steps.

    Its writer does not recover from a disk that was full: a new one, with a file of its own, takes its place, but not more
    often than every RETRY seconds.
    """

    RETRY = 60.0

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._make = lambda: SummaryWriter(str(folder))
        self._writer: SummaryWriter | None = self._make()
        self._retry_at = 0.0
        self._error = OSError()
        """Why there is no writer, where there is none."""

    def add(self, row: Row) -> None:
        if self._writer is None and time.monotonic() < self._retry_at:
            raise self._error
        try:
            self._writer = self._writer or self._make()
            steps = int(row["agent_steps"])
            for name, value in row.items():
                if name != "agent_steps" and not math.isnan(value):
                    self._writer.add_scalar(name, value, steps)
        except OSError as error:
            self._error, self._retry_at = error, time.monotonic() + self.RETRY
            writer, self._writer = self._writer, None
            if writer is not None:
                with contextlib.suppress(OSError):
                    writer.close()
            raise

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class ConsoleTracker:
    """Shows a progress bar on a terminal; elsewhere the first row, then one every `interval` seconds."""

    def __init__(self, total_steps: int, agent_steps: int = 0, interval: float = 30.0) -> None:
        self.total_steps = total_steps
        self.interval = interval
        self._printed = -interval
        self._first_steps = agent_steps
        self._started = time.monotonic()
        self._bar: Progress | None = None
        console = Console()
        if console.is_terminal:
            self._bar = Progress(
                BarColumn(20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=console,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=agent_steps, text="starting")
            self._bar.start()

    def add(self, row: Row) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=row["agent_steps"], text=self._summary(row))
            return
        now = time.monotonic()
        if now - self._printed >= self.interval or row["agent_steps"] >= self.total_steps:
            self._printed = now
            done = row["agent_steps"]
            rate = (done - self._first_steps) / max(1e-9, now - self._started)
            eta = _duration((self.total_steps - done) / rate) if done < self.total_steps else "0:00"
            print(
                f"{done:>10,} / {self.total_steps:,} agent steps  eta {eta}  {self._summary(row)}", flush=True
            )

    def _summary(self, row: Row) -> str:
        parts = [f"{row['steps_per_second']:,.0f} steps/s"]
        if not math.isnan(row["mean_return"]):
            parts.append(f"return {row['mean_return']:.1f}")
        for name in ("entropy", "loss"):
            if name in row:
                parts.append(f"{name} {row[name]:.3f}")
                break
        for name, short in (("attention_entropy", "attention"), ("orthogonality_excess", "L_o excess")):
            found = [row[f"{head}/{name}"] for head in ("actor", "critic") if f"{head}/{name}" in row]
            if found:
                parts.append(f"{short} {'/'.join(f'{value:.3f}' for value in found)}")
        return "  ".join(parts)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _duration(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Trackers:
    """All trackers of a run. One that cannot write (a full disk) is reported once and tried again with each row."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers
        self._failing: set[Tracker] = set()

    def add(self, row: Row) -> None:
        """Give `row` to every tracker."""
        self._give(row, self._trackers)

    def _give(self, row: Row, trackers: Iterable[Tracker]) -> None:
        for tracker in trackers:
            try:
                tracker.add(row)
                self._failing.discard(tracker)
            except OSError as error:
                if tracker not in self._failing:
                    self.note(f"{type(tracker).__name__} cannot write: {error}; training goes on without it")
                self._failing.add(tracker)

    def add_score(self, score: Score, words: str | None = None) -> None:
        """Show the evaluation of a checkpoint, in `words` if they are given, and give it to those that keep it."""
        row = {
            "agent_steps": score["checkpoint"],
            "evaluation/mean": score["mean"],
            "evaluation/std": score["std"],
        }
        self._give(row, (tracker for tracker in self._trackers if isinstance(tracker, TensorBoardTracker)))
        if words is not None:
            print(f"evaluation of checkpoint {score['checkpoint']:,}: {words}", flush=True)
            return
        spread = f"{score['mean']:.1f} ± {score['std']:.1f} over {len(score['returns'])} games"
        cut = f", {score['stuck']} of them stuck" if score["stuck"] else ""
        print(f"evaluation of checkpoint {score['checkpoint']:,}: raw return {spread}{cut}", flush=True)

    def note(self, text: str) -> None:
        """Say on standard error what people should know; it is no row."""
        print(f"neurocoder: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close every tracker, even if one of them fails; report the failures on standard error."""
        for tracker in self._trackers:
            try:
                tracker.close()
            except OSError as error:
                self.note(f"{type(tracker).__name__} could not be closed: {error}")
