"""What every refused training has in common."""

from pathlib import Path

import pytest

from neurocoder.runs.cli import main


def assert_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Assert that ``neurocoder train`` exits with 2, says `message` in one line, and writes nothing."""
    assert main(["train", *arguments, "--logs", str(tmp_path / "logs")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "logs").exists()
