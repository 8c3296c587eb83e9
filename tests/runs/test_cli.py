"""The command line: one line and exit code 2 for everything a user can mend, and nothing touched then."""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

from neurocoder.agents.rollout import NonFiniteLossError
from neurocoder.agents.supervisor import WorkerError
from neurocoder.errors import NeurocoderError
from neurocoder.runs.checkpoint import read_state
from neurocoder.runs.cli import main
from neurocoder.runs.config import recipe_names, resolve
from neurocoder.runs.preparation import prepare
from neurocoder.runs.run import Run
from neurocoder.runs.training import run_training

PONG = "ALE/Pong-v5"
SCRIPT = str(Path(sys.executable).parent / "neurocoder")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run that ended, made once; tests that change a run copy it."""
    flags = {
        "steps": 256,
        "log_every": 64,
        "checkpoint_every": 128,
        "precision": "fp32",
        "a3c.workers": 1,
        "a3c.envs_per_worker": 2,
        "a3c.n_steps": 16,
        "a3c.epochs": 1,
        "a3c.clip_range": 0.0,
        "policy.head_config.slots": 8,
    }
    config, policy = prepare(resolve("CartPole-v1", None, flags, "test"))
    with Run.create(tmp_path_factory.mktemp("finished"), config) as run:
        run_training(config, policy, run)
    return run.path


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert text.count(old) == 1, f"{old!r} is not there once"
    file.write_text(text.replace(old, new), "utf-8")


@pytest.fixture
def run(finished: Path, logs: Path) -> Path:
    """A copy of the run, below `logs`, that has half of its steps still to go."""
    path = logs / finished.parent.name / finished.name
    shutil.copytree(finished, path)
    change(path / "config.toml", "\nsteps = 256\n", "\nsteps = 512\n")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below `folder` but the lock, which says nothing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def refused(capsys: Capture, *arguments: str) -> str:
    """Return the one line with which a command line is refused."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("neurocoder: ") and captured.err.endswith("\n")
    assert captured.err.count("\n") == 1, "expected exactly one line"
    assert "Traceback" not in captured.out + captured.err
    return captured.err


# ----------------------------------------------------------------------------- wrong input to train

WRONG: dict[str, tuple[list[str], str]] = {
    "unknown game": (["ALE/Pnog-v5"], "unknown environment 'ALE/Pnog-v5'; did you mean 'ALE/Pong-v5'"),
    "game without version": (["ALE/Breakout"], "'ALE/Breakout'; did you mean 'ALE/Breakout-v5'"),
    "unknown module": (["no_such_module:X-v0"], "cannot import module 'no_such_module'"),
    "no environment": ([], "needs an environment id, e.g. neurocoder train ALE/Pong-v5"),
    "two environments": ([PONG, "CartPole-v1"], "CartPole-v1"),
    "unknown head": ([PONG, "--head", "neurocodr"], "unknown head 'neurocodr'; did you mean 'neurocoder'"),
    "unknown core": ([PONG, "--core", "ltsm"], "unknown core 'ltsm'; did you mean 'lstm'?"),
    "unknown encoder": ([PONG, "--encoder", "natur"], "unknown encoder 'natur'; did you mean 'nature'?"),
    "unknown preset": ([PONG, "--preset", "dqn2051"], "'dqn2051'; did you mean 'dqn2015'?"),
    "unknown recipe": ([PONG, "--recipe", "atary"], "unknown recipe 'atary'; did you mean 'atari'?"),
    "unknown agent": ([PONG, "--agent", "a2c"], "agent='a2c' must be one of"),
    "recipe that is not there": ([PONG, "--recipe", "gone.toml"], "gone.toml: no such file"),
    "zero steps": ([PONG, "--steps", "0"], "steps=0 must be >= 1"),
    "negative steps": ([PONG, "--steps", "-5"], "steps=-5 must be >= 1"),
    "steps that are no number": ([PONG, "--steps", "many"], '--steps: unable to convert "many" into int'),
    "steps without a number": ([PONG, "--steps"], "--steps requires an argument"),
    "zero workers": ([PONG, "--workers", "0"], "a3c.workers=0 must be >= 1"),
    "parts of games for a core": (
        [PONG, "--core", "lstm", "--set", "a3c.minibatches=32"],
        "a3c.minibatches=32 must be a divisor of the 16 games of a rollout, which a core needs whole",
    ),
    "zero games": ([PONG, "--envs-per-worker", "0"], "a3c.envs_per_worker=0 must be >= 1"),
    "negative seed": ([PONG, "--seed", "-1"], "seed=-1 must be in [0, 2^63)"),
    "device that is none": ([PONG, "--device", "gpu7"], "device='gpu7' is not there"),
    "device that cannot compute": ([PONG, "--device", "meta"], "device='meta': expected cpu, cuda or cuda:N"),
    "unknown precision": ([PONG, "--precision", "fp16"], "precision='fp16' must be one of"),
    "unknown option": ([PONG, "--setps", "5"], "Unknown option: --setps. Did you mean --steps?"),
    "unknown key": ([PONG, "--set", "a3c.gama=1"], "unknown key 'a3c.gama'; did you mean 'gamma'?"),
    "key of the wrong type": ([PONG, "--set", "a3c.gamma=high"], "a3c.gamma='high' has the wrong type"),
    "key without a value": ([PONG, "--set", "a3c.gamma"], "expected KEY=VALUE"),
    "head option out of range": ([PONG, "--set", "policy.head_config.slots=0"], "slots=0 must be"),
    "image encoder for a vector": (["CartPole-v1", "--encoder", "a3c"], "'a3c' needs image observations"),
    "protocol for no game": (["CartPole-v1", "--preset", "dqn2015"], "applies to Atari games only"),
    "protocol that is no table": ([PONG, "--set", "protocol=3"], "protocol=3 has the wrong type"),
    "steps beyond all counters": ([PONG, "--set", f"checkpoint_every={10**20}"], "must be in (-2^63, 2^63)"),
    "unknown option of evaluations": (
        ["CartPole-v1", "--set", "evaluation.env_options.no_such=1"],
        "no_such",
    ),
    "unknown option of a game's evaluations": (
        [PONG, "--set", "evaluation.env_options.no_such=1"],
        "no_such",
    ),
    "parts of games for V-trace": (
        [PONG, "--set", "a3c.vtrace=true", "--set", "a3c.clip_range=0.0", "--set", "a3c.minibatches=32"],
        "a3c.minibatches=32 must be a divisor of the 16 games of a rollout, which V-trace needs whole",
    ),
    "module without a name": ([":CartPole-v1"], "':CartPole-v1'"),
    "module relative to nothing": ([".a:CartPole-v1"], "'.a:CartPole-v1'"),
    "run to resume that is not there": (["--resume", "nowhere"], "nowhere: not a run (no config.toml there)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_to_train_is_one_line_and_writes_nothing(case: str, logs: Path, capsys: Capture) -> None:
    arguments, message = WRONG[case]
    assert message in refused(capsys, "train", *arguments, "--logs", str(logs))
    assert not logs.exists()


def test_a_gpu_that_is_not_there_is_refused(logs: Path, capsys: Capture) -> None:
    line = refused(capsys, "train", PONG, "--device", "cuda:99", "--logs", str(logs))
    assert "device='cuda:99' is not there" in line and "this machine has cpu and" in line
    assert not logs.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('steps = "many"', "steps='many' has the wrong type"),
        ("[a3c]\nworkers = 1.5", "a3c.workers=1.5 has the wrong type"),
        ("[policy]\nhead = 3", "policy.head=3 has the wrong type"),
        ("stesp = 3", "unknown key 'stesp'; did you mean 'steps'?"),
        ("steps = ", "not readable as TOML"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_by_file_and_field(
    text: str, message: str, tmp_path: Path, logs: Path, capsys: Capture
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    line = refused(capsys, "train", PONG, "--recipe", str(file), "--logs", str(logs))
    assert line.startswith(f"neurocoder: {file}: ") and message in line
    assert not logs.exists()


@pytest.mark.parametrize("below", [".", "deep/er"])
def test_a_log_folder_with_a_file_in_the_way_is_refused(below: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("precious")
    line = refused(capsys, "train", "CartPole-v1", "--logs", str(tmp_path / "file" / below))
    assert "cannot write logs in" in line and "choose another --logs" in line
    assert contents(tmp_path) == {"file": b"precious"}


# ------------------------------------------------------------------------------------------ resume


def resume_refused(run: Path, capsys: Capture, *flags: str) -> str:
    """Return the line with which resuming `run` is refused, having checked that it was left alone."""
    before = contents(run)
    line = refused(capsys, "train", "--resume", str(run), *flags)
    assert contents(run) == before
    return line


@pytest.fixture
def saved(run: Path) -> Path:
    """The checkpoint that a resumed run would start from."""
    return run / "checkpoints" / "256"


def remove_all(saved: Path) -> None:
    shutil.rmtree(saved.parent)


def empty(saved: Path) -> None:
    (saved / "state.json").unlink()


def truncate_model(saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def truncate_optimizer(saved: Path) -> None:
    file = saved / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def truncate_state(saved: Path) -> None:
    file = saved / "state.json"
    file.write_bytes(file.read_bytes()[:20])


def replace_model(saved: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, saved / "model.safetensors")


def replace_optimizer(saved: Path) -> None:
    save_file({"momentum": torch.zeros(1)}, saved / "optimizer.safetensors")


def put_text(saved: Path) -> None:
    (saved / "model.safetensors").write_text("once upon a time")


def forget_steps(saved: Path) -> None:
    change(saved / "state.json", '"agent_steps": 256', '"agent_steps": null')


DAMAGE: dict[Callable[[Path], None], str] = {
    remove_all: "checkpoints: no checkpoint there",
    empty: "not a checkpoint of this toolkit (state.json is missing)",
    truncate_model: "model.safetensors: damaged or not safetensors",
    truncate_optimizer: "optimizer.safetensors: damaged or not safetensors",
    truncate_state: "state.json: damaged",
    put_text: "model.safetensors: damaged or not safetensors",
    replace_model: "model.safetensors: damaged, or not the file that was saved",
    replace_optimizer: "optimizer.safetensors: damaged, or not the file that was saved",
    forget_steps: "agent_steps is missing",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_or_foreign_checkpoint_is_not_resumed(
    damage: Callable[[Path], None], run: Path, saved: Path, capsys: Capture
) -> None:
    for older in set(saved.parent.iterdir()) - {saved}:
        shutil.rmtree(older)
    damage(saved)
    assert DAMAGE[damage] in resume_refused(run, capsys)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    run: Path, saved: Path, capsys: Capture
) -> None:
    truncate_optimizer(saved)
    assert main(["train", "--resume", str(run)]) == 0
    said = capsys.readouterr()
    assert "optimizer.safetensors: damaged" in said.err and "going on from" in said.err
    assert "resuming at 128 agent steps" in said.out


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"core": "gru"}, "missing core."),
        ({"head": "linear", "head_config": {}}, "unknown actor."),
        ({"head_config": {"slots": 9}}, "other shape actor."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_architecture_names_the_keys(
    changes: dict[str, Any], keys: str, run: Path, capsys: Capture
) -> None:
    config = tomllib.loads((run / "config.toml").read_text("utf-8"))
    config["policy"].update(changes)
    (run / "config.toml").write_text(tomli_w.dumps(config), "utf-8")
    line = resume_refused(run, capsys)
    assert "made for another network" in line and keys in line


@pytest.mark.parametrize("field", ["recent", "updates"])
def test_a_state_with_foreign_values_is_not_resumed(
    field: str, run: Path, saved: Path, capsys: Capture
) -> None:
    state = read_state(saved)
    (saved / "state.json").write_text(json.dumps({**state, field: ["a"]}))
    assert "state.json: damaged" in resume_refused(run, capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "9"], "seed=9 conflicts with the run, which has 0"),
        (["--steps", "100000"], "steps=100000 conflicts with the run, which has 512"),
        (["--head", "linear"], "policy.head='linear' conflicts with the run, which has 'neurocoder'"),
        (["--set", "a3c.gamma=0.5"], "a3c.gamma=0.5 conflicts with the run, which has 0.98"),
        (["--preset", "dqn2015"], "preset='dqn2015' conflicts with the run, which has None"),
        (["--recipe", "control"], "--recipe cannot be given with --resume"),
    ],
)
def test_a_conflicting_flag_is_refused(flags: list[str], message: str, run: Path, capsys: Capture) -> None:
    assert message in resume_refused(run, capsys, *flags)


def test_another_environment_is_refused(run: Path, capsys: Capture) -> None:
    before = contents(run)
    line = refused(capsys, "train", "Acrobot-v1", "--resume", str(run))
    assert "env='Acrobot-v1' conflicts with the run, which has 'CartPole-v1'" in line
    assert contents(run) == before


def test_a_mistyped_run_offers_the_near_one(run: Path, logs: Path, capsys: Capture) -> None:
    line = refused(capsys, "train", "--resume", run.name[:-1] + "x", "--logs", str(logs))
    assert "not a run" in line and f"did you mean '{run.name}'" in line


def test_a_run_with_a_damaged_configuration_is_refused_by_field(run: Path, capsys: Capture) -> None:
    change(run / "config.toml", "seed = 0", 'seed = "zero"')
    assert "config.toml: seed='zero' has the wrong type" in resume_refused(run, capsys)


@pytest.mark.parametrize("command", [["train", "--resume"], ["eval"]])
def test_a_run_that_would_import_a_module_needs_trust(
    command: list[str], run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "stored_module.py").write_text(f"open({str(marker)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    change(run / "config.toml", '"CartPole-v1"', '"stored_module:CartPole-v1"')
    before = contents(run)
    assert "pass --trust" in refused(capsys, *command, str(run))
    assert contents(run) == before and not marker.exists()


@pytest.fixture
def other_writer(run: Path) -> Iterator[None]:
    """Another process that writes the run."""
    hold = (
        f"import filelock; lock = filelock.FileLock({str(run / '.lock')!r}); lock.acquire(); "
        "print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.stdin.write("\n")


@pytest.mark.usefixtures("other_writer")
def test_a_run_that_another_process_writes_is_not_resumed(run: Path, capsys: Capture) -> None:
    assert "another process is writing this run" in resume_refused(run, capsys)


@pytest.mark.usefixtures("other_writer", "run")
def test_a_run_that_another_process_writes_is_listed_as_running(logs: Path, capsys: Capture) -> None:
    assert main(["list", "runs", "--logs", str(logs)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("running")


def test_a_finished_run_has_nothing_left_to_do(finished: Path, capsys: Capture) -> None:
    before = contents(finished)
    assert main(["train", "CartPole-v1", "--resume", str(finished), "--seed", "0", "--steps", "256"]) == 0
    assert "has its 256 agent steps already" in capsys.readouterr().out
    assert contents(finished) == before


def test_a_run_goes_on_where_it_stopped(run: Path, saved: Path, capsys: Capture) -> None:
    rows = (run / "progress.csv").read_text().splitlines()
    assert main(["train", "--resume", str(run)]) == 0
    assert "resuming at 256 agent steps" in capsys.readouterr().out
    state = read_state(run / "checkpoints" / "512")
    assert (state["agent_steps"], state["updates"]) == (512, 16)
    assert state["episodes"] > read_state(saved)["episodes"] > 0
    after = (run / "progress.csv").read_text().splitlines()
    assert after[:5] == rows  # header, 64, 128, 192, 256
    assert [line.split(",")[0] for line in after[5:]] == ["320", "384", "448", "512"]
    optimizer = load_file(run / "checkpoints" / "512" / "optimizer.safetensors")
    assert optimizer["updates"] == 16


# -------------------------------------------------------------------------------- the run's folder


def test_a_run_keeps_what_it_was_and_what_it_learned(finished: Path) -> None:
    assert finished.parent.name == "CartPole-v1" and finished.name.endswith("-seed0")
    assert Run(finished).config().precision == "fp32"
    record = json.loads((finished / "protocol.json").read_text())
    assert record["env"] == "CartPole-v1" and record["versions"]["torch"] == metadata.version("torch")
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["0", "128", "256"]
    assert len((finished / "progress.csv").read_text().splitlines()) == 5
    assert list(finished.glob("events.out.*"))


def test_runs_are_listed_with_progress(finished: Path, run: Path, logs: Path, capsys: Capture) -> None:
    assert main(["list", "runs", "--logs", str(logs)]) == 0
    out = capsys.readouterr().out
    assert str(run) in out and "neurocoder" in out and out.rstrip().endswith("stopped")
    assert main(["list", "runs", "--logs", str(finished.parent.parent)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("done")


# -------------------------------------------------------------------------------------------- eval


def test_eval_prints_the_raw_score_and_keeps_it(run: Path, capsys: Capture) -> None:
    assert main(["eval", str(run), "--episodes", "3", "--checkpoint", "128"]) == 0
    out = capsys.readouterr().out
    record = json.loads((run / "evaluations.jsonl").read_text())
    assert record["checkpoint"] == 128 and len(record["returns"]) == 3 and not record["deterministic"]
    assert record["returns"] == record["lengths"]  # CartPole pays one per step
    assert f"raw return {record['mean']:.2f} ± {record['std']:.2f} (mean ± std of 3 episodes)" in out
    assert record["mean"] == pytest.approx(sum(record["returns"]) / 3)


def test_eval_with_one_seed_repeats_itself(run: Path, capsys: Capture) -> None:
    for _ in range(2):
        assert main(["eval", str(run), "--episodes", "2", "--deterministic", "--seed", "4"]) == 0
    first, second = (run / "evaluations.jsonl").read_text().splitlines()
    assert first == second


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--episodes", "0"], "--episodes=0 must be >= 1"),
        (["--seed", "-1"], "--seed=-1 must be in"),
        (["--checkpoint", "7"], "no checkpoint '7'; there are last, best, 0, 128, 256"),
        (["--device", "gpu7"], "device='gpu7' is not there"),
        (["--episods", "1"], "Did you mean --episodes?"),
    ],
)
def test_wrong_input_to_eval_is_one_line(
    flags: list[str], message: str, finished: Path, capsys: Capture
) -> None:
    before = contents(finished)
    assert message in refused(capsys, "eval", str(finished), *flags)
    assert contents(finished) == before


def test_eval_of_another_architecture_names_the_keys(run: Path, capsys: Capture) -> None:
    change(run / "config.toml", 'core = "none"', 'core = "lstm"')
    assert "missing core." in refused(capsys, "eval", str(run))


def test_eval_of_what_is_no_run_is_one_line(logs: Path, capsys: Capture) -> None:
    assert "there are no runs in" in refused(capsys, "eval", "nothing", "--logs", str(logs))
    assert not logs.exists()


# ------------------------------------------------------------------------------------ other commands


@pytest.mark.parametrize(
    ("what", "expected"),
    [("envs", [PONG, "CartPole-v1"]), ("heads", ["linear:", "neurocoder:", "slots=80"])],
)
def test_list_shows_what_there_is(what: str, expected: list[str], capsys: Capture) -> None:
    assert main(["list", what]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in expected)


def test_list_shows_recipes_with_what_they_are_for(capsys: Capture) -> None:
    assert main(["list", "recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == recipe_names()
    assert all(len(line.split(": ")[1]) > 20 for line in lines)


def test_list_of_an_empty_folder_says_so(logs: Path, capsys: Capture) -> None:
    assert main(["list", "runs", "--logs", str(logs)]) == 0
    assert capsys.readouterr().out == f"no runs in {logs}\n"
    assert not logs.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], 'Did you mean "train"?'),
        (["list", "games"], '"envs", "heads", "encoders", "recipes", "runs"'),
    ],
)
def test_an_unknown_command_offers_the_near_one(arguments: list[str], message: str, capsys: Capture) -> None:
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "CartPole-v1", "Pong"], "unexpected 'Pong': neurocoder train --help"),
        (["bench", "a3c", "--presets", "a3c", "nature", "a3g"], "'nature a3g': neurocoder bench a3c --help"),
    ],
)
def test_words_that_nothing_takes_are_named(arguments: list[str], message: str, capsys: Capture) -> None:
    assert message in refused(capsys, *arguments)


def test_doctor_reports_on_this_machine(capsys: Capture) -> None:
    assert main(["doctor"]) in (0, 1)
    out = capsys.readouterr().out
    assert "Atari games, Pong steps" in out and metadata.version("torch") in out
    assert all(line.split()[0] in ("ok", "note", "problem") for line in out.splitlines())


@pytest.mark.parametrize(
    "failure", [WorkerError("worker 0 failed:\nbecause"), NonFiniteLossError("loss nan")]
)
def test_a_run_that_fails_through_no_fault_of_the_user_is_exit_code_1(
    failure: NeurocoderError, logs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr("neurocoder.runs.training.run_training", fail)
    assert main(["train", "CartPole-v1", "--logs", str(logs)]) == 1


# -------------------------------------------------------------------------------- as a real program


def console(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_the_program_refuses_an_unknown_game_in_one_line(logs: Path) -> None:
    done = console("train", "ALE/Pnog-v5", "--logs", str(logs))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("neurocoder: unknown environment") and done.stderr.count("\n") == 1
    assert "'ALE/Pong-v5'" in done.stderr and not logs.exists()


def test_the_program_refuses_an_unknown_option_in_one_line() -> None:
    done = console("train", "--stesp", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "neurocoder: Unknown option: --stesp. Did you mean --steps?\n"


def test_the_program_refuses_a_head_option_of_the_wrong_type_in_one_line(logs: Path) -> None:
    # As a program, because tests check the types of all calls and would be faster than the head itself.
    done = console("train", "CartPole-v1", "--set", "policy.head_config.slots=x", "--logs", str(logs))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("neurocoder: slots='x' must be") and done.stderr.count("\n") == 1
    assert not logs.exists()


def test_the_interpreter_runs_the_program_too(logs: Path) -> None:
    """Trainings start processes, which must find their main module again."""
    small = ["--steps", "64", "--workers", "1", "--set", "a3c.envs_per_worker=2", "--set", "a3c.n_steps=8"]
    done = subprocess.run(
        [sys.executable, "-m", "neurocoder", "train", "CartPole-v1", *small, "--logs", str(logs)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert list(logs.glob("CartPole-v1/*/progress.csv"))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_help_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from neurocoder.runs.cli import main; "
        f"code = main({arguments!r}); heavy = {{'torch', 'ale_py', 'cv2'}} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_help_shows_every_command_and_no_other(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    commands = (
        "train",
        "eval",
        "compare",
        "record",
        "watch",
        "replay",
        "reproduce",
        "list",
        "bench",
        "doctor",
    )
    assert all(f" {command} " in out for command in commands)
    assert not any(f" {command} " in out for command in ("serve", "continual"))  # not there yet
