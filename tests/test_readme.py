"""What the README shows is what the product does."""

import re
from pathlib import Path

from neurocoder.runs.cli import _COMMANDS

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_the_python_examples_run():
    names: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL)), names)
    assert names["y"].shape == (32, 6) and names["program"].shape == (32, 256, 6)
    assert names["layer"].slots == 44


def test_every_command_is_in_the_table():
    assert set(re.findall(r"^\| `neurocoder (\w+)", README, re.MULTILINE)) == set(_COMMANDS)
