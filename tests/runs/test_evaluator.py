"""Evaluation while training: a process of its own, whose death costs the run nothing."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from neurocoder.policies import Policy
from neurocoder.runs.checkpoint import (
    Retention,
    best_step,
    read_evaluation,
    save_checkpoint,
    saved_steps,
    write_evaluation,
)
from neurocoder.runs.cli import main
from neurocoder.runs.config import resolve
from neurocoder.runs.evaluator import MAX_RESTARTS, Evaluator, EvaluatorReport, evaluation_seed
from neurocoder.runs.preparation import environment_factory, prepare
from neurocoder.runs.run import Run

TOYS = '''
import os, pathlib, time
import gymnasium as gym, numpy as np

class Toy(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

class Walls(Toy):
    """Both actions run into a wall; nothing ever happens."""
    def step(self, action):
        return np.ones(1, np.float32), 0.0, False, False, {}

class Endless(Toy):
    def step(self, action):
        pathlib.Path(os.environ["TOY_MARK"]).touch()
        time.sleep(0.001)
        return np.ones(1, np.float32), 1.0, False, False, {}

class Broken(Toy):
    def step(self, action):
        raise RuntimeError("the toy is broken\\nsecond line")

gym.register("Walls-v0", Walls, max_episode_steps=30)
gym.register("Endless-v0", Endless)
gym.register("Broken-v0", Broken)
'''
SMALL = {"policy.core": "none", "policy.head": "linear", "evaluation.episodes": 3}


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A module of environments, on the path of this process and of those that it starts."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "evaluator_toys.py").write_text(TOYS, "utf-8")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def make_run(logs: Path, env: str = "CartPole-v1", **overrides: Any) -> tuple[Run, Policy]:
    config, policy = prepare(resolve(env, None, SMALL | overrides, "test"))
    return Run.create(logs, config), policy


def save(run: Run, policy: Policy, step: int, mean_return: float | None = None) -> Path:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {"mean_return": mean_return}
    return save_checkpoint(run.checkpoints, step, policy.state_dict(), {}, state, Retention(newest=9))


def evaluator_of(run: Run) -> Evaluator:
    return Evaluator(run.path, run.config(), environment_factory(run.config()))


def news(evaluator: Evaluator, n: int = 1) -> EvaluatorReport:
    """Return all reports together until `n` scores and notes are there."""
    scores, notes = [], []
    deadline = time.monotonic() + 120
    while len(scores) + len(notes) < n:
        assert time.monotonic() < deadline, f"only {scores} and {notes} came of the evaluator"
        report = evaluator.poll(0.1)
        scores += report.scores
        notes += report.notes
    return EvaluatorReport(scores, notes)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def process_of(evaluator: Evaluator) -> int:
    assert evaluator._process is not None and evaluator._process.pid is not None
    return evaluator._process.pid


def kept(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "evaluations.jsonl").read_text("utf-8").splitlines()]


def hung_up(evaluator: Evaluator) -> bool:
    """Whether its pipe has ended: a process may be a zombie while threads of it still hold their end."""
    assert evaluator._connection is not None
    return evaluator._connection.poll()


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# ------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize(
    ("env", "overrides", "truncated"),
    [
        ("CartPole-v1", {}, 0),
        ("ALE/Pong-v5", {"protocol.max_frames": 80, "evaluation.deterministic": True}, 3),
    ],
)
def test_a_score_is_the_one_of_the_eval_command(
    env: str, overrides: dict[str, Any], truncated: int, logs: Path
) -> None:
    run, policy = make_run(logs, env, **overrides)
    save(run, policy, 0)
    path = save(run, policy, 100)
    with evaluator_of(run) as evaluator:
        evaluator.submit(path)
        assert evaluator.pending == {100}
        (score,), notes = evaluator.close(timeout=60)
        assert not notes and not evaluator.pending
    assert [score] == kept(run) and read_evaluation(path) == score
    assert score["source"] == "training" and score["seconds"] > 0
    assert score["checkpoint"] == 100 and score["seed"] == evaluation_seed(run.config().seed)
    assert score["truncated"] == truncated and score["stuck"] == 0 and len(score["returns"]) == 3

    flags = ["--deterministic"] if score["deterministic"] else []
    command = ["eval", str(run.path), "--episodes", "3", "--seed", str(score["seed"]), *flags]
    assert main(command) == 0
    by_command = kept(run)[1]
    assert by_command.pop("source") == "eval"
    assert by_command == {key: score[key] for key in score.keys() - {"source", "seconds"}}


def test_games_that_are_stuck_are_cut_and_reported(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, policy = make_run(logs, "evaluator_toys:Walls-v0", **{"evaluation.stuck_after": 7})
    save(run, policy, 100)
    command = ["eval", str(run.path), "--deterministic", "--episodes", "3", "--trust"]
    assert main(command) == 0
    assert "cut short: 0 at the time limit, 3 as stuck (7 agent steps" in capsys.readouterr().out
    assert main([*command, "--stuck-after", "0"]) == 0
    assert "cut short: 3 at the time limit, 0 as stuck (off)" in capsys.readouterr().out
    stuck, truncated = kept(run)
    assert (stuck["stuck"], stuck["truncated"], stuck["lengths"]) == (3, 0, [7] * 3)
    assert (truncated["stuck"], truncated["truncated"], truncated["lengths"]) == (0, 3, [30] * 3)
    assert (stuck["stuck_after"], truncated["stuck_after"]) == (7, 0)
    assert main([*command, "--stuck-after", "-1"]) == 2
    assert "--stuck-after=-1 must be >= 0" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- what goes wrong


def test_a_damaged_checkpoint_costs_a_line_and_an_exception_the_process(logs: Path) -> None:
    run, policy = make_run(logs, "evaluator_toys:Broken-v0")
    damaged, whole = save(run, policy, 100), save(run, policy, 200)
    (damaged / "model.safetensors").write_bytes(b"half")
    with evaluator_of(run) as evaluator:
        evaluator.submit(damaged)
        evaluator.submit(whole)
        first = process_of(evaluator)
        assert evaluator.pending == {100, 200}
        scores, (note, last) = news(evaluator, 2)
        assert not scores and note.startswith("checkpoint 100 is not evaluated: ") and "damaged" in note
        assert last == "the evaluator died (exit code 1) with checkpoint 200: RuntimeError: the toy is broken"
    assert ended(first) and read_evaluation(whole) is None


def test_a_killed_evaluator_is_reported_and_replaced(logs: Path) -> None:
    run, policy = make_run(logs)
    paths = [save(run, policy, step) for step in (100, 200, 300)]
    (run.path / "evaluations.jsonl").mkdir()  # scores that cannot be written are only told
    with evaluator_of(run) as evaluator:
        evaluator.submit(paths[0])
        evaluator.submit(paths[1])
        os.kill(process_of(evaluator), signal.SIGKILL)
        assert news(evaluator) == ([], ["the evaluator died (exit code -9) with checkpoint 100"])
        assert evaluator.pending == {200}  # by a new process
        (score,), (note,) = news(evaluator, 2)
        assert score["checkpoint"] == 200 and not evaluator.pending
        assert note.startswith("the score of checkpoint 200 cannot be written: ")

        idle = process_of(evaluator)
        os.kill(idle, signal.SIGKILL)
        wait_until(lambda: hung_up(evaluator))
        evaluator.submit(paths[2])
        assert news(evaluator) == ([], ["the evaluator died (exit code -9)"])
        assert evaluator.poll() == ([], [])  # said once
        assert evaluator.pending == {300} and not ended(process_of(evaluator))


def test_an_evaluator_that_keeps_dying_is_given_up(logs: Path) -> None:
    run, policy = make_run(logs)
    path = save(run, policy, 100)
    with evaluator_of(run) as evaluator:
        for death in range(MAX_RESTARTS + 1):
            evaluator.submit(path)
            os.kill(process_of(evaluator), signal.SIGKILL)
            scores, (note,) = news(evaluator)
            assert not scores and ("evaluated no more" in note) == (death == MAX_RESTARTS)
        evaluator.submit(path)
        assert not evaluator.pending and evaluator.poll() == ([], [])


def test_an_evaluator_that_cannot_be_started_is_reported(logs: Path) -> None:
    run, policy = make_run(logs)
    path = save(run, policy, 100)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with evaluator_of(run) as evaluator:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # no file can be opened
        try:
            evaluator.submit(path)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        scores, (note,) = evaluator.poll()
        assert not scores and note.startswith("the evaluator cannot be started: ")
        assert "Too many open files" in note and note.endswith("with checkpoint 100")
        assert not evaluator.pending
        evaluator.submit(path)
        assert evaluator.pending == {100} and not ended(process_of(evaluator))


def test_one_checkpoint_waits_and_a_newer_one_takes_its_place(logs: Path) -> None:
    run, policy = make_run(logs)
    paths = [save(run, policy, step) for step in (100, 200, 300)]
    with evaluator_of(run) as evaluator:
        for path in paths:
            evaluator.submit(path)
        assert evaluator.pending == {100, 300} and evaluator.skipped == 1
        scores, (note,) = evaluator.poll()
        assert not scores
        assert note == (
            "the evaluator is busy with checkpoint 100: checkpoint 200 is not evaluated (1 skipped so far)"
        )
        process = process_of(evaluator)
        _, notes = evaluator.close()
        assert notes == [f"checkpoint {step} is not evaluated: the run is over" for step in (100, 300)]
        assert ended(process) and not evaluator.pending


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux only")
def test_workers_in_step_leave_it_idle_time_only_until_that_is_not_enough(logs: Path) -> None:
    run, policy = make_run(logs, **{"a3c.sync": True})
    paths = [save(run, policy, step) for step in (100, 200, 300, 400)]
    with evaluator_of(run) as evaluator:
        evaluator.submit(paths[0])
        modest = process_of(evaluator)
        wait_until(lambda: os.sched_getscheduler(modest) == os.SCHED_IDLE)
        os.kill(modest, signal.SIGSTOP)  # no time at all
        evaluator.submit(paths[1])
        assert process_of(evaluator) == modest and evaluator.skipped == 0
        evaluator.submit(paths[2])
        assert ended(modest) and evaluator.pending == {300} and evaluator.skipped == 2
        assert evaluator.poll().notes == [
            "there is not enough idle time for evaluations: checkpoints 100 and 200 are not evaluated (2 skipped so "
            "far); from now on they take time from the workers"
        ]
        evaluator.submit(paths[3])
        following = process_of(evaluator)
        scores = news(evaluator, 2).scores
        assert [score["checkpoint"] for score in scores] == [300, 400]
        assert os.sched_getscheduler(following) == os.SCHED_OTHER
        assert os.getpriority(os.PRIO_PROCESS, following) == os.getpriority(os.PRIO_PROCESS, 0) + 10


def test_workers_on_their_own_share_the_processors_with_it(logs: Path) -> None:
    run, policy = make_run(logs)
    with evaluator_of(run) as evaluator:
        evaluator.submit(save(run, policy, 100))
        assert news(evaluator).scores
        process = process_of(evaluator)
        assert os.sched_getscheduler(process) == os.SCHED_OTHER
        assert os.getpriority(os.PRIO_PROCESS, process) == os.getpriority(os.PRIO_PROCESS, 0) + 10


PARENT = """
import sys, time
from pathlib import Path
from neurocoder.runs.evaluator import Evaluator
from neurocoder.runs.run import Run
from neurocoder.runs.preparation import environment_factory

if __name__ == "__main__":
    run = Run(Path(sys.argv[1]))
    evaluator = Evaluator(run.path, run.config(), environment_factory(run.config()))
    evaluator.submit(run.checkpoints / "100")
    print(evaluator._process.pid, flush=True)
    time.sleep(600)
"""


def test_the_evaluator_ends_with_its_parent_in_the_midst_of_a_game(logs: Path, toys: Path) -> None:
    run, policy = make_run(logs, "evaluator_toys:Endless-v0")
    save(run, policy, 100)
    mark, script = logs / "playing", logs / "parent.py"
    script.write_text(PARENT, "utf-8")
    search = os.pathsep.join(filter(None, (str(toys), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "TOY_MARK": str(mark), "PYTHONPATH": search}
    with subprocess.Popen(
        [sys.executable, str(script), str(run.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            wait_until(mark.exists)
            assert not ended(pid)
            parent.kill()
            wait_until(lambda: ended(pid))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


# --------------------------------------------------------------------------------- the best checkpoint


def test_the_best_checkpoint_is_the_one_with_the_highest_evaluation(logs: Path) -> None:
    run, policy = make_run(logs)
    folder = run.checkpoints
    for step, mean in ((100, 9.0), (200, 5.0), (300, 1.0), (400, 2.0)):
        save(run, policy, step, mean_return=mean)
    assert best_step(folder) == 100
    for step, mean in ((200, 5.0), (300, 3.0), (400, 3.0)):
        write_evaluation(folder / str(step), {"mean": mean})
    assert best_step(folder) == 200  # 100 was not evaluated
    for damaged in ("", "[]", '{"mean": NaN}', '{"mean": Infinity}', '{"mean": "high"}', "{}"):
        (folder / "200" / "evaluation.json").write_text(damaged, "utf-8")
        assert best_step(folder) == 400  # the latest of equals
    (folder / "400" / "state.json").unlink()
    assert best_step(folder) == 300


def test_an_evaluation_that_cannot_be_written_leaves_the_one_before(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, policy = make_run(logs)
    path = save(run, policy, 100)
    write_evaluation(path, {"mean": 1.0})
    before = sorted(path.iterdir())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_evaluation(path, {"mean": 2.0})
    assert read_evaluation(path) == {"mean": 1.0} and sorted(path.iterdir()) == before


def test_pruning_keeps_the_best_by_evaluation_and_those_in_use(logs: Path) -> None:
    run, policy = make_run(logs)
    for step, mean in ((100, 1.0), (200, 9.0), (300, 2.0), (400, 3.0)):
        save(run, policy, step, mean_return=mean)
    write_evaluation(run.checkpoints / "100", {"mean": 4.0})
    arguments = (run.checkpoints, 500, policy.state_dict(), {}, {"mean_return": 1.0}, Retention(newest=1))
    save_checkpoint(*arguments, in_use={300})
    assert saved_steps(run.checkpoints) == [100, 300, 500]
