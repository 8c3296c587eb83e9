"""``neurocoder bench a3c``: the arithmetic by hand, real processes briefly, and no word about how fast this machine is."""

import json
import math
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from neurocoder.agents.processes import processors
from neurocoder.envs import get_protocol, make_vec
from neurocoder.policies import Policy, PolicyConfig
from neurocoder.runs.bench import a3c, peers
from neurocoder.runs.bench.a3c import SKIPPED, Contender, Memory, Stopwatch, Trial, make_row, ratios
from neurocoder.runs.bench.peers import SB3_WARM_UP, BenchError, CycleClock, Emulators, Network, rate_of
from neurocoder.runs.cli import main
from neurocoder.runs.config import read_recipe

Capture = pytest.CaptureFixture[str]
RATES = ["steps_per_second", "steps_per_second_low", "steps_per_second_high"]
SETTINGS = ["workers", "envs_per_worker", "n_steps", "precision"]
PARTS = ["emulation", "acting", "learning", "sharing", "rest", "whole"]


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return content


# ------------------------------------------------------------------------------------------ the command


def test_a_real_run_has_all_rows_and_goes_on_without_stable_baselines3(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)  # as if it were not installed
    flags = ["--presets", "a3c", "--heads", "neurocoder", "--workers", "1", "--seconds", "0.5"]
    file = tmp_path / "a3c.json"
    assert main(["bench", "a3c", *flags, "--repeats", "1", "--json", str(file)]) == 0
    assert not multiprocessing.active_children()

    content = read(file)
    trainer, network, emulators = content["rows"]
    assert list(trainer) == ["preset", "head", *SETTINGS, *RATES, "repeats", "breakdown", "memory"]
    assert [trainer[name] for name in ("preset", "head", *SETTINGS[:3])] == ["a3c", "neurocoder", 1, 32, 20]
    assert trainer["precision"] == network["precision"] in ("fp32", "bf16")
    assert [network[name] for name in ("preset", "peer", "of_preset", "of_head")] == [
        None,
        "network",
        "a3c",
        "neurocoder",
    ]
    assert [emulators[name] for name in ("preset", "peer", "of_preset")] == [None, "emulators", "a3c"]
    for row in content["rows"]:
        assert len({row[name] for name in RATES}) == 1 and row["repeats"] == 1
        assert math.isfinite(row["steps_per_second"]) and row["steps_per_second"] > 0
    spent = trainer["breakdown"]
    assert list(spent) == PARTS
    assert all(spent[part] > 0 for part in PARTS if part != "rest")
    assert sum(spent[part] for part in PARTS[:-1]) == pytest.approx(spent["whole"])
    assert spent["whole"] == pytest.approx(1e6 / trainer["steps_per_second"])  # one worker
    assert 0 < trainer["memory"]["pss_mib"] <= trainer["memory"]["rss_mib"]
    (ratio,) = content["ratios"]
    assert ratio["of_network"] == trainer["steps_per_second"] / network["steps_per_second"]
    assert ratio["of_sb3"] is None and ratio["scaling"] is None
    assert content["protocol"]["repeats"] == 1 and content["protocol"]["seconds"] == 0.5
    assert content["versions"]["torch"] == torch.__version__
    assert "stable-baselines3" not in content["versions"]

    captured = capsys.readouterr()
    assert (
        "stable-baselines3 is not installed, so it has no row: pip install stable-baselines3" in captured.out
    )
    assert captured.err.splitlines() == ["3 things to measure, 1 × 0.5 s each: about 0 min"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked to be measured, instead of measuring; every rate is a little higher than the one before."""
    asked: list[tuple[Any, ...]] = []

    def train_for(config: Any, policy: Policy, seconds: float) -> Trial:
        asked.append((config.policy.encoder, config.policy.head, config.a3c.workers, seconds))
        spent = dict.fromkeys(PARTS, 12_345.6)
        return Trial(123_456.0 + len(asked), spent, Memory(1234.5, 1234.5))

    def fake_rate_of(work: peers.Work, n_processes: int, seconds: float) -> float:
        asked.append((type(work).__name__, n_processes, seconds))
        return 123_456.0 + len(asked)

    monkeypatch.setattr(a3c, "train_for", train_for)
    monkeypatch.setattr(peers, "rate_of", fake_rate_of)
    return asked


def test_everything_is_measured_by_default_and_the_tables_fit_100_columns(
    measured: list[Any], tmp_path: Path, capsys: Capture
) -> None:
    assert main(["bench", "a3c", "--json", str(tmp_path / "a3c.json")]) == 0
    trainers = [
        (encoder, head, 2, 10.0) for encoder in ("a3g", "a3c", "nature") for head in ("linear", "neurocoder")
    ]
    expected = [*trainers, ("a3c", "linear", 1, 10.0), *[("Network", 2, 10.0)] * 6]
    expected += [*[("Emulators", 2, 10.0)] * 3, *[("SB3A2C", 1, 10.0)] * 2]
    assert sorted(map(str, measured)) == sorted(map(str, expected * 3))
    assert len(measured) == 3 * 18 and sorted(map(str, measured[:18])) == sorted(map(str, expected))

    content = read(tmp_path / "a3c.json")
    assert [row.get("peer") for row in content["rows"]] == [
        *[None] * 7,
        *["network"] * 6,
        *["emulators"] * 3,
        *["stable-baselines3"] * 2,
    ]
    assert [row["vec_env"] for row in content["rows"][-2:]] == ["DummyVecEnv", "SubprocVecEnv"]
    assert all(row["games"] == 16 and row["threads"] == processors() for row in content["rows"][-2:])
    assert all(row["repeats"] == 3 for row in content["rows"])
    assert all(row[RATES[1]] < row[RATES[0]] < row[RATES[2]] for row in content["rows"])
    assert len(content["ratios"]) == 6 and content["ratios"][2]["scaling"] is not None
    assert "stable-baselines3" in content["versions"]

    captured = capsys.readouterr()
    assert max(len(line) for line in captured.out.splitlines()) <= 100 and "…" not in captured.out
    for text in ("nature  neurocoder", "12346", "1234", "SubprocVecEnv", "cost against linear"):
        assert text in captured.out
    assert captured.err.splitlines() == ["18 things to measure, 3 × 10 s each: about 14 min"]


def test_presets_heads_and_peers_are_chosen(measured: list[Any], capsys: Capture) -> None:
    flags = ["--presets", "nature, a3c,nature", "--heads", "moe", "--workers", "1", "--no-sb3"]
    assert main(["bench", "a3c", *flags, "--seconds", "3", "--repeats", "1"]) == 0
    trainers = [("nature", "moe", 1, 3.0), ("a3c", "moe", 1, 3.0)]
    expected = [*trainers, *[("Network", 1, 3.0)] * 2, *[("Emulators", 1, 3.0)] * 2]
    assert sorted(map(str, measured)) == sorted(map(str, expected))
    assert "stable" not in capsys.readouterr().out  # nobody asked for it


WRONG: dict[str, tuple[list[str], str]] = {
    "unknown preset": (["--presets", "a3c,natur"], "unknown preset 'natur'; did you mean 'nature'"),
    "no preset": (["--presets", ""], "unknown preset ''"),
    "unknown head": (["--heads", "linaer"], "unknown head 'linaer'; did you mean 'linear'"),
    "no worker": (["--workers", "0"], "--workers=0 must be in [1, "),
    "more workers than processors": (["--workers", "100000"], "--workers=100000 must be in [1, "),
    "no time": (["--seconds", "0"], "--seconds=0.0 must be finite and > 0"),
    "all the time": (["--seconds", "inf"], "--seconds=inf must be finite and > 0"),
    "no number": (["--seconds", "nan"], "--seconds=nan must be finite and > 0"),
    "no round": (["--repeats", "0"], "--repeats=0 must be >= 1"),
    "unknown precision": (
        ["--precision", "fp8"],
        "--precision='fp8' must be one of ('auto', 'fp32', 'bf16')",
    ),
    "unknown option": (["--preset", "a3c"], "Unknown option: --preset. Did you mean --presets?"),
    "folder that is not there": (["--json", "gone/x.json"], "--json='gone/x.json' must be in a folder"),
    "json that is a folder": (["--json", "."], "--json='.' must be a file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_measures_and_writes_nothing(
    case: str, measured: list[Any], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = WRONG[case]
    target = [] if "--json" in arguments else ["--json", "x.json"]
    assert main(["bench", "a3c", *target, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("neurocoder: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert not measured and not list(tmp_path.iterdir())


def test_ctrl_c_leaves_no_process() -> None:
    program = Path(sys.executable).parent / "neurocoder"
    flags = ["--presets", "nature", "--heads", "linear", "--workers", "2", "--seconds", "1000", "--no-sb3"]
    bench = subprocess.Popen(
        [program, "bench", "a3c", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )
    try:
        while bench.poll() is None and len(session(bench.pid)) < 5:  # itself, two helpers, two workers
            time.sleep(0.05)
        os.killpg(bench.pid, signal.SIGINT)  # as a terminal does
        try:
            _, err = bench.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            bench.send_signal(signal.SIGABRT)  # faulthandler says where it stands
            pytest.fail(f"still there a minute after Ctrl-C:\n{bench.communicate()[1]}")
    finally:
        if bench.poll() is None:
            os.killpg(bench.pid, signal.SIGKILL)
            bench.wait()
    assert bench.returncode == 130 and "Traceback" not in err
    deadline = time.monotonic() + 30  # helpers of multiprocessing end when they see that nobody is left
    while (left := session(bench.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def session(leader: int) -> list[int]:
    """Return the processes of a session that run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = file.read_text("utf-8")
        except OSError:  # it has ended meanwhile
            continue
        state, _, _, leads = text.rpartition(")")[2].split()[:4]
        if int(leads) == leader and state != "Z":
            found.append(int(file.parent.name))
    return found


# ---------------------------------------------------------------------------------------- what is compared


@pytest.mark.parametrize(
    ("preset", "network", "games", "protocol"),
    [
        ("a3g", ("a3g", "lstm", 512), (4, 20), "neurocoder2020"),
        ("a3c", ("a3c", "lstm", 256), (32, 20), "machado2018"),
        ("nature", ("nature", "none", 256), (32, 20), "machado2018"),
    ],
)
def test_presets_are_what_the_trainer_is_told(
    preset: str, network: tuple[str, str, int], games: tuple[int, int], protocol: str
) -> None:
    for head in ("linear", "neurocoder"):
        config = a3c.configuration(preset, head, 3, "fp32")
        policy = config.policy
        assert (policy.encoder, policy.core, policy.core_size, policy.head) == (*network, head)
        assert (config.a3c.envs_per_worker, config.a3c.n_steps) == games
        assert (config.a3c.workers, config.precision) == (3, "fp32")
        assert config.protocol == get_protocol(protocol)
        recipe = read_recipe(a3c.PRESETS[preset].recipe)["policy"]
        assert policy.head_config == ({} if head == "linear" else recipe.get("head_config", {}))


def test_without_a_number_the_trainers_own_number_of_workers_is_taken() -> None:
    assert a3c.configuration("a3c", "linear", None, "auto").a3c == a3c.resolve(a3c.ENV, "a3c", {}, "").a3c


def contender(label: str, seconds_asked: list[float]) -> Contender:
    def measure(seconds: float) -> Trial:
        seconds_asked.append(seconds)
        return Trial(float(len(seconds_asked)))

    return Contender(label, {}, measure, start_up=2.0)


def test_everything_has_one_turn_in_every_round() -> None:
    asked: list[float] = []
    compared = [contender(label, asked) for label in "abc"]
    announced: list[tuple[int, str]] = []
    told = a3c.rounds(compared, 5, 0.25, lambda done, who: announced.append((done, who.label)))
    labels = [who.label for who, _ in told]
    assert announced == list(enumerate(labels))
    assert asked == [0.25] * 15
    turns = [tuple(labels[start : start + 3]) for start in range(0, 15, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1, "the order is drawn anew"
    assert a3c.estimate(compared, 5, 0.25) == 5 * 3 * 2.25


def test_a_group_has_its_turns_one_right_after_the_other() -> None:
    asked: list[float] = []
    compared = [contender(label, asked) for label in "abcd"]
    compared[0] = replace(compared[0], group="pair")
    compared[3] = replace(compared[3], group="pair")
    labels = [who.label for who, _ in a3c.rounds(compared, 8, 0.25)]
    turns = ["".join(labels[start : start + 4]) for start in range(0, 32, 4)]
    assert all(sorted(turn) == list("abcd") and ("ad" in turn or "da" in turn) for turn in turns)
    assert any("ad" in turn for turn in turns) and any("da" in turn for turn in turns)
    assert len({turn.replace("da", "ad") for turn in turns}) > 2, "the order of groups is drawn anew"


def test_the_trainers_of_a_preset_are_a_group() -> None:
    compared = a3c.contenders(["a3c", "nature"], ["linear", "neurocoder"], 2, "fp32", sb3=False)
    groups = [who.group for who in compared]
    assert groups[:5] == [*["trainer a3c"] * 2, *["trainer nature"] * 2, "trainer a3c"]
    assert not any(groups[5:])


# ------------------------------------------------------------------------------------------ arithmetic


def spent(emulation: float, acting: float, learning: float, sharing: float) -> dict[str, float]:
    return dict(zip((f"time/{part}" for part in PARTS), (emulation, acting, learning, sharing), strict=False))


def stopwatch_with(arrivals: list[tuple[int, float, dict[str, float]]], workers: int = 2) -> Stopwatch:
    """A stopwatch whose workers are warm, at 10 steps a record."""
    stopwatch = Stopwatch(workers, 10)
    for worker in range(workers):
        for _ in range(SKIPPED):
            stopwatch.add(worker, 0.0, {})
    for arrival in arrivals:
        stopwatch.add(*arrival)
    return stopwatch


def test_rates_of_the_workers_add_up() -> None:
    stopwatch = stopwatch_with([(0, 1.0, {}), (1, 1.5, {}), (0, 2.0, {}), (0, 3.0, {}), (1, 3.5, {})])
    assert stopwatch.spans == [2.0, 2.0]
    assert stopwatch.steps_per_second == 2 * 10 / 2.0 + 1 * 10 / 2.0


def test_nothing_counts_until_the_last_worker_is_warm() -> None:
    stopwatch = Stopwatch(2, 10)
    for now in range(10):
        stopwatch.add(0, float(now), {})  # worker 1 still imports torch
    for now in range(10, 10 + SKIPPED):
        stopwatch.add(1, float(now), {})
    assert stopwatch.spans == [0.0, 0.0]
    for worker, now in ((0, 20.0), (1, 21.0), (0, 24.0), (1, 26.0)):
        stopwatch.add(worker, now, {})
    assert stopwatch.spans == [4.0, 5.0] and stopwatch.steps_per_second == 10 / 4 + 10 / 5


def test_time_is_broken_down_over_the_updates_that_count() -> None:
    before = spent(9.0, 9.0, 9.0, 9.0)  # spent before the clock starts
    stopwatch = stopwatch_with(
        [
            (0, 1.0, before),
            (1, 1.0, before),
            (0, 2.0, spent(0.25, 0.125, 0.5, 0.0625)),
            (1, 3.0, spent(0.75, 0.25, 0.75, 0.125)),
        ]
    )
    assert stopwatch.breakdown() == {  # 20 steps, 3 seconds of workers
        "emulation": 50_000.0,
        "acting": 18_750.0,
        "learning": 62_500.0,
        "sharing": 9_375.0,
        "rest": 9_375.0,
        "whole": 150_000.0,
    }


@pytest.mark.parametrize("missing", PARTS[:4])
def test_without_a_part_there_is_no_breakdown(missing: str) -> None:
    metrics = spent(0.1, 0.1, 0.1, 0.1)
    stopwatch = stopwatch_with([(0, 1.0, metrics), (0, 2.0, dict(metrics))], workers=1)
    assert stopwatch.breakdown() is not None
    del metrics[f"time/{missing}"]
    assert stopwatch.breakdown() is not None  # that of a record which does not count
    stopwatch.add(0, 3.0, metrics)
    assert stopwatch.breakdown() is None


def test_a_row_has_the_median_its_breakdown_and_its_memory() -> None:
    rates = [30.0, 10.0, 70.0, 20.0]
    trials = [Trial(rate, {"whole": 1e6 / rate}, Memory(rate, rate / 2)) for rate in rates]
    odd = make_row({"preset": "a3c", "head": "linear"}, trials[:3])
    assert odd == {
        "preset": "a3c",
        "head": "linear",
        "steps_per_second": 30.0,
        "steps_per_second_low": 10.0,
        "steps_per_second_high": 70.0,
        "repeats": 3,
        "breakdown": {"whole": 1e6 / 30},
        "memory": {"rss_mib": 30.0, "pss_mib": 15.0},
    }
    even = make_row({"preset": "a3c"}, trials)
    assert (even["steps_per_second"], even["memory"]["rss_mib"]) == (25.0, 20.0)
    assert make_row({"preset": "a3c"}, [Trial(1.0)])["memory"] is None
    peer = make_row({"preset": None, "peer": "network"}, trials[:3])
    assert list(peer) == ["preset", "peer", *RATES, "repeats"]


def trainer_row(preset: str, head: str, rate: float, workers: int = 4) -> dict[str, Any]:
    row = {"preset": preset, "head": head, "workers": workers}
    return {**row, "steps_per_second": rate, "breakdown": {"whole": 1.0}, "memory": None}


def peer_row(peer: str, rate: float, **of: str) -> dict[str, Any]:
    return {"preset": None, "head": None, "peer": peer, "workers": 4, **of, "steps_per_second": rate}


def test_ratios_by_hand() -> None:
    rows = [
        trainer_row("a3c", "linear", 800.0),
        trainer_row("a3c", "neurocoder", 600.0),
        trainer_row("nature", "neurocoder", 300.0),
        trainer_row("a3c", "linear", 250.0, workers=1),
        peer_row("network", 1000.0, of_preset="a3c", of_head="linear"),
        peer_row("network", 1200.0, of_preset="a3c", of_head="neurocoder"),
        peer_row("emulators", 1600.0, of_preset="a3c"),
        peer_row("stable-baselines3", 100.0, vec_env="DummyVecEnv"),
        peer_row("stable-baselines3", 200.0, vec_env="SubprocVecEnv"),
    ]
    linear, neurocoder, nature = ratios(rows)
    assert linear == {
        "preset": "a3c",
        "head": "linear",
        "of_network": 0.8,
        "of_emulators": 0.5,
        "of_sb3": 4.0,
        "cost_against_linear": None,
        "scaling": 3.2,
    }
    assert (neurocoder["of_network"], neurocoder["of_emulators"], neurocoder["of_sb3"]) == (0.5, 0.375, 3.0)
    assert (neurocoder["cost_against_linear"], neurocoder["scaling"]) == (0.25, None)
    assert [nature[name] for name in ("of_network", "of_emulators", "cost_against_linear")] == [None] * 3
    assert nature["of_sb3"] == 1.5


def test_with_one_worker_there_is_nothing_to_scale_from() -> None:
    (only,) = ratios([trainer_row("a3c", "linear", 800.0, workers=1)])
    assert (only["scaling"], only["of_sb3"]) == (None, None)


def test_memory_is_read_from_the_kernels_own_lines() -> None:
    text = "55d0-7ffd ---p 00000000 00:00 0   [rollup]\nRss:   372000 kB\nPss:  1000 kB\nPss_Anon:  7 kB\n"
    assert (a3c._kib(text, "Rss"), a3c._kib(text, "Pss")) == (372_000, 1000)
    assert a3c.workers_memory() is None  # nobody works


# ---------------------------------------------------------------------------------------------- peers


class FakeClock:
    """Stands in for the module ``time``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(peers, "time", SimpleNamespace(perf_counter=lambda: self.now))


def test_steps_are_timed_after_warming_up_and_over_whole_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    calls: list[str] = []

    def step() -> int:
        clock.now += 50.0 if "ready" not in calls else 0.75
        calls.append("step")
        return 6

    assert peers.timed(step, lambda: calls.append("ready"), 2.0) == 3 * 6 / 2.25
    assert calls == ["step"] * peers.WARM_UP + ["ready"] + ["step"] * 3


def test_cycles_are_timed_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    ready: list[float] = []

    def be_ready() -> None:
        ready.append(clock.now)
        clock.now += 1000.0  # waits for others: not counted

    cycles = CycleClock(be_ready, 1.0)
    for _ in range(SB3_WARM_UP):
        cycles.start_cycle()
        assert cycles.running and not ready
        clock.now += 50.0
    cycles.start_cycle()
    assert cycles.running and ready == [100.0 + 50.0 * SB3_WARM_UP]
    for elapsed in (0.4, 0.8, 1.2):
        assert cycles.running
        clock.now += 0.4
        cycles.start_cycle()
        assert cycles.elapsed == pytest.approx(elapsed)
    assert cycles.cycles == 3 and not cycles.running


@pytest.mark.parametrize("pixels", [True, False], ids=["uint8", "float32"])
@pytest.mark.parametrize("head", ["linear", "neurocoder"])
def test_the_networks_step_gives_fresh_gradients_to_all_parameters(
    head: str, pixels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Policy] = []

    class Kept(Policy):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    differentiated: list[Any] = []
    backward = torch.autograd.backward

    def recorded(outputs: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        differentiated[:] = [output.detach() for output in outputs]
        backward(outputs, gradients)

    monkeypatch.setattr(peers, "Policy", Kept)
    monkeypatch.setattr(torch.autograd, "backward", recorded)
    space = Box(0, 255, (2, 44, 44), np.uint8) if pixels else Box(-1, 1, (7,), np.float32)
    work = Network(space, Discrete(3), PolicyConfig(core_size=8, head=head), 3, 2, "fp32")
    step = work.stepper()
    assert step() == 6
    (policy,) = made
    first = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    assert len(first) == len(list(policy.parameters()))
    step()
    for before, parameter in zip(first, policy.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, before)  # of one batch, not of two
    assert [output.shape for output in differentiated[:2]] == [(3, 2, 3), (3, 2)]  # logits and values
    if head == "neurocoder":
        torch.testing.assert_close(differentiated[2], policy.aux_loss().detach())


PONG = partial(make_vec, "ALE/Pong-v5", protocol=get_protocol("machado2018"))


def test_processes_work_at_the_same_time_and_their_rates_add_up() -> None:
    assert rate_of(Emulators(PONG, 2), 2, 0.05) > 0
    assert rate_of(SimpleNamespace(rate=operator.is_not), 3, 1000.0) == 3  # each says True, which is 1
    assert not multiprocessing.active_children()


def test_stable_baselines3_is_measured(capfd: Capture) -> None:
    assert rate_of(peers.SB3A2C("DummyVecEnv", games=2, threads=1), 1, 0.05) > 0
    assert capfd.readouterr() == ("", "")


def test_a_process_that_fails_or_dies_is_named_and_no_other_is_left() -> None:
    with pytest.raises(BenchError, match=r"(?s)^Emulators failed:.*unknown environment"):
        rate_of(Emulators(partial(make_vec, "ALE/Pung-v5"), 2), 2, 1000.0)
    with pytest.raises(BenchError, match=r"^Emulators: a process died \(exit code 3\)"):
        rate_of(Emulators(os._exit, 3), 1, 1000.0)  # type: ignore[arg-type]  # 3 games, exit code 3
    assert not multiprocessing.active_children()


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_training_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stopwatch, "add", interrupt)
    config, policy = a3c.prepare(a3c.configuration("nature", "linear", 1, "fp32"))
    with pytest.raises(KeyboardInterrupt) as caught:
        a3c.train_for(config, policy, 1000.0)
    assert not multiprocessing.active_children(), "although the traceback keeps the generator alive"
    del caught


def test_an_interrupted_process_takes_its_own_processes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = "987654.25"  # nobody else sleeps that long
    start_sleeping = partial(subprocess.call, ["sleep", seconds])

    def wait(_: Any) -> None:
        while not sleepers(seconds):
            time.sleep(0.05)
        interrupt()

    monkeypatch.setattr(peers, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        rate_of(Emulators(start_sleeping, 2), 1, 1000.0)  # type: ignore[arg-type]
    assert not multiprocessing.active_children()
    deadline = time.monotonic() + 10
    while sleepers(seconds) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not sleepers(seconds)


def sleepers(seconds: str) -> list[Path]:
    """Return the processes that sleep for just so many seconds."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if file.read_bytes() == b"sleep\0" + seconds.encode() + b"\0":
                found.append(file)
        except OSError:  # it has ended meanwhile
            continue
    return found
