"""Errors that a user can cause, and the help that goes with a mistyped name.

The command line prints any :class:`NeurocoderError` as one line and exits with its ``exit_code``.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class NeurocoderError(Exception):
    """Raised when something that a user asked for cannot be done; the message says what to do instead."""

    exit_code = 2
    """Of the command line: 2 is for what the user can mend, 1 for what went wrong on the way."""


class ConfigError(NeurocoderError, ValueError):
    """Raised when a configuration value, key or file is not usable; names the field."""


def near(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean …?' if something known is close to `name`, else the list of what is known."""
    choices = sorted(known)
    folded = {choice.lower(): choice for choice in choices}
    matches = [folded[m] for m in difflib.get_close_matches(name.lower(), list(folded), n=3, cutoff=0.6)]
    if matches:
        return "; did you mean " + " or ".join(repr(match) for match in matches) + "?"
    if len(choices) <= 20:
        return "; known: " + (", ".join(choices) or "none")
    return ""


def lookup(table: Mapping[str, T], name: str, kind: str, error: type[NeurocoderError] = ConfigError) -> T:
    """Return ``table[name]`` or raise `error` with what was asked for and what is near."""
    if not isinstance(name, str):
        raise error(f"{kind} {name!r} must be a name, in quotes{near(str(name), table)}")
    if name not in table:
        raise error(f"unknown {kind} {name!r}{near(name, table)}")
    return table[name]


def require(condition: bool, field: str, value: object, expected: str) -> None:
    """Raise :class:`ConfigError` naming field, value and expectation unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field}={value!r} must be {expected}")
