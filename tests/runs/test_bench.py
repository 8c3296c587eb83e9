"""``neurocoder bench``: every field of every row, exact peaks, and no word about how fast this machine is."""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neurocoder.policies.heads import HEADS, head_options, make_head
from neurocoder.runs.bench import layer
from neurocoder.runs.bench.layer import SHAPES, Materialised, Work, interleaved, peak_bytes
from neurocoder.runs.cli import main

Capture = pytest.CaptureFixture[str]
TINY = ["bench", "layer", "--heads", "linear", "--shapes", "512x6x1", "--repeats", "2", "--threads", "1"]
TIMES = [f"{field}{end}" for field in ("forward_ms", "forward_backward_ms") for end in ("", "_low", "_high")]
FIELDS = ["head", "in", "out", "batch", *TIMES, "ratio_to_linear", "peak_mib", "parameters", "options"]


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return content


# ------------------------------------------------------------------------------------------ the command


def test_rows_have_all_fields(tmp_path: Path, capsys: Capture) -> None:
    assert main([*TINY, "--json", str(tmp_path / "layer.json")]) == 0
    content = read(tmp_path / "layer.json")
    assert [row["head"] for row in content["rows"]] == ["nn.Linear", "linear"]
    for row in content["rows"]:
        assert list(row) == FIELDS
        assert (row["in"], row["out"], row["batch"], row["parameters"]) == (512, 6, 1, 512 * 6 + 6)
        assert all(math.isfinite(row[field]) and row[field] > 0 for field in FIELDS[4:-1])
        for field in ("forward_ms", "forward_backward_ms"):
            assert row[f"{field}_low"] <= row[field] <= row[f"{field}_high"]
        assert row["peak_mib"] == 4 * (6 + 512 + 512 * 6 + 6) / 2**20  # the output and all gradients
    assert content["rows"][0]["ratio_to_linear"] == 1.0
    assert content["protocol"]["repeats"] == 2 and content["protocol"]["threads"] == 1
    assert content["versions"]["torch"] == torch.__version__
    assert [path.name for path in tmp_path.iterdir()] == ["layer.json"]
    out = capsys.readouterr().out
    assert "512 → 6, batch 1" in out and "medians (quartiles) of 2 rounds" in out
    assert max(len(line) for line in out.splitlines()) <= 100


def test_the_program_is_silent_on_standard_error() -> None:
    program = Path(sys.executable).parent / "neurocoder"  # the profiler's log lines pass Python's streams by
    done = subprocess.run([program, *TINY], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_json_nothing_is_written(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(TINY) == 0
    assert not list(tmp_path.iterdir())


def fake_row(head: str, value: float) -> dict[str, Any]:
    numbers = dict.fromkeys((*TIMES, "ratio_to_linear", "peak_mib"), value)
    return {"head": head, "in": 1, "out": 1, "batch": 1, **numbers, "parameters": 12_345_678, "options": {}}


@pytest.mark.parametrize(
    ("value", "printed"),
    [(0.00912, "0.0091"), (0.5, "0.500"), (1.25, "1.25"), (12.34, "12.3"), (123.4, "123"), (9876.5, "9876")],
)
def test_the_table_fits_100_columns(
    value: float, printed: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [fake_row("neurocoder-materialised", value)]
    monkeypatch.setattr(layer, "measure", lambda *_, **__: rows)
    assert main(TINY) == 0
    out = capsys.readouterr().out
    assert "neurocoder-materialised" in out and "12,345,678" in out
    assert out.count(f"{printed} ({printed}–{printed})") == 2
    assert "…" not in out and max(len(line) for line in out.splitlines()) <= 100


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command asks to be measured, instead of measuring: shape, heads, compiled, threads."""
    asked: list[Any] = []

    def measure(
        shape: layer.Shape, names: list[str], repeats: int, *, compiled: bool
    ) -> list[dict[str, Any]]:
        asked.append((shape.spec, names, compiled, torch.get_num_threads()))
        return [fake_row("nn.Linear", 1.0)]

    monkeypatch.setattr(layer, "measure", measure)
    return asked


def test_everything_is_measured_by_default(measured: list[Any], capsys: Capture) -> None:
    assert main(["bench", "layer"]) == 0
    assert [spec for spec, *_ in measured] == list(SHAPES)
    assert all(names == ["nn.Linear", *HEADS, "neurocoder-materialised"] for _, names, *_ in measured)
    assert all(not compiled and threads == 2 for *_, compiled, threads in measured)
    assert torch.get_num_threads() == 1


def test_heads_and_shapes_are_chosen_by_name(measured: list[Any], capsys: Capture) -> None:
    flags = ["--heads", "neurocoder-materialised, linear,linear", "--shapes", "784x400x128,512x6x16"]
    assert main(["bench", "layer", *flags, "--threads", "1"]) == 0
    names = ["neurocoder-materialised", "linear"]
    assert measured == [("784x400x128", names, False, 1), ("512x6x16", names, False, 1)]


# ------------------------------------------------------------------------------------------ wrong input

WRONG: dict[str, tuple[list[str], str]] = {
    "unknown head": (["--heads", "linear,neurocodr"], "unknown head 'neurocodr'; did you mean 'neurocoder'"),
    "no head": (["--heads", ""], "unknown head ''"),
    "unknown shape": (["--shapes", "784x400x12"], "unknown shape '784x400x12'; did you mean '784x400x128'"),
    "zero repeats": (["--repeats", "0"], "--repeats=0 must be >= 1"),
    "zero threads": (["--threads", "0"], "--threads=0 must be in [1, "),
    "more threads than processors": (["--threads", "100000"], "--threads=100000 must be in [1, "),
    "threads that are no number": (["--threads", "many"], 'unable to convert "many" into int'),
    "unknown option": (["--head", "linear"], "Unknown option: --head. Did you mean --heads?"),
    "folder that is not there": (["--json", "gone/x.json"], "--json='gone/x.json' must be in a folder"),
    "json that is a folder": (["--json", "."], "--json='.' must be a file"),
    "something else": (["linear"], "linear"),
}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(arguments: list[str], capsys: Capture) -> str:
    code = main(arguments)
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert captured.err.startswith("neurocoder: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_measures_and_writes_nothing(
    case: str, empty: Path, measured: list[Any], capsys: Capture
) -> None:
    arguments, message = WRONG[case]
    target = [] if "--json" in arguments else ["--json", "x.json"]
    assert message in refused(["bench", "layer", *target, *arguments], capsys)
    assert not measured and not list(empty.iterdir())


def test_json_that_is_no_regular_file_is_refused_and_stays(
    empty: Path, measured: list[Any], capsys: Capture
) -> None:
    os.mkfifo(empty / "pipe")  # stands for /dev/null, which replacing a file would take away from everyone
    assert "--json='pipe' must be a file" in refused(["bench", "layer", "--json", "pipe"], capsys)
    assert (empty / "pipe").is_fifo() and not measured


def test_an_unknown_measurement_offers_the_near_one(capsys: Capture) -> None:
    assert 'Did you mean "layer"?' in refused(["bench", "layr"], capsys)


def test_compiling_without_a_compiler_is_refused(
    measured: list[Any], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    line = refused(["bench", "layer", "--compile"], capsys)
    assert "--compile needs a C++ compiler" in line and "'no-such-compiler'" in line and not measured


def test_a_file_is_replaced_whole_and_a_link_stays_one(
    empty: Path, measured: list[Any], capsys: Capture
) -> None:
    (empty / "real.json").write_text("old")
    (empty / "link.json").symlink_to("real.json")
    assert main(["bench", "layer", "--json", "link.json"]) == 0
    assert (empty / "link.json").is_symlink()
    assert len(read(empty / "real.json")["rows"]) == len(SHAPES)
    assert {path.name for path in empty.iterdir()} == {"real.json", "link.json"}


def test_a_file_that_cannot_be_written_stays_as_it_was(
    empty: Path, measured: list[Any], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    (empty / "x.json").write_text("old")
    monkeypatch.setattr(Path, "replace", fail)
    assert main(["bench", "layer", "--json", "x.json"]) == 2
    assert capsys.readouterr().err == "neurocoder: cannot write x.json: No space left on device\n"
    assert [(path.name, path.read_text()) for path in empty.iterdir()] == [("x.json", "old")]


# ------------------------------------------------------------------------------------------ what is measured


@pytest.mark.parametrize("name", HEADS)
def test_every_head_knows_the_options_it_is_measured_with(name: str) -> None:
    for shape in SHAPES.values():
        assert set(layer.options(name, shape)) <= set(head_options(name))
    built = layer.build(name, SHAPES["512x6x1"])
    assert built(torch.zeros(1, 512)).shape == (1, 6)


def test_shapes_and_options_are_those_of_the_paper() -> None:
    assert list(SHAPES) == ["512x6x1", "512x6x16", "512x6x320", "784x400x128", "512x512x128"]
    actor, mnist, cifar = (SHAPES[spec] for spec in ("512x6x320", "784x400x128", "512x512x128"))
    defaults = head_options("neurocoder")
    assert all(defaults[option] == value for option, value in layer.options("neurocoder", actor).items())
    memory = {"slots": 50, "attention_heads": 10, "key_size": 5, "residual": False}
    assert layer.options("neurocoder", mnist) == {**memory, "attention_steps": 1}
    assert layer.options("neurocoder-materialised", mnist) == layer.options("neurocoder", mnist)
    assert layer.options("neurocoder-released", mnist) == {**memory, "attention_steps": 0}
    assert layer.options("neurocoder-released", cifar)["attention_steps"] == 5
    assert [layer.options("lowrank", shape)["rank"] for shape in (actor, mnist, cifar)] == [6, 10, 15]
    assert layer.options("linear", cifar) == {}


@pytest.mark.parametrize("residual", [True, False])
def test_the_materialised_layer_computes_what_the_factored_one_does(residual: bool) -> None:
    head = make_head("neurocoder", 7, 4, slots=6, attention_heads=3, attention_steps=2, residual=residual)
    head = head.double()
    x, dy = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)

    def results(module: nn.Module) -> tuple[Tensor, ...]:
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        return y, *torch.autograd.grad(y, (leaf, *head.parameters()), dy)

    for built, factored in zip(results(Materialised(head)), results(head), strict=True):
        torch.testing.assert_close(built, factored)


def test_rows_are_medians_and_quartiles_and_their_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [[1.0, 2.0, 3.0, 4.0, 5.0], [8.0, 2.0, 4.0, 6.0, 10.0], [7.0] * 5, [9.0, 9.0, 9.0, 90.0, 90.0]]
    monkeypatch.setattr(layer, "interleaved", lambda works, repeats: samples)
    linear, head = layer.measure(SHAPES["512x6x1"], ["nn.Linear", "linear"], 5)
    assert [linear[field] for field in TIMES] == [3.0, 2.0, 4.0, 6.0, 4.0, 8.0]
    assert [head[field] for field in TIMES] == [7.0, 7.0, 7.0, 9.0, 9.0, 90.0]
    assert (linear["ratio_to_linear"], head["ratio_to_linear"]) == (1.0, 1.5)


def test_compiled_rows_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["nn.Linear", "linear", "nn.Linear-compiled", "neurocoder-compiled"]
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: compiled.append(module))
    monkeypatch.setattr(layer, "interleaved", lambda works, repeats: [[1.0]] * 2 * len(names))
    rows = layer.measure(SHAPES["512x6x1"], ["linear"], 1, compiled=True)
    assert [row["head"] for row in rows] == names
    assert [type(module) for module in compiled] == [nn.Linear, HEADS["neurocoder"]]
    assert rows[3]["options"] == layer.options("neurocoder", SHAPES["512x6x1"])


def test_every_layer_has_one_block_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, bool]] = []

    def work(name: str, grad: bool) -> Work:
        return Work(lambda: calls.append((name, torch.is_grad_enabled())), grad)

    monkeypatch.setattr(layer, "warm_up", lambda work: 2)
    samples = interleaved([work("a", True), work("b", False), work("c", True)], 5)
    assert [len(times) for times in samples] == [5, 5, 5]
    rounds = [calls[start : start + 6] for start in range(0, 30, 6)]
    assert len(calls) == 30
    for turn in rounds:
        assert turn[::2] == turn[1::2], "a block is two calls in a row"
        assert sorted(turn[::2]) == [("a", True), ("b", False), ("c", True)]
    assert len({tuple(turn) for turn in rounds}) > 1, "the order is drawn anew"


@pytest.mark.parametrize(
    ("milliseconds", "calls"), [(0.001, 200), (1.0, 10), (3.0, 3), (25.0, 1), (4000.0, 1)]
)
def test_a_block_is_as_long_for_slow_layers_as_for_fast_ones(
    milliseconds: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def call() -> None:
        nonlocal now
        now += milliseconds / 1e3

    monkeypatch.setattr(layer, "time", SimpleNamespace(perf_counter=lambda: now))
    assert layer.warm_up(Work(call, True)) == calls
    assert layer.block(Work(call, True), 4) == pytest.approx(milliseconds)


def test_a_training_step_gives_fresh_gradients_to_the_input_and_all_parameters() -> None:
    contender = layer.Contender("linear", SHAPES["512x6x16"])
    for _ in range(2):
        contender.forward_backward()
    (weight,) = (leaf for leaf in contender.leaves if leaf.shape == (6, 512))
    torch.testing.assert_close(weight.grad, contender.dy.T @ contender.x)  # of one step, not of two
    torch.testing.assert_close(contender.x.grad, contender.dy @ weight)
    contender.clear()
    assert all(leaf.grad is None for leaf in contender.leaves)


# ------------------------------------------------------------------------------------------ peak memory


def block(n_bytes: int) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8)


def first_peak() -> None:
    a, b = block(1000), block(3000)
    del a, b
    c, d = block(2000), block(500)
    del c, d


def last_peak() -> None:
    a, b = block(1000), block(3000)
    del a
    c = block(2500)
    del b, c


@pytest.mark.parametrize(
    ("call", "expected"),
    [(first_peak, 4000), (last_peak, 5500), (lambda: None, 0), (lambda: [block(10) for _ in range(7)], 70)],
)
def test_the_peak_is_exact(call: Callable[[], object], expected: int) -> None:
    assert peak_bytes(call) == peak_bytes(call) == expected


def test_memory_inside_an_operation_is_counted() -> None:
    x = torch.ones(1000).t()
    kept: list[Tensor] = []
    assert peak_bytes(lambda: kept.append(x.double().sum())) == 8000 + 8


def test_the_peak_of_a_linear_layer_is_its_output_and_gradients() -> None:
    for batch in (1, 16):
        contender = layer.Contender("nn.Linear", SHAPES[f"512x6x{batch}"])
        floats = batch * 6 + batch * 512 + 512 * 6 + 6
        assert peak_bytes(contender.forward_backward) == 4 * floats


def test_what_was_there_before_is_no_part_of_the_peak() -> None:
    kept = [block(50_000)]
    assert peak_bytes(lambda: kept.append(block(1000))) == 1000

    def replace() -> None:  # frees what an earlier record saw allocated
        kept.clear()
        kept.append(block(400))

    assert peak_bytes(replace) == 400


def test_memory_that_a_thread_keeps_is_counted_although_it_is_warm() -> None:
    scratch = threading.local()

    def call() -> None:
        if not hasattr(scratch, "buffer"):
            scratch.buffer = block(9000)
        block(100)

    call()
    assert peak_bytes(call) == peak_bytes(call) == 9100


def test_a_failure_of_what_is_measured_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: 1 // 0)
