"""The agent that comes with the package: small, safe to open, and good enough to be worth watching."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neurocoder.runs.checkpoint import find_checkpoint
from neurocoder.runs.cli import main
from neurocoder.runs.replay.demo import record_demo
from neurocoder.runs.replay.emulation import verify
from neurocoder.runs.replay.episode import RecordedEpisode

DEMO = Path(__file__).resolve().parents[2] / "runs" / "demo"
HUMAN = 12.1
"""Of Boxing, as human-normalised scores have it."""


def test_it_is_small_and_says_what_it_is() -> None:
    assert sum(file.stat().st_size for file in DEMO.rglob("*")) < 5e6
    text = (DEMO / "README.md").read_text("utf-8")
    assert "neurocoder train ALE/Boxing-v5" in text and "seed" in text
    assert find_checkpoint(DEMO / "checkpoints").name in text.replace(",", "")
    score = re.search(r"mean of 100 games: ([\d.]+)", text)
    assert score is not None and float(score[1]) > HUMAN


def test_its_game_is_recorded_once_and_comes_back_exactly(tmp_path, capsys) -> None:
    episode = record_demo(tmp_path)
    assert "the demo agent plays" in capsys.readouterr().out
    found = RecordedEpisode.open(episode)
    assert found.info.env == "ALE/Boxing-v5" and found.info.raw_return > 0
    assert "attention/actor/U" in found.trace.names
    assert verify(found).startswith("exact")
    changed = (episode / "episode.json").stat().st_mtime_ns
    assert record_demo(tmp_path) == episode and capsys.readouterr().out == ""
    assert (episode / "episode.json").stat().st_mtime_ns == changed


def test_it_is_shown(tmp_path) -> None:
    command = [sys.executable, "-m", "neurocoder.runs.cli", "watch", str(tmp_path), "--demo"]
    process = subprocess.Popen([*command, "--no-browser", "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("http://127.0.0.1:"):
                break
        port = int(re.findall(r":(\d+)/", line)[0])
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        assert "?ep=" in line
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def test_what_cannot_be_written_is_one_line(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["watch", str(tmp_path / "file"), "--demo"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture(autouse=True)
def _no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webbrowser.open", lambda url: pytest.fail(f"opened {url}"))
