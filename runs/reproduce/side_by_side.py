"""``neurocoder`` commands side by side, each in a process of its own.

What a command imports takes seconds, which is much of a short training. So a server imports it once, and every command is a
fork of that (``agents.processes``); where there is no such server, each imports for itself.
"""

import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
import threading
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from neurocoder.agents.processes import PRELOADED, child_context
from neurocoder.errors import NeurocoderError

IMPORTED_ONCE = (
    PRELOADED,
    "neurocoder.runs.commands.train",
    "neurocoder.runs.training",
    "torch.utils.tensorboard",
    "torch._dynamo",  # which optimisers import when they are made
)


class Commands:
    """``neurocoder`` commands that run side by side, one thread each; :meth:`stop` ends those that run."""

    def __init__(self) -> None:
        self._context = child_context()
        self._context.set_forkserver_preload([*IMPORTED_ONCE])
        # Held while processes start and are asked how they ended: multiprocessing's own list of them is not for threads.
        self._lock = threading.Lock()
        self._running: set[BaseProcess] = set()
        self._stopping = False

    def run(self, arguments: list[str]) -> None:
        """Run ``neurocoder`` with `arguments` to its end.

        It is in a session of its own: Ctrl-C in the terminal reaches it through :meth:`stop` only, once.

        Raises
        ------
        NeurocoderError
            It failed; its last words are repeated.
        """
        with tempfile.TemporaryDirectory() as folder:
            said = Path(folder) / "stderr"
            process = self._context.Process(target=_run_here, args=(arguments, str(said)))
            with self._lock:
                if self._stopping:
                    raise NeurocoderError(f"neurocoder {shlex.join(arguments)}: not begun")
                process.start()
                self._running.add(process)
            try:
                wait([process.sentinel])
            except BaseException:  # Ctrl-C here: it is not left alone
                process.terminate()
                raise
            finally:
                with self._lock:
                    self._running.discard(process)
                    process.join()
            if process.exitcode:
                words = said.read_text("utf-8", "replace").strip() if said.exists() else ""
                raise NeurocoderError(
                    f"neurocoder {shlex.join(arguments)} failed (exit code {process.exitcode}): {words[-500:]}"
                )

    def stop(self) -> None:
        """Ask what is running to save its state and end, and begin nothing more."""
        with self._lock:
            self._stopping = True
            for process in self._running:
                process.terminate()


def _run_here(arguments: list[str], stderr: str) -> None:
    """Be ``neurocoder`` with `arguments`; what it prints is of no interest unless it fails."""
    os.setsid()
    threading.Thread(target=_stop_with_parent, name="stop-with-parent", daemon=True).start()
    for stream, file in ((1, os.devnull), (2, stderr)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(opened, stream)
        os.close(opened)
    os.environ["OMP_NUM_THREADS"] = "1"  # for what it starts itself
    torch.set_num_threads(1)
    # Not before: it may be the main module, which children import by another name.
    from neurocoder.runs.cli import main

    sys.exit(main(arguments))


def _stop_with_parent() -> None:
    """Save and end as after Ctrl-C once the parent has ended, however that came: it alone makes rows of what is trained."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "for child processes only"
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
