"""``neurocoder bench``."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from neurocoder.runs.commands.measurements import (
    console,
    require_writable,
    split_names,
    three_digits,
    warn_of_load,
    write,
)

bench = App(name="bench", help="Measure speed and memory on this machine.")
bench.command(
    "neurocoder.runs.commands.bench_a3c:a3c",
    name="a3c",
    help="Agent steps per second of the A3C trainer, and of what it is made of.",
)

bench.command(
    "neurocoder.runs.commands.bench_sb3:sb3",
    name="sb3",
    help="Agent steps per second of Stable-Baselines3's PPO with its own policy and with ours.",
)

bench.command(
    "neurocoder.runs.commands.bench_rates:tasks",
    name="tasks",
    help="Images per second of tasks as environments, against a DataLoader and a loop by hand.",
)

bench.command(
    "neurocoder.runs.commands.bench_rates:ntm",
    name="ntm",
    help="Sequences per second that the Neural Turing Machine trains on.",
)

bench.command(
    "neurocoder.runs.commands.bench_rates:replay",
    name="replay",
    help="Agent steps per second of a game that is played, and of the same recorded.",
)


@bench.command
def layer(
    *,
    heads: str | None = None,
    shapes: str | None = None,
    repeats: int = 30,
    threads: int = 2,
    compile_: Annotated[bool, Parameter(name="--compile", negative="")] = False,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """Time and memory of every head, against nn.Linear and against building W for each input.

    Times are medians over the rounds, with quartiles. forward is without autograd; forward+backward gives
    gradients to the input and all parameters. The peak is what one forward+backward allocates.

    Parameters
    ----------
    heads
        NAME,... of `neurocoder list heads`, or neurocoder-materialised; all of them if left out.
    shapes
        INxOUTxBATCH,... e.g. 784x400x128; all of them if left out.
    repeats
        Rounds. In each, every layer of a shape is timed once.
    threads
        Threads that torch uses.
    compile_
        Add nn.Linear and neurocoder under torch.compile, which needs a C++ compiler.
    json_
        Write the rows into this file.
    """
    # Before the profiler starts: it would write a line to standard error whenever it starts or stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from neurocoder.agents.processes import torch_threads
    from neurocoder.errors import lookup, require
    from neurocoder.runs.bench import layer as measuring

    available = max(2, os.cpu_count() or 1)
    require(repeats >= 1, "--repeats", repeats, ">= 1")
    require(1 <= threads <= available, "--threads", threads, f"in [1, {available}], what this machine has")
    known = {name: name for name in measuring.NAMES}
    chosen_heads = [lookup(known, name, "head") for name in split_names(heads, known)]
    chosen_shapes = [
        lookup(measuring.SHAPES, spec, "shape") for spec in split_names(shapes, measuring.SHAPES)
    ]
    if compile_:
        _require_compiler()
    if json_ is not None:
        require_writable(json_)

    out = console()
    protocol, rows = measuring.protocol(threads, repeats), []
    warn_of_load(protocol["load"], threads, available)
    with torch_threads(threads):
        for shape in chosen_shapes:
            rows += (group := measuring.measure(shape, chosen_heads, repeats, compiled=compile_))
            out.print(_table(str(shape), group))
            out.print()
    versions = measuring.versions()
    print(f"medians (quartiles) of {repeats} rounds, {threads} threads, torch {versions['torch']}")
    if json_ is not None:
        content = {"rows": rows, "protocol": protocol, "versions": versions}
        write(json_, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, title=title, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
    table.add_column("head", width=23, no_wrap=True)
    for heading, width in (
        ("parameters", 10),
        ("forward ms", 22),
        ("forward+backward ms", 21),
        ("× linear", 9),
        ("peak MiB", 8),
    ):
        table.add_column(heading, justify="right", min_width=width, no_wrap=True)
    for row in rows:
        table.add_row(
            row["head"],
            f"{row['parameters']:,}",
            _with_quartiles(row, "forward_ms"),
            _with_quartiles(row, "forward_backward_ms"),
            three_digits(row["ratio_to_linear"]),
            f"{row['peak_mib']:.3f}",
        )
    return table


def _with_quartiles(row: dict[str, Any], field: str) -> str:
    low, high = (three_digits(row[f"{field}_{end}"]) for end in ("low", "high"))
    return f"{three_digits(row[field])} ({low}–{high})"


def _require_compiler() -> None:
    from neurocoder.errors import ConfigError

    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"--compile needs a C++ compiler, and {compiler!r} is not there: install it, or name yours in the "
            f"environment variable CXX"
        )
