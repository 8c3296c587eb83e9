"""``neurocoder bench tasks``, ``ntm`` and ``replay``: rates of the supervised learner, its environments, and recording."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.table import Table

from neurocoder.runs.commands.measurements import (
    console,
    require_writable,
    three_digits,
    warn_of_load,
    write,
)

if TYPE_CHECKING:
    from neurocoder.runs.bench.rounds import Compared

Json = Annotated[Path | None, Parameter(name="--json")]


def tasks(
    *,
    dataset: Literal["mnist", "digits"] = "mnist",
    threads: int = 1,
    seconds: float = 3.0,
    repeats: int = 5,
    json_: Json = None,
) -> int:
    """Images per second of a task's environment against a DataLoader, and of the learner against a loop by hand.

    Rates are medians over the rounds, with the slowest and the fastest.

    Parameters
    ----------
    dataset
        mnist, or digits, which needs no files.
    threads
        Threads of torch.
    seconds
        How long each is measured in each round.
    repeats
        Rounds. In each, everything is measured once.
    json_
        Write the rows into this file.
    """
    _check(threads, seconds, repeats, json_)
    from neurocoder.runs.bench.tasks import BATCH, works

    found = works(dataset)
    return _report("images/s", found, threads, seconds, repeats, json_, {"dataset": dataset, "batch": BATCH})


def ntm(
    *, peer: Path | None = None, threads: int = 1, seconds: float = 5.0, repeats: int = 3, json_: Json = None
) -> int:
    """Sequences per second that the Neural Turing Machine trains on: its backward pass by hand, and PyTorch's.

    The copy task of lengths 1 to 20, batches of 1 and of 32. Rates are medians over the rounds, with the slowest and the
    fastest.

    Parameters
    ----------
    peer
        A checkout of github.com/loudinthecloud/pytorch-ntm, to be measured in the same rounds: its code is run.
    threads
        Threads of torch.
    seconds
        How long each is measured in each round.
    repeats
        Rounds. In each, everything is measured once.
    json_
        Write the rows into this file.
    """
    _check(threads, seconds, repeats, json_)
    from neurocoder.runs.bench.ntm import BATCHES, ENV, works

    found = {name: compared for batch in BATCHES for name, compared in works(batch, peer).items()}
    return _report("sequences/s", found, threads, seconds, repeats, json_, {"env": ENV})


def replay(*, threads: int = 1, seconds: float = 3.0, repeats: int = 5, json_: Json = None) -> int:
    """Agent steps per second of a game that the demo agent plays, and of the same recorded.

    Rates are medians over the rounds, with the slowest and the fastest.

    Parameters
    ----------
    threads
        Threads of torch.
    seconds
        How long each is measured in each round.
    repeats
        Rounds. In each, everything is measured once.
    json_
        Write the rows into this file.
    """
    _check(threads, seconds, repeats, json_)
    from neurocoder.runs.bench.replay import demo_agent, works

    with works() as found:
        return _report("steps/s", found, threads, seconds, repeats, json_, {"env": demo_agent().env})


def _check(threads: int, seconds: float, repeats: int, json_: Path | None) -> None:
    from neurocoder.agents.processes import processors
    from neurocoder.errors import require

    available = max(2, processors())
    require(1 <= threads <= available, "--threads", threads, f"in [1, {available}], what this machine has")
    require(math.isfinite(seconds) and seconds > 0, "--seconds", seconds, "finite and > 0")
    require(repeats >= 1, "--repeats", repeats, ">= 1")
    if json_ is not None:
        require_writable(json_)


def _report(
    unit: str,
    works: "Mapping[str, Compared]",
    threads: int,
    seconds: float,
    repeats: int,
    json_: Path | None,
    protocol: dict[str, Any],
) -> int:
    """Measure `works`, print a table, and write it into `json_`."""
    from neurocoder.agents.processes import processors, torch_threads
    from neurocoder.runs.bench import layer
    from neurocoder.runs.bench.rounds import measure, summarize

    protocol = {
        "threads": threads,
        "repeats": repeats,
        "seconds": seconds,
        "load": layer.load(),
        "spread": "median over rounds; low and high are the slowest and the fastest round",
        **protocol,
    }
    warn_of_load(protocol["load"], threads, max(2, processors()))
    rates: dict[str, list[float]] = {name: [] for name in works}
    with torch_threads(threads):
        for name, rate in measure(works, repeats, seconds):
            rates[name].append(rate)
    rows = summarize(works, rates)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in (unit, "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        ratio = "" if row.other == row.name else f"{row.ratio:.2f} × {row.other}"
        table.add_row(row.name, f"{_short(row.rate)} ({_short(row.low)}–{_short(row.high)})", ratio)
    console().print(table)
    versions = layer.versions()
    print(f"medians (slowest–fastest) of {repeats} rounds, {threads} threads, torch {versions['torch']}")
    if json_ is not None:
        content = {"rows": [row._asdict() for row in rows], "protocol": protocol, "versions": versions}
        write(json_, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 1000 else three_digits(rate)
