"""``neurocoder bench sb3``: the real PPO, for a moment; and what its numbers mean."""

import json
from pathlib import Path

import pytest

from neurocoder.runs.bench import peers, sb3
from neurocoder.runs.bench.sb3 import SB3PPO
from neurocoder.runs.cli import main

Capture = pytest.CaptureFixture[str]


def test_rows_are_medians_over_the_stock_policy_with_the_same_games() -> None:
    works = sb3.contenders(["linear", "moe"], ["native", "make_atari_env"], threads=2)
    assert [(work.head, work.envs) for work in works[:4]] == [
        (None, "native"), ("linear", "native"), ("moe", "native"), (None, "make_atari_env")
    ]  # fmt: skip
    rates = {work: [float(n), 10.0 * n, 2.0 * n] for n, work in enumerate(works, start=1)}
    rows = sb3.summarize(rates)
    assert [row.steps_per_second for row in rows] == [2.0 * n for n in range(1, 7)]
    assert [(row.low, row.high) for row in rows][1] == (2.0, 20.0)
    assert [row.of_stock for row in rows] == [1, 2, 3, 1, 5 / 4, 6 / 4]
    assert rows[0].policy == "CnnPolicy" and rows[2].policy == "NeurocoderCnnPolicy, moe"


def test_every_other_round_goes_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "rate_of", lambda work, processes, seconds: seconds)
    works = sb3.contenders(["linear"], ["native"], threads=1)
    assert [work.head for work, _ in sb3.measure(works, 3, 1.0)] == [
        None,
        "linear",
        "linear",
        None,
        None,
        "linear",
    ]


@pytest.mark.parametrize("work", [SB3PPO(None, "make_atari_env", 1), SB3PPO("neurocoder", "native", 1)])
def test_a_rate_is_that_of_the_real_ppo(work: SB3PPO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sb3, "GAMES", 2)
    monkeypatch.setitem(sb3.HYPERPARAMETERS, "n_steps", 16)
    monkeypatch.setitem(sb3.HYPERPARAMETERS, "batch_size", 16)
    called: list[bool] = []
    assert work.rate(lambda: called.append(True), 0.1) > 1
    assert called == [True]


def test_the_command_prints_and_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(peers, "rate_of", lambda work, *_: 100.0 if work.head is None else 87.0)
    file = tmp_path / "rows.json"
    assert main(["bench", "sb3", "--heads", "neurocoder", "--repeats", "2", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "NeurocoderCnnPolicy, neurocoder" in out and "0.87" in out and "rounds: 2, 10 s each" in out
    kept = json.loads(file.read_text("utf-8"))
    assert len(kept["rows"]) == 4 and kept["rows"][1]["of_stock"] == 0.87
    assert kept["protocol"]["repeats"] == 2 and "stable-baselines3" in kept["versions"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--heads", "lineer"], "unknown head 'lineer'; did you mean 'linear'"),
        (["--envs", "nativ"], "unknown kind of games 'nativ'; did you mean 'native'"),
        (["--threads", "0"], "--threads=0 must be in"),
        (["--seconds", "nan"], "--seconds=nan must be finite and > 0"),
        (["--repeats", "0"], "--repeats=0 must be >= 1"),
        (["--json", "/nowhere/rows.json"], "must be in a folder that exists"),
    ],
)
def test_wrong_input_is_one_line(flags: list[str], message: str, capsys: Capture) -> None:
    assert main(["bench", "sb3", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
