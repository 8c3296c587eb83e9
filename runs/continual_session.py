"""A run of continual learning: task after task, all of them tested after each."""

import threading

from neurocoder.agents.continual import ContinualLearner
from neurocoder.agents.continual_metrics import summary
from neurocoder.envs import make_tasks
from neurocoder.errors import ConfigError
from neurocoder.policies import Policy
from neurocoder.runs.checkpoint import Checkpoint
from neurocoder.runs.config import TrainConfig
from neurocoder.runs.learner_session import LearnerSession
from neurocoder.runs.run import Run
from neurocoder.runs.scoring import Score, joined, write_matrix
from neurocoder.runs.session import Outcome


def make_learner(config: TrainConfig, policy: Policy, trust: bool) -> ContinualLearner:
    """Return the learner of a run, before its first step.

    Raises
    ------
    ConfigError, EnvError
        Options under which the run would not learn all tasks from training images, or any that they cannot have.
    """
    if "task" in config.env_options:
        raise ConfigError("env_options.task: a training goes through all tasks; leave it out")
    if config.env_options.get("split", "train") != "train":
        raise ConfigError(
            f"env_options.split={config.env_options['split']!r}: tasks are learned from 'train' and scored on 'test'; "
            f"leave it out"
        )
    size = config.continual.batch_size
    envs = make_tasks(config.env, size, config.env_options, trust=trust)
    test_envs = make_tasks(config.env, size, {**config.evaluation_options, "split": "test"}, trust=trust)
    return ContinualLearner(
        policy, envs, test_envs, config.continual, seed=config.seed, precision=config.precision
    )


class ContinualSession(LearnerSession):
    """A run whose policy learns one task after the other; its folder has ``matrix.csv``."""

    learner: ContinualLearner

    def __init__(
        self, config: TrainConfig, policy: Policy, run: Run, checkpoint: Checkpoint | None, trust: bool
    ) -> None:
        self.learner = make_learner(config, policy.to(config.device), trust)
        super().__init__(config, policy, run, checkpoint)

    def run_until(self, stop: threading.Event) -> Outcome:
        learner = self.learner
        saved = self.save() if self.saved is None else True
        while not learner.done and not stop.is_set():
            task = learner.task
            self.show(learner.update(), task=float(task))
            if learner.task != task:
                saved = self.save()
                self._tell()
        if stop.is_set() and not learner.done:
            saved = self.save()
        return self.outcome(saved, stop.is_set())

    def _tell(self) -> None:
        """Show and keep how well every task is known after the one just learned."""
        learner = self.learner
        matrix, n_tasks = learner.matrix, learner.envs.task.n_tasks
        known = [float(value) for value in matrix[-1]]
        words = (
            f"task {learner.task} of {n_tasks} learned; accuracies {', '.join(f'{v:.1f}' for v in known)} %"
        )
        if learner.done:
            numbers = summary(matrix)
            words += "; " + ", ".join(f"{name.upper()} {value:.2f}" for name, value in numbers.items())
        data = joined(learner.envs.task.provenance, learner.test_envs.task.provenance)
        score = Score(
            source="training",
            env=self.config.env,
            checkpoint=learner.steps,
            protocol_hash=None,
            deterministic=True,
            stuck_after=0,
            seed=self.config.seed,
            mean=sum(known[: learner.task]) / learner.task,
            std=0.0,
            returns=known,
            lengths=[100] * n_tasks,
            stuck=0,
            truncated=0,
            data=data,
        )
        try:
            write_matrix(self.run.path, learner.rows, "accuracy")
        except OSError as error:
            self.trackers.note(f"the accuracies after task {learner.task} cannot be written: {error}")
        self.keep(score, f"{words}; data: {data}")
