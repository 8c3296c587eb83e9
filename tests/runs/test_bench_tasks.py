"""What `bench tasks`, `ntm` and `replay` measure does what it says, and what they print are medians and their ratios."""

import json
from pathlib import Path

import pytest
import torch

from neurocoder.runs.bench import ntm, replay, rounds, tasks
from neurocoder.runs.cli import main
from neurocoder.runs.replay.recorder import EpisodeWriter


def test_rows_are_medians_and_ratios_of_them():
    works = {"ours": rounds.Compared(lambda: 1, "theirs"), "theirs": rounds.Compared(lambda: 1, "theirs")}
    ours, theirs = rounds.summarize(works, {"ours": [4.0, 9.0, 6.0], "theirs": [2.0, 3.0, 5.0]})
    assert ours == ("ours", 6.0, 4.0, 9.0, 2.0, "theirs") and theirs.ratio == 1


def test_every_round_measures_everything_for_its_time():
    calls: list[str] = []

    def work(name: str) -> rounds.Work:
        return lambda: calls.append(name) or 5

    works = {name: rounds.Compared(work(name), "a") for name in "ab"}
    found = list(rounds.measure(works, 2, 0.002))
    assert [name for name, _ in found] == ["a", "b", "a", "b"]
    assert calls[:40] == ["a"] * 20 + ["b"] * 20  # warm before anything counts
    counted = 5 * (len(calls) - 40)
    assert sum(rate for _, rate in found) * 0.002 == pytest.approx(counted, rel=0.5)


def test_what_is_compared_is_the_same_work():
    """Both sides see the same images in number and shape, and learn: their losses fall alike."""
    works = tasks.works("digits")
    assert works["environment"].work() == works["DataLoader"].work() == tasks.BATCH
    assert works["learner"].work() == works["by hand"].work() == tasks.BATCH
    by_hand, autograd = ntm.works(2).values()
    torch.manual_seed(1)
    assert by_hand.work() == 2 and autograd.work() == 2


def test_the_machine_learns_the_same_either_way():
    """One update by hand and one by autograd, of the same network and sequences, end at the same parameters."""
    ends = []
    for by_hand in (True, False):
        work = ntm.update(3, by_hand=by_hand)
        work()
        (learner,) = [
            cell.cell_contents for cell in work.__closure__ if hasattr(cell.cell_contents, "policy")
        ]
        assert learner.policy.core.by_hand is by_hand
        ends.append(torch.cat([p.detach().flatten() for p in learner.policy.parameters()]))
    torch.testing.assert_close(*ends, rtol=0, atol=2e-4)  # Adam's first step is the sign of the gradient
    assert (ends[0] - ends[1]).abs().median() < 1e-7


def test_what_is_recorded_is_the_game_that_is_played(monkeypatch):
    folders: list[Path] = []
    monkeypatch.setattr(
        replay, "EpisodeWriter", lambda folder: folders.append(folder) or EpisodeWriter(folder)
    )
    with replay.works() as works:
        assert works["recorded"].work() == works["played"].work() == replay.STEPS
        (part,) = folders[0].parent.iterdir()
        assert not list((part / "frames").iterdir())  # a strip holds 64
        works["recorded"].work()
        assert len(list((part / "frames").iterdir())) == 1
    assert not folders[0].parent.exists()


@pytest.mark.parametrize(
    ("command", "unit"), [("tasks", "images/s"), ("ntm", "sequences/s"), ("replay", "steps/s")]
)
def test_the_command_prints_and_writes(command, unit, tmp_path, capsys):
    file = tmp_path / "rows.json"
    options = ["--dataset", "digits"] if command == "tasks" else []
    arguments = ["bench", command, *options, "--seconds", "0.01", "--repeats", "1", "--json", str(file)]
    assert main(arguments) == 0
    assert unit in capsys.readouterr().out
    content = json.loads(file.read_text())
    assert all(row["low"] == row["rate"] == row["high"] > 0 for row in content["rows"])
    assert content["protocol"]["seconds"] == 0.01
    assert main(["bench", command, "--seconds", "0"]) == 2
    assert "--seconds" in capsys.readouterr().err


AIO = '''
"""What of pytorch-ntm is called, with a machine that says what it learned."""
import torch
from .said import NUMBERS

class EncapsulatedNTM(torch.nn.Linear):
    def __init__(self, n_in, n_out, *sizes):
        super().__init__(n_in, n_out)
        assert (n_in, n_out, sizes) == NUMBERS

    def init_sequence(self, batch):
        self.zeros = torch.zeros(batch, self.in_features)

    def forward(self, x=None):
        return torch.sigmoid(super().forward(self.zeros if x is None else x)), None
'''


def test_a_peer_is_measured_from_its_folder(tmp_path, capsys):
    package = tmp_path / "peer" / "ntm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "said.py").write_text("NUMBERS = (9, 8, (100, 1, 1, 128, 20))")
    (package / "aio.py").write_text(AIO)
    arguments = ["bench", "ntm", "--seconds", "0.01", "--repeats", "1", "--peer"]
    assert main([*arguments, str(package.parent)]) == 0
    assert "× pytorch-ntm, batch 32" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "expected a checkout of pytorch-ntm" in error and error.count("\n") == 1
