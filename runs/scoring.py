"""The one way to score an agent: whole games of a checkpoint, and everything that their returns depend on."""

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import gymnasium as gym
import numpy as np

from neurocoder.agents.player import GamePlayer, Player, Step, evaluate
from neurocoder.agents.supervised import evaluate_predictions
from neurocoder.envs import env_spec, is_task, make_tasks
from neurocoder.policies import Policy
from neurocoder.runs.checkpoint import load_checkpoint, load_parameters
from neurocoder.runs.config import EvaluationConfig, TrainConfig

EVALUATIONS = "evaluations.jsonl"
"""Of a run: its scores, one a line."""
MAX_GAMES = 16
"""Games played at once."""


class Games(TypedDict):
    """What came of the games of an evaluation."""

    mean: float
    std: float
    """Of the games, with n - 1; 0 for a single one."""
    returns: list[float]
    """Raw returns of whole games."""
    lengths: list[int]
    """Agent steps."""
    stuck: int
    """How many games were cut because they stood still."""
    truncated: int
    """How many games ended at the frame cap or the environment's time limit."""


class Score(Games):
    """What is kept of an evaluation: one line of ``evaluations.jsonl``, a checkpoint's ``evaluation.json``."""

    source: str
    """training (by the evaluator, while the agent trained) or eval (by the command)."""
    env: str
    checkpoint: int
    """Agent steps."""
    protocol_hash: str | None
    deterministic: bool
    stuck_after: int
    """Agent steps without a reward or a lost life after which a game was cut; 0: never."""
    seed: int
    seconds: NotRequired[float]
    """That a training's evaluation took."""
    loss: NotRequired[float]
    """Of predictions: the mean over all scored steps."""
    scored: NotRequired[int]
    """Predictions that were scored."""
    data: NotRequired[str]
    """Where the data of a task comes from."""


def score_checkpoint(
    path: Path,
    config: TrainConfig,
    evaluation: EvaluationConfig,
    make_envs: Callable[[int], gym.vector.VectorEnv],
    *,
    seed: int,
    source: str,
    device: str = "cpu",
    watch: Callable[[Step], None] | None = None,
) -> Score:
    """Play ``evaluation.episodes`` games with the agent saved at `path`; the same arguments give the same score.

    `watch` is called with every step, whose decisions are then explained (:class:`Player`).

    Raises
    ------
    CheckpointError
        The checkpoint is missing, damaged, or made for another network.
    """
    saved = load_checkpoint(path, with_optimizer=False)
    envs = make_envs(min(evaluation.episodes, MAX_GAMES))
    try:
        policy = Policy(
            envs.single_observation_space, envs.single_action_space, config.policy.without_weights()
        )
        load_parameters(policy, saved.model, path)
        explain = watch is not None
        player = Player(policy.to(device), deterministic=evaluation.deterministic, seed=seed, explain=explain)
        games = score_games(player, envs, evaluation, seed, watch)
    finally:
        envs.close()
    score = Score(
        source=source,
        env=config.env,
        checkpoint=int(path.name),
        protocol_hash=config.protocol_hash,
        deterministic=evaluation.deterministic,
        stuck_after=evaluation.stuck_after,
        seed=seed,
        **games,
    )
    if is_task(env_spec(config.env)):  # by reward
        score["data"] = provenance(config)
    return score


def score_games(
    player: GamePlayer,
    envs: gym.vector.VectorEnv,
    evaluation: EvaluationConfig,
    seed: int,
    watch: Callable[[Step], None] | None = None,
) -> Games:
    """Play ``evaluation.episodes`` games of `envs` and return what came of them; `watch` is called with every step."""
    stuck_after = evaluation.stuck_after
    played = evaluate(player, envs, evaluation.episodes, seed, stuck_after=stuck_after, watch=watch)
    returns = [episode.raw_return for episode in played]
    return Games(
        mean=float(np.mean(returns)),
        std=float(np.std(returns, ddof=1)) if len(returns) > 1 else 0.0,
        returns=returns,
        lengths=[episode.length for episode in played],
        stuck=sum(episode.stuck for episode in played),
        truncated=sum(episode.truncated for episode in played),
    )


def score_predictions(
    policy: Policy,
    config: TrainConfig,
    episodes: int,
    checkpoint: int,
    *,
    seed: int,
    source: str,
    trust: bool = True,
) -> Score:
    """Score a predictor on the run's task, as evaluations have it: all of a data set once, or as many
    batches of sequences as `episodes` fill.

    Raises
    ------
    EnvError
        The environment is no supervised task.
    """
    envs = make_tasks(config.env, config.supervised.batch_size, config.evaluation_options, trust=trust)
    n_batches = envs.task.passes(envs.num_envs) or math.ceil(episodes / envs.num_envs)
    result = evaluate_predictions(policy, envs, n_batches, seed)
    returns = result.returns
    return Score(
        source=source,
        env=config.env,
        checkpoint=checkpoint,
        protocol_hash=None,
        deterministic=True,
        stuck_after=0,
        seed=seed,
        mean=float(np.mean(returns)),
        std=float(np.std(returns, ddof=1)) if len(returns) > 1 else 0.0,
        returns=returns,
        lengths=[result.length] * len(returns),
        stuck=0,
        truncated=0,
        loss=result.loss,
        scored=result.scored,
        data=provenance(config, trust=trust),
    )


def provenance(config: TrainConfig, *, trust: bool = True) -> str:
    """Return where the data of a task come from, those that are learned from and those of the evaluation; "" for none.

    Raises
    ------
    EnvError
        The environment is no supervised task.
    """
    parts = [
        make_tasks(config.env, 1, options, trust=trust).task
        for options in (config.env_options, config.evaluation_options)
    ]
    return joined(*(part.provenance for part in parts))


def joined(*provenances: str) -> str:
    """Return where data come from, each place once."""
    return "; ".join(dict.fromkeys(filter(None, provenances)))


def describe_predictions(score: Score, action_space: gym.Space) -> str:
    """Return what a score of predictions means, in words."""
    of = f" of {score['scored']:,}"
    match action_space:
        case gym.spaces.Discrete():
            words = f"accuracy {score['mean']:.2f} %{of}, cross-entropy {score['loss']:.4f}"
        case gym.spaces.MultiBinary():
            words = f"{0.0 - score['mean']:.4g} wrong bits per sequence ({len(score['returns'])} sequences)"
        case _:
            words = f"mean squared error {score['loss']:.5g}{of}"
    return words + (f"; data: {score['data']}" if score["data"] else "")


def append_score(run: Path, score: Score) -> None:
    """Append `score` to the run's ``evaluations.jsonl``, as one line; half a line that a full disk left there makes way."""
    with (run / EVALUATIONS).open("a+b") as lines:
        lines.seek(0)
        known = lines.read()
        if not known.endswith(b"\n"):
            lines.truncate(known.rfind(b"\n") + 1)
        lines.write(f"{json.dumps(score)}\n".encode())


def last_evaluated(run: Path, agent_steps: int) -> int:
    """Return the last checkpoint up to `agent_steps` that was scored while the run trained, 0 for none."""
    with contextlib.suppress(FileNotFoundError):
        for line in reversed((run / EVALUATIONS).read_text("utf-8", errors="replace").splitlines()):
            try:
                score = json.loads(line)
                if score["source"] == "training" and score["checkpoint"] <= agent_steps:
                    return int(score["checkpoint"])
            except (ValueError, TypeError, KeyError, RecursionError):
                continue  # damaged; `neurocoder compare` says so
    return 0


def write_matrix(run: Path, rows: Sequence[Sequence[float]], what: str) -> None:
    """Write ``matrix.csv``: `rows` of all tasks, the first of the untrained network, row i after the i-th task."""
    lines = [f"after,task,{what}"]
    lines += [f"{after},{task},{value}" for after, row in enumerate(rows) for task, value in enumerate(row)]
    (run / "matrix.csv").write_text("\n".join(lines) + "\n", "utf-8")
