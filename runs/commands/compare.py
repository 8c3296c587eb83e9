"""``neurocoder compare``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neurocoder.runs.compare import Improvement, Summary
    from neurocoder.runs.curves import Group
    from neurocoder.runs.figures import Panel
    from neurocoder.runs.statistics import Estimate

WIDTH = 160
"""Of the table where the output is no terminal."""
ACTIONS = {False: "actions sampled", True: "actions most probable"}


def compare(
    runs: list[str],
    /,
    *,
    metric: Literal["evaluation", "training"] | None = None,
    out: Path = Path("compare.png"),
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
    mixed_protocols: Annotated[bool, Parameter(negative="")] = False,
    logs: Path = Path("logs"),
) -> int:
    """Compare runs: learning curves with intervals over seeds, final and best scores, human-normalised scores.

    Runs that differ in nothing but their seeds are one group. Numbers are interquartile means with 95 %
    intervals by stratified bootstrap, as in rliable. Files are replaced only if this command wrote them.

    Parameters
    ----------
    runs
        Run folders, or folders of runs, e.g. logs/ALE-Pong-v5.
    metric
        evaluation: whole games of checkpoints; training: running mean over the last training games. Without it
        evaluation if all runs were evaluated while they trained.
    out
        PNG file for the curves.
    json_
        Write all numbers to this file.
    mixed_protocols
        Show scores of different protocols side by side; they are never put together.
    logs
        Folder of all runs.
    """
    from neurocoder.errors import require
    from neurocoder.runs import compare as comparing
    from neurocoder.runs.anchors import anchors
    from neurocoder.runs.curves import find, group, read, refuse_mixture
    from neurocoder.runs.figures import png

    require(out.suffix.lower() == ".png", "--out", str(out), "a .png file")
    for flag, file in (("--out", out), ("--json", json_)):
        if file is not None:
            _require_ours(flag, file)
    found, scored = read(find(runs, logs), metric)
    if not mixed_protocols:
        refuse_mixture(scored, set(anchors()))
    groups = group(scored)
    summaries = [comparing.summarise([one]) for one in groups]
    aggregates = comparing.aggregate(groups)
    improvements = comparing.improvements(groups)

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for line in _meaning(groups, found):
        print(line)
    console.print(_table(summaries, aggregates))
    panels = _panels([*summaries, *aggregates])
    steps = _agent_steps(groups)
    for panel in panels:
        _print_chart(console, panel, steps)
    for line in ("", *_claims(improvements), *_warnings(summaries, aggregates)):
        print(line)

    _write(out, png(panels, steps))
    print(f"curves are in {out}")
    if json_ is not None:
        _write(json_, _json(found, summaries, aggregates, improvements))
        print(f"numbers are in {json_}")
    return 0


# ------------------------------------------------------------------------------------------- words


def _meaning(groups: "Sequence[Group]", metric: str) -> list[str]:
    """Return what the numbers mean: where scores come from, protocols, statistics."""
    from neurocoder.runs.anchors import anchors
    from neurocoder.runs.statistics import CONFIDENCE, RESAMPLES
    from neurocoder.runs.trackers import WINDOW

    source = {
        "evaluation": "whole evaluation games of checkpoints",
        "training": f"training games, running mean of the last {WINDOW}",
    }[metric]
    runs = [run for group in groups for run in group.runs]
    chosen = [ACTIONS[value] for value in ACTIONS if any(run.curve.deterministic is value for run in runs)]
    lines = [f"raw full-game returns over {_agent_steps(groups)}; {', '.join([source, *chosen])}"]
    described = dict.fromkeys(run.config.describe_protocol() for run in runs)
    lines += [f"protocol {text}" for text in described if text is not None]
    lines.append(
        f"IQM over runs [{CONFIDENCE:.0%} interval, stratified bootstrap, {RESAMPLES:,} resamples]; final: last "
        f"score of each run; best: highest score of each run, which is optimistic"
    )
    if any(group.env in anchors() for group in groups):
        lines.append(
            "human-normalised: 0 % random, 100 % human player (Wang et al. 2016: no-op starts, no sticky actions)"
        )
    return lines


def _agent_steps(groups: "Sequence[Group]") -> str:
    """Return the name and unit of the x axis."""
    protocols = [run.config.protocol for group in groups for run in group.runs]
    skips = {protocol.frame_skip for protocol in protocols if protocol is not None}
    return f"agent steps ({skips.pop()} frames each)" if len(skips) == 1 else "agent steps"


def _table(summaries: "Sequence[Summary]", aggregates: "Sequence[Summary]") -> Table:
    from neurocoder.runs.anchors import anchors
    from neurocoder.runs.compare import normalised

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("game", "group", "seeds"):
        table.add_column(heading, overflow="fold")
    for heading in ("agent steps", "final IQM", "best (optimistic)", "human-normalised %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        (group,) = summary.groups
        known = group.env in anchors()
        table.add_row(
            Text(group.env),
            Text(group.label),
            ", ".join(str(run.config.seed) for run in group.runs),
            _range(summary.ends),
            _with_interval(summary.final),
            _number(summary.best),
            _with_interval(normalised(group.env, summary.final)) if known else "–",
        )
    for summary in aggregates:
        games = f"{len(summary.envs)} games"
        n_runs = f"{sum(len(group.runs) for group in summary.groups)} runs"
        final = _with_interval(summary.final)
        table.add_row(games, Text(summary.label), n_runs, _range(summary.ends), "–", "–", final)
    return table


def _range(ends: tuple[int, int]) -> str:
    low, high = ends
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _number(estimate: "Estimate") -> str:
    return f"{estimate.value.item():,.2f}"


def _with_interval(estimate: "Estimate") -> str:
    if estimate.low is None or estimate.high is None:
        return f"{_number(estimate)} (one run, no interval)"
    return f"{_number(estimate)} [{estimate.low.item():,.2f}, {estimate.high.item():,.2f}]"


def _panels(summaries: "Sequence[Summary]") -> "list[Panel]":
    """Return a panel for each game, and one for each set of games."""
    from neurocoder.runs.figures import Panel

    panels: dict[tuple[str, ...], list[Summary]] = {}
    for summary in summaries:
        panels.setdefault(summary.envs, []).append(summary)
    return [
        Panel(envs[0], "raw return", of_panel)
        if len(envs) == 1
        else Panel(f"{len(envs)} games", "human-normalised score, %", of_panel)
        for envs, of_panel in panels.items()
    ]


def _print_chart(console: Console, panel: "Panel", steps: str) -> None:
    from neurocoder.runs.figures import terminal_chart

    lines = {s.label: (s.agent_steps, s.curve.value) for s in panel.summaries if len(s.agent_steps)}
    print(f"\n{panel.title}: {panel.y_label} (IQM) over {steps}")
    if lines:
        console.print(terminal_chart(lines))


def _claims(improvements: "Sequence[Improvement]") -> list[str]:
    lines = []
    for found in improvements:
        games = found.envs[0] if len(found.envs) == 1 else f"{len(found.envs)} games"
        if found.probability is None:
            lines.append(f"{games}: no claim about {found.x} against {found.y}: {found.reason}")
        else:
            text = _with_interval(found.probability)
            lines.append(f"{games}: P({found.x} ends higher than {found.y}) = {text}")
    return lines


def _warnings(summaries: "Sequence[Summary]", aggregates: "Sequence[Summary]") -> list[str]:
    """Return what stands between these numbers and a fair comparison."""
    lines = []
    for summary in summaries:
        (group,) = summary.groups
        if len(group.seeds) < len(group.runs):
            lines.append(
                f"careful: {group.env}, {group.label}: a seed occurs twice; such runs are no replications"
            )
        if not len(summary.agent_steps):
            lines.append(
                f"careful: {group.env}, {group.label}: the runs have no agent steps in common, no curve"
            )
    envs = dict.fromkeys(summary.envs for summary in summaries)
    if len(envs) > 1 and not aggregates:
        lines.append("careful: nothing is put together over games: no two of them have runs of every group")
    for env in envs:
        ends = [end for summary in summaries if summary.envs == env for end in summary.ends]
        if min(ends) < 0.99 * max(ends):
            lines.append(
                f"careful: {env[0]}: final scores are of {min(ends):,} to {max(ends):,} agent steps, no equal budget"
            )
    return lines


# ------------------------------------------------------------------------------------------- files


def _json(
    metric: str,
    summaries: "Sequence[Summary]",
    aggregates: "Sequence[Summary]",
    improvements: "Sequence[Improvement]",
) -> bytes:
    """Return all numbers, and what they mean, as JSON."""
    import json

    from neurocoder import __version__
    from neurocoder.runs.anchors import anchors
    from neurocoder.runs.compare import normalised
    from neurocoder.runs.figures import SOFTWARE
    from neurocoder.runs.statistics import CONFIDENCE, RESAMPLES, SEED

    groups = []
    for summary in summaries:
        (group,) = summary.groups
        known = group.env in anchors()
        groups.append(
            {
                **_summary(summary),
                "env": group.env,
                "protocol": group.runs[0].protocol,
                "human_normalised": _numbers(normalised(group.env, summary.final)) if known else None,
                "runs": [
                    {
                        "path": str(run.path),
                        "seed": run.config.seed,
                        "deterministic": run.curve.deterministic,
                        "agent_steps": run.curve.agent_steps.tolist(),
                        "scores": run.curve.scores.tolist(),
                    }
                    for run in group.runs
                ],
            }
        )
    content = {
        "command": SOFTWARE,
        "version": __version__,
        "metric": metric,
        "unit": "raw full-game return over agent steps; human-normalised in per cent",
        "statistics": {
            "iqm": "mean without the floor(n/4) lowest and floor(n/4) highest of n runs (rliable)",
            "interval": "percentiles of a stratified bootstrap over runs",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "groups": groups,
        "human_normalised_over_games": [
            {**_summary(summary), "envs": list(summary.envs)} for summary in aggregates
        ],
        "probability_of_improvement": [
            {
                "x": found.x,
                "y": found.y,
                "envs": list(found.envs),
                "probability": None if found.probability is None else _numbers(found.probability),
                "reason": found.reason,
            }
            for found in improvements
        ],
    }
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _summary(summary: "Summary") -> dict[str, Any]:
    return {
        "label": summary.label,
        "final": _numbers(summary.final),
        "best": _numbers(summary.best),
        "curve": {"agent_steps": summary.agent_steps.tolist(), **_numbers(summary.curve)},
    }


def _numbers(estimate: "Estimate") -> dict[str, Any]:
    """Return value, low and high as numbers, or lists of them for a curve."""
    parts = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {
        name: None if part is None else part.item() if part.size == 1 else part.tolist()
        for name, part in parts.items()
    }


def _require_ours(flag: str, file: Path) -> None:
    """Raise unless `file` can be written and is not there yet, or was written by this command before."""
    import os

    from neurocoder.errors import ConfigError, require
    from neurocoder.runs.figures import SOFTWARE

    require(file.parent.is_dir(), flag, str(file), "in a folder that exists")
    require(not file.exists() or file.is_file(), flag, str(file), "a file, or not there yet")
    if not os.access(file.parent, os.W_OK):
        raise ConfigError(f"{flag}={str(file)!r}: the folder cannot be written")
    try:
        ours = not file.exists() or SOFTWARE.encode() in file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag}={str(file)!r}: {error.strerror or error}") from None
    if not ours:
        raise ConfigError(
            f"{flag}={str(file)!r} is there already and not from neurocoder compare: choose another name"
        )


def _write(file: Path, content: bytes) -> None:
    """Write `content` to `file`, which is never seen half written."""
    import os

    from neurocoder.errors import ConfigError

    target = file.resolve()  # a link stays one
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(target)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
