"""``neurocoder bench sb3``."""

import json
import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from neurocoder.runs.commands.measurements import console, require_writable, split_names, warn_of_load, write


def sb3(
    *,
    heads: str = "linear,neurocoder",
    envs: str | None = None,
    threads: int | None = None,
    seconds: float = 10.0,
    repeats: int = 3,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """Agent steps per second of Stable-Baselines3's PPO on ALE/Pong-v5, with its CnnPolicy and with ours.

    Rates are medians over the rounds, with the slowest and the fastest; start-up is excluded.

    Parameters
    ----------
    heads
        NAME,... of `neurocoder list heads`.
    envs
        make_atari_env (SB3's own), native (ale-py's batch), or both; both if left out.
    threads
        Threads of torch and of the native games; as many as there are processors if left out.
    seconds
        How long each of them is measured in each round.
    repeats
        Rounds. In each, everything is measured once.
    json_
        Write the rows into this file.
    """
    from neurocoder.agents.processes import processors
    from neurocoder.errors import lookup, require
    from neurocoder.policies import HEADS
    from neurocoder.runs.bench import sb3 as measuring

    available = max(2, processors())
    for name in (chosen_heads := split_names(heads, HEADS)):
        lookup(HEADS, name, "head")
    for name in (chosen_envs := split_names(envs, measuring.ENVS)):
        lookup(dict.fromkeys(measuring.ENVS), name, "kind of games")
    threads = processors() if threads is None else threads
    require(1 <= threads <= available, "--threads", threads, f"in [1, {available}], what this machine has")
    require(math.isfinite(seconds) and seconds > 0, "--seconds", seconds, "finite and > 0")
    require(repeats >= 1, "--repeats", repeats, ">= 1")
    if json_ is not None:
        require_writable(json_)
    protocol = measuring.protocol(seconds, repeats, threads)
    compared = measuring.contenders(chosen_heads, chosen_envs, threads)
    warn_of_load(protocol["load"], threads, available)

    rates: dict[measuring.SB3PPO, list[float]] = {work: [] for work in compared}
    total = repeats * len(compared)
    with Console(stderr=True, highlight=False).status(f"0 of {total} measured") as status:
        for done, (work, rate) in enumerate(measuring.measure(compared, repeats, seconds), start=1):
            rates[work].append(rate)
            status.update(f"{done} of {total} measured")
    rows = measuring.summarize(rates)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("policy", "games"):
        table.add_column(name, no_wrap=True)
    for name in ("agent steps/s", "× CnnPolicy"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        rate_cell = f"{row.steps_per_second:,.0f} ({row.low:,.0f}–{row.high:,.0f})"
        table.add_row(row.policy, row.envs, rate_cell, f"{row.of_stock:.2f}")
    console().print(table)
    versions = measuring.versions()
    print(
        f"medians (slowest–fastest), rounds: {repeats}, {seconds:g} s each, {threads} threads, "
        f"stable-baselines3 {versions['stable-baselines3']}, torch {versions['torch']}"
    )
    if json_ is not None:
        content = {"rows": [row._asdict() for row in rows], "protocol": protocol, "versions": versions}
        write(json_, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0
