"""``neurocoder eval``."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from neurocoder.agents.player import Episode
    from neurocoder.runs.checkpoint import Checkpoint
    from neurocoder.runs.config import TrainConfig

MAX_GAMES = 16
"""Games played at once."""


def evaluate(
    run: str,
    /,
    *,
    episodes: int = 5,
    deterministic: Annotated[bool, Parameter(negative="")] = False,
    checkpoint: str = "last",
    seed: int = 0,
    device: str = "cpu",
    logs: Path = Path("logs"),
    trust: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Play whole episodes with a trained agent and print its raw score and what it means.

    The line is also appended to RUN/evaluations.jsonl.

    Parameters
    ----------
    run
        Folder of the run.
    episodes
        Whole games to play.
    deterministic
        Take the most probable action instead of sampling.
    checkpoint
        best, last, or a number of agent steps.
    seed
        Seed of the games and actions.
    device
        cpu, cuda or cuda:N.
    logs
        Folder of all runs.
    trust
        Allow the run to import the module that its environment id names.
    """
    from neurocoder.errors import require
    from neurocoder.runs.checkpoint import find_checkpoint, load_checkpoint
    from neurocoder.runs.run import Run
    from neurocoder.runs.training import check_device, environment_factory

    require(episodes >= 1, "--episodes", episodes, ">= 1")
    require(0 <= seed < 2**63, "--seed", seed, "in [0, 2^63)")
    check_device(device)
    found = Run.open(run, logs)
    config = found.config()
    saved = load_checkpoint(find_checkpoint(found.checkpoints, checkpoint), with_optimizer=False)
    envs = environment_factory(config, trust=trust)(min(episodes, MAX_GAMES))
    try:
        started = time.monotonic()
        played = _play(config, saved, envs, episodes, seed, device, deterministic)
        seconds = time.monotonic() - started
    finally:
        envs.close()
    score = _score(config, saved.path, played, seed, deterministic)
    _print(config, saved.path, score, seconds)
    _keep(found.path / "evaluations.jsonl", score)
    return 0


def _play(
    config: "TrainConfig",
    saved: "Checkpoint",
    envs: "VectorEnv",
    episodes: int,
    seed: int,
    device: str,
    deterministic: bool,
) -> list["Episode"]:
    """Return `episodes` whole games of the saved agent."""
    from neurocoder.agents.player import Player
    from neurocoder.agents.player import evaluate as play_episodes
    from neurocoder.runs.checkpoint import load_parameters
    from neurocoder.runs.training import make_policy

    policy = make_policy(config, envs)
    load_parameters(policy, saved.model, saved.path)
    player = Player(policy.to(device), deterministic=deterministic, seed=seed)
    return play_episodes(player, envs, episodes, seed)


def _score(
    config: "TrainConfig", checkpoint: Path, played: list["Episode"], seed: int, deterministic: bool
) -> dict[str, Any]:
    """Return what is kept of an evaluation: the raw scores and everything that they depend on."""
    import numpy as np

    returns = [episode.raw_return for episode in played]
    return {
        "env": config.env,
        "checkpoint": int(checkpoint.name),
        "protocol_hash": config.protocol.hash if config.protocol else None,
        "deterministic": deterministic,
        "seed": seed,
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns, ddof=1)) if len(returns) > 1 else 0.0,
        "returns": returns,
        "lengths": [episode.length for episode in played],
    }


def _print(config: "TrainConfig", checkpoint: Path, score: dict[str, Any], seconds: float) -> None:
    actions = "most probable" if score["deterministic"] else "sampled"
    spread = f"mean ± std of {len(score['returns'])} episodes"
    print(f"{config.env}  {checkpoint}")
    print(f"raw return {score['mean']:.2f} ± {score['std']:.2f} ({spread}), actions {actions}")
    print(f"episodes {', '.join(f'{value:g}' for value in score['returns'])}")
    print(f"{sum(score['lengths']):,} agent steps in {seconds:.1f} s, seed {score['seed']}")
    if config.protocol is not None:
        print(f"protocol {config.protocol.describe()}")


def _keep(file: Path, score: dict[str, Any]) -> None:
    """Append the score to `file`, or say why not: a read-only run can be evaluated too."""
    try:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(score) + "\n")
    except OSError as error:
        print(f"(not kept in {file.parent}: {error.strerror or error})")
