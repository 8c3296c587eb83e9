"""A run's folder: where everything that a training writes is kept, by one writer at a time.

::

    logs/<env>/<run>/
        config.toml      the resolved configuration, its only copy
        protocol.json    what a score of this run means: protocol, hash, versions
        checkpoints/     see neurocoder.runs.checkpoint
        progress.csv     one row every `log_every` agent steps
        evaluations.jsonl
        events.out.…     TensorBoard
"""

import json
import platform
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import filelock

from neurocoder import __version__
from neurocoder.envs import ENGINES, NATIVE_DIFFERENCES
from neurocoder.errors import NeurocoderError, near
from neurocoder.runs.config import TrainConfig, from_mapping, read_toml, to_toml

PACKAGES = ("torch", "numpy", "gymnasium", "ale-py")


class RunError(NeurocoderError):
    """Raised when a run's folder is missing, cannot be written, or is being written by another process."""


class Run:
    """One run's folder. Use as a context manager to be its only writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = filelock.FileLock(path / ".lock", timeout=0)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def progress_file(self) -> Path:
        return self.path / "progress.csv"

    @classmethod
    def create(cls, logs: Path, config: TrainConfig) -> "Run":
        """Make ``logs/<env>/<time>-seed<k>`` with configuration and protocol in it."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-seed{config.seed}"
        parent = logs / config.env.replace("/", "-").replace(":", "-")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for suffix in ("", *(f"-{n}" for n in range(2, 100))):
                path = parent / (name + suffix)
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    continue
            else:
                raise RunError(f"{parent / name}: a hundred runs of this second exist already")
            (path / "config.toml").write_text(to_toml(config), "utf-8")
            (path / "protocol.json").write_text(json.dumps(protocol_record(config), indent=1) + "\n", "utf-8")
        except OSError as error:
            raise RunError(
                f"cannot write logs in {logs}: {error.strerror or error}; choose another --logs"
            ) from None
        return cls(path)

    @classmethod
    def open(cls, text: str, logs: Path) -> "Run":
        """Return the existing run that `text` names: a path, or a path below `logs`."""
        for path in (Path(text), logs / text):
            if (path / "config.toml").is_file():
                return cls(path)
        known = {str(run.path) for run in find_runs(logs)}
        known |= {path.rsplit("/", 1)[-1] for path in known}
        hint = near(text, known) if known else f"; there are no runs in {logs}"
        raise RunError(f"{text}: not a run (no config.toml there){hint}")

    def config(self) -> TrainConfig:
        """Return the configuration stored in this run."""
        file = self.path / "config.toml"
        return from_mapping(read_toml(file), str(file))

    @property
    def in_use(self) -> bool:
        """Whether some process writes this run now."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with filelock.FileLock(self.path / ".lock", timeout=0):
                return False
        except filelock.Timeout:
            return True
        except OSError:
            return False

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise RunError(
                f"{self.path}: another process is writing this run; wait for it or stop it"
            ) from None
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror or error}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def protocol_record(config: TrainConfig) -> dict[str, Any]:
    """Return what a score of this run means, for protocol.json."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    record: dict[str, Any] = {
        "env": config.env,
        "versions": {"neurocoder": __version__, "python": platform.python_version(), **versions},
    }
    if config.protocol is not None:
        native = config.vectorization == "native"
        record |= {
            "hash": config.protocol_hash,
            "protocol": asdict(config.protocol),
            "engine": ENGINES[config.vectorization],
            "differences": list(NATIVE_DIFFERENCES) if native else [],
        }
    return record


def find_runs(logs: Path) -> list[Run]:
    """Return all runs below `logs`, sorted by path."""
    return [Run(file.parent) for file in sorted(logs.glob("*/*/config.toml"))]
