"""Real worker processes: they change the shared model, are watched, replaced and ended; nothing is left of them."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import cartpole, make_quitting, make_telling_denormals, processes_of

from neurocoder.agents.hogwild import SharedModel
from neurocoder.agents.rollout import NonFiniteLossError
from neurocoder.agents.supervisor import Standstill, WorkerError, _Seat, train
from neurocoder.agents.worker import Notice, Record, TrainSpec, worker_seeds
from neurocoder.envs import make_vec


def run(spec: TrainSpec, model: SharedModel) -> list:
    return list(train(spec, model, threading.Event()))


def records(events: list) -> list[Record]:
    return [event for event in events if isinstance(event, Record)]


def children() -> list[multiprocessing.process.BaseProcess]:
    return multiprocessing.active_children()


def test_every_worker_and_game_has_a_seed_of_its_own():
    seeds = [seed for worker in range(4) for seed in worker_seeds(3, worker, 8)[1]]
    assert len(set(seeds)) == 32 and all(0 <= seed < 2**31 for seed in seeds)
    assert worker_seeds(3, 0, 8) == worker_seeds(3, 0, 8)
    assert worker_seeds(3, 0, 8) != worker_seeds(3, 0, 8, resumed_at=100)
    assert worker_seeds(3, 0, 8) != worker_seeds(3, 0, 8, restarts=1)


def test_workers_change_the_shared_model_and_count_their_updates():
    spec, model = cartpole(workers=2)
    before = model.values.clone()
    *events, end = run(spec, model)
    assert {event.worker for event in records(events)} <= {0, 1}
    # two may be on their way when the steps are used up
    assert isinstance(end, Standstill) and end.agent_steps in (64, 72)
    assert len(records(events)) == end.agent_steps // 8 == int(model.updates)
    assert max(event.agent_steps for event in records(events)) == end.agent_steps
    assert (model.values - before).abs().max() > 1e-5 and torch.isfinite(model.values).all()
    assert not children()


def test_an_update_tells_its_lag_and_where_its_time_went():
    spec, model = cartpole(workers=2, total_steps=800)
    metrics = [event.metrics for event in records(run(spec, model))]
    assert {m["policy_lag"] for m in metrics} >= {0.0, 1.0}
    assert all(0 <= m["overlapping_updates"] <= 1 and m["lost_updates"] <= 2 for m in metrics)
    for m in metrics:
        parts = [m[f"time/{part}"] for part in ("emulation", "acting", "learning", "sharing")]
        assert min(parts) > 0 and sum(parts) <= m["time/update"]
    spec, model = cartpole()
    assert all(event.metrics["policy_lag"] == 0 for event in records(run(spec, model)))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sync", [False, True])
def test_the_model_holds_still_for_a_checkpoint(workers, sync):
    spec, model = cartpole(workers=workers, sync=sync, total_steps=96)
    spec = replace(spec, checkpoint_every=32)
    stream = train(spec, model, threading.Event())
    at = []
    for event in stream:
        if isinstance(event, Standstill):
            before = model.values.clone()
            time.sleep(0.1)
            assert torch.equal(model.values, before)
            assert [snapshot.worker for snapshot in event.snapshots] == list(range(workers))
            at.append(event.agent_steps)
    if workers == 1 or sync:
        assert at == [32, 64, 96]
    else:  # a worker's update may be on its way when the other asks for the pause
        assert len(at) in (2, 3) and all(step % 32 <= 8 for step in at[:-1]) and at[-1] >= 96


def test_a2c_in_step_repeats_itself_to_the_bit_and_alone_is_a3c():
    def values(**a3c):
        spec, model = cartpole(total_steps=128, **a3c)
        run(spec, model)
        return model.values

    for several in ({}, dict(minibatches=2, epochs=2, clip_range=0.2)):
        two, again = (values(workers=2, sync=True, **several) for _ in range(2))
        assert torch.equal(two, again)
        alone, a3c = values(workers=1, sync=True, **several), values(workers=1, **several)
        assert torch.equal(alone, a3c) and not torch.equal(alone, two)


def test_numbers_too_small_to_matter_are_zeros_in_workers():
    spec, model = cartpole(make_envs=make_telling_denormals)
    episodes = [episode for event in records(run(spec, model)) for episode in event.episodes]
    assert episodes and {episode.raw_return for episode in episodes} == {1.0}


def test_vtrace_and_groups_of_games_train():
    for options in (dict(vtrace=True, workers=2), dict(env_groups=2)):
        spec, model = cartpole(**options)
        before = model.values.clone()
        events = records(run(spec, model))
        assert len(events) >= 8 and not torch.equal(model.values, before)
        assert all(np.isfinite(list(event.metrics.values())).all() for event in events)


@pytest.mark.parametrize("correction", [dict(clip_range=0.2), dict(vtrace=True)])
def test_several_updates_of_each_rollout_count_its_steps_once(correction):
    spec, model = cartpole(workers=2, envs_per_worker=4, epochs=3, minibatches=2, **correction)
    before = model.values.clone()
    *events, end = run(spec, model)
    assert len(records(events)) == end.agent_steps // 16 == int(model.updates) // 6
    assert (model.values - before).abs().max() > 1e-5
    # one worker alone acts with the newest parameters, and leaves them behind while it learns
    spec, model = cartpole(
        envs_per_worker=4, epochs=3, minibatches=2, learning_rate=0.01, lr_schedule="constant", **correction
    )
    metrics = [event.metrics for event in records(run(spec, model))]
    assert all(m["policy_lag"] == 0 and m["off_policy"] > 1e-3 for m in metrics)


def test_a_loss_that_is_not_finite_never_reaches_the_shared_model():
    spec, model = cartpole(value_coefficient=1e38)
    with torch.no_grad():
        model.values.mul_(1e4)
    before = model.values.clone()
    with pytest.raises(NonFiniteLossError, match=r"the update was not applied"):
        run(spec, model)
    assert torch.equal(model.values, before)


def test_a_failing_environment_reports_its_traceback_at_once():
    spec, model = cartpole()
    spec = replace(spec, make_envs=partial(make_vec, "NoSuchEnv-v0"), max_restarts=5)
    with pytest.raises(WorkerError, match=r"worker 0 failed:(.|\n)*unknown environment 'NoSuchEnv-v0'"):
        run(spec, model)


# ------------------------------------------------------------------------------------------------- supervision


def test_an_interrupt_while_workers_start_leaves_none_behind(monkeypatch):
    spec, model = cartpole(workers=2)
    start = multiprocessing.context.ForkServerProcess.start

    def interrupted(process: multiprocessing.process.BaseProcess) -> None:
        start(process)
        if process.name == "worker-1":
            raise KeyboardInterrupt

    monkeypatch.setattr(multiprocessing.context.ForkServerProcess, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(spec, model)
    assert not children()


def test_a_killed_worker_is_named_and_nothing_is_left_without_restarts():
    spec, model = cartpole(total_steps=10**9)
    stream = train(spec, model, threading.Event())
    next(stream)
    (child,) = children()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(
        WorkerError, match=r"worker 0 died \(exit code -9\) at [\d,]+ agent steps; max_restarts = 0"
    ):
        for _ in stream:
            pass
    assert not children()


@pytest.mark.parametrize(
    "options", [{}, dict(sync=True), dict(sync=True, n_steps=32, epochs=9, minibatches=2, clip_range=0.2)]
)
def test_a_killed_worker_is_replaced_until_the_restarts_are_used_up(options):
    spec, model = cartpole(workers=2, total_steps=10**9, **options)
    # checkpoints, too: with many updates of a rollout, the new worker is out of step with the other one
    spec = replace(spec, max_restarts=2, checkpoint_every=256)
    stream = train(spec, model, threading.Event())
    notices: list[Notice] = []
    seen_since: set[int] = set()
    with pytest.raises(
        WorkerError, match=r"worker 1 died \(exit code -9\).* after 2 restarts; max_restarts = 2"
    ):
        for event in stream:
            if isinstance(event, Notice):
                notices.append(event)
                seen_since = set()
            elif isinstance(event, Record):
                seen_since.add(event.worker)
                if seen_since == {0, 1}:  # both work, again
                    seen_since = {-1}
                    (victim,) = [child for child in children() if child.name == "worker-1"]
                    os.kill(victim.pid, signal.SIGKILL)
    assert [notice.restarts for notice in notices] == [1, 2]
    assert all("worker 1 died (exit code -9)" in notice.text for notice in notices)
    assert not children()


def test_whoever_stops_first_leaves_the_other_nothing_to_wait_for():
    """Workers look for the order to stop between rollouts: some have ended when others deliver a gradient."""
    for delay in range(4):
        spec, model = cartpole(workers=2, total_steps=10**9, sync=True, epochs=2, clip_range=0.2)
        stop = threading.Event()
        ordered = False
        for event in train(spec, model, stop):
            if isinstance(event, Record) and not ordered:
                threading.Timer(0.002 * delay, stop.set).start()
                ordered = True
        assert ordered and isinstance(event, Standstill) and not children()


@pytest.mark.parametrize("timeout", [0.3, 1.0])
def test_a_hung_worker_is_noticed_killed_and_replaced(timeout):
    spec, model = cartpole(workers=2, total_steps=10**9)
    spec = replace(spec, max_restarts=1, worker_timeout=timeout)
    stop = threading.Event()
    stopped_at = None
    for event in train(spec, model, stop):
        if isinstance(event, Record) and stopped_at is None and event.worker == 0:
            (victim,) = [child for child in children() if child.name == "worker-0"]
            os.kill(victim.pid, signal.SIGSTOP)
            stopped_at = time.monotonic()
        if isinstance(event, Notice):
            told = re.search(
                r"worker 0 gave no sign of life for (\d) s and was killed \(exit code -9\)", event.text
            )
            assert told and int(told[1]) in (0, 1, 2)
            assert time.monotonic() - stopped_at < 10
            stop.set()
    assert stopped_at is not None and stop.is_set() and not children()


def test_patience_is_three_of_the_longest_silences_of_late():
    seat = _Seat(0, None, None)
    assert seat.patience(1.0) == 60
    seat.silences.append(4.0)  # Ctrl-Z within an update
    assert seat.patience(1.0) == 12
    seat.silences.extend([0.5] * 8)
    assert seat.patience(1.0) == 1.5 and seat.patience(10.0) == 10


def test_a_worker_tells_how_long_it_was_silent():
    """Not the whole update: there is a sign of life with every step, and after every part that is learned from."""
    spec, model = cartpole(total_steps=800, epochs=9, minibatches=2, clip_range=0.2, n_steps=32)
    for record in records(run(spec, model)):
        assert 0 < record.silence < 0.5 * record.metrics["time/update"] + 0.05


def test_a_worker_that_fails_later_is_replaced_and_its_words_are_kept():
    spec, model = cartpole(make_envs=make_quitting, total_steps=300)
    events = run(replace(spec, max_restarts=1), model)
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert "worker 0 died (exit code 0), saying 'RuntimeError: the game broke'" in notice.text
    assert events[-1].agent_steps == 304 == 8 * len(records(events))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_parent(number):
    script = (
        "import sys, threading; from toys import cartpole; from neurocoder.agents.supervisor import train\n"
        "if __name__ == '__main__':\n"
        "    for event in train(*cartpole(workers=2, total_steps=10**9), threading.Event()):\n"
        "        if event.agent_steps > 200:\n"
        "            print('works', flush=True)\n"
        "            threading.Event().wait()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent, start_new_session=True
    ) as parent:
        assert parent.stdout.readline() == "works\n"
        assert len(processes_of(session=parent.pid)) >= 3
        os.kill(parent.pid, number)
    deadline = time.monotonic() + 10
    while (left := processes_of(session=parent.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
