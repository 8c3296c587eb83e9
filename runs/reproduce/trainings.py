"""The trainings behind a table: each in a process of its own, with the toolkit's own command.

A finished run is a line of ``rows.jsonl`` and is never run again; one that was interrupted goes on from its last
checkpoint (``neurocoder train --resume``). What another table trained with the same command is taken from there.
"""

import csv
import json
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType

import filelock
import numpy as np

from neurocoder.agents.continual_metrics import summary as summary_of_matrix
from neurocoder.errors import NeurocoderError
from neurocoder.policies.parameter_counts import count_parameters
from neurocoder.runs.checkpoint import find_checkpoint, load_checkpoint, saved_steps
from neurocoder.runs.config import flat, to_mapping
from neurocoder.runs.preparation import prepare
from neurocoder.runs.reproduce.command_lines import (
    command_of,
    config_of,
    is_of_today,
    logs_of,
    shown_command,
)
from neurocoder.runs.reproduce.experiment import Experiment, Row, Setting, read_rows
from neurocoder.runs.reproduce.side_by_side import Commands
from neurocoder.runs.run import Run, find_runs

OF_MACHINE = ("device", "precision")
"""What ``auto`` came to: a run may go on where that is something else."""
PACKAGES = ("neurocoder", "torch", "numpy", "gymnasium")


def train(setting: Setting, seed: int, folder: Path, commands: Commands | None = None) -> Row:
    """Train `setting` with `seed`, or what is left of it, in one thread; return its row.

    Raises
    ------
    NeurocoderError
        The training failed, was stopped before its end, or began with other options than the setting's.
    """
    commands = commands or Commands()
    logs = logs_of(setting, seed, folder)
    began = time.monotonic()
    if found := _begun(logs):
        _refuse_another(found[0], setting, seed)
        commands.run(["train", "--resume", str(found[0].path)])
    else:
        commands.run(command_of(setting, seed, logs))
    (run,) = _begun(logs)
    newest = saved_steps(run.checkpoints)[-1]
    if newest < (whole := run.config().steps):
        raise NeurocoderError(
            f"{run.path}: stopped at {newest:,} of {whole:,} steps; the same command goes on with it"
        )
    scores = [json.loads(line) for line in (run.path / "evaluations.jsonl").read_text("utf-8").splitlines()]
    last = {score["checkpoint"]: score for score in scores}  # a resumed run may have scored one twice
    kept = [last[step] for step in sorted(last)]
    state = json.loads((run.checkpoints / str(newest) / "state.json").read_text("utf-8"))
    matrix = _matrix(run.path / "matrix.csv")
    minutes = max(time.monotonic() - began, float(state["seconds"])) / 60
    return Row(
        label=setting.label,
        seed=seed,
        parameters=_count(run),
        steps=[score["checkpoint"] for score in kept],
        scores=[round(score["mean"], 4) for score in kept],
        losses=[round(score["loss"], 6) for score in kept if "loss" in score],
        measures=_measures(matrix),
        matrix=matrix,
        scored=kept[-1].get("scored", 0),
        data=kept[-1]["data"],
        minutes=round(minutes, 2),
        run=str(run.path.relative_to(folder)),
        command=shown_command(setting, seed, folder),
        versions={name: metadata.version(name) for name in PACKAGES},
    )


def _refuse_another(run: Run, setting: Setting, seed: int) -> None:
    """Raise a NeurocoderError if `run` did not begin as `setting` with `seed` would: a row shows what was run."""
    config, _ = prepare(config_of(setting, seed))
    there, now = flat(to_mapping(run.config())), flat(to_mapping(config))
    other = [key for key in {**there, **now} if key not in OF_MACHINE and there.get(key) != now.get(key)]
    if other:
        told = ", ".join(f"{key} {there.get(key)} (now {now.get(key)})" for key in other)
        raise NeurocoderError(f"{run.path} has other options: {told}; take it away, and it is trained anew")


def _matrix(file: Path) -> list[list[float]]:
    """Return the accuracies of a run that learned tasks one after the other, [1 + tasks, tasks]; nothing of another."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        lines = list(csv.DictReader(opened))
    n_tasks = 1 + max(int(line["task"]) for line in lines)
    values = [round(float(line.get("accuracy") or line["score"]), 4) for line in lines]
    return [values[start : start + n_tasks] for start in range(0, len(values), n_tasks)]


def _measures(matrix: list[list[float]]) -> dict[str, float]:
    """Return the metrics of a matrix of accuracies, if there is one."""
    if not matrix:
        return {}
    return {name: round(value, 4) for name, value in summary_of_matrix(np.array(matrix)).items()}


def _begun(logs: Path) -> list[Run]:
    """Return the runs in `logs` that can go on: one killed before its first checkpoint cannot, and counts as none."""
    return [run for run in find_runs(logs) if saved_steps(run.checkpoints)]


def _count(run: Run) -> int:
    """Return how many numbers the network learns, with what it has grown; what it only carries does not count."""
    saved = load_checkpoint(find_checkpoint(run.checkpoints), with_optimizer=False)
    _, policy = prepare(run.config(), saved)
    return count_parameters(policy).total


def check(experiment: Experiment) -> None:
    """Raise a ConfigError if a setting of `experiment` is not one that could be trained."""
    for setting in experiment.settings:
        config_of(setting, 0)


def adopted(experiment: Experiment, folder: Path) -> list[Row]:
    """Return the rows of `experiment` that those it shares runs with have beside `folder`, and it has not."""
    have = {(row["label"], row["seed"]) for row in read_rows(folder)}
    settings = {setting.label: setting for setting in experiment.settings}
    rows = []
    for other in experiment.shares_with:
        beside = folder.with_name(other + folder.name.removeprefix(experiment.name))
        for row in read_rows(beside):
            label, seed = row["label"], row["seed"]
            if label not in settings or (label, seed) in have:
                continue
            if is_of_today(row, settings[label]):
                have.add((label, seed))
                rows.append(Row({**row, "run": f"../{beside.name}/{row['run']}"}))
    return rows


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold an experiment's folder: a second process would train the same runs, and mix its rows with ours.

    Raises
    ------
    NeurocoderError
        Somebody else holds it.
    """
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise NeurocoderError(f"{folder}: another process is at work there; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, interrupt) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, previous)


def _add(row: Row, folder: Path) -> None:
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def run_missing(
    experiment: Experiment, folder: Path, seeds: int, jobs: int, settings: Sequence[Setting] | None = None
) -> None:
    """Train what is not there yet of `settings`, `jobs` runs side by side, adding each finished one to ``rows.jsonl``.

    `settings` are all of the experiment's unless given.

    Ctrl-C and SIGTERM end the trainings, too, with their state saved.

    Raises
    ------
    NeurocoderError
        Trainings have failed: which, and why. The others have been run all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for row in adopted(experiment, folder):
        _add(row, folder)
    have = {(row["label"], row["seed"]) for row in read_rows(folder)}
    missing = [
        (setting, seed)
        for seed in range(seeds)
        for setting in (experiment.settings if settings is None else settings)
        if (setting.label, seed) not in have
    ]
    began = time.monotonic()
    commands = Commands()
    failures: list[NeurocoderError] = []
    with _sigterm_interrupts(), ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train, setting, seed, folder, commands) for setting, seed in missing]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                try:
                    row = future.result()
                except NeurocoderError as error:
                    failures.append(error)
                    print(f"{number}/{len(missing)}  {error}", flush=True)
                    continue
                _add(row, folder)
                left = (time.monotonic() - began) / number * (len(missing) - number) / 60
                print(
                    f"{number}/{len(missing)}  {row['label']}, seed {row['seed']}: "
                    f"{experiment.metric.show(experiment.metric.of(row)[-1])} ({row['minutes']:.1f} min; {left:.0f} min left)",
                    flush=True,
                )
        except BaseException as reason:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(reason, KeyboardInterrupt):
                commands.stop()
            raise
    if failures:
        others = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise NeurocoderError(f"{failures[0]}{others}; the same command tries them again")
