"""``neurocoder train``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from neurocoder.runs.config import TrainConfig

# Flags that are short forms of configuration keys.
_KEYS = {
    "agent": "agent",
    "encoder": "policy.encoder",
    "core": "policy.core",
    "head": "policy.head",
    "preset": "preset",
    "workers": "a3c.workers",
    "envs_per_worker": "a3c.envs_per_worker",
    "steps": "steps",
    "seed": "seed",
    "device": "device",
    "precision": "precision",
    "sync": "a3c.sync",
    "max_restarts": "max_restarts",
    "record_every": "evaluation.record_every",
}


def train(
    env: str | None = None,
    /,
    *,
    recipe: str | None = None,
    agent: str | None = None,
    encoder: str | None = None,
    core: str | None = None,
    head: str | None = None,
    preset: str | None = None,
    workers: int | None = None,
    envs_per_worker: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    sync: Annotated[bool | None, Parameter(negative="")] = None,
    max_restarts: int | None = None,
    record_every: int | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    logs: Path = Path("logs"),
    resume: str | None = None,
    trust: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train an agent; ENV is any installed Gymnasium id, e.g. ALE/Pong-v5 or neurocoder/MNIST-v0.

    Without flags: A3C's workers, in step, with Neurocoder heads, each rollout learned from under PPO's clipped objective;
    Atari games with the a3c network under the protocol machado2018 (recipe `atari`), everything else with a small network
    (recipe `control`). A3C as published is recipe `a3c`. Tasks of this package (neurocoder/…) are learned by gradient from
    their targets, unless --agent a3c asks for reward only. Ctrl-C saves and ends the run.

    Parameters
    ----------
    env
        Environment id; `neurocoder list envs` shows all.
    recipe
        Name (`neurocoder list recipes`) or TOML file.
    agent
        Learner: a3c (by reward), supervised (by gradient from targets) or continual (the same, task after task).
    encoder
        auto, or one of `neurocoder list encoders`.
    core
        none, lstm, gru or ntm.
    head
        Head of actor and critic: `neurocoder list heads`.
    preset
        Atari protocol: machado2018, dqn2015 or neurocoder2020.
    workers
        Processes.
    envs_per_worker
        Games that one worker steps as one batch.
    steps
        Agent steps in all, over all workers.
    seed
        Seed of the run.
    device
        cpu, cuda or cuda:N.
    precision
        auto, fp32 or bf16.
    sync
        All workers wait for each other and share one update (A2C).
    max_restarts
        Dead or hung workers that are replaced before the run fails.
    record_every
        Agent steps between two evaluations whose best, median and worst game are recorded, to be watched
        (`neurocoder watch`).
    set_
        Any other key of the configuration, e.g. --set a3c.gamma=0.995 --set policy.head_config.slots=40.
    logs
        Folder of all runs.
    resume
        Go on with this run (a folder); everything else is taken from it.
    trust
        Allow a recipe or a resumed run to import the module that its environment id names.
    """
    flags = {key: value for key, value in locals().items() if key in _KEYS and value is not None}
    from neurocoder.runs.config import parse_override

    overrides = {_KEYS[flag]: value for flag, value in flags.items()}
    overrides |= dict(parse_override(text) for text in set_ or [])
    if resume is not None:
        return _resume(resume, env, recipe, overrides, logs, trust)
    return _start(env, recipe, overrides, logs, trust)


def _start(env: str | None, recipe: str | None, overrides: dict[str, Any], logs: Path, trust: bool) -> int:
    from neurocoder.runs.config import resolve
    from neurocoder.runs.preparation import prepare
    from neurocoder.runs.run import Run
    from neurocoder.runs.training import run_training

    config, policy = prepare(resolve(env, recipe, overrides, "command line", trust=trust))
    with Run.create(logs, config) as run:
        _announce(config, policy, run.path)
        return _conclude(run.path, run_training(config, policy, run))


def _resume(
    text: str, env: str | None, recipe: str | None, overrides: dict[str, Any], logs: Path, trust: bool
) -> int:
    from neurocoder.errors import ConfigError
    from neurocoder.runs.checkpoint import load_newest, recover, set_aside
    from neurocoder.runs.preparation import prepare
    from neurocoder.runs.run import Run
    from neurocoder.runs.training import run_training

    run = Run.open(text, logs)
    stored = run.config()
    _refuse_conflicts(stored, env, recipe, overrides)
    with run:
        recover(run.checkpoints)
        checkpoint, damaged = load_newest(run.checkpoints)
        for (
            path,
            error,
        ) in damaged.items():  # left there, it would be the newest, and what comes now dropped for it
            aside = set_aside(path).name
            text = f"neurocoder: {error}; it is {aside} now; going on from {checkpoint.path}"
            print(text, file=sys.stderr, flush=True)
        done = checkpoint.state.get("agent_steps")
        if not isinstance(done, int):
            raise ConfigError(f"{checkpoint.path / 'state.json'}: agent_steps is missing")
        if done >= stored.steps:
            print(f"{run.path} has its {stored.steps:,} agent steps already: nothing to do")
            return 0
        config, policy = prepare(stored, checkpoint, trust=trust)
        exact = stored.protocol is None or stored.vectorization == "sync"
        games = "games go on where they were" if exact else "games start anew (vectorization = native)"
        print(f"resuming at {done:,} agent steps; {games}", flush=True)
        _announce(config, policy, run.path)
        return _conclude(run.path, run_training(config, policy, run, checkpoint, trust=trust))


def _refuse_conflicts(
    stored: "TrainConfig", env: str | None, recipe: str | None, overrides: dict[str, Any]
) -> None:
    """Raise unless every flag given beside --resume says what the run was started with."""
    from neurocoder.errors import ConfigError
    from neurocoder.runs.config import to_mapping

    if recipe is not None:
        raise ConfigError("--recipe cannot be given with --resume: everything is taken from the run")
    given = {**overrides, **({"env": env} if env else {})}
    for name, value in given.items():
        found: Any = to_mapping(stored)
        for part in ("protocol.name" if name == "preset" else name).split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found != value:
            raise ConfigError(
                f"{name}={value!r} conflicts with the run, which has {found!r}: --resume takes everything "
                f"from the run; leave the flag out"
            )


def _announce(config: "TrainConfig", policy: Any, path: Path) -> None:
    parameters = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    heads = f"{config.policy.head} {'heads' if config.policy.critic else 'head'}"
    network = f"{config.policy.encoder} → {config.policy.core} → {heads}"
    print(f"{config.env}: {config.agent}, {network}, {parameters:,} parameters, {config.precision}")
    if config.protocol is not None:
        print(f"protocol {config.describe_protocol()}")
    if config.agent == "supervised":
        how = f"batches of {config.supervised.batch_size}, {config.supervised.optimizer}"
    elif config.agent == "continual":
        method = config.continual
        how = f"method {method.method}, strength {method.strength:g}, {method.passes} passes of each task"
    else:
        how = f"{config.a3c.workers} workers × {config.a3c.envs_per_worker} games"
        if config.a3c.sync:
            how += ", in step (A2C)"
    print(f"{how}, {config.steps:,} agent steps, seed {config.seed}; writing {path}", flush=True)
    share = config.a3c.extra_sticky
    if config.agent == "a3c" and share:
        print(
            f"training games repeat {share:.0%} more of their actions, falling to none at "
            f"{config.a3c.extra_sticky_steps or config.steps:,} agent steps; evaluations do not",
            flush=True,
        )


def _conclude(path: Path, outcome: Any) -> int:
    mean = "no episode ended" if outcome.mean_return is None else f"mean raw return {outcome.mean_return:.2f}"
    word = "stopped" if outcome.interrupted else "done"
    print(
        f"{word} at {outcome.agent_steps:,} agent steps after {outcome.seconds:.0f} s: {mean} (last 100 episodes)"
    )
    if outcome.interrupted:
        print(f"go on with: neurocoder train --resume {path}")
    elif (path / "matrix.csv").exists():
        print(f"scores of every task after every task: {path / 'matrix.csv'}")
    else:
        print(f"score it with: neurocoder eval {path}")
    return 0
