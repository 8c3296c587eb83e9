"""Checkpoints appear at once or not at all, are data only, and say what is wrong with them."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from neurocoder.runs import checkpoint as module
from neurocoder.runs.checkpoint import (
    CheckpointError,
    Retention,
    best_step,
    find_checkpoint,
    load_checkpoint,
    load_newest,
    load_parameters,
    read_state,
    recover,
    save_checkpoint,
    saved_steps,
    set_aside,
    write_evaluation,
)


def tensors(value: float = 1.0) -> dict[str, Tensor]:
    return {"b": torch.full((2, 3), value), "a": torch.arange(4.0)}


def save(
    folder: Path, step: int, value: float = 1.0, mean_return: float | None = None, keep: int = 3
) -> Path:
    optimizer = {"updates": torch.tensor(float(step))}
    return save_checkpoint(
        folder, step, tensors(value), optimizer, {"mean_return": mean_return}, Retention(keep)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------------------ saving


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 20, value=3.5, mean_return=1.25)
    assert path == tmp_path / "checkpoints" / "20"
    loaded = load_checkpoint(path)
    torch.testing.assert_close(loaded.model, tensors(3.5), rtol=0, atol=0)
    assert loaded.optimizer is not None and loaded.optimizer["updates"] == 20
    assert loaded.state.pop("sha256").keys() == {
        f"{n}.safetensors" for n in ("model", "optimizer", "workers")
    }
    assert loaded.state == {"format": 2, "agent_steps": 20, "mean_return": 1.25}
    assert load_checkpoint(path, with_optimizer=False).optimizer is None


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    first, *others = [contents(save(tmp_path / str(k), 20)) for k in range(8)]
    assert sorted(first) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "workers.safetensors",
    ]
    assert all(other == first for other in others)


def test_tensors_that_are_not_contiguous_are_saved_as_they_look(tmp_path: Path) -> None:
    turned = torch.arange(6.0).view(2, 3).T
    path = save_checkpoint(tmp_path, 1, {"x": turned}, {}, {}, Retention(1))
    torch.testing.assert_close(load_checkpoint(path).model["x"], turned, rtol=0, atol=0)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, mean in ((10, None), (20, 5.0), (30, 9.0), (40, 8.0), (50, 1.0), (60, None)):
        save(tmp_path, step, mean_return=mean, keep=2)
    assert saved_steps(tmp_path) == [30, 50, 60]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (900, 1000, 20_000):
        save(tmp_path, step, keep=2)
    assert saved_steps(tmp_path) == [1000, 20_000]


class DiskFull(OSError):
    pass


@pytest.fixture(params=["model", "optimizer", "state", "sync", "rename"])
def fails_midway(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the saving of a checkpoint fail at one of its stages, with files half written."""

    def failing_save(content: Any, path: Path, metadata: Any = None) -> None:
        path.write_bytes(b"half")
        if path.stem == request.param:
            raise DiskFull
        save_file(content, path, metadata=metadata)

    def fail(*_: Any, **__: Any) -> None:
        raise DiskFull

    if request.param in ("model", "optimizer"):
        monkeypatch.setattr(module, "save_file", failing_save)
    elif request.param == "state":
        monkeypatch.setattr(Path, "write_text", fail)
    elif request.param == "sync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "rename", fail)
        monkeypatch.setattr(Path, "replace", fail)
        monkeypatch.setattr(os, "rename", fail)
        monkeypatch.setattr(os, "replace", fail)


@pytest.fixture
def folder_with_one(tmp_path: Path) -> Path:
    """A folder that holds checkpoint 10; made before anything is made to fail."""
    return save(tmp_path / "checkpoints", 10).parent


def test_a_save_that_fails_leaves_the_previous_checkpoint_and_no_other(
    folder_with_one: Path, fails_midway: None
) -> None:
    before = contents(folder_with_one)
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(folder_with_one, 20, value=2.0, keep=1)
    assert contents(folder_with_one) == before
    assert os.listdir(folder_with_one) == ["10"]


def test_a_failed_rewrite_of_a_checkpoint_leaves_it_whole(folder_with_one: Path, fails_midway: None) -> None:
    before = contents(folder_with_one)
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(folder_with_one, 10, value=2.0)
    assert contents(folder_with_one) == before


def test_a_writer_killed_between_two_renames_loses_nothing(folder_with_one: Path) -> None:
    before = contents(folder_with_one)
    (folder_with_one / "10").rename(folder_with_one / ".aside-10")
    (folder_with_one / ".partial-10-1").mkdir()
    recover(folder_with_one)
    assert contents(folder_with_one) == before and os.listdir(folder_with_one) == ["10"]
    save(folder_with_one, 20)
    (folder_with_one / ".aside-20").mkdir()
    recover(folder_with_one)
    assert sorted(os.listdir(folder_with_one)) == ["10", "20"]


def test_a_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    save(tmp_path, 10, value=1.0)
    torch.testing.assert_close(load_checkpoint(save(tmp_path, 10, value=2.0)).model, tensors(2.0))
    assert os.listdir(tmp_path) == ["10"]


def test_everything_is_on_the_disk_before_a_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, list[int]]] = []
    monkeypatch.setattr(module, "_sync", lambda path: synced.append((path.name, saved_steps(tmp_path))))
    save(tmp_path, 10)
    before = {name for name, steps in synced if steps == []}
    assert {"model.safetensors", "optimizer.safetensors", "state.json"} < before
    assert synced[-1] == (tmp_path.name, [10])  # the folder's own entry, afterwards


def test_half_a_checkpoint_of_a_killed_process_is_not_offered(tmp_path: Path) -> None:
    save(tmp_path, 10)
    shutil.copytree(tmp_path / "10", tmp_path / ".partial-20-1")
    assert saved_steps(tmp_path) == [10] and find_checkpoint(tmp_path).name == "10"


# ----------------------------------------------------------------------------------------- finding


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for step, mean in ((5, 1.0), (100, 3.0), (20, 3.0)):
        save(tmp_path, step, mean_return=mean)
    return tmp_path


@pytest.mark.parametrize(("which", "name"), [("last", "100"), ("best", "100"), ("5", "5"), ("20", "20")])
def test_a_checkpoint_is_found_by_name_or_number(three: Path, which: str, name: str) -> None:
    assert find_checkpoint(three, which) == three / name


def test_the_best_need_not_be_the_last(three: Path) -> None:
    save(three, 200, mean_return=-1.0, keep=9)
    assert (best_step(three), find_checkpoint(three).name) == (100, "200")


def test_without_any_score_the_best_is_the_last(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    assert best_step(tmp_path) is None and find_checkpoint(tmp_path, "best").name == "20"


@pytest.mark.parametrize("which", ["6", "-5", "five", "../20", ""])
def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(three: Path, which: str) -> None:
    with pytest.raises(CheckpointError, match="there are last, best, 5, 20, 100"):
        find_checkpoint(three, which)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_checkpoints_is_refused(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "checkpoints"
    if exists:
        folder.mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        find_checkpoint(folder)


# ----------------------------------------------------------------------------------------- damaged


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "10")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("n_bytes", [0, 5, 60, -1])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, name: str, n_bytes: int) -> None:
    path = save(tmp_path, 10)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:n_bytes])
    with pytest.raises(CheckpointError, match=f"{name}: damaged or not safetensors"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 10)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        load_checkpoint(path)


def test_a_missing_state_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"not a checkpoint of this toolkit \(state\.json is missing\)"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "text", ["", "{", "\udcff", "[]", "[" * 10**5, "null", "{}", '{"format": 1}', '{"format": "2"}']
)
def test_a_state_that_is_damaged_or_of_another_format_is_refused(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 10)
    (path / "state.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"state\.json: (damaged|expected checkpoint format 2, found)"):
        read_state(path)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("write", [lambda bomb, file: file.write_bytes(pickle.dumps(bomb)), torch.save])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_pickle_is_refused_and_not_executed(tmp_path: Path, name: str, write: Any) -> None:
    path, marker = save(tmp_path / "checkpoints", 10), tmp_path / "ran"
    write(Bomb(marker), path / name)
    with pytest.raises(CheckpointError, match="not safetensors"):
        load_checkpoint(path)
    assert not marker.exists()
    if write is not torch.save:
        pickle.loads((path / name).read_bytes())
        assert marker.exists()  # it would have worked


def test_one_damaged_checkpoint_does_not_stop_a_run_from_saving(tmp_path: Path) -> None:
    save(tmp_path, 10, mean_return=1.0)
    (tmp_path / "10" / "state.json").write_text("{")
    save(tmp_path, 20, mean_return=2.0)
    assert find_checkpoint(tmp_path, "best").name == "20"


# ------------------------------------------------------------------------------- another network


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def test_parameters_are_copied_by_name() -> None:
    source, target = network(), network()
    load_parameters(target, source.state_dict(), Path("x"))
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("2.bias"), r"missing 2\.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda t: t.update({"0.weight": torch.zeros(3, 4)}), r"other shape 0\.weight \(3, 4\) for \(3, 2\)"),
        (lambda t: t.clear(), r"missing 0\.bias, 0\.weight, 2\.bias, 2\.weight"),
        (
            lambda t: t.update({str(k): torch.zeros(1) for k in range(10, 16)}),
            "unknown 10, 11, 12, 13 and 2 more",
        ),
    ],
)
def test_a_checkpoint_of_another_network_names_the_keys_and_copies_nothing(change: Any, message: str) -> None:
    target = network()
    foreign = {name: tensor + 1 for name, tensor in target.state_dict().items()}
    change(foreign)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"somewhere: made for another network: .*{message}"):
        load_parameters(target, foreign, Path("somewhere"))
    torch.testing.assert_close(target.state_dict(), before, rtol=0, atol=0)


def test_a_file_from_elsewhere_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    save_file(tensors(2.0), path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged, or not the file that was saved"):
        load_checkpoint(path)


def test_one_turned_bit_is_noticed_and_the_checkpoint_before_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 10, value=1.0)
    file = save(tmp_path, 20, value=2.0) / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    checkpoint, damaged = load_newest(tmp_path)
    assert checkpoint.path.name == "10" and list(damaged) == [tmp_path / "20"]
    assert str(file) in str(damaged[tmp_path / "20"])
    shutil.rmtree(tmp_path / "10")
    with pytest.raises(CheckpointError, match=r"20/optimizer\.safetensors: damaged"):
        load_newest(tmp_path)


def test_a_damaged_one_set_aside_costs_no_other_its_place(tmp_path: Path) -> None:
    """Left where it is, it would be the newest of one that is kept, and what is saved below it be dropped at once."""
    save(tmp_path, 10)
    torn = save(tmp_path, 20) / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    assert best_step(tmp_path) != 20
    aside = set_aside(tmp_path / "20")
    save_checkpoint(tmp_path, 15, tensors(), {}, {}, Retention(1))
    assert saved_steps(tmp_path) == [15] and (aside / "model.safetensors").stat().st_size == 100
    save(tmp_path, 20)
    assert set_aside(tmp_path / "20") == aside and saved_steps(tmp_path) == [15]


def test_the_best_is_one_whose_network_is_whole(tmp_path: Path) -> None:
    for step, mean in ((10, 1.0), (20, 3.0), (30, 2.0)):
        write_evaluation(save(tmp_path, step), {"mean": mean})
    assert best_step(tmp_path) == 20
    file = tmp_path / "20" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert best_step(tmp_path) == 30 and find_checkpoint(tmp_path, "best").name == "30"


def test_milestones_are_kept_for_ever(tmp_path: Path) -> None:
    for step in range(0, 1000, 70):
        save_checkpoint(tmp_path, step, tensors(), {}, {}, Retention(2, milestone_every=300))
    # 0 the untrained one, then the first at or after 300, 600, 900, and the newest two
    assert saved_steps(tmp_path) == [0, 350, 630, 910, 980]


def test_a_checkpoint_in_use_is_not_dropped(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, tensors(), {}, {}, Retention(1), in_use={10})
    assert saved_steps(tmp_path) == [10, 30]


def test_the_disk_s_own_error_is_survived(tmp_path: Path) -> None:
    """A limit on file sizes makes real writes fail midway, as a full disk does."""
    save(tmp_path, 10)
    before = contents(tmp_path)
    script = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from neurocoder.runs.checkpoint import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: save_checkpoint(Path(sys.argv[1]), 20, {'a': torch.zeros(10_000)}, {}, {}, Retention(1))\n"
        "except CheckpointError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert "20: cannot be written: " in result.stdout and not result.stderr
    assert contents(tmp_path) == before


def test_a_state_is_plain_json(tmp_path: Path) -> None:
    path = save(tmp_path, 10, mean_return=None)
    assert json.loads((path / "state.json").read_text())["mean_return"] is None
