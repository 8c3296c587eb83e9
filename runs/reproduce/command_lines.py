"""The commands that train an experiment's settings: what is run, and what a row shows of it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from neurocoder.runs.config import TrainConfig, parse_override, resolve
from neurocoder.runs.reproduce.experiment import Row, Setting, slug


def logs_of(setting: Setting, seed: int, folder: Path) -> Path:
    """Return where the run of `setting` is, below an experiment's folder."""
    return folder / "runs" / f"{slug(setting.label)}-seed{seed}"


def command_of(setting: Setting, seed: int, logs: Path) -> list[str]:
    """Return the arguments of ``neurocoder`` that train `setting`."""
    arguments = ["train", setting.env, "--recipe", setting.recipe, "--seed", str(seed), "--logs", str(logs)]
    for name, value in setting.overrides.items():
        arguments += ["--set", f"{name}={_toml(value)}"]
    return arguments


def config_of(setting: Setting, seed: int) -> TrainConfig:
    """Return the configuration that those arguments come to."""
    texts = [f"{name}={_toml(value)}" for name, value in setting.overrides.items()]
    overrides = dict(parse_override(text) for text in texts)
    return resolve(setting.env, setting.recipe, {**overrides, "seed": seed}, setting.label)


def _toml(value: Any) -> str:
    """Return `value` as TOML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    text = tomli_w.dumps({"value": value}).removeprefix("value = ")
    return " ".join(text.split())


def shown_command(setting: Setting, seed: int, folder: Path) -> str:
    """Return the command that trains `setting` below `folder`, as a row shows it: without the folder."""
    arguments = command_of(setting, seed, logs_of(setting, seed, folder))
    return shlex.join(["neurocoder", *(part.replace(str(folder), "logs") for part in arguments)])


def is_of_today(row: Row, setting: Setting) -> bool:
    """Whether `row` was trained with the command that would train `setting` now."""
    return row["command"] == shown_command(setting, row["seed"], Path("logs"))
