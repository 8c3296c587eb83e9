"""``neurocoder eval``."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from neurocoder.runs.config import TrainConfig
    from neurocoder.runs.scoring import Score


def evaluate(
    run: str,
    /,
    *,
    episodes: int = 5,
    deterministic: Annotated[bool, Parameter(negative="")] = False,
    checkpoint: str = "last",
    stuck_after: int | None = None,
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
    stuck_after
        Cut a game after this many agent steps without a reward or a lost life; 0: never. As the run's
        configuration has it unless given.
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
    from neurocoder.runs.checkpoint import find_checkpoint
    from neurocoder.runs.config import EvaluationConfig
    from neurocoder.runs.run import Run
    from neurocoder.runs.scoring import append_score, score_checkpoint
    from neurocoder.runs.training import check_device, environment_factory

    require(episodes >= 1, "--episodes", episodes, ">= 1")
    require(stuck_after is None or stuck_after >= 0, "--stuck-after", stuck_after, ">= 0")
    require(0 <= seed < 2**63, "--seed", seed, "in [0, 2^63)")
    check_device(device)
    found = Run.open(run, logs)
    config = found.config()
    path = find_checkpoint(found.checkpoints, checkpoint)
    evaluation = EvaluationConfig(
        episodes=episodes,
        deterministic=deterministic,
        stuck_after=config.evaluation.stuck_after if stuck_after is None else stuck_after,
    )
    make_envs = environment_factory(config, trust=trust)
    started = time.monotonic()
    score = score_checkpoint(path, config, evaluation, make_envs, seed=seed, source="eval", device=device)
    _print(config, path, score, time.monotonic() - started)
    try:
        append_score(found.path, score)
    except OSError as error:  # a read-only run can be evaluated too
        print(f"(not kept in {found.path}: {error.strerror or error})")
    return 0


def _print(config: "TrainConfig", path: Path, score: "Score", seconds: float) -> None:
    actions = "most probable" if score["deterministic"] else "sampled"
    spread = f"mean ± std of {len(score['returns'])} episodes"
    print(f"{config.env}  {path}")
    print(f"raw return {score['mean']:.2f} ± {score['std']:.2f} ({spread}), actions {actions}")
    print(f"episodes {', '.join(f'{value:g}' for value in score['returns'])}")
    limit = "time limit" if config.protocol is None else "frame cap"
    rule = (
        f"{score['stuck_after']:,} agent steps without a reward or a lost life"
        if score["stuck_after"]
        else "off"
    )
    print(f"cut short: {score['truncated']} at the {limit}, {score['stuck']} as stuck ({rule})")
    print(f"{sum(score['lengths']):,} agent steps in {seconds:.1f} s, seed {score['seed']}")
    if config.protocol is not None:
        print(f"protocol {config.describe_protocol()}")
