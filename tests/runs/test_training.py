"""A run from start to end: repeatable to the byte, resumable, stopped by Ctrl-C, unharmed by a NaN."""

import contextlib
import csv
import json
import multiprocessing
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from neurocoder.agents import denormals
from neurocoder.agents.rollout import NonFiniteLossError
from neurocoder.envs import PROTOCOLS
from neurocoder.runs.checkpoint import find_checkpoint, load_checkpoint, saved_steps
from neurocoder.runs.cli import main
from neurocoder.runs.config import TASK_RECIPES, read_recipe, recipe_names, resolve
from neurocoder.runs.preparation import prepare, resolve_precision
from neurocoder.runs.run import Run, find_runs
from neurocoder.runs.supervised_session import SupervisedSession
from neurocoder.runs.training import run_training

TIME_COLUMNS = {"seconds", "steps_per_second"}
SMALL = {
    "a3c.workers": 1,
    "a3c.envs_per_worker": 4,
    "a3c.n_steps": 8,
    "a3c.epochs": 1,
    "a3c.minibatches": 1,
    "a3c.clip_range": 0.0,
    "steps": 512,
    "log_every": 64,
    "checkpoint_every": 128,
    "keep_checkpoints": 2,
}


def train_small(logs: Path, env: str = "CartPole-v1", **overrides) -> Run:
    config, policy = prepare(resolve(env, None, SMALL | overrides, "test"))
    with Run.create(logs, config) as run:
        run_training(config, policy, run)
    return run


def rows(run: Run) -> list[dict[str, str]]:
    with run.progress_file.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_time(run: Run) -> list[dict[str, str]]:
    return [
        {k: v for k, v in row.items() if k not in TIME_COLUMNS and not k.startswith("time/")}
        for row in rows(run)
    ]


@pytest.mark.parametrize("env", ["CartPole-v1", "ALE/Breakout-v5"])
def test_one_worker_and_one_seed_give_the_same_bytes_twice(tmp_path, env):
    first, second = (train_small(tmp_path / name, env, seed=3) for name in "ab")
    assert without_time(first) == without_time(second) and len(rows(first)) == 8
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, two = (find_checkpoint(run.checkpoints) / file for run in (first, second))
        assert one.read_bytes() == two.read_bytes()
    other = train_small(tmp_path / "c", env, seed=4)
    assert without_time(other) != without_time(first)


def test_numbers_too_small_to_matter_are_zeros_while_a_run_trains_and_not_after(tmp_path, monkeypatch):
    def watched(session, stop):
        during.append(denormals.are_zero())
        return trains(session, stop)

    during: list[bool] = []
    trains = SupervisedSession.run_until
    monkeypatch.setattr(SupervisedSession, "run_until", watched)
    config, policy = prepare(resolve("neurocoder/Digits-v0", None, {"steps": 256}, "test"))
    with Run.create(tmp_path, config) as run:
        run_training(config, policy, run)
    assert during == [True] and not denormals.are_zero()


def test_a_fresh_network_is_calibrated_on_random_play_where_observations_are_images():
    def weights(env: str, **overrides) -> torch.Tensor:
        _, policy = prepare(resolve(env, None, SMALL | overrides, "test"))
        return torch.nn.utils.parameters_to_vector(policy.parameters())

    pong = weights("ALE/Pong-v5", calibration_steps=256)
    assert torch.equal(pong, weights("ALE/Pong-v5", calibration_steps=256))
    assert not torch.equal(pong, weights("ALE/Pong-v5", calibration_steps=0))
    assert torch.equal(weights("CartPole-v1"), weights("CartPole-v1", calibration_steps=0))


def env_of(recipe):
    """Return an environment that a recipe is for."""
    own = {
        "continual": "neurocoder/SplitDigits-v0",
        "ntm-sort-small": "neurocoder/PrioritySort-v0",
    }
    if recipe in own:
        return own[recipe]
    if recipe.startswith("continual-atari"):
        return "neurocoder/ContinualAtari-v0"
    if "env" in read_recipe(recipe):
        return read_recipe(recipe)["env"]
    if "preset" in read_recipe(recipe):
        return "ALE/Pong-v5"
    if recipe in ("images-lenet", "images-densenet"):
        return "neurocoder/CIFAR10-v0"
    tasks = {name: f"neurocoder/{task}-v0" for task, name in TASK_RECIPES.items()}
    return tasks.get(recipe, "neurocoder/Digits-v0" if recipe in ("images", "bandit") else "CartPole-v1")


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_trains(tmp_path, recipe, few_images):
    run = train_shortly(tmp_path, recipe, env_of(recipe))
    assert len(rows(run)) >= 2


@pytest.mark.parametrize("recipe", ["images", "images-densenet", "table5-cifar"])
def test_recipes_of_images_train_on_cifar_100_too(tmp_path, recipe, few_images):
    run = train_shortly(tmp_path, recipe, "neurocoder/CIFAR100-v0")
    assert len(rows(run)) >= 2
    assert main(["eval", str(run.path)]) == 0


def train_shortly(tmp_path, recipe, env):
    small = {"a3c.workers": 1, "a3c.envs_per_worker": 4, "a3c.n_steps": 4, "steps": 32, "log_every": 16}
    if read_recipe(recipe).get("agent") == "supervised":
        small = {"steps": 1_600, "log_every": 1, "supervised.batch_size": 4, "evaluation.every": 0}
        if recipe == "images-densenet":
            small |= {"steps": 4, "supervised.batch_size": 2}
    if read_recipe(recipe).get("agent") == "continual":
        small = {"env_options.features": ""} if "features" in read_recipe(recipe)["env_options"] else {}
        small |= {"log_every": 1, "continual.batch_size": 64, "continual.passes": 1}
    if recipe.startswith("continual-atari"):
        short = {
            "calibration_steps": 64,
            "evaluation.episodes": 1,
            "protocol.max_frames": 80,
            "a3c.minibatches": 2,
        }
        small |= {**short, "steps": 96, "env_options.games": ["Pong", "Boxing"]}
    config, policy = prepare(resolve(env, recipe, small, "test"))
    assert config.policy.encoder != "auto"
    with Run.create(tmp_path, config) as run:
        run_training(config, policy, run)
    assert run.config() == config
    return run


@pytest.mark.parametrize("preset", PROTOCOLS)
def test_every_protocol_trains(tmp_path, preset):
    run = train_small(tmp_path, "ALE/Breakout-v5", preset=preset, steps=64)
    assert run.config().protocol.name == preset and len(rows(run)) == 1


def test_a_terminal_sees_a_progress_bar(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "neurocoder.runs.cli", "train", "CartPole-v1", "--logs", str(tmp_path)]
    flags = [f"--set={key}={value}" for key, value in SMALL.items()]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160"}
    with subprocess.Popen([*command, *flags], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the end of a terminal's other side is an error
            while part := os.read(ours, 65536):
                seen += part
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert process.returncode == 0 and "━━━━" in text and "512/512" in text and "steps/s" in text
    assert "\r\n" in text and "score it with: neurocoder eval" in text


def test_a_run_folder_holds_what_a_score_means(tmp_path):
    run = train_small(tmp_path, "ALE/Pong-v5", steps=64)
    assert run.path.parent.name == "ALE-Pong-v5"
    assert re.fullmatch(r"\d{8}-\d{6}-seed0", run.path.name)
    config = run.config()
    assert config.policy.head_config["sharpness"] == 5  # defaults too: a later version may have others
    assert config.precision in ("fp32", "bf16") and config.protocol.name == "machado2018"
    assert config.protocol.hash in (run.path / "protocol.json").read_text("utf-8")
    state = load_checkpoint(find_checkpoint(run.checkpoints)).state
    assert state["protocol_hash"] == config.protocol.hash and state["agent_steps"] == 64
    assert list(run.path.glob("events.out.*"))


def test_resume_continues_counters_schedule_and_optimizer(tmp_path, capsys):
    run = train_small(tmp_path, steps=256, **{"a3c.lr_schedule": "linear"})
    assert saved_steps(run.checkpoints)[-1] == 256
    half = load_checkpoint(find_checkpoint(run.checkpoints))
    text = (run.path / "config.toml").read_text("utf-8")
    (run.path / "config.toml").write_text(text.replace("steps = 256\n", "steps = 512\n", 1), "utf-8")
    assert main(["train", "--resume", str(run.path)]) == 0
    assert "resuming at 256 agent steps" in capsys.readouterr().out
    whole = load_checkpoint(find_checkpoint(run.checkpoints))
    assert whole.state["agent_steps"] == 512
    assert whole.state["updates"] == 2 * half.state["updates"] == whole.optimizer["updates"].item()
    steps = [int(row["agent_steps"]) for row in rows(run)]
    assert steps == list(range(64, 513, 64))
    rates = [float(row["learning_rate"]) for row in rows(run)]
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[-1] < 0.1 * rates[4]
    assert main(["train", "--resume", str(run.path)]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_an_evaluation_that_a_kill_cut_off_is_made_up_for(tmp_path):
    run = train_small(tmp_path, steps=256, **{"evaluation.every": 128, "evaluation.episodes": 1})

    def evaluated() -> list[int]:
        text = (run.path / "evaluations.jsonl").read_text("utf-8")
        return [json.loads(line)["checkpoint"] for line in text.splitlines()]

    assert evaluated()[-1] == 256
    (run.path / "evaluations.jsonl").unlink()
    (run.checkpoints / "256" / "evaluation.json").unlink()
    text = (run.path / "config.toml").read_text("utf-8")
    (run.path / "config.toml").write_text(text.replace("steps = 256\n", "steps = 320\n", 1), "utf-8")
    assert main(["train", "--resume", str(run.path)]) == 0
    assert evaluated() == [256] and (run.checkpoints / "256" / "evaluation.json").exists()


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    config, policy = prepare(resolve("CartPole-v1", None, SMALL | {"a3c.learning_rate": 1e30}, "test"))
    with (
        Run.create(tmp_path, config) as run,
        pytest.raises(NonFiniteLossError, match=r"not (applied|finite)"),
    ):
        run_training(config, policy, run)
    assert not multiprocessing.active_children()
    assert saved_steps(run.checkpoints) == [0]  # the last good one; no bad one was written


def living_processes(group: int) -> list[str]:
    """Return the processes of `group` that are no zombies, from /proc."""
    living = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            text = file.read_text("utf-8")
            state, _, process_group = text.rpartition(")")[2].split()[:3]
            if int(process_group) == group and state != "Z":
                living.append(text)
    return living


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_leaves_no_process(tmp_path, number):
    command = [sys.executable, "-m", "neurocoder.runs.cli", "train", "CartPole-v1", "--logs", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--workers", "2", "--steps", "100000000", "--set", "log_every=64"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "steps/s" in line:
            break
    os.killpg(process.pid, number)  # Ctrl-C reaches the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopped at" in out and "--resume" in out
    (run,) = find_runs(tmp_path)
    first, step = saved_steps(run.checkpoints)
    assert first == 0
    assert load_checkpoint(run.checkpoints / str(step)).state["agent_steps"] == step > 0
    deadline = time.monotonic() + 10
    while left := living_processes(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_eval_plays_a_trained_run(tmp_path, capsys):
    run = train_small(tmp_path, "ALE/Pong-v5", steps=64, **{"protocol.max_frames": 400})
    assert main(["eval", str(run.path), "--episodes", "3"]) == 0
    out = capsys.readouterr().out
    assert "mean ± std of 3 episodes" in out and run.config().protocol.hash in out
    assert main(["list", "runs", "--logs", str(tmp_path)]) == 0
    assert run.path.name in capsys.readouterr().out


def test_precision_auto_follows_the_processor_flags(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: "flags : avx512_bf16 sse")
    assert resolve_precision("auto", "cpu") == "bf16"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: "flags : sse")
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"


@pytest.mark.parametrize("core", ["none", "lstm", "ntm"])
def test_bf16_trains(tmp_path, core):
    run = train_small(tmp_path, "ALE/Pong-v5", steps=256, precision="bf16", **{"policy.core": core})
    moved = [float(row["off_policy"]) for row in rows(run)]
    # Features are those of the acting pass, and the heads compute in float32; ntm's are computed again.
    assert max(moved) < (1e-4 if core == "ntm" else 2e-8)


# ------------------------------------------------------------------------------------------------ exactness


def train_command(logs: Path, *arguments: str, **options) -> list[str]:
    flags = [f"--set={key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", "neurocoder.runs.cli", "train", *arguments, "--logs", str(logs), *flags]


def kill_at_checkpoint(command: list[str], logs: Path, step: int) -> Run:
    """Run `command` and kill -9 it as soon as checkpoint `step` is there."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (found := list(logs.glob(f"*/*/checkpoints/{step}"))):
            assert process.poll() is None, "ended before its checkpoint"
            time.sleep(0.001)
        process.kill()
    return Run(found[0].parent.parent)


EXACT = {
    "seed": 5,
    "a3c.workers": 1,
    "a3c.envs_per_worker": 2,
    "a3c.n_steps": 8,
    "vectorization": '"sync"',
    "log_every": 64,
    "evaluation.every": 0,
}


@pytest.mark.parametrize(
    ("env", "options"),
    [
        (
            "ALE/Breakout-v5",
            {
                "a3c.minibatches": 2,
                "a3c.extra_sticky": 0.5,
                "a3c.extra_sticky_steps": 2048,
            },
        ),
        (
            "ALE/Pong-v5",
            {
                "preset": "dqn2015",
                "protocol.sticky": 0.25,
                "policy.head": '"moe"',
                "policy.core": '"lstm"',
                "a3c.minibatches": 1,
            },
        ),
        (
            "CartPole-v1",
            {
                "policy.core": '"gru"',
                "a3c.env_groups": 2,
                "a3c.clip_range": 0.0,
                "a3c.vtrace": "true",
            },
        ),
        (
            "Pendulum-v1",
            {"a3c.workers": 2, "a3c.sync": "true", "a3c.extra_sticky": 0.5, "a3c.extra_sticky_steps": 2048},
        ),
    ],
)
def test_n_steps_are_half_of_them_kill_9_and_the_other_half(tmp_path, env, options):
    half = 1024
    settings = EXACT | {"steps": 2 * half, "checkpoint_every": half} | options
    whole = subprocess.run(train_command(tmp_path / "whole", env, **settings), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    told = f"training games repeat 50% more of their actions, falling to none at {2 * half:,} agent steps"
    assert (told in whole.stdout) == ("a3c.extra_sticky_steps" in options)
    (expected,) = find_runs(tmp_path / "whole")
    killed = kill_at_checkpoint(train_command(tmp_path, env, **settings), tmp_path, half)
    assert saved_steps(killed.checkpoints) == [0, half]
    resumed = subprocess.run(
        train_command(tmp_path, "--resume", str(killed.path)), capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming at {half:,} agent steps; games go on where they were" in resumed.stdout
    for file in ("model", "optimizer", "workers"):
        one, two = (run.checkpoints / f"{2 * half}/{file}.safetensors" for run in (expected, killed))
        assert one.read_bytes() == two.read_bytes(), file
    assert without_time(expected) == without_time(killed)


def test_the_native_games_start_anew_and_the_run_says_so(tmp_path):
    settings = EXACT | {
        "steps": 512,
        "checkpoint_every": 256,
        "vectorization": '"native"',
        "a3c.minibatches": 2,
    }
    run = kill_at_checkpoint(train_command(tmp_path, "ALE/Pong-v5", **settings), tmp_path, 256)
    resumed = subprocess.run(
        train_command(tmp_path, "--resume", str(run.path)), capture_output=True, text=True
    )
    assert resumed.returncode == 0 and "games start anew (vectorization = native)" in resumed.stdout
