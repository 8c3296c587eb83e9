"""``neurocoder bench a3c``."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from neurocoder.runs.commands.measurements import console, require_writable, split_names, warn_of_load, write

if TYPE_CHECKING:
    from neurocoder.runs.bench.a3c import Contender, Trial


def a3c(
    *,
    presets: str | None = None,
    heads: str = "linear,neurocoder",
    workers: int | None = None,
    seconds: float = 10.0,
    repeats: int = 3,
    precision: str = "auto",
    sb3: bool = True,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """Agent steps per second of the A3C trainer on ALE/Pong-v5, and where its time goes.

    Beside it, in the same rounds: the network's own forward+backward rate, the emulators' own rate, and A2C of
    Stable-Baselines3. Rates are medians over the rounds, with the slowest and the fastest, start-up excluded.

    Parameters
    ----------
    presets
        a3g (the paper's network, LSTM 512), a3c (LSTM 256), nature (no core), or several: a3c,nature; all of
        them if left out.
    heads
        NAME,... of `neurocoder list heads`.
    workers
        Processes; what `neurocoder train` takes if left out.
    seconds
        How long each of them is measured in each round.
    repeats
        Rounds. In each, everything is measured once.
    precision
        auto, fp32 or bf16.
    sb3
        Measure Stable-Baselines3, too.
    json_
        Write the rows into this file.
    """
    from neurocoder.agents.processes import processors
    from neurocoder.errors import lookup, require
    from neurocoder.policies import HEADS
    from neurocoder.runs.bench import a3c as measuring
    from neurocoder.runs.config import PRECISIONS

    available = max(2, processors())
    for name in (chosen_presets := split_names(presets, measuring.PRESETS)):
        lookup(measuring.PRESETS, name, "preset")
    for name in (chosen_heads := split_names(heads, HEADS)):
        lookup(HEADS, name, "head")
    require(
        workers is None or 1 <= workers <= available,
        "--workers",
        workers,
        f"in [1, {available}], what this machine has",
    )
    require(math.isfinite(seconds) and seconds > 0, "--seconds", seconds, "finite and > 0")
    require(repeats >= 1, "--repeats", repeats, ">= 1")
    require(precision in PRECISIONS, "--precision", precision, f"one of {PRECISIONS}")
    if json_ is not None:
        require_writable(json_)
    no_sb3 = measuring.why_no_sb3() if sb3 else None
    protocol = measuring.protocol(seconds, repeats)
    compared = measuring.contenders(
        chosen_presets, chosen_heads, workers, precision, sb3=sb3 and no_sb3 is None
    )

    warn_of_load(protocol["load"], compared[0].row["workers"], available)
    trials = _measure(compared, repeats, seconds)
    rows = [measuring.make_row(contender.row, trials[contender.label]) for contender in compared]
    ratios = measuring.ratios(rows)
    out = console()
    for table in (_trainers(rows), _breakdown(rows), _peers(rows), _ratios(ratios)):
        out.print(table)
        out.print()
    if no_sb3 is not None:
        print(no_sb3)
    versions = measuring.versions()
    shown = f"{seconds:g} s each, {rows[0]['precision']}, torch {versions['torch']}"
    print(f"medians (slowest–fastest), rounds: {repeats}, {shown}; one agent step is 4 frames")
    if json_ is not None:
        content = {"rows": rows, "ratios": ratios, "protocol": protocol, "versions": versions}
        write(json_, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0


def _measure(compared: "list[Contender]", repeats: int, seconds: float) -> "dict[str, list[Trial]]":
    """Return the trials of each contender by its label; say on standard error what is going on."""
    from neurocoder.runs.bench import a3c as measuring

    stderr = Console(stderr=True, highlight=False)
    minutes = measuring.estimate(compared, repeats, seconds) / 60
    stderr.print(
        f"{len(compared)} things to measure, {repeats} × {seconds:g} s each: about {minutes:.0f} min"
    )
    trials: dict[str, list[Trial]] = {contender.label: [] for contender in compared}
    total = repeats * len(compared)
    with stderr.status("") as status:

        def announce(done: int, contender: "Contender") -> None:
            status.update(f"{done + 1} of {total}: {contender.label}")

        for contender, trial in measuring.rounds(compared, repeats, seconds, announce):
            trials[contender.label].append(trial)
    return trials


# ------------------------------------------------------------------------------------------ tables


def _table(title: str, names: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    """Return an empty table: columns of text, then columns of numbers."""
    table = Table(box=None, title=title, title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _trainers(rows: list[dict[str, Any]]) -> Table:
    columns = ("workers", "agent steps/s", "RSS", "PSS")
    table = _table("The trainer; memory of one worker in MiB", ("preset", "head"), columns)
    for row in rows:
        if row["preset"] is not None:
            memory = row["memory"] or {}
            table.add_row(
                row["preset"],
                row["head"],
                str(row["workers"]),
                _rate(row),
                *(_or_dash(memory.get(name), "{:.0f}") for name in ("rss_mib", "pss_mib")),
            )
    return table


def _breakdown(rows: list[dict[str, Any]]) -> Table:
    parts = ("emulation", "acting", "learning", "sharing", "rest", "whole")
    title = "Where it goes; µs of one worker per agent step"
    table = _table(title, ("preset", "head"), ("workers", *parts))
    for row in rows:
        if row["preset"] is not None:
            spent = row["breakdown"] or {}
            times = (_or_dash(spent.get(part), "{:.0f}") for part in parts)
            table.add_row(row["preset"], row["head"], str(row["workers"]), *times)
    return table


def _peers(rows: list[dict[str, Any]]) -> Table:
    table = _table("Its peers", ("measured", "of"), ("agent steps/s",))
    for row in rows:
        if row["preset"] is None:
            of = (row.get(name) for name in ("of_preset", "of_head", "vec_env"))
            table.add_row(row["peer"], " ".join(name for name in of if name), _rate(row))
    return table


def _ratios(ratios: list[dict[str, Any]]) -> Table:
    columns = {
        "× network": ("of_network", "{:.2f}"),
        "× emulators": ("of_emulators", "{:.2f}"),
        "× SB3 A2C": ("of_sb3", "{:.2f}"),
        "cost against linear": ("cost_against_linear", "{:.1%}"),
        "× one worker": ("scaling", "{:.2f}"),
    }
    table = _table("The trainer's rate, relative", ("preset", "head"), tuple(columns))
    for row in ratios:
        numbers = (_or_dash(row[field], form) for field, form in columns.values())
        table.add_row(row["preset"], row["head"], *numbers)
    return table


def _rate(row: dict[str, Any]) -> str:
    low, high = row["steps_per_second_low"], row["steps_per_second_high"]
    return f"{row['steps_per_second']:,.0f} ({low:,.0f}–{high:,.0f})"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
