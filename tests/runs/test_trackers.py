"""Rows of progress in closed form, and what keeps and shows them."""

import contextlib
import csv
import io
import json
import math
import resource
from pathlib import Path

import pytest

from neurocoder.agents.rollout import Episode
from neurocoder.agents.worker import Record
from neurocoder.runs import trackers
from neurocoder.runs.trackers import WINDOW, ConsoleTracker, CsvTracker, Row, RowMaker, Trackers

NAN = float("nan")


class Clock:
    """A clock that tests set; stands in for the module's ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(trackers, "time", clock)
    return clock


def record(agent_steps: int, loss: float = 0.0, *returns: float) -> Record:
    return Record(0, agent_steps, {"loss": loss}, [Episode(value, 10) for value in returns])


def row(agent_steps: int, **values: float) -> Row:
    return {"agent_steps": agent_steps, "mean_return": NAN, "entropy": 0.5, "steps_per_second": 9.0, **values}


# -------------------------------------------------------------------------------------------- rows


def test_a_row_is_the_mean_of_the_records_since_the_last_one(clock: Clock) -> None:
    rows = RowMaker(100)
    clock.now += 2
    assert rows.add(record(40, 1.0)) is None
    assert rows.add(record(80, 2.0, 3.0)) is None
    assert rows.add(record(120, 6.0, 4.0, 8.0)) == {
        "agent_steps": 120,
        "updates": 3,
        "episodes": 3,
        "restarts": 0,
        "mean_return": 5.0,
        "mean_length": 10.0,
        "loss": 3.0,
        "steps_per_second": 60.0,
        "seconds": 2.0,
    }
    clock.now += 4
    assert rows.add(record(160, 7.0)) is None
    second = rows.add(record(200, 9.0))
    assert second is not None
    assert (second["loss"], second["steps_per_second"], second["seconds"]) == (8.0, 20.0, 6.0)
    assert (second["updates"], second["episodes"], second["mean_return"]) == (5, 3, 5.0)


def test_every_multiple_of_log_every_that_is_crossed_gives_one_row() -> None:
    rows = RowMaker(100)
    made = [rows.add(record(steps)) for steps in (99, 100, 101, 350, 399, 400)]
    assert [r and r["agent_steps"] for r in made] == [None, 100, None, 350, None, 400]


def test_records_that_overtake_each_other_never_turn_the_count_back() -> None:
    rows = RowMaker(100)
    made = [rows.add(record(steps)) for steps in (60, 120, 90, 210, 180)]
    assert [r and r["agent_steps"] for r in made] == [None, 120, None, 210, None]
    assert rows.agent_steps == 210 and rows.updates == 5


def test_the_mean_return_is_over_the_last_hundred_episodes() -> None:
    rows = RowMaker(10)
    assert rows.mean_return is None
    rows.add(record(1, 0.0, 1000.0))
    rows.add(record(2, 0.0, *range(WINDOW)))
    assert WINDOW == 100 and rows.mean_return == 49.5


def test_before_the_first_episode_the_mean_return_is_not_known() -> None:
    made = RowMaker(10).add(record(10))
    assert made is not None and math.isnan(made["mean_return"]) and math.isnan(made["mean_length"])


def test_a_resumed_run_goes_on_with_the_same_rows(clock: Clock) -> None:
    records = [record(40 * k, float(k), *([k] * (k % 3))) for k in range(1, 21)]
    whole = RowMaker(200)
    expected, made = [], []
    for r in records:
        clock.now += 1
        expected.append(whole.add(r))
    first = RowMaker(200)
    for r in records[:10]:
        clock.now += 1
        made.append(first.add(r))
    state = first.state()
    clock.now += 500  # the run rests
    second = RowMaker(200, 400, state)
    for r in records[10:]:
        clock.now += 1
        made.append(second.add(r))
    # Checkpoint and row coincide at 400, so even the means and rates agree.
    assert made == expected
    assert {**second.state(), "seconds": 0} == {**whole.state(), "seconds": 0}


def test_the_state_is_plain_data(clock: Clock) -> None:
    rows = RowMaker(100)
    clock.now += 1.5
    rows.add(record(50, 0.0, 2.0, 4.0))
    assert rows.state() == {
        "updates": 1,
        "episodes": 2,
        "restarts": 0,
        "sums": {"loss": 0.0},
        "counts": {"loss": 1},
        "recent": [[2.0, 10], [4.0, 10]],
        "seconds": 1.5,
        "mean_return": 3.0,
    }


def test_a_resumed_row_has_what_came_before_the_checkpoint(clock: Clock) -> None:
    rows = RowMaker(100)
    rows.add(record(50, 2.0))
    resumed = RowMaker(100, 50, json.loads(json.dumps(rows.state())))
    made = resumed.add(record(100, 4.0))
    assert made is not None and made["loss"] == 3.0


# --------------------------------------------------------------------------------------------- csv


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, steps: list[int], resumed_at: int = 0) -> None:
    tracker = CsvTracker(path, resumed_at)
    for step in steps:
        tracker.add(row(step, mean_return=step / 3))
    tracker.close()


def test_rows_are_kept_in_order_with_one_header(tmp_path: Path) -> None:
    write(tmp_path / "progress.csv", [100, 200])
    assert (tmp_path / "progress.csv").read_text().splitlines() == [
        "agent_steps,mean_return,entropy,steps_per_second",
        "100,33.3333,0.5,9",
        "200,66.6667,0.5,9",
    ]


def test_a_row_can_be_read_as_soon_as_it_is_added(tmp_path: Path) -> None:
    tracker = CsvTracker(tmp_path / "progress.csv")
    tracker.add(row(100))
    assert len(read(tmp_path / "progress.csv")) == 1
    tracker.close()


def test_what_is_not_known_is_an_empty_field(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    tracker = CsvTracker(path)
    tracker.add(row(100))
    tracker.close()
    assert read(path)[0]["mean_return"] == "" and "nan" not in path.read_text().lower()


def test_resuming_drops_the_rows_after_the_checkpoint_and_keeps_the_others_as_they_are(
    tmp_path: Path,
) -> None:
    path = tmp_path / "progress.csv"
    write(path, [100, 200, 300, 400])
    before = path.read_text().splitlines()
    write(path, [290], resumed_at=200)
    assert path.read_text().splitlines()[:3] == before[:3]
    assert [r["agent_steps"] for r in read(path)] == ["100", "200", "290"]


def test_a_new_run_starts_with_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    write(path, [100])
    write(path, [50])
    assert [r["agent_steps"] for r in read(path)] == ["50"]


def test_large_counts_are_not_rounded(tmp_path: Path) -> None:
    write(tmp_path / "progress.csv", [123_456_789])
    assert read(tmp_path / "progress.csv")[0]["agent_steps"] == "123456789"


# ----------------------------------------------------------------------------------------- console


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_terminal")
def test_without_a_terminal_the_first_row_is_printed_at_once(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = ConsoleTracker(1000)
    clock.now += 10
    tracker.add(row(100))
    out = capsys.readouterr().out
    assert out == "       100 / 1,000 agent steps  eta 1:30  9 steps/s  entropy 0.500\n"
    tracker.close()


@pytest.mark.usefixtures("no_terminal")
def test_without_a_terminal_lines_are_an_interval_apart_and_the_last_is_always_printed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = ConsoleTracker(1000, interval=30)
    for k in range(1, 11):
        clock.now += 10
        tracker.add(row(100 * k))
    tracker.close()
    printed = [line.split(" /")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert printed == ["100", "400", "700", "1,000"]


@pytest.mark.usefixtures("no_terminal")
def test_the_time_to_go_counts_only_what_this_session_did(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = ConsoleTracker(10_000, agent_steps=9_000)
    clock.now += 10
    tracker.add(row(9_100))
    assert "eta 1:30" in capsys.readouterr().out


@pytest.mark.usefixtures("no_terminal")
def test_a_line_shows_return_and_program_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    program = {
        "actor/attention_entropy": 0.25,
        "critic/attention_entropy": 0.5,
        "actor/orthogonality_excess": 0.125,
        "critic/orthogonality_excess": 1.0,
    }
    ConsoleTracker(1000).add(row(100, mean_return=12.5, **program))
    out = capsys.readouterr().out
    assert "return 12.5  entropy 0.500  attention 0.250/0.500  L_o excess 0.125/1.000" in out


@pytest.mark.usefixtures("no_terminal")
def test_without_a_terminal_there_are_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    tracker = ConsoleTracker(1000)
    tracker.add(row(1000))
    tracker.close()
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1 and "\x1b" not in captured.out and "\r" not in captured.out
    assert captured.err == ""


# ------------------------------------------------------------------------------------- tensorboard


def test_scalars_are_kept_without_what_is_not_known(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = trackers.TensorBoardTracker(tmp_path)
    tracker.add(row(100))
    tracker.add(row(200, mean_return=2.0))
    tracker.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("entropy")] == [(100, 0.5), (200, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("mean_return")] == [(200, 2.0)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_goes_on_once_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its writer stays broken after one failure, whoever gives it rows; a limit on file sizes is the full disk."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(trackers.TensorBoardTracker, "RETRY", 0.0)
    tracker = trackers.TensorBoardTracker(tmp_path)
    both = Trackers(tracker)
    both.add(row(100))
    tracker._writer.flush()
    free = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, free[1]))
    try:
        for step in range(101, 140):  # written behind its back
            both.add(row(step))
            both.add_score({"checkpoint": step, "mean": 1.0, "std": 0.0, "returns": [], "stuck": 0})  # type: ignore
            with contextlib.suppress(OSError, AttributeError):
                tracker._writer.flush()
        assert both._failing == {tracker}
        assert capsys.readouterr().err.count("TensorBoardTracker cannot write") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, free)
    both.add(row(200))
    both.add_score({"checkpoint": 200, "mean": 7.0, "std": 0.0, "returns": [], "stuck": 0})  # type: ignore
    assert not both._failing
    both.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    # files of one second are read in the order of their names, where the tenth writer is before the ninth
    steps = sorted(event.step for event in events.Scalars("entropy"))
    assert (steps[0], steps[-1]) == (100, 200)
    assert max((event.step, event.value) for event in events.Scalars("evaluation/mean")) == (200, 7.0)


def test_one_tracker_that_cannot_be_closed_does_not_keep_the_others_open(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Full:
        def add(self, row: Row) -> None: ...
        def close(self) -> None:
            raise OSError("disk full")

    file = io.StringIO()
    Trackers(Full(), file).close()  # type: ignore[list-item]
    assert file.closed and "Full could not be closed: disk full" in capsys.readouterr().err
