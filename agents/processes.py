"""The child processes of a training run: how they start, and that none outlives its parent."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from types import FrameType
from typing import Any

import torch
import torch.multiprocessing

PRELOADED = "neurocoder.agents.worker"


def child_context() -> Any:
    """Return the multiprocessing context of all child processes; never plain ``fork``, which hangs with torch.

    On Linux children are forked from a server process that has imported torch and nothing else, so that a
    worker starts, or is replaced, at once and shares the libraries' memory; elsewhere they are spawned.
    """
    if not sys.platform.startswith("linux"):
        return torch.multiprocessing.get_context("spawn")
    context = _Context()
    context.set_forkserver_preload([PRELOADED])
    return context


class _Process(ForkServerProcess):
    """A child with its parent's environment variables: the server's are those of the moment when it began."""

    def start(self) -> None:
        self._variables = dict(os.environ)
        with _ctrl_c_later():  # a child that was told half of what it is would print a traceback
            super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._variables)
        super().run()


class _Context(ForkServerContext):
    Process = _Process


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Let a Ctrl-C that comes within take effect at the end; other threads than the main one never see any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if came:
            signal.raise_signal(signal.SIGINT)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spare_threads(workers: int) -> int:
    """Return how many threads PyTorch should have here beside `workers` busy processes: no more than processors are left.

    OpenMP's threads go on spinning for a while after their work, on processors that workers want: with two of each and two
    threads, an update of all parameters took 2 ms and the threads 12.
    """
    return max(1, min(torch.get_num_threads(), processors() - workers))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let PyTorch use `threads` threads within this."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def exit_with_parent() -> None:
    """End this process as soon as its parent has ended, however that came, and whatever is going on here.

    Ctrl-C and SIGTERM, which may reach the whole process group, are left to the parent.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "for child processes only"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()
