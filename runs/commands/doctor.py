"""``neurocoder doctor``."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

MIN_SHARED_MEMORY = 256 * 2**20


class Finding(NamedTuple):
    """One line of the report; `level` is ok, note or problem."""

    level: str
    text: str


def doctor() -> int:
    """Check this machine for what slows training down or breaks it; exit code 1 if something is broken."""
    findings = list(_findings())
    for level, text in findings:
        print(f"{level:>8}  {text}")
    return 1 if any(finding.level == "problem" for finding in findings) else 0


def _findings() -> Iterator[Finding]:
    yield from _packages()
    yield from _processor()
    yield from _memory()
    yield from _games()


def _packages() -> Iterator[Finding]:
    from neurocoder import __version__

    versions = f"neurocoder {__version__}, Python {platform.python_version()}"
    for name in ("torch", "numpy", "gymnasium", "ale-py"):
        versions += f", {name} {metadata.version(name)}"
    yield Finding("ok", versions)
    installed = {d.metadata["Name"].lower() for d in metadata.distributions() if d.metadata["Name"]}
    both = sorted(installed & {"opencv-python", "opencv-python-headless"})
    if len(both) == 2:
        yield Finding(
            "problem", "opencv-python and opencv-python-headless overwrite each other: uninstall one"
        )
    for name in ("agents", "envs", "policies", "runs"):
        spec = importlib.util.find_spec(name)
        here = spec is not None and (Path.cwd() / name).is_dir()
        if spec is not None and not here:
            yield Finding(
                "note", f"a package {name!r} is installed besides neurocoder.{name}: mind your imports"
            )


def _processor() -> Iterator[Finding]:
    import torch

    from neurocoder.agents.processes import processors
    from neurocoder.runs.preparation import resolve_precision

    seen = os.cpu_count() or 1
    usable = processors()
    quota = _cgroup_cpus()
    text = f"{usable} of {seen} processors usable"
    yield Finding("ok", text + (f", cgroup quota {quota:g}" if quota else ""))
    if quota and quota < usable:
        yield Finding("note", f"the cgroup grants {quota:g} processors: use --workers {max(1, int(quota))}")
    yield Finding(
        "ok", f"precision auto is {resolve_precision('auto', 'cpu')} on this processor; workers are spawned"
    )
    if torch.cuda.is_available():
        yield Finding(
            "ok", f"{torch.cuda.device_count()} CUDA devices, first {torch.cuda.get_device_name(0)}"
        )
    else:
        yield Finding("note", "no CUDA device: training runs on the processor")


def _cgroup_cpus() -> float | None:
    """Return how many processors the control group grants, None if it sets no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _memory() -> Iterator[Finding]:
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        level = "ok" if free >= MIN_SHARED_MEMORY else "problem"
        hint = (
            "" if level == "ok" else ": workers share memory there; give the container more (--shm-size=1g)"
        )
        yield Finding(level, f"/dev/shm has {free / 2**20:,.0f} MiB free{hint}")


def _games() -> Iterator[Finding]:
    from neurocoder.envs import env_ids, make_vec

    games = [env_id for env_id in env_ids() if env_id.startswith("ALE/")]
    envs = make_vec("ALE/Pong-v5", 1)
    try:
        envs.reset(seed=0)
        envs.step(envs.action_space.sample() * 0)
        yield Finding("ok", f"{len(games)} Atari games, Pong steps")
    finally:
        envs.close()
