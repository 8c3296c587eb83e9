"""Whose episodes are recorded: the agent of a run, or a model of Stable-Baselines3."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurocoder.agents.player import GamePlayer, Player
from neurocoder.envs import ENGINES, AtariCamera, AtariProtocol, WatchedGame, make_watched
from neurocoder.errors import ConfigError
from neurocoder.policies import NeurocoderLinear, Policy
from neurocoder.runs.checkpoint import find_checkpoint, load_checkpoint, load_parameters
from neurocoder.runs.config import EvaluationConfig, TrainConfig
from neurocoder.runs.preparation import one_game
from neurocoder.runs.replay.episode import EpisodeInfo, Source
from neurocoder.runs.replay.recorder import file_sha256, now, versions
from neurocoder.runs.run import Run

if TYPE_CHECKING:  # importing it takes a second, and most runs are ours
    from stable_baselines3.common.policies import BasePolicy

    from neurocoder.agents.sb3_player import SB3Player

HEADS = ("actor", "critic")


@dataclass(frozen=True, slots=True)
class Agent:
    """What is needed to record its episodes."""

    env: str
    protocol: AtariProtocol | None
    source: Source
    episodes: Path
    """The folder that they belong in."""
    make_player: Callable[[int], GamePlayer]
    """By the seed of its draws."""
    check: Callable[[WatchedGame], None]
    deterministic: bool
    stuck_after: int
    discount: float | None
    masked: list[str]
    trust: bool
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of its environment."""

    def make_game(self) -> WatchedGame:
        """Return a game of its environment, made for watching."""
        game = make_watched(self.env, protocol=self.protocol, trust=self.trust, options=self.options)
        self.check(game)
        return game

    @property
    def action_names(self) -> list[str] | None:
        """What the actions of an Atari game are called; None elsewhere."""
        return None if self.protocol is None else AtariCamera(self.env, self.protocol).action_names()

    def episode_name(self, seed: int) -> str:
        """Return the name of an episode's folder: agent steps, seed, and what is unusual about it."""
        parts = [str(self.source.checkpoint or 0), str(seed)]
        parts += ["deterministic"] if self.deterministic else []
        parts += [f"without-{slot.replace(':', '')}" for slot in self.masked]
        return "-".join(parts)

    def info(self, seed: int) -> EpisodeInfo:
        """Return what is known of the episode of `seed` before it is played."""
        return EpisodeInfo(
            env=self.env,
            options=self.options,
            seed=seed,
            source=self.source,
            deterministic=self.deterministic,
            protocol=None if self.protocol is None else asdict(self.protocol),
            protocol_hash=None if self.protocol is None else self.protocol.hash_on(ENGINES["native"]),
            discount=self.discount,
            masked=self.masked,
            recorded=now(),
            versions=versions(),
        )


def open_run(
    text: str,
    logs: Path,
    *,
    checkpoint: str = "last",
    task: int | None = None,
    masked: Sequence[str] = (),
    deterministic: bool = False,
    device: str = "cpu",
    trust: bool = False,
) -> Agent:
    """Return the agent of a run, in game number `task` if it learned several; `masked` slots (``17``, ``actor:17``, ``critic:3``) are closed to it.

    Raises
    ------
    RunError, CheckpointError, ConfigError, HeadError
        There is no such run or checkpoint, it is damaged, or a slot cannot be masked.
    """
    run = Run.open(text, logs)
    config = one_game(run.config(), task)
    path = find_checkpoint(run.checkpoints, checkpoint)
    saved = load_checkpoint(path, with_optimizer=False)
    agent = agent_of(run.path, path, config, trust=trust)
    game = agent.make_game()
    try:
        policy = Policy(
            game.single_observation_space, game.single_action_space, config.policy.without_weights()
        )
    finally:
        game.close()
    load_parameters(policy, saved.model, path)
    closed = [mask(policy, slot) for slot in masked]
    policy.to(device)
    return replace(
        agent,
        make_player=lambda seed: Player(policy, deterministic=deterministic, seed=seed, explain=True),
        deterministic=deterministic,
        masked=closed,
    )


def agent_of(run: Path, checkpoint: Path, config: TrainConfig, *, trust: bool = True) -> Agent:
    """Return what is known of a run's agent at `checkpoint`, without a player."""
    return Agent(
        env=config.env,
        protocol=config.protocol,
        source=Source(run.name, int(checkpoint.name), file_sha256(checkpoint / "model.safetensors")),
        episodes=run / "episodes",
        make_player=_nobody,
        check=lambda _: None,
        deterministic=config.evaluation.deterministic,
        stuck_after=config.evaluation.stuck_after,
        discount=config.a3c.gamma if config.agent == "a3c" else None,
        masked=[],
        trust=trust,
        options=config.evaluation_options,
    )


def _nobody(seed: int) -> GamePlayer:
    raise NotImplementedError("an agent that is only watched")


def open_zip(
    path: Path,
    logs: Path,
    *,
    env: str | None,
    preset: str | None,
    deterministic: bool = False,
    device: str = "cpu",
    trust: bool = False,
) -> Agent:
    """Return the agent in a zip of Stable-Baselines3; its episodes belong in ``logs/<env>/<name of the zip>``.

    Raises
    ------
    ConfigError, EnvError
        See ``open_sb3_model``.
    """
    from neurocoder.runs.sb3_model import open_sb3_model

    model = open_sb3_model(path, env, preset, trust=trust, device=device)
    return Agent(
        env=model.env,
        protocol=model.protocol,
        source=Source(path.stem, None, file_sha256(path)),
        episodes=logs / model.env.replace("/", "-").replace(":", "-") / path.stem / "episodes",
        make_player=lambda seed: player_of_policy(model.policy, seed, deterministic),
        check=model.check,
        deterministic=player_of_policy(model.policy, 0, deterministic).deterministic,
        stuck_after=EvaluationConfig().stuck_after,
        discount=None,
        masked=[],
        trust=trust,
    )


def player_of_policy(policy: "BasePolicy", seed: int, deterministic: bool) -> "SB3Player":
    """Return a player of an SB3 policy that says what it thinks."""
    from neurocoder.agents.sb3_player import SB3Player

    return SB3Player(policy, deterministic=deterministic, seed=seed, explain=True)


def mask(policy: Policy, slot: str) -> str:
    """Close ``P``, ``actor:P`` or ``critic:P`` of `policy`'s program memories, and return it with the head's name.

    Raises
    ------
    ConfigError
        It is not written like that, or the head's slots cannot be closed.
    HeadError
        There is no such slot.
    """
    name, _, number = slot.rpartition(":")
    name = name or "actor"
    if name not in HEADS or not number.isdecimal():
        raise ConfigError(f"--mask-slot {slot}: expected a number, actor:NUMBER or critic:NUMBER")
    head = getattr(policy, name)
    if not isinstance(head, NeurocoderLinear):
        raise ConfigError(
            f"--mask-slot {slot}: only Neurocoder heads have slots that can be closed; "
            f"this {name} is {policy.config.head!r}"
        )
    head.mask([*_closed(head), int(number)])
    return f"{name}:{int(number)}"


def _closed(head: NeurocoderLinear) -> list[int]:
    return [] if head.openness is None else (head.openness <= 0).nonzero().flatten().tolist()
