"""A run of supervised learning: one process that learns, and scores its checkpoints itself."""

import threading
import time

from neurocoder.agents.rollout import Episode
from neurocoder.agents.supervised import SupervisedLearner, Update
from neurocoder.agents.worker import DIAGNOSED, Record
from neurocoder.envs import make_tasks
from neurocoder.policies import Policy
from neurocoder.runs.checkpoint import Checkpoint, write_evaluation
from neurocoder.runs.config import TrainConfig
from neurocoder.runs.evaluator import evaluation_seed
from neurocoder.runs.run import Run
from neurocoder.runs.scoring import Score, append_score, describe_predictions, score_predictions
from neurocoder.runs.session import Outcome, Session


class SupervisedSession(Session):
    """A run whose policy is learned here."""

    def __init__(
        self, config: TrainConfig, policy: Policy, run: Run, checkpoint: Checkpoint | None, trust: bool
    ) -> None:
        self._trust = trust
        policy.to(config.device)
        envs = make_tasks(config.env, config.supervised.batch_size, config.env_options, trust=trust)
        self.learner = SupervisedLearner(
            policy, envs, config.supervised, config.steps, seed=config.seed, precision=config.precision
        )
        super().__init__(config, policy, run, checkpoint)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            assert checkpoint.optimizer is not None
            self.learner.load(checkpoint.optimizer, checkpoint.state["learner"])

    def run_until(self, stop: threading.Event) -> Outcome:
        learner, config = self.learner, self.config
        saved = True
        if self.saved is None:
            saved = self.save()
        checkpoint_at = learner.steps
        while learner.steps < config.steps and not stop.is_set():
            record = self._record(learner.update())
            if (row := self.rows.add(record)) is not None:
                self.trackers.add(row)
            over = learner.steps >= config.steps
            if over or learner.steps // config.checkpoint_every > checkpoint_at // config.checkpoint_every:
                checkpoint_at = learner.steps
                # scored before it is saved: a run killed in between does both again, and misses no score
                due = self.evaluation_is_due(learner.steps) or (over and config.evaluation.every > 0)
                score = self.score() if due else None
                saved = self.save()
                if score is not None:
                    self.keep(score)
        if checkpoint_at != learner.steps:
            saved = self.save()
        return self.outcome(saved, stop.is_set())

    def save(self) -> bool:
        """Write a checkpoint; return whether that worked."""
        tensors, data = self.learner.state()
        return self.write(self.learner.steps, tensors, {"learner": data})

    def score(self) -> Score:
        """Score the policy as it is."""
        started = time.monotonic()
        score = score_predictions(
            self.policy,
            self.config,
            self.config.evaluation.episodes,
            self.learner.steps,
            seed=evaluation_seed(self.config.seed),
            source="training",
            trust=self._trust,
        )
        score["seconds"] = round(time.monotonic() - started, 3)
        return score

    def keep(self, score: Score) -> None:
        """Show the score of the checkpoint just written, and keep it where it belongs."""
        self.trackers.add_score(score, describe_predictions(score, self.learner.envs.single_action_space))
        try:
            append_score(self.run.path, score)
            if self.saved is not None and self.saved.name == str(score["checkpoint"]):
                write_evaluation(self.saved, score)
        except OSError as error:
            self.trackers.note(f"the score of checkpoint {score['checkpoint']} cannot be written: {error}")

    def _record(self, update: Update) -> Record:
        metrics = {"loss": update.loss, "auxiliary_loss": update.auxiliary}
        if self.rows.updates % (16 * DIAGNOSED) == 0:
            metrics |= self.learner.diagnostics()
        episodes = [Episode(value, update.length) for value in update.returns]
        return Record(0, self.learner.steps, metrics, episodes)
