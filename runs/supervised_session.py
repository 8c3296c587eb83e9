"""A run of supervised learning: one process that learns, and scores its checkpoints itself."""

import threading
import time

from neurocoder.agents.supervised import SupervisedLearner
from neurocoder.envs import make_tasks
from neurocoder.policies import Policy
from neurocoder.runs.checkpoint import Checkpoint
from neurocoder.runs.config import TrainConfig
from neurocoder.runs.evaluator import evaluation_seed
from neurocoder.runs.learner_session import LearnerSession
from neurocoder.runs.run import Run
from neurocoder.runs.scoring import Score, describe_predictions, score_predictions
from neurocoder.runs.session import Outcome


class SupervisedSession(LearnerSession):
    """A run whose policy is learned here."""

    learner: SupervisedLearner

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

    def run_until(self, stop: threading.Event) -> Outcome:
        learner, config = self.learner, self.config
        saved = True
        if self.saved is None:
            saved = self.save()
        checkpoint_at = learner.steps
        while learner.steps < config.steps and not stop.is_set():
            self.show(learner.update())
            over = learner.steps >= config.steps
            if over or learner.steps // config.checkpoint_every > checkpoint_at // config.checkpoint_every:
                checkpoint_at = learner.steps
                # scored before it is saved: a run killed in between does both again, and misses no score
                due = self.evaluation_is_due(learner.steps) or (over and config.evaluation.every > 0)
                score = self.score() if due else None
                saved = self.save()
                if score is not None:
                    self.keep(score, describe_predictions(score, learner.envs.single_action_space))
        if checkpoint_at != learner.steps:
            saved = self.save()
        return self.outcome(saved, stop.is_set())

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
