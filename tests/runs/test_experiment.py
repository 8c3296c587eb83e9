"""Experiments: rows come from the toolkit's own command, once each, and an interrupted run goes on."""

import csv
import itertools
import json
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from neurocoder.envs.datasets import LOCAL
from neurocoder.errors import ConfigError, NeurocoderError
from neurocoder.runs.checkpoint import saved_steps
from neurocoder.runs.cli import main
from neurocoder.runs.reproduce import experiment as ex
from neurocoder.runs.reproduce import linear_mnist, polynomials, side_by_side, trainings
from neurocoder.runs.reproduce.catalogue import EXPERIMENTS, experiment
from neurocoder.runs.reproduce.command_lines import command_of
from neurocoder.runs.reproduce.pictures import save
from neurocoder.runs.reproduce.polynomials import boundary_score, changes
from neurocoder.runs.reproduce.report import report
from neurocoder.runs.reproduce.trained import open_row
from neurocoder.runs.reproduce.verdicts import against
from neurocoder.runs.run import find_runs

SMALL = {
    "steps": 1_920,
    "checkpoint_every": 640,
    "evaluation.every": 640,
    "supervised.batch_size": 64,
    "policy.encoder_config.hidden": [16],
}


def digits(label, head, **options):
    overrides = {**SMALL, "policy.head": head, **{f"policy.head_config.{k}": v for k, v in options.items()}}
    return ex.Setting(label, "neurocoder/Digits-v0", "images", overrides, published="99")


def tiny(*settings):
    return ex.Experiment(
        "tiny",
        "A tiny table",
        settings,
        {},
        2,
        ex.ACCURACY,
        lambda rows, folder: "So it is.",
        lambda *_: None,
    )


def test_a_table_is_trained_once(tmp_path, capsys):
    table = tiny(digits("linear", "linear"), digits("low rank", "lowrank", rank=2))
    trainings.check(table)
    trainings.run_missing(table, tmp_path, seeds=2, jobs=2)
    rows = ex.read_rows(tmp_path)
    assert {(row["label"], row["seed"]) for row in rows} == {
        (a, b) for a in ("linear", "low rank") for b in (0, 1)
    }
    for row in rows:
        assert row["steps"] == [640, 1280, 1920] and len(row["scores"]) == len(row["losses"]) == 3
        assert row["scored"] == 355 and "digits" in row["data"]
        head = 170 if row["label"] == "linear" else 16 * 2 + 2 * 10 + 10
        assert row["parameters"] == 64 * 16 + 16 + head
        assert row["command"].startswith("neurocoder train neurocoder/Digits-v0 --recipe images --seed")
        assert str(tmp_path) not in row["command"]
    assert max(row["scores"][-1] for row in rows if row["label"] == "linear") > 20  # chance: 10
    assert "0 min left" in capsys.readouterr().out
    trainings.run_missing(table, tmp_path, seeds=2, jobs=2)
    assert len(ex.read_rows(tmp_path)) == 4 and capsys.readouterr().out == ""
    text = report(table, tmp_path)
    ends = [row["scores"][-1] for row in rows if row["label"] == "linear"]
    assert f"| linear | 1,210 | 2 | {np.mean(ends):.2f} ± {np.std(ends, ddof=1):.2f} |" in text
    assert "So it is." in text and "| 99 |" in text and "today's" not in text
    changed = replace(table, settings=[table.settings[0].with_overrides(log_every=640), table.settings[1]])
    assert "to train it anew): linear, seed 0; linear, seed 1." in report(changed, tmp_path)
    assert (tmp_path / "rows.csv").read_text().count("\n") == 13
    (line, _) = json.loads((tmp_path / "summary.json").read_text())
    assert line["setting"] == "linear" and line["parameters"] == 1_210 and line["seeds"] == 2
    assert line["mean"] == np.mean(ends) and line["std"] == pytest.approx(np.std(ends, ddof=1))
    assert line["best"] == max(max(row["scores"]) for row in rows if row["label"] == "linear")
    assert line["data"] == ["scikit-learn's digits"]
    printed = replace(table, settings=[replace(table.settings[0], published_parameters="1.2K")])
    assert "| linear | 1,210 (1.2K) | 2 |" in report(printed, tmp_path)


def test_an_interrupted_run_goes_on(tmp_path):
    setting = digits("long", "linear").with_overrides(
        steps=64_000, checkpoint_every=6_400, evaluation__every=32_000
    )
    logs = tmp_path / "runs" / "long-seed5"
    command = [sys.executable, "-m", "neurocoder.runs.cli", *command_of(setting, 5, logs)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(logs.glob("*/*/checkpoints/6*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (before,) = find_runs(logs)
    row = trainings.train(setting, 5, tmp_path)
    (after,) = find_runs(logs)
    assert before.path == after.path and row["steps"] == [32_000, 64_000]
    other = trainings.train(setting.with_overrides(), 5, tmp_path / "whole")
    assert row["scores"] == other["scores"] and row["losses"] == other["losses"]  # to the bit


def test_a_row_is_never_of_a_run_with_other_options(tmp_path):
    setting = digits("d", "linear")
    row = trainings.train(setting, 3, tmp_path)
    (run,) = find_runs(tmp_path / "runs" / "d-seed3")
    file = run.path / "config.toml"
    config = file.read_text()
    for key, value in {"supervised__learning_rate": 0.5, "policy__head_config__init": "uniform"}.items():
        now = rf"{key.replace('__', '.')} \S+ \(now {value}\); take it away, and it is trained anew"
        with pytest.raises(NeurocoderError, match=rf"-seed3 has other options: {now}"):
            trainings.train(setting.with_overrides(**{key: value}), 3, tmp_path)
    file.write_text(config.replace('init = "orthogonal"\n', "", 1))
    with pytest.raises(NeurocoderError, match=r"other options: \S+init None \(now orthogonal\)"):
        trainings.train(setting, 3, tmp_path)
    file.write_text(config.replace("[env_options]\n", "[env_options]\nsamples = 100\n"))
    with pytest.raises(NeurocoderError, match=r"other options: env_options.samples 100 \(now None\);"):
        trainings.train(setting, 3, tmp_path)
    other = "bf16" if 'precision = "fp32"' in config else "fp32"
    choice = f'precision = "{other}"'  # another machine's
    file.write_text(re.sub('precision = "[^"]+"', choice, config))
    assert f'"{other}"' in file.read_text()
    assert trainings.train(setting, 3, tmp_path)["scores"] == row["scores"]  # complete: nothing is run


LONG = {"steps": 6_400_000, "checkpoint_every": 6_400, "evaluation.every": 6_400_000}


def wait_for(found):
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def learning(folder):
    """The trainings in `folder` that have a row of progress: the checkpoint of step 0 is there before the first update."""
    return [file for file in folder.glob("runs/*/*/*/progress.csv") if file.read_text().count("\n") > 1]


def test_a_folder_has_one_writer(tmp_path, capsys):
    folder = tmp_path / "reproduce" / "fig6"
    folder.mkdir(parents=True)
    command = ["reproduce", "fig6", "--logs", str(tmp_path)]
    with trainings.only_writer(folder):
        assert main(command) == 2
    said = f"{folder}: another process is at work there; wait for it or stop it"
    assert capsys.readouterr().err.strip().endswith(said)
    assert not (folder / "runs").exists()
    with trainings.only_writer(folder):
        pass  # free again


def test_sigterm_ends_the_trainings_too_with_their_state_saved(tmp_path):
    command = [sys.executable, "-m", "neurocoder.runs.cli", "reproduce", "fig6", "--logs", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "reproduce" / "fig6"
    wait_for(lambda: len(learning(folder)) == 2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and said == "neurocoder: interrupted\n"
    runs = [run for logs in folder.glob("runs/*") for run in find_runs(logs)]
    assert len(runs) == 2  # the third was not begun
    assert all(saved_steps(run.checkpoints)[-1] > 0 and not run.in_use for run in runs)
    assert ex.read_rows(folder) == []


def test_no_training_outlives_the_command_that_was_killed(tmp_path):
    command = [sys.executable, "-m", "neurocoder.runs.cli", "reproduce", "fig6", "--logs", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    folder = tmp_path / "reproduce" / "fig6"
    wait_for(lambda: len(learning(folder)) == 2)
    process.kill()
    process.wait(timeout=30)
    runs = [run for logs in folder.glob("runs/*") for run in find_runs(logs)]
    wait_for(lambda: not any(run.in_use for run in runs))
    assert len(runs) == 2 and all(saved_steps(run.checkpoints)[-1] > 0 for run in runs)


def test_a_training_that_was_stopped_gives_no_row(tmp_path):
    setting = digits("long", "linear").with_overrides(**LONG)
    commands = trainings.Commands()
    errors = []

    def train():
        try:
            trainings.train(setting, 0, tmp_path, commands)
        except NeurocoderError as error:
            errors.append(str(error))

    thread = threading.Thread(target=train)
    thread.start()
    wait_for(lambda: list(tmp_path.glob("runs/*/*/*/checkpoints/6*")))
    commands.stop()
    thread.join(30)
    assert len(errors) == 1 and "of 6,400,000 steps; the same command goes on with it" in errors[0]
    with pytest.raises(NeurocoderError, match="not begun"):
        trainings.train(setting, 1, tmp_path, commands)


def test_a_training_that_is_killed_fails_alone(tmp_path):
    commands = trainings.Commands()
    setting = digits("long", "linear").with_overrides(**LONG)
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(trainings.train, setting, 0, tmp_path, commands)
        wait_for(lambda: learning(tmp_path))
        (process,) = multiprocessing.active_children()
        process.kill()
        with pytest.raises(NeurocoderError, match=r"failed \(exit code -9\)"):
            lost.result(timeout=30)
    assert trainings.train(digits("short", "linear"), 0, tmp_path, commands)["label"] == "short"


def test_an_interrupted_training_is_not_left_alone(tmp_path, monkeypatch):
    def interrupted(sentinels):
        wait_for(lambda: learning(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainings.train(digits("long", "linear").with_overrides(**LONG), 0, tmp_path)
    assert not multiprocessing.active_children()
    (run,) = find_runs(next(tmp_path.glob("runs/*")))
    assert saved_steps(run.checkpoints)[-1] > 0 and not run.in_use


def test_what_another_table_has_trained_is_taken_from_there(tmp_path, capsys):
    both = digits("linear", "linear")
    first = replace(tiny(both, digits("other", "lowrank", rank=2)), name="first")
    trainings.run_missing(first, tmp_path / "first-quick", seeds=1, jobs=2)
    second = replace(tiny(both, digits("third", "lowrank", rank=1)), name="second", shares_with=("first",))
    assert [row["label"] for row in trainings.adopted(second, tmp_path / "second-quick")] == ["linear"]
    trainings.run_missing(second, tmp_path / "second-quick", seeds=1, jobs=1)
    capsys.readouterr()
    rows = {row["label"]: row for row in ex.read_rows(tmp_path / "second-quick")}
    assert set(rows) == {"linear", "third"} and trainings.adopted(second, tmp_path / "second-quick") == []
    (theirs,) = (row for row in ex.read_rows(tmp_path / "first-quick") if row["label"] == "linear")
    assert rows["linear"] == {**theirs, "run": f"../first-quick/{theirs['run']}"}
    assert open_row(tmp_path / "second-quick", rows["linear"]) is not None
    changed = replace(second, settings=[both.with_overrides(seed_=1), *second.settings[1:]])
    assert trainings.adopted(changed, tmp_path / "second-quick2") == []


def test_a_run_killed_before_its_first_checkpoint_counts_as_none(tmp_path):
    setting = digits("d", "linear")
    row = trainings.train(setting, 0, tmp_path / "whole")
    (run,) = find_runs(tmp_path / "whole" / "runs" / "d-seed0")
    torn = tmp_path / "runs" / "d-seed0" / run.path.parent.name / "20200101-000000-seed0"
    torn.mkdir(parents=True)
    shutil.copy(run.path / "config.toml", torn)
    again = trainings.train(setting, 0, tmp_path)
    assert again["scores"] == row["scores"] and torn.name not in again["run"]
    assert trainings.train(setting, 0, tmp_path)["run"] == again["run"]


def test_a_failed_run_leaves_the_others_their_rows(tmp_path, capsys):
    bad = digits("bad", "linear").with_overrides(supervised__learning_rate=1e30)
    table = tiny(bad, digits("good", "linear"))
    for _ in range(2):  # it fails again, and nothing else is run again
        with pytest.raises(NeurocoderError, match=r"(?s)the loss is.*tries them again"):
            trainings.run_missing(table, tmp_path, seeds=1, jobs=1)
        assert [row["label"] for row in ex.read_rows(tmp_path)] == ["good"]
    assert capsys.readouterr().out.count("1/2  ") == 1


def test_what_a_network_only_carries_is_not_counted(tmp_path):
    setting = digits("projected", "linear").with_overrides(
        policy__encoder="projection", policy__encoder_config={"features": 20}
    )
    setting.overrides.pop("policy.encoder_config.hidden")
    assert trainings.train(setting, 0, tmp_path)["parameters"] == 20 * 10 + 10


def test_a_failed_run_says_why(tmp_path):
    setting = digits("bad", "linear").with_overrides(supervised__learning_rate=1e30)
    with pytest.raises(NeurocoderError, match="the loss is"):
        trainings.train(setting, 0, tmp_path)


def test_settings_that_cannot_be_trained_are_found_before_anything_is_run():
    with pytest.raises(ConfigError, match="rank_"):
        trainings.check(tiny(digits("linear", "linear"), digits("typo", "lowrank", rank_=2)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_setting_of_the_paper_can_be_trained_in_full_and_quickly(name):
    found = experiment(name)
    trainings.check(found)
    assert len({setting.label for setting in found.settings}) == len(found.settings)
    for setting in found.settings:
        quick = setting.with_overrides(**found.quick)
        trainings.check(tiny(quick))
        if "steps" in quick.overrides:  # continual runs are as long as their tasks
            assert quick.overrides["steps"] % quick.overrides["checkpoint_every"] == 0


def test_values_on_the_command_line_are_one_argument():
    setting = ex.Setting("x", "e", "r", {"a": [1, 2.5], "b": "text", "c": {}, "d": {"e": True}})
    arguments = command_of(setting, 0, Path("logs"))
    assert arguments[9::2] == ["a=[ 1, 2.5, ]", 'b="text"', "c={}", "d={e = true}"]


def rows_of(label, values):
    return [
        {"label": label, "seed": seed, "steps": [10, 20], "scores": [0.0, v], "losses": [9.0, v]}
        for seed, v in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("ours", "other", "word"),
    [
        ([3, 4, 5], [2, 3, 4], "better"),
        ([1, 2, 3], [2, 3, 4], "worse"),
        ([3, 2, 5], [2, 3, 4], "no clear difference"),
        ([2, 3, 5], [2, 3, 4], "no clear difference"),
        ([2, 3, 4], [2, 3, 4], "the same"),
        ([3, 4], [2, 3], "too few seeds to say"),
    ],
)
def test_verdicts(ours, other, word):
    rows = [*rows_of("ours", ours), *rows_of("other", other)]
    assert against(rows, "ours", "other", ex.ACCURACY).endswith(f": {word}.")
    assert against(rows, "ours", "nobody", ex.ACCURACY) == ""
    opposite = {"better": "worse", "worse": "better"}.get(word, word)
    assert against(rows, "ours", "other", ex.LOSS).endswith(f": {opposite}.")


def test_a_verdict_can_stop_at_a_step():
    """Controls learn for less long than what they are compared with."""
    rows = [*rows_of("ours", [3, 4, 5]), *rows_of("other", [2, 3, 4])]
    for row in rows:
        if row["label"] == "other":
            row.update(steps=[5, 10], scores=[9.0, 1.0])
    said = against(rows, "ours", "other", ex.ACCURACY, until=10)
    assert "0 against 1, better with 0 of 3 seeds: worse." in said
    assert against(rows, "ours", "other", ex.ACCURACY, until=20).endswith(": better.")


def test_boundaries_are_found_where_attention_changes():
    attention = np.zeros((100, 1, 4))
    for step in range(100):
        attention[step, 0, [0, 1, 2, 1, 3][step // 20]] = 1
    change = changes(attention)
    assert np.flatnonzero(change).tolist() == [20, 40, 60, 80] and change[20] == 1
    assert boundary_score(change, [20, 40, 60, 80]) == 1
    assert boundary_score(change, [22, 40, 63, 80]) == 0.75  # two steps away counts, three do not
    assert boundary_score(np.zeros(100), [20, 40]) == 0
    blurred = np.zeros(100)
    blurred[[19, 20, 21, 50]] = [0.9, 1.0, 0.9, 0.5]  # one peak is one boundary
    assert boundary_score(blurred, [20, 50]) == 1


def test_pictures_say_whose_data_they_show(tmp_path):
    rows = [
        {**row, "data": data}
        for row in rows_of("x", [1, 2])
        for data in ("MNIST, official bytes", f"CIFAR-10{LOCAL}not the official bytes (test_batch.bin)")
    ]
    for shown, text in (
        (rows, "Data: CIFAR-10, local, not the official bytes (test_batch.bin)"),
        (rows[::2], ""),
    ):
        figure = Figure(layout="constrained")
        save(figure, tmp_path / "picture.png", shown)
        assert figure.get_supxlabel() == text and (tmp_path / "picture.png").stat().st_size > 1000


def test_digits_that_are_attended_to_alike_have_one_path():
    attention = np.full((10, 3, 4), 0.25)
    attention[:5, 0] = [1, 0, 0, 0]  # the first component tells small digits from large ones
    attention[::2, 1] = [0, 0, 1, 0]  # the second even ones from odd ones; the third nothing
    paths = linear_mnist.patterns(attention)
    assert len(set(paths)) == 4 and len({path[2] for path in paths}) == 1
    for a, b in itertools.combinations(range(10), 2):
        alike = (a < 5) == (b < 5) and a % 2 == b % 2
        assert (paths[a] == paths[b]) == alike


PICTURES = {
    "fig4": ("neurocoder, 10 slots, J = 5", {"steps": 640, "checkpoint_every": 640, "evaluation.every": 640}),
    "fig5": ("neurocoder multi-step", {}),
    "fig6": ("hypernet, noise 0.1", {}),
    "table2": ("LeNet, lowrank r1", {"steps": 256, "checkpoint_every": 256, "evaluation.every": 256}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_what_was_trained_is_drawn(name, tmp_path, few_images, monkeypatch):
    monkeypatch.setattr(trainings.Commands, "run", lambda _, arguments: main(arguments))
    label, shorter = PICTURES[name]
    found = experiment(name)
    (setting,) = (setting for setting in found.settings if setting.label == label)
    short = {key: 2 * 12_800 for key in ("steps", "checkpoint_every", "evaluation.every")}
    short = shorter or {**short, "evaluation.episodes": 128}
    found = replace(found, settings=[replace(setting, overrides={**setting.overrides, **short})])
    rows = [trainings.train(found.settings[0], 0, tmp_path)]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    text = report(found, tmp_path)
    assert label in text
    pictures = {path.name for path in tmp_path.glob("*.png")}
    multi = {"attention-multi-step.png", "tree-multi-step.png", "programs-multi-step.png"}
    assert (
        pictures
        == {
            "fig4": {"error-by-steps.png", *multi},
            "fig5": {"attention-multi-step.png"},
            "fig6": {"curves-noise-01.png"},
            "table2": {"accuracy.png"},
        }[name]
    )
    if name == "fig4":
        policy = open_row(tmp_path, rows[0]).policy
        attention = linear_mnist.attention_by_digit(policy, 100)
        assert attention.shape == (10, 3, 10) and (attention > 0).all()
        assert rows[0]["parameters"] == sum(p.numel() for p in policy.parameters())
    if name == "fig5":
        (line,) = csv.DictReader((tmp_path / "boundaries.csv").read_text().splitlines())
        assert all(0 <= float(line[key]) <= 1 for key in ("attention", "jumps of y", "chance"))
        assert 0.05 < float(line["chance"]) < 0.35 and "of the boundaries between chunks" in text


def test_boundaries_that_attention_finds_are_compared_between_the_two(tmp_path):
    lines = ["setting,seed,attention,jumps of y,chance"]
    for seed in range(3):
        lines += [f"neurocoder single-step,{seed},0.2,0.5,0.1", f"neurocoder multi-step,{seed},0.3,0.5,0.1"]
    (tmp_path / "boundaries.csv").write_text("\n".join(lines) + "\n")
    text = polynomials.verdict5([], tmp_path)
    assert "multi-step: attention finds 30% of the boundaries" in text
    assert "The multi-step one finds more than the single-step one with 3 of 3 seeds" in text


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["MLP"], ["MLP"]),  # called so, although others contain it
        (["MLP 4"], ["MLP 400"]),
        (["M"], ["MLP", "MLP 400"]),
        (["small", "MLP"], ["MLP", "nsm, small"]),
    ],
)
def test_settings_are_named_by_their_label_or_a_part_of_it(texts, found):
    settings = [ex.Setting(label, "", "") for label in ("MLP", "MLP 400", "nsm", "nsm, small")]
    assert [setting.label for setting in ex.named(settings, texts)] == found


def test_a_quick_look_is_one_command(tmp_path, capsys):
    arguments = [
        "--quick",
        "--only",
        "linear, GRU of 8, noise",
        "--only",
        "8, noise",
        "--logs",
        str(tmp_path),
    ]
    assert main(["reproduce", "fig6", *arguments]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "reproduce" / "fig6-quick"
    assert "| linear, GRU of 8, noise 0.1 | 297 | 1 |" in out and str(folder) in out
    assert (folder / "curves-noise-01.png").exists() and len(ex.read_rows(folder)) == 1


def test_the_command_prints_counts_and_refuses_what_there_is_not(tmp_path, capsys):
    file = tmp_path / "counts.json"
    assert main(["reproduce", "table6", "--json", str(file), "--logs", str(tmp_path / "logs")]) == 0
    assert "328,194" in capsys.readouterr().out
    assert any(row["count"] == 328_194 for row in json.loads(file.read_text())["rows"])
    folder = tmp_path / "logs" / "reproduce" / "table6"
    assert json.loads((folder / "summary.json").read_text()) == json.loads(file.read_text())["rows"]
    assert "328,194" in (folder / "table.md").read_text()
    lines = list(csv.DictReader((folder / "rows.csv").read_text().splitlines()))
    assert [int(line["counted"] or 0) for line in lines].count(328_194) == 1
    assert main(["reproduce", "table9"]) == 2
    assert "unknown table or figure 'table9'" in capsys.readouterr().err
    assert main(["reproduce", "fig6", "--only", "nothing", "--logs", str(tmp_path)]) == 2
    assert "no setting is called like that" in capsys.readouterr().err
    assert not (tmp_path / "reproduce").exists()
