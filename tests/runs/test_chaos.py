"""Processes killed at random, disks that fill up, files that are torn: what is left goes on and counts right."""

import csv
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys import processes_of

from neurocoder.runs.checkpoint import load_checkpoint, load_newest, saved_steps
from neurocoder.runs.run import Run, RunError, find_runs

SETTINGS = {
    "a3c.workers": 2,
    "a3c.envs_per_worker": 2,
    "a3c.n_steps": 8,
    "log_every": 64,
    "checkpoint_every": 512,
    "keep_checkpoints": 3,
    "evaluation.every": 1024,
    "evaluation.episodes": 2,
    "max_restarts": 100,
}


def start(logs: Path, *arguments: str, **options) -> subprocess.Popen[str]:
    """Start a training in a session of its own; it prints into one pipe."""
    flags = [f"--set={key}={value}" for key, value in options.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "neurocoder.runs.cli", "train", *arguments, "--logs", str(logs), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_checkpoint(process: subprocess.Popen[str], logs: Path, after: int) -> Run:
    """Wait until the run in `logs` has a checkpoint after `after` agent steps."""
    while True:
        for run in find_runs(logs):
            if any(step > after for step in saved_steps(run.checkpoints)):
                return run
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the workers of a training (and its evaluator): the children of its fork server."""
    parents = processes_of(process.pid)
    return sorted(pid for pid, parent in parents.items() if parents.get(parent) == process.pid)


def assert_nothing_is_left(session: int) -> None:
    deadline = time.monotonic() + 10
    while (left := processes_of(session)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def rows(run: Run) -> list[int]:
    with run.progress_file.open(newline="", encoding="utf-8") as file:
        return [int(row["agent_steps"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("sync", [False, True])
def test_a_run_survives_whatever_is_killed_and_counts_right(tmp_path: Path, sync: bool) -> None:
    dice = random.Random(0)
    steps, reached = 6_000, 0
    process = start(tmp_path, "CartPole-v1", steps=steps, **SETTINGS, **{"a3c.sync": str(sync).lower()})
    run = wait_for_checkpoint(process, tmp_path, reached)
    for round_ in range(3):
        for _ in range(2):  # two workers, at any moment of theirs
            time.sleep(dice.uniform(0, 0.2))
            if workers := workers_of(process):
                os.kill(dice.choice(workers), signal.SIGKILL)
        run = wait_for_checkpoint(process, tmp_path, reached)
        time.sleep(dice.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert_nothing_is_left(process.pid)
        if round_ == 1:  # and the newest checkpoint is torn
            torn = run.checkpoints / str(saved_steps(run.checkpoints)[-1]) / "optimizer.safetensors"
            torn.write_bytes(torn.read_bytes()[:1000])
        good, damaged = load_newest(run.checkpoints)
        reached = good.state["agent_steps"]
        assert reached >= 512 and len(damaged) == (round_ == 1)
        process = start(tmp_path, "--resume", str(run.path))
        first_line = ""
        while "resuming at" not in first_line:
            first_line = process.stdout.readline()
            assert first_line, "ended before it resumed"
        assert f"resuming at {reached:,} agent steps" in first_line
        assert all((path.parent / f"damaged-{path.name}").is_dir() for path in damaged)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_nothing_is_left(process.pid)
    last = saved_steps(run.checkpoints)[-1]
    assert steps <= last < steps + 2 * 16
    state = load_checkpoint(run.checkpoints / str(last)).state
    # every update is 16 agent steps, and is counted where it was applied, by whichever worker
    assert state["updates"] * 16 == state["agent_steps"] == last
    assert rows(run) == sorted(set(rows(run))) and rows(run)[-1] >= steps - 64


def test_dead_workers_are_counted_in_the_log(tmp_path: Path) -> None:
    process = start(tmp_path, "CartPole-v1", steps=4_000, **SETTINGS)
    run = wait_for_checkpoint(process, tmp_path, 0)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    if "evaluator died" in output:
        pytest.fail("killed the evaluator: it started before the workers")
    assert "died (exit code -9)" in output and "replaced with a new seed" in output
    with run.progress_file.open(newline="", encoding="utf-8") as file:
        assert [row["restarts"] for row in csv.DictReader(file)][-1] == "1"


def test_a_full_disk_costs_checkpoints_and_no_more(tmp_path: Path) -> None:
    """A limit on file sizes makes the trainer's writes fail midway, as a full disk does; later it is lifted."""
    settings = SETTINGS | {"a3c.workers": 1, "evaluation.every": 0}
    process = start(tmp_path, "CartPole-v1", steps=10**9, **settings)
    run = wait_for_checkpoint(process, tmp_path, 0)
    limit = (20_000, resource.RLIM_INFINITY)
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limit)
    good = load_newest(run.checkpoints)[0].path
    line = ""
    while "cannot be written" not in line:
        line = process.stdout.readline()
        assert line, "ended"
    assert "training goes on, the last good one is" in line and good.exists()
    assert not list(run.checkpoints.glob(".*"))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)
    newest = saved_steps(run.checkpoints)[-1]
    wait_for_checkpoint(process, tmp_path, newest)
    process.terminate()
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert not load_newest(run.checkpoints)[1]


def test_to_resume_on_a_full_disk_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    settings = SETTINGS | {"a3c.workers": 1, "evaluation.every": 0}
    process = start(tmp_path, "CartPole-v1", steps=10**9, **settings)
    run = wait_for_checkpoint(process, tmp_path, 512)
    process.terminate()
    process.communicate()
    header, first, *_ = run.progress_file.read_text("utf-8").splitlines(keepends=True)
    run.progress_file.write_text(header + first * (3_000_000 // len(first)), "utf-8")
    files = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    # 2 MiB to a file, and in shared memory: enough for the network, and not for the rows
    limited = f"ulimit -f 2048; exec {sys.executable} -m neurocoder.runs.cli train --resume {run.path}"
    second = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    assert second.returncode == 2, second.stderr
    (line,) = second.stderr.splitlines()
    assert line.startswith(f"neurocoder: {run.path}: cannot be written: ") and "make room" in line
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == files


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, "CartPole-v1", steps=10**9, **SETTINGS)
    run = wait_for_checkpoint(process, tmp_path, 0)
    with pytest.raises(RunError, match="another process is writing this run"), Run(run.path):
        pass
    second = start(tmp_path, "--resume", str(run.path))
    output, _ = second.communicate()
    assert second.returncode == 2 and "another process is writing this run" in output
    newest = saved_steps(run.checkpoints)[-1]
    wait_for_checkpoint(process, tmp_path, newest)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 0 and "go on with: neurocoder train --resume" in output
    assert_nothing_is_left(process.pid)
