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
from neurocoder.runs.scoring import append_score, describe_predictions, score_predictions
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
            if learner.steps // config.checkpoint_every > checkpoint_at // config.checkpoint_every:
                checkpoint_at = learner.steps
                saved = self.save()
                if saved and self.evaluation_is_due(learner.steps):
                    self.evaluate()
        if checkpoint_at != learner.steps:
            saved = self.save()
        if saved and config.evaluation.every and self.evaluated_at != learner.steps and not stop.is_set():
            self.evaluate()
        return self.outcome(saved, stop.is_set())

    def save(self) -> bool:
        """Write a checkpoint; return whether that worked."""
        tensors, data = self.learner.state()
        return self.write(self.learner.steps, tensors, {"learner": data})

    def evaluate(self) -> None:
        """Score the checkpoint just written: show the score and keep it."""
        assert self.saved is not None
        started = time.monotonic()
        config, learner = self.config, self.learner
        self.evaluated_at = learner.steps
        score = score_predictions(
            self.policy,
            config,
            config.evaluation.episodes,
            learner.steps,
            seed=evaluation_seed(config.seed),
            source="training",
            trust=self._trust,
        )
        score["seconds"] = round(time.monotonic() - started, 3)
        self.trackers.add_score(score, describe_predictions(score, learner.envs.single_action_space))
        try:
            append_score(self.run.path, score)
            write_evaluation(self.saved, score)
        except OSError as error:
            self.trackers.note(f"the score of checkpoint {learner.steps} cannot be written: {error}")

    def _record(self, update: Update) -> Record:
        metrics = {"loss": update.loss, "auxiliary_loss": update.auxiliary}
        if self.rows.updates % (16 * DIAGNOSED) == 0:
            metrics |= self.learner.diagnostics()
        episodes = [Episode(value, update.length) for value in update.returns]
        return Record(0, self.learner.steps, metrics, episodes)
