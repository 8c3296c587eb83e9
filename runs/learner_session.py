"""A run that is one process: a learner of tasks, whose checkpoints are scored here."""

from neurocoder.agents.continual import ContinualLearner
from neurocoder.agents.rollout import Episode
from neurocoder.agents.supervised import SupervisedLearner, Update
from neurocoder.agents.worker import DIAGNOSED, Record
from neurocoder.runs.checkpoint import Checkpoint, write_evaluation
from neurocoder.runs.scoring import Score, append_score
from neurocoder.runs.session import Session


class LearnerSession(Session):
    """A run whose policy is learned here; subclasses make ``learner`` before they call ``Session.__init__``."""

    learner: SupervisedLearner | ContinualLearner

    def restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            assert checkpoint.optimizer is not None
            self.learner.load(checkpoint.optimizer, checkpoint.state["learner"])

    def save(self) -> bool:
        """Write a checkpoint; return whether that worked."""
        tensors, data = self.learner.state()
        return self.write(self.learner.steps, tensors, {"learner": data})

    def show(self, update: Update, **metrics: float) -> None:
        """Add an update, and what else was measured, to the run's rows."""
        metrics |= {"loss": update.loss, "auxiliary_loss": update.auxiliary}
        if self.rows.updates % (16 * DIAGNOSED) == 0:
            metrics |= self.learner.diagnostics()
        episodes = [Episode(value, update.length) for value in update.returns]
        if (row := self.rows.add(Record(0, self.learner.steps, metrics, episodes))) is not None:
            self.trackers.add(row)

    def keep(self, score: Score, words: str) -> None:
        """Show the score of the checkpoint just written, and keep it where it belongs."""
        self.trackers.add_score(score, words)
        try:
            append_score(self.run.path, score)
            if self.saved is not None and self.saved.name == str(score["checkpoint"]):
                write_evaluation(self.saved, score)
        except OSError as error:
            self.trackers.note(f"the score of checkpoint {score['checkpoint']} cannot be written: {error}")
