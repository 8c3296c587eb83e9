"""``neurocoder bench tasks``."""

import json
import math
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.table import Table

from neurocoder.runs.commands.measurements import console, require_writable, warn_of_load, write


def tasks(
    *,
    dataset: Literal["mnist", "digits"] = "mnist",
    threads: int = 1,
    seconds: float = 3.0,
    repeats: int = 5,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
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
    from neurocoder.errors import require
    from neurocoder.runs.bench import layer
    from neurocoder.runs.bench import tasks as measuring
    from neurocoder.runs.bench.peers import processors

    available = max(2, processors())
    require(1 <= threads <= available, "--threads", threads, f"in [1, {available}], what this machine has")
    require(math.isfinite(seconds) and seconds > 0, "--seconds", seconds, "finite and > 0")
    require(repeats >= 1, "--repeats", repeats, ">= 1")
    if json_ is not None:
        require_writable(json_)
    protocol = {
        **layer.protocol(threads, repeats),
        "dataset": dataset,
        "batch": measuring.BATCH,
        "seconds": seconds,
    }
    warn_of_load(protocol["load"], threads, available)
    rates: dict[str, list[float]] = {what: [] for what in measuring.COMPARED}
    with layer.num_threads(threads):
        for what, rate in measuring.measure(dataset, repeats, seconds):
            rates[what].append(rate)
    rows = measuring.summarize(rates)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("images/s", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        compared = measuring.COMPARED[row.name][1]
        ratio = "" if compared == row.name else f"{row.ratio:.2f} × {compared}"
        table.add_row(row.name, f"{row.images_per_second:,.0f} ({row.low:,.0f}–{row.high:,.0f})", ratio)
    console().print(table)
    versions = layer.versions()
    print(
        f"medians (slowest–fastest) of {repeats} rounds, {dataset}, {threads} threads, torch {versions['torch']}"
    )
    if json_ is not None:
        content = {"rows": [row._asdict() for row in rows], "protocol": protocol, "versions": versions}
        write(json_, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0
