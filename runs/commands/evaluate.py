"""``neurocoder eval``."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import Parameter

if TYPE_CHECKING:
    from neurocoder.runs.config import EvaluationConfig, TrainConfig
    from neurocoder.runs.run import Run
    from neurocoder.runs.scoring import Games, Score


def evaluate(
    run: str,
    /,
    *,
    episodes: int = 5,
    deterministic: Annotated[bool, Parameter(negative="")] = False,
    checkpoint: str = "last",
    stuck_after: int | None = None,
    seed: int = 0,
    task: int | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    device: str = "cpu",
    logs: Path = Path("logs"),
    env: str | None = None,
    preset: str | None = None,
    trust: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Play whole episodes with a trained agent and print its raw score and what it means.

    The score of a run is also appended to its evaluations.jsonl, unless --set makes it another test.

    Parameters
    ----------
    run
        Folder of the run; or a zip saved by Stable-Baselines3 (Box observations), with --env and
        --trust.
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
    task
        Which game of a run on games one after the other, from 0.
    set_
        Another test: an option of the environment or the rows of a Neural Turing Machine's memory, e.g. --set
        env_options.max_length=120 --set policy.core_config.rows=256.
    device
        cpu, cuda or cuda:N.
    logs
        Folder of all runs.
    env
        Environment id to play a zip in.
    preset
        Atari protocol to play a zip under: machado2018 (default), dqn2015 or neurocoder2020.
    trust
        Allow the run to import the module that its environment id names; a zip is only read with it, as that
        runs the code in its pickles.
    """
    from neurocoder.errors import ConfigError, require
    from neurocoder.runs.preparation import check_device

    require(episodes >= 1, "--episodes", episodes, ">= 1")
    require(stuck_after is None or stuck_after >= 0, "--stuck-after", stuck_after, ">= 0")
    require(0 <= seed < 2**63, "--seed", seed, "in [0, 2^63)")
    check_device(device)
    options = _Options(episodes, deterministic, stuck_after, seed, device, trust, _parsed(set_ or []))
    if run.endswith(".zip"):
        if checkpoint != "last":
            raise ConfigError(f"--checkpoint {checkpoint}: a zip of Stable-Baselines3 holds one model")
        if options.changes:
            raise ConfigError("--set is for runs, not for zips of Stable-Baselines3")
        return _evaluate_sb3(Path(run), env, preset, options)
    if env is not None or preset is not None:
        raise ConfigError("--env and --preset are for zips of Stable-Baselines3; a run knows its own")
    return _evaluate_run(run, checkpoint, logs, task, options)


class _Options(NamedTuple):
    episodes: int
    deterministic: bool
    stuck_after: int | None
    seed: int
    device: str
    trust: bool
    changes: dict[str, Any]
    """Of the configuration, by dotted key."""


_ENV_OPTION = "env_options."
_ROWS = "policy.core_config.rows"


def _parsed(settings: list[str]) -> dict[str, Any]:
    """Return what --set says, by key."""
    from neurocoder.errors import ConfigError
    from neurocoder.runs.config import parse_override

    changes = dict(parse_override(text) for text in settings)
    for key in changes:
        if key != _ROWS and not key.startswith(_ENV_OPTION):
            raise ConfigError(
                f"--set {key}: an evaluation may change {_ENV_OPTION}NAME and {_ROWS}, nothing else"
            )
    return changes


def _changed(config: "TrainConfig", changes: dict[str, Any]) -> "TrainConfig":
    """Return the configuration of another test."""
    from neurocoder.errors import ConfigError

    if _ROWS in changes:
        if config.policy.core != "ntm":
            raise ConfigError(
                f"--set {_ROWS}: this run's core is {config.policy.core!r}, which has no such memory"
            )
        core_config = {**config.policy.core_config, "rows": changes[_ROWS]}
        config = replace(config, policy=replace(config.policy, core_config=core_config))
    env_options = {k.removeprefix(_ENV_OPTION): v for k, v in changes.items() if k.startswith(_ENV_OPTION)}
    kept = config.evaluation.env_options
    return replace(config, evaluation=replace(config.evaluation, env_options={**kept, **env_options}))


def _evaluate_run(run: str, checkpoint: str, logs: Path, task: int | None, options: _Options) -> int:
    from neurocoder.agents.processes import processors
    from neurocoder.errors import ConfigError
    from neurocoder.runs.checkpoint import find_checkpoint
    from neurocoder.runs.config import EvaluationConfig
    from neurocoder.runs.preparation import environment_factory, one_game
    from neurocoder.runs.run import Run
    from neurocoder.runs.scoring import score_checkpoint

    found = Run.open(run, logs)
    config = _changed(one_game(found.config(), task), options.changes)
    path = find_checkpoint(found.checkpoints, checkpoint)
    evaluation = EvaluationConfig(
        episodes=options.episodes,
        deterministic=options.deterministic,
        stuck_after=config.evaluation.stuck_after if options.stuck_after is None else options.stuck_after,
    )
    if config.agent == "continual":
        raise ConfigError(f"{found.path}: all tasks were tested while it learned: see matrix.csv there")
    if config.agent == "supervised":
        return _evaluate_predictor(found, config, path, options)
    make_envs = environment_factory(config, trust=options.trust, evaluation=True, num_threads=processors())
    started = time.monotonic()
    score = score_checkpoint(
        path, config, evaluation, make_envs, seed=options.seed, source="eval", device=options.device
    )
    protocol = None if config.protocol is None else config.describe_protocol()
    seconds = time.monotonic() - started
    _print(config.env, path, score, evaluation, options.seed, seconds, protocol, score.get("data", ""))
    _keep(found, score, options)
    return 0


def _keep(run: "Run", score: "Score", options: _Options) -> None:
    """Add the score to those of the run, if it is of the run's own test and can be kept."""
    from neurocoder.runs.scoring import append_score

    if options.changes:
        print(f"with {', '.join(f'{key}={value!r}' for key, value in options.changes.items())}")
        return
    try:
        append_score(run.path, score)
    except OSError as error:  # a read-only run can be evaluated too
        print(f"(not kept in {run.path}: {error.strerror or error})")


def _evaluate_predictor(run: "Run", config: "TrainConfig", path: Path, options: _Options) -> int:
    from neurocoder.runs.checkpoint import load_checkpoint
    from neurocoder.runs.preparation import prepare
    from neurocoder.runs.scoring import describe_predictions, score_predictions

    saved = load_checkpoint(path, with_optimizer=False)
    _, policy = prepare(replace(config, device=options.device), saved, trust=options.trust)
    score = score_predictions(
        policy.to(options.device),
        config,
        options.episodes,
        int(path.name),
        seed=options.seed,
        source="eval",
        trust=options.trust,
    )
    print(f"{config.env}  {path}")
    print(describe_predictions(score, policy.action_space))
    _keep(run, score, options)
    return 0


def _evaluate_sb3(path: Path, env: str | None, preset: str | None, options: _Options) -> int:
    from neurocoder.agents.processes import processors
    from neurocoder.agents.sb3_player import SB3Player
    from neurocoder.envs import make_vec
    from neurocoder.runs.config import EvaluationConfig
    from neurocoder.runs.sb3_model import open_sb3_model
    from neurocoder.runs.scoring import MAX_GAMES, score_games

    model = open_sb3_model(path, env, preset, trust=options.trust, device=options.device)
    defaults = EvaluationConfig()
    evaluation = EvaluationConfig(
        episodes=options.episodes,
        deterministic=options.deterministic,
        stuck_after=defaults.stuck_after if options.stuck_after is None else options.stuck_after,
    )
    n_games = min(options.episodes, MAX_GAMES)
    envs = make_vec(model.env, n_games, protocol=model.protocol, num_threads=processors())
    try:
        model.check(envs)
        player = SB3Player(model.policy, deterministic=options.deterministic, seed=options.seed)
        started = time.monotonic()
        games = score_games(player, envs, evaluation, options.seed)
    finally:
        envs.close()
    described = None if model.protocol is None else model.protocol.describe()
    evaluation = replace(evaluation, deterministic=player.deterministic)
    _print(model.env, path, games, evaluation, options.seed, time.monotonic() - started, described)
    return 0


def _print(
    env: str,
    path: Path,
    games: "Games",
    evaluation: "EvaluationConfig",
    seed: int,
    seconds: float,
    protocol: str | None,
    data: str = "",
) -> None:
    actions = "most probable" if evaluation.deterministic else "sampled"
    spread = f"mean ± std of {len(games['returns'])} episodes"
    print(f"{env}  {path}")
    print(f"raw return {games['mean']:.2f} ± {games['std']:.2f} ({spread}), actions {actions}")
    print(f"episodes {', '.join(f'{value:g}' for value in games['returns'])}")
    limit = "time limit" if protocol is None else "frame cap"
    rule = (
        f"{evaluation.stuck_after:,} agent steps without a reward or a lost life"
        if evaluation.stuck_after
        else "off"
    )
    print(f"cut short: {games['truncated']} at the {limit}, {games['stuck']} as stuck ({rule})")
    print(f"{sum(games['lengths']):,} agent steps in {seconds:.1f} s, seed {seed}")
    if protocol is not None:
        print(f"protocol {protocol}")
    if data:
        print(f"data: {data}")
