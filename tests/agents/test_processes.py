"""Child processes see what their parent sees when they start, and start whole or not at all."""

import os
import signal
from typing import Any

import pytest

from neurocoder.agents.processes import child_context


def told(variables: dict[str, str]) -> bool:
    return all(os.environ.get(name) == value for name, value in variables.items())


def leave(variables: dict[str, str], absent: str, unused: object = None) -> None:
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


class CtrlC:
    """What interrupts its process while it is on its way to another."""

    def __reduce__(self) -> tuple[Any, ...]:
        os.kill(os.getpid(), signal.SIGINT)
        return CtrlC, ()


def test_ctrl_c_during_a_start_waits_until_the_child_is_whole():
    """Or the child would read half a message and print a traceback; it has its orders here, and ends well."""
    process = child_context().Process(target=leave, args=({}, "NEUROCODER_A"), kwargs={"unused": CtrlC()})
    with pytest.raises(KeyboardInterrupt):
        process.start()
    process.join(120)
    assert process.exitcode == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
