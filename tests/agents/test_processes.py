"""Child processes see what their parent sees when they start, and start whole or not at all."""

import os
import signal
from typing import Any

import pytest
import torch

from neurocoder.agents.processes import child_context, spare_threads, torch_threads


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


@pytest.mark.parametrize(
    ("before", "processors", "workers", "expected"),
    [(2, 2, 2, 1), (2, 2, 1, 1), (8, 8, 3, 5), (2, 8, 3, 2), (1, 8, 3, 1), (4, 2, 16, 1)],
)
def test_torch_has_the_processors_that_workers_leave(monkeypatch, before, processors, workers, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)), raising=False)
    found = torch.get_num_threads()
    torch.set_num_threads(before)
    try:
        with pytest.raises(RuntimeError, match="within"), torch_threads(spare_threads(workers)):
            assert torch.get_num_threads() == expected
            raise RuntimeError("within")
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(found)


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
