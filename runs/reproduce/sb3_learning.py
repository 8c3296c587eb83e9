"""Do SB3's algorithms learn as fast with program memories? Each task with the stock policy and with ours.

    python -m neurocoder.runs.reproduce.sb3_learning FOLDER [--seeds 3] [--only ppo/CartPole-v1] [--jobs 2]

Both policies are trained by the RL Zoo with the same hyper-parameters (``neurocoder list zoo``) and scored by it as
they learn: 20 whole episodes, most probable action. Each finished run is a line of FOLDER/rows.jsonl, and is not run
again. FOLDER/table.md and curves.png say what came of them: agent steps until the mean reaches the threshold, and is
still there in the next two evaluations.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, NamedTuple, TypedDict

import cyclopts
import numpy as np

from neurocoder.errors import NeurocoderError

EPISODES = 20
IN_A_ROW = 3
"""Evaluations that must reach the threshold: an untrained policy has been seen to balance a pole by luck."""


class Task(NamedTuple):
    """What is learned, for how many agent steps, from which mean return on it counts as solved; the stock policy."""

    algorithm: str
    env: str
    threshold: float
    steps: int
    eval_every: int
    stock: str
    stock_kwargs: str = "dict()"


TASKS = (
    Task("ppo", "CartPole-v1", 475, 100_000, 2_000, "MlpPolicy"),
    Task("a2c", "CartPole-v1", 475, 300_000, 4_000, "MlpPolicy"),
    Task("dqn", "CartPole-v1", 475, 50_000, 2_000, "MlpPolicy", "dict(net_arch=[256, 256])"),
    Task("ppo_lstm", "CartPole-v1", 475, 100_000, 2_000, "MlpLstmPolicy", "dict(lstm_hidden_size=64)"),
    Task("ppo", "Acrobot-v1", -100, 200_000, 8_000, "MlpPolicy"),
)
POLICIES = ("stock", "neurocoder")


class Row(TypedDict):
    """One run: mean returns at agent steps, and what they depend on."""

    algorithm: str
    env: str
    policy: str
    seed: int
    steps: list[int]
    returns: list[float]
    minutes: float
    command: str
    versions: dict[str, str]


def train(task: Task, policy: str, seed: int) -> Row:
    """Train once, with the RL Zoo's own command, and return its evaluations."""
    file = resources.files("neurocoder.runs.zoo") / f"{task.algorithm}.yml"
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            *("--algo", task.algorithm, "--env", task.env, "--conf-file", str(file), "--seed", str(seed)),
            *("--n-timesteps", str(task.steps)),
            *("--eval-freq", str(task.eval_every), "--eval-episodes", str(EPISODES), "--n-eval-envs", "5"),
            *("--device", "cpu", "--num-threads", "1", "-f", folder),
        ]
        if policy == "stock":
            arguments += ["-params", f"policy:'{task.stock}'", f"policy_kwargs:{task.stock_kwargs}"]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "rl_zoo3.train", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        minutes = (time.monotonic() - began) / 60
        found = list(Path(folder).rglob("evaluations.npz"))
        if done.returncode or not found:
            raise NeurocoderError(f"the RL Zoo failed on {task}: {done.stderr.strip().splitlines()[-1:]}")
        with np.load(found[0]) as kept:
            steps, returns = kept["timesteps"].tolist(), kept["results"].mean(axis=1).tolist()
    command = "python -m rl_zoo3.train " + " ".join(arguments).replace(str(file), file.name).replace(
        folder, "logs"
    )
    versions = {
        name: metadata.version(name) for name in ("torch", "stable-baselines3", "sb3-contrib", "rl_zoo3")
    }
    return Row(
        algorithm=task.algorithm,
        env=task.env,
        policy=policy,
        seed=seed,
        steps=steps,
        returns=[round(value, 2) for value in returns],
        minutes=round(minutes, 2),
        command=command,
        versions=versions,
    )


def steps_to_solve(row: Row, threshold: float) -> float:
    """Return the agent steps of the first of `IN_A_ROW` evaluations that all reach `threshold`; infinity if none do."""
    run = 0
    for index, value in enumerate(row["returns"]):
        run = run + 1 if value >= threshold else 0
        if run == IN_A_ROW:
            return row["steps"][index + 1 - IN_A_ROW]
    return float("inf")


def read_rows(file: Path) -> list[Row]:
    """Return the runs that are kept in `file`, none if there is no such file."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def table(rows: Iterable[Row]) -> str:
    """Return the runs as a Markdown table, one line for each task."""
    lines = [
        "| task | solved at | steps of the stock policy, by seed | of Neurocoder heads | ratio of medians |",
        "|---|---|---|---|---|",
    ]
    kept = list(rows)
    for task in TASKS:
        solved: dict[str, list[float]] = {}
        for policy in POLICIES:
            runs = [
                r
                for r in kept
                if (r["algorithm"], r["env"], r["policy"]) == (task.algorithm, task.env, policy)
            ]
            solved[policy] = [
                steps_to_solve(r, task.threshold) for r in sorted(runs, key=lambda r: r["seed"])
            ]
        if not all(solved.values()):
            continue
        stock, ours = (float(np.median(solved[policy])) for policy in POLICIES)
        ratio = f"{ours / stock:.2f}" if np.isfinite([stock, ours]).all() else "–"
        cells = (", ".join(_steps(value) for value in solved[policy]) for policy in POLICIES)
        lines.append(f"| {task.algorithm}, {task.env} | {task.threshold:g} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


def _steps(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "never"


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draw every run's mean return over its agent steps, a panel for each task."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(4 * len(TASKS), 3), layout="constrained")
    for axis, task in zip(axes, TASKS, strict=True):
        for row in rows:
            if (row["algorithm"], row["env"]) == (task.algorithm, task.env):
                ours = row["policy"] == "neurocoder"
                label = row["policy"] if row["seed"] == 0 else None
                axis.plot(row["steps"], row["returns"], color="C1" if ours else "C0", alpha=0.7, label=label)
        axis.axhline(task.threshold, color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=f"{task.algorithm}, {task.env}", xlabel="agent steps")
        axis.locator_params(axis="x", nbins=5)  # six-digit labels touch otherwise
    axes[0].set_ylabel(f"mean return of {EPISODES} episodes")
    axes[0].legend()
    figure.savefig(file, dpi=100)
    plt.close(figure)


def reproduce(
    folder: Path,
    *,
    seeds: int = 3,
    only: str | None = None,
    jobs: Annotated[int, cyclopts.Parameter(help="Runs side by side, one thread each.")] = 2,
) -> None:
    """Run what is missing in `folder`, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    have = {(r["algorithm"], r["env"], r["policy"], r["seed"]) for r in read_rows(file)}
    missing = [
        (task, policy, seed)
        for seed in range(seeds)
        for task in TASKS
        for policy in POLICIES
        if (only is None or only == f"{task.algorithm}/{task.env}")
        and (task.algorithm, task.env, policy, seed) not in have
    ]
    with ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(train, *job) for job in missing]):
            row = future.result()
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
            task = next(t for t in TASKS if (t.algorithm, t.env) == (row["algorithm"], row["env"]))
            solved = _steps(steps_to_solve(row, task.threshold))
            print(
                f"{row['algorithm']} {row['env']} {row['policy']} seed {row['seed']}: solved at {solved}",
                flush=True,
            )
    rows = read_rows(file)
    draw(rows, folder / "curves.png")
    (folder / "table.md").write_text(table(rows) + "\n", "utf-8")
    print(table(rows))


if __name__ == "__main__":
    cyclopts.run(reproduce)
