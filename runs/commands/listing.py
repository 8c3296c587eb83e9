"""``neurocoder list``."""

from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table


def listing(
    what: Literal["envs", "heads", "encoders", "recipes", "runs", "zoo"], /, *, logs: Path = Path("logs")
) -> None:
    """List envs, heads, encoders, recipes, runs or zoo.

    Parameters
    ----------
    what
        envs: installed environment ids; heads and encoders: with their options; recipes: with what they are for; runs:
        below the logs folder, with progress and score; zoo: hyper-parameter files for the RL Zoo's --conf-file.
    logs
        Folder of all runs.
    """
    lists = {
        "envs": _envs,
        "heads": _heads,
        "encoders": _encoders,
        "recipes": _recipes,
        "runs": lambda: _runs(logs),
        "zoo": _zoo,
    }
    lists[what]()


def _envs() -> None:
    from neurocoder.envs import env_ids

    print("\n".join(env_ids()))


def _heads() -> None:
    from neurocoder.policies import HEADS, head_options

    for name, head in HEADS.items():
        print(f"{name}: {(head.__doc__ or '').splitlines()[0]}")
        print("    " + ", ".join(f"{option}={value!r}" for option, value in head_options(name).items()))


def _encoders() -> None:
    from neurocoder.policies.encoders import ENCODERS, encoder_options

    for name in ENCODERS:
        print(
            f"{name}: {', '.join(f'{key}={value!r}' for key, value in encoder_options(name).items()) or 'no options'}"
        )


def _recipes() -> None:
    from importlib import resources

    from neurocoder.runs.config import recipe_names

    for name in recipe_names():
        text = (resources.files("neurocoder.runs.recipes") / f"{name}.toml").read_text("utf-8")
        print(f"{name}: {text.splitlines()[0].removeprefix('# ')}")


def _zoo() -> None:
    from importlib import resources

    for file in sorted(resources.files("neurocoder.runs.zoo").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".yml"):
            print(f"{file.name.removesuffix('.yml')}: {file}")


def _runs(logs: Path) -> None:
    from neurocoder.errors import NeurocoderError
    from neurocoder.runs.checkpoint import read_state, saved_steps
    from neurocoder.runs.run import find_runs

    table = Table("run", "head", "agent steps", "of", "mean return", "protocol", "state", box=None)
    for run in find_runs(logs):
        try:
            config = run.config()
            steps = saved_steps(run.checkpoints)
            state = read_state(run.checkpoints / str(steps[-1])) if steps else {}
        except NeurocoderError as error:
            table.add_row(str(run.path), "", "", "", "", "", f"unreadable: {error}")
            continue
        mean = state.get("mean_return")
        done = steps[-1] if steps else 0
        status = "running" if run.in_use else "done" if done >= config.steps else "stopped"
        table.add_row(
            str(run.path),
            config.policy.head,
            f"{done:,}",
            f"{config.steps:,}",
            "" if mean is None else f"{mean:.2f}",
            config.protocol_hash or "",
            status,
        )
    if not table.row_count:
        print(f"no runs in {logs}")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=300)
    console.print(table)
