"""What all commands that measure share: names from the command line, numbers in tables, the file of ``--json``."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

WIDTH = 100
"""Columns of a table that is not printed to a terminal."""

IDLE = 0.3
"""A load average that is nothing to speak of."""


def console() -> Console:
    """Return where tables are printed: standard output, at a fixed width where that is no terminal."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def warn_of_load(load: float | None, threads: int, processors: int) -> None:
    """Say so if other programs leave fewer than `threads` of the processors to what is measured."""
    if load is not None and load > processors - threads + IDLE:
        print(f"(load average {load:.2f} before the start: threads will wait for processors)\n")


def split_names(text: str | None, known: Iterable[str]) -> list[str]:
    """Return the comma-separated names in `text` without repetitions; all that are known if it is None."""
    return list(known) if text is None else list(dict.fromkeys(part.strip() for part in text.split(",")))


def three_digits(value: float) -> str:
    """Return `value` with about three digits, and never with an exponent."""
    decimals = sum(value < limit for limit in (0.1, 1, 10, 100))
    return f"{value:.{decimals}f}"


def require_writable(file: Path) -> None:
    """Raise unless `file` can be written: the measurement should not be lost at its end."""
    from neurocoder.errors import ConfigError, require

    require(file.parent.is_dir(), "--json", str(file), "in a folder that exists")
    require(not file.exists() or file.is_file(), "--json", str(file), "a file, or not there yet")
    if not os.access(file.parent, os.W_OK):
        raise ConfigError(f"--json={str(file)!r}: the folder cannot be written")


def write(file: Path, text: str) -> None:
    """Write `text` to `file`, which is never seen half written. A device or pipe is never replaced."""
    from neurocoder.errors import ConfigError

    require_writable(file)
    target = file.resolve()  # a link stays one
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(target)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
