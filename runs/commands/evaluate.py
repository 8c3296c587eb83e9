"""``neurocoder eval``."""

import json
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

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
    import numpy as np

    from neurocoder.agents.player import Player
    from neurocoder.agents.player import evaluate as play_episodes
    from neurocoder.errors import require
    from neurocoder.runs.checkpoint import find_checkpoint, load_checkpoint, load_parameters
    from neurocoder.runs.run import Run
    from neurocoder.runs.training import check_device, environment_factory, make_policy

    require(episodes >= 1, "--episodes", episodes, ">= 1")
    require(0 <= seed < 2**63, "--seed", seed, "in [0, 2^63)")
    check_device(device)
    found = Run.open(run, logs)
    config = found.config()
    saved = load_checkpoint(find_checkpoint(found.checkpoints, checkpoint), with_optimizer=False)
    envs = environment_factory(config, trust=trust)(min(episodes, MAX_GAMES))
    try:
        policy = make_policy(config, envs)
        load_parameters(policy, saved.model, saved.path)
        player = Player(policy.to(device), deterministic=deterministic, seed=seed)
        started = time.monotonic()
        played = play_episodes(player, envs, episodes, seed)
        seconds = time.monotonic() - started
    finally:
        envs.close()

    returns = [episode.raw_return for episode in played]
    lengths = [episode.length for episode in played]
    mean, deviation = float(np.mean(returns)), float(np.std(returns, ddof=1)) if episodes > 1 else 0.0
    actions = "most probable" if deterministic else "sampled"
    print(f"{config.env}  {saved.path}")
    print(f"raw return {mean:.2f} ± {deviation:.2f} (mean ± std of {episodes} episodes), actions {actions}")
    print(f"episodes {', '.join(f'{value:g}' for value in returns)}")
    print(f"{sum(lengths):,} agent steps in {seconds:.1f} s, seed {seed}")
    if config.protocol is not None:
        print(f"protocol {config.protocol.describe()}")
    record = {
        "env": config.env,
        "checkpoint": int(saved.path.name),
        "protocol_hash": config.protocol.hash if config.protocol else None,
        "deterministic": deterministic,
        "seed": seed,
        "mean": mean,
        "std": deviation,
        "returns": returns,
        "lengths": lengths,
    }
    try:
        with (found.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        print(f"(not kept in {found.path}: {error.strerror or error})")
    return 0
