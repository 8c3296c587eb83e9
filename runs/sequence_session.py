"""A run of A3C on games one after the other: all of them are scored after each, and what was learned is held on to.

When a game ends, the method that the configuration names (``agents.continual_methods``) remembers the policy: what it has
against change becomes a penalty in every worker's loss. Importances are of the actor, from frames that it plays, and leave the
critic free; only l2 holds both. Program memories may grow (``continual.grow``). The optimiser begins anew with each game; its
learning rate follows one schedule over the whole run.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurocoder.agents.continual_methods import L2, METHOD_CLASSES
from neurocoder.agents.continual_metrics import summary
from neurocoder.agents.growth import grow, growing_heads
from neurocoder.agents.hogwild import SharedModel
from neurocoder.agents.importance import Network, Penalty, Samples
from neurocoder.agents.player import Player
from neurocoder.envs import make_vec
from neurocoder.envs.continual_atari import parse_games
from neurocoder.policies import Policy
from neurocoder.runs.a3c_session import A3CSession, train_spec, unpack_snapshots
from neurocoder.runs.anchors import anchors, human_normalised
from neurocoder.runs.checkpoint import Checkpoint
from neurocoder.runs.config import TrainConfig
from neurocoder.runs.evaluator import evaluation_seed
from neurocoder.runs.preparation import environment_factory, games_of
from neurocoder.runs.run import Run
from neurocoder.runs.scoring import Score, append_score, score_games, write_matrix
from neurocoder.runs.session import Outcome

FRAMES = 2_048
"""Frames of a game that importances are of, unless ``continual.fisher_samples`` says otherwise."""
APART = 8
"""Agent steps between two of them."""
PREFIX = "method/"


class SequenceSession(A3CSession):
    """A run whose policy learns one game after the other; its folder has ``matrix.csv``, raw scores."""

    def __init__(
        self, config: TrainConfig, policy: Policy, run: Run, checkpoint: Checkpoint | None, trust: bool
    ) -> None:
        self.games = games_of(config)
        self.task = 0
        self.rows_of_games: list[list[float]] = []
        """Mean raw scores of all games: row 0 of the untrained network, row i after the i-th game."""
        self.network = Network(policy)
        self.method = METHOD_CLASSES[config.continual.method](self.network, config.continual, config.seed)
        self._growing = growing_heads(self.network) if config.continual.grow else {}
        super().__init__(config, policy, run, checkpoint, trust)

    @property
    def steps_per_game(self) -> int:
        """Agent steps of each game."""
        return -(-self.config.steps // len(self.games))

    # ------------------------------------------------------------------------------------ checkpoints

    def restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            data = checkpoint.state["sequence"]
            self.task, self.rows_of_games = int(data["task"]), [list(map(float, row)) for row in data["rows"]]
            for name, head in self._growing.items():
                head.frozen_slots = int(data["frozen"][name])
            kept = checkpoint.workers
            self.method.load({k.removeprefix(PREFIX): v for k, v in kept.items() if k.startswith(PREFIX)})
            assert checkpoint.optimizer is not None
            self.model.load_state(checkpoint.optimizer)
        self._aim(self.resumed_at, unpack_snapshots(checkpoint) if checkpoint is not None else {})

    def learner_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        # copies: two of them may be one tensor, which a file of tensors refuses
        tensors = {PREFIX + name: value.clone() for name, value in self.method.tensors().items()}
        frozen = {name: head.frozen_slots for name, head in self._growing.items()}
        return tensors, {"sequence": {"task": self.task, "rows": self.rows_of_games, "frozen": frozen}}

    def _aim(self, agent_steps: int, snapshots: dict[int, Any]) -> None:
        """Let ``spec`` be the rest of the game that is played now."""
        if self.task == len(self.games):
            return
        options = {**self.config.env_options, "task": self.task}
        playing = replace(self.config, env_options=options)
        spec = train_spec(
            self._grown(playing), self.policy, environment_factory(playing), agent_steps, snapshots
        )
        penalty = None
        if isinstance(self.method, L2):
            terms = [(term.importance, term.anchor) for term in self.method.terms]
            penalty = Penalty(self.config.continual.strength, terms)
        total = self.steps_per_game * len(self.games)
        a3c = replace(  # schedules of the run, not of the game
            spec.a3c,
            lr_steps=spec.a3c.lr_steps or total,
            extra_sticky_steps=spec.a3c.extra_sticky_steps or total,
        )
        self.spec = replace(spec, a3c=a3c, total_steps=(self.task + 1) * self.steps_per_game, penalty=penalty)

    def _grown(self, config: TrainConfig) -> TrainConfig:
        """Return `config` with as many slots as the policy has by now: workers build it from that."""
        policy = config.policy
        for name, head in self._growing.items():
            sizes = {"slots": head.slots, "frozen_slots": head.frozen_slots}
            if name.startswith("policy.encoder."):
                layers = {**policy.encoder_config["layers_head_config"], **sizes}
                policy = replace(
                    policy, encoder_config={**policy.encoder_config, "layers_head_config": layers}
                )
            else:
                policy = replace(policy, head_config={**policy.head_config, **sizes})
        return replace(config, policy=policy)

    # --------------------------------------------------------------------------------------- the run

    def run_until(self, stop: threading.Event) -> Outcome:
        if self.saved is None:
            self.rows_of_games = [self._score_all()]
            self.save(0, [])
        saved = True
        while self.task < len(self.games) and not stop.is_set():
            saved = self.train(stop)
            if self.rows.agent_steps >= self.spec.total_steps:
                saved = self._finish_game()
        return self.outcome(saved, stop.is_set())

    def _finish_game(self) -> bool:
        """Remember the game, score all, and begin the next one; return whether that could be saved."""
        self.model.copy_into(self.policy)
        continual, agent_steps = self.config.continual, self.rows.agent_steps
        if self.task + 1 < len(self.games):
            masks = torch.ones(len(self.games), self._n_actions, dtype=torch.bool)
            self.method.after_task(self._frames(), masks)
        self.task += 1
        self.rows_of_games.append(self._score_all())
        if continual.grow and self.task < len(self.games):
            freeze = continual.freeze_old
            self.method.follow(grow(self._growing, continual.grow, None, freeze_old=freeze))
        self.model = SharedModel(self.policy, self.config.a3c)
        self._aim(agent_steps, {})
        saved = self.save(agent_steps, [])
        self._tell(agent_steps)
        return saved

    @property
    def _n_actions(self) -> int:
        return int(self.policy.action_space.n)  # type: ignore[attr-defined]  # games have Discrete actions

    def _frames(self) -> Iterator[Samples]:
        """Yield frames of the game just learned, as its policy plays it."""
        wanted = self.config.continual.fisher_samples or FRAMES
        envs = self._envs(self.task, self.config.a3c.envs_per_worker)
        player = Player(self.policy, seed=self.config.seed)
        try:
            given = 0
            for number, step in enumerate(player.play(envs, _seeds(self.config.seed, envs.num_envs))):
                if number % APART:
                    continue
                seen = torch.as_tensor(np.array(step.observation))
                none = torch.zeros(len(seen), dtype=torch.int64)
                yield Samples(seen, none, torch.full_like(none, self.task))
                given += len(seen)
                if given >= wanted:
                    return
        finally:
            envs.close()

    def _envs(self, task: int, num_envs: int) -> Any:
        options = {**self.config.env_options, "task": task}
        return make_vec(
            self.config.env,
            num_envs,
            protocol=self.config.protocol,
            vectorization=self.config.vectorization,
            options=options,
        )

    def _score_all(self) -> list[float]:
        """Return the mean raw scores of the policy in all games."""
        evaluation, seed = self.config.evaluation, evaluation_seed(self.config.seed)
        means = []
        for task in range(len(self.games)):
            envs = self._envs(task, min(evaluation.episodes, self.config.a3c.envs_per_worker))
            try:
                player = Player(self.policy, deterministic=evaluation.deterministic, seed=seed)
                means.append(score_games(player, envs, evaluation, seed)["mean"])
            finally:
                envs.close()
        return means

    def _tell(self, agent_steps: int) -> None:
        """Show and keep the scores of all games after the one just learned."""
        known, n_games = self.rows_of_games[-1], len(self.games)
        shown = ", ".join(f"{game} {score:g}" for game, score in zip(self.games, known, strict=True))
        words = f"{self.games[self.task - 1]} learned ({self.task} of {n_games}); raw scores: {shown}"
        if self.task == n_games:
            scores, unit = in_one_unit(self.games, np.array(self.rows_of_games))
            forgotten = summary(scores)
            words += f"; {unit}: BWT {forgotten['bwt']:.2f}, forgetting {forgotten['forgetting_max']:.2f}"
        evaluation = self.config.evaluation
        score = Score(
            source="training",
            env=self.config.env,
            checkpoint=agent_steps,
            protocol_hash=self.config.protocol_hash,
            deterministic=evaluation.deterministic,
            stuck_after=evaluation.stuck_after,
            seed=evaluation_seed(self.config.seed),
            mean=float(np.mean(known)),
            std=0.0,
            returns=known,
            lengths=[0] * n_games,
            stuck=0,
            truncated=0,
        )
        self.trackers.add_score(score, words)
        try:
            write_matrix(self.run.path, self.rows_of_games, "score")
            append_score(self.run.path, score)
        except OSError as error:
            self.trackers.note(f"the scores after {self.games[self.task - 1]} cannot be written: {error}")


def in_one_unit(games: Sequence[str], scores: np.ndarray) -> tuple[np.ndarray, str]:
    """Return `scores` [rows, games] such that a mean over games is of one thing, and that thing's name.

    It is the human-normalised score in per cent where all games have anchors (``runs.anchors``); else scores stay raw: with
    mode or difficulty a game is another one than the tester's.
    """
    known = parse_games(games)
    if any(game.switched or game.env_id not in anchors() for game in known):
        return scores, "raw scores"
    columns = [human_normalised(game.env_id, own) for game, own in zip(known, scores.T, strict=True)]
    return np.stack(columns, axis=1), "human-normalised, in per cent"


def _seeds(seed: int, n: int) -> list[int]:
    words = np.random.SeedSequence(entropy=seed, spawn_key=(0xF15E,)).generate_state(n, np.uint32)
    return [int(word >> 1) for word in words]
