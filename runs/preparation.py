"""What comes before a run: nothing is left on ``auto``, and whatever can be wrong shows before anything is written."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from neurocoder.agents.growth import check_growth, growing_heads
from neurocoder.agents.importance import Network
from neurocoder.agents.supervised import check_memories, with_curriculum
from neurocoder.envs import (
    EpisodeRecorder,
    check_games,
    choose,
    is_game_sequence,
    make_tasks,
    make_vec,
    random_observations,
)
from neurocoder.envs.continual import ContinualTask
from neurocoder.errors import ConfigError
from neurocoder.policies import Policy, PolicyConfig, calibrate, spelled_out
from neurocoder.runs.checkpoint import Checkpoint, load_parameters
from neurocoder.runs.config import TrainConfig
from neurocoder.runs.continual_session import make_learner

SEQUENCE_METHODS = ("none", "l2", "ewc", "online-ewc", "mas")
"""Methods that remember at the end of a game; si follows every step, and replay keeps images with their classes."""
IMAGE_DIMENSIONS = 3
"""Channels, height and width."""


def check_device(device: str) -> None:
    """Raise a ConfigError unless torch can compute on `device` here."""
    try:
        kind = torch.device(device).type
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        count = torch.cuda.device_count()
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device={device!r} is not there ({reason}); this machine has cpu"
            f"{f' and {count} CUDA devices' if count else ' and no CUDA device'}"
        ) from None
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"device={device!r}: expected cpu, cuda or cuda:N")


def resolve_precision(precision: str, device: str) -> str:
    """Return fp32 or bf16. ``auto`` is bf16 where the processor's flags have it, never by a timing."""
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return "fp32"
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def environment_factory(
    config: TrainConfig, *, trust: bool = True, evaluation: bool = False, num_threads: int = 1
) -> partial[EpisodeRecorder]:
    """Return a picklable ``make_envs(num_envs)`` for the run's environment and protocol.

    For an `evaluation`, the environment's options are those that the configuration has for evaluations. `num_threads` is
    how many emulators of ale-py's native batch run at a time.
    """
    return partial(
        make_vec,
        config.env,
        protocol=config.protocol,
        num_threads=num_threads,
        vectorization=config.vectorization,
        trust=trust,
        options=config.evaluation_options if evaluation else config.env_options,
    )


def make_policy(config: TrainConfig, envs: EpisodeRecorder) -> Policy:
    """Return a fresh policy for the run, its weights drawn from the run's seed."""
    torch.manual_seed(config.seed)
    return Policy(envs.single_observation_space, envs.single_action_space, config.policy)


def prepare(
    config: TrainConfig, checkpoint: Checkpoint | None = None, *, trust: bool = True
) -> tuple[TrainConfig, Policy]:
    """Return the configuration with nothing left on ``auto`` or unsaid, and a fresh policy, or the checkpoint's.

    Everything that can be wrong with a configuration shows here, before anything is written.
    """
    sequence = is_game_sequence(config.env)
    if sequence:
        games_of(config)
    check_device(config.device)
    config = replace(config, precision=resolve_precision(config.precision, config.device))
    if config.agent == "supervised":
        make_tasks(config.env, 1, config.evaluation_options, trust=trust).close()
        tasks = make_tasks(config.env, 1, config.env_options, trust=trust)
        with_curriculum(tasks, config.supervised.curriculum).close()
    make_envs = environment_factory(config, trust=trust)
    if config.agent == "continual" and not sequence:
        config = replace(config, policy=_with_heads_of_tasks(config, trust))
    wanted = config.policy
    if checkpoint is not None:
        config = replace(config, policy=wanted.without_weights())
    with_envs = make_envs(1)
    try:
        policy = make_policy(config, with_envs)
    finally:
        with_envs.close()
    if config.evaluation.env_options:
        environment_factory(config, trust=trust, evaluation=True)(1).close()
    _refuse_running_statistics(config, policy)
    if config.agent == "supervised":
        check_memories(policy, config.supervised)
    if sequence and config.continual.grow:
        check_growth(growing_heads(Network(policy)), config.continual.grow, len(games_of(config)))
    if checkpoint is not None:
        load_parameters(policy, checkpoint.model, checkpoint.path)
    elif config.calibration_steps and len(policy.observation_space.shape) == IMAGE_DIMENSIONS:
        seen = random_observations(make_envs, config.calibration_steps, config.seed)
        calibrate(policy, torch.from_numpy(seen))
    config = replace(config, policy=spelled_out(replace(wanted, encoder=policy.config.encoder)))
    if config.agent == "continual":
        config = replace(config, steps=make_learner(config, policy, trust).total_steps)
    return config, policy


def _with_heads_of_tasks(config: TrainConfig, trust: bool) -> PolicyConfig:
    """Return the policy with a head for each task, where tasks have outputs of their own and nothing else is said."""
    task = make_tasks(config.env, 1, config.env_options, trust=trust).task
    if not config.policy.task_heads and isinstance(task, ContinualTask) and task.scenario == "task":
        return replace(config.policy, task_heads=task.n_tasks)
    return config.policy


def _refuse_running_statistics(config: TrainConfig, policy: Policy) -> None:
    """A3C's workers share parameters, not what batch normalisation counts."""
    counting = any(isinstance(layer, nn.BatchNorm2d) and layer.training for layer in policy.modules())
    if config.agent == "a3c" and counting:
        raise ConfigError(
            f"encoder {policy.config.encoder!r} has batch normalisation, whose running statistics A3C's workers do "
            f"not share: use --set policy.encoder_config.frozen=true where it has that option, or --agent supervised"
        )


def games_of(config: TrainConfig) -> list[str]:
    """Return the games of a run, in their order.

    Raises
    ------
    ConfigError, EnvError
        There are none that are known, or settings that a sequence cannot have.
    """
    games = config.env_options.get("games", ())
    check_games(games, native=config.vectorization == "native")
    if config.agent != "a3c":
        raise ConfigError(f"agent={config.agent!r}: games are learned by reward; expected 'a3c'")
    if "task" in config.env_options:
        raise ConfigError("env_options.task: a training goes through all games; leave it out")
    method = config.continual.method
    if method not in SEQUENCE_METHODS:
        raise ConfigError(f"continual.method={method!r}: with games expected one of {SEQUENCE_METHODS}")
    for name in ("prune", "novelty", "own_slots"):
        if getattr(config.continual, name):
            raise ConfigError(f"continual.{name}: for tasks with images, not for games; leave it out")
    if config.evaluation.every:
        raise ConfigError("evaluation.every: games are scored after each of them; expected 0")
    if config.policy.core != "none" and method != "none":
        raise ConfigError(
            f"policy.core={config.policy.core!r}: method {method!r} needs a policy without memory"
        )
    return list(games)


def one_game(config: TrainConfig, task: int | None = None) -> TrainConfig:
    """Return `config` for a single game: number `task` (the first, if None) of a run on games one after the other.

    Raises
    ------
    ConfigError, EnvError
        The run is of one game and `task` is given, or there is no such game, or it has switches that its id does not say.
    """
    if not is_game_sequence(config.env):
        if task is not None:
            raise ConfigError(f"--task {task}: this run is of one environment, {config.env}")
        return config
    game = choose(config.env_options.get("games", ()), task or 0)
    if game.switched:
        raise ConfigError(
            f"--task {task or 0}: games with a mode or difficulty are scored in the training only"
        )
    return replace(config, env=game.env_id, env_options={})
