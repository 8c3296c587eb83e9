"""What the README shows is what the product does."""

import re
from pathlib import Path

from neurocoder.runs.cli import _COMMANDS

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_the_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they save files
    names: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL)), names)
    assert names["y"].shape == (32, 6) and names["program"].shape == (32, 256, 6)
    assert names["layer"].slots == 44
    assert names["model"].num_timesteps == 2048 and (tmp_path / "pong.zip").exists()
    names["envs"].close()


def test_every_command_is_in_the_table():
    assert set(re.findall(r"^\| `neurocoder (\w+)", README, re.MULTILINE)) == set(_COMMANDS)
