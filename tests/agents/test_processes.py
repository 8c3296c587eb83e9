"""Child processes see what their parent sees when they start."""

import os

import pytest

from neurocoder.agents.processes import child_context


def told(variables: dict[str, str]) -> bool:
    return all(os.environ.get(name) == value for name, value in variables.items())


def leave(variables: dict[str, str], absent: str) -> None:
    os._exit(0 if told(variables) and absent not in os.environ else 1)


@pytest.mark.parametrize("round", [0, 1])
def test_environment_variables_are_those_of_the_start(monkeypatch, round):
    """Also for a child of a server that began before they changed: the first round leaves one."""
    context = child_context()
    for name, absent in (("NEUROCODER_A", "NEUROCODER_B"), ("NEUROCODER_B", "NEUROCODER_A")):
        with monkeypatch.context() as changed:
            changed.setenv(name, str(round))
            process = context.Process(target=leave, args=({name: str(round)}, absent))
            process.start()
            process.join(120)
            assert process.exitcode == 0
