"""SB3's PPO on Pong with its own CnnPolicy or with ours: one curve each.

    python -m neurocoder.runs.reproduce.sb3_pong FOLDER stock|neurocoder [--steps 1000000] [--threads 1] [--device cpu]
    python -m neurocoder.runs.reproduce.sb3_pong FOLDER plot

Hyper-parameters are the RL Zoo's for Atari (rl_zoo3 2.9.2); games are ale-py's native batch under machado2018 (sticky
0.25), rewards clipped for the learner, curves of raw training returns. A run is saved every 50,000 agent steps in
FOLDER (not to be committed: SB3's zips) and goes on from there; its games start anew then.
"""

import csv
import time
from importlib import metadata
from pathlib import Path
from typing import Literal

import cyclopts
import numpy as np

from neurocoder.runs.bench.sb3 import GAMES, HYPERPARAMETERS

EVERY = 50_000


def lines_of(file: Path) -> list[dict[str, str]]:
    """Return the rows of a curve: agent_steps, mean_return (of the last 100 games), games, seconds (in all)."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def train(
    folder: Path, policy: Literal["stock", "neurocoder"], steps: int, threads: int, every: int, device: str
) -> None:
    """Train from where the last call stopped until `steps`, adding a row of the curve every `every` steps."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.utils import LinearSchedule

    from neurocoder.envs.sb3 import make_atari
    from neurocoder.policies.sb3 import NeurocoderCnnPolicy

    torch.set_num_threads(threads)
    options = HYPERPARAMETERS | {"clip_range": LinearSchedule(HYPERPARAMETERS["clip_range"], 0.0, 1.0)}
    saved, curve = folder / f"{policy}.zip", folder / f"{policy}.csv"
    kept = lines_of(curve)
    done = int(kept[-1]["agent_steps"]) if kept and saved.exists() else 0
    before = float(kept[-1]["seconds"]) if done else 0.0
    envs = make_atari("ALE/Pong-v5", GAMES, num_threads=threads)
    if done:
        model = PPO.load(saved, env=envs, device=device, seed=done)  # SB3 would play the first games again
    else:
        model = PPO(
            NeurocoderCnnPolicy if policy == "neurocoder" else "CnnPolicy",
            envs,
            learning_rate=LinearSchedule(2.5e-4, 0.0, 1.0),
            seed=0,
            device=device,
            **options,
        )
        curve.unlink(missing_ok=True)
    began = time.monotonic()

    class Keep(BaseCallback):
        next_at = model.num_timesteps + every

        def _on_rollout_start(self) -> None:  # what was played has been learned from
            if self.num_timesteps >= self.next_at:
                keep()
                self.next_at = self.num_timesteps + every

        def _on_step(self) -> bool:
            return True

    def keep() -> None:
        model.save(saved)
        returns = [episode["r"] for episode in model.ep_info_buffer or ()]
        first = not curve.exists()
        with curve.open("a", newline="", encoding="utf-8") as lines:
            writer = csv.writer(lines)
            if first:
                writer.writerow(["agent_steps", "mean_return", "games", "seconds"])
            mean = f"{np.mean(returns):.2f}" if returns else ""
            seconds = before + time.monotonic() - began
            writer.writerow([model.num_timesteps, mean, len(returns), f"{seconds:.0f}"])

    if done < steps:
        # the whole number of steps, of which `done` are behind: SB3's schedules go on
        model.learn(steps - done, callback=Keep(), reset_num_timesteps=False)
        keep()
    envs.close()


def plot(folder: Path) -> None:
    """Draw both curves into FOLDER/pong.png."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for policy, label in (("stock", "CnnPolicy"), ("neurocoder", "NeurocoderCnnPolicy")):
        rows = [row for row in lines_of(folder / f"{policy}.csv") if row["mean_return"]]
        axis.plot([int(r["agent_steps"]) for r in rows], [float(r["mean_return"]) for r in rows], label=label)
    versions = f"SB3 {metadata.version('stable-baselines3')}, ale-py {metadata.version('ale-py')}"
    axis.set(
        xlabel=f"agent steps (4 frames each); one seed; {versions}",
        ylabel="raw return, last 100 games",
        title="PPO, ALE/Pong-v5, machado2018 (sticky 0.25)",
    )
    axis.legend()
    figure.savefig(folder / "pong.png", dpi=100)
    plt.close(figure)


def reproduce(
    folder: Path,
    what: Literal["stock", "neurocoder", "plot"],
    *,
    steps: int = 1_000_000,
    threads: int = 1,
    every: int = EVERY,
    device: str = "cpu",
) -> None:
    """Train one policy, or draw what there is."""
    folder.mkdir(parents=True, exist_ok=True)
    if what == "plot":
        plot(folder)
    else:
        train(folder, what, steps, threads, every, device)


if __name__ == "__main__":
    cyclopts.run(reproduce)
