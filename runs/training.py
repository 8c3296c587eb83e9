"""One training run from its first step, or from a checkpoint, to its end."""

from neurocoder.agents import denormals
from neurocoder.agents.rollout import NonFiniteLossError
from neurocoder.agents.supervisor import WorkerError
from neurocoder.envs import is_game_sequence
from neurocoder.policies import Policy
from neurocoder.runs.a3c_session import A3CSession
from neurocoder.runs.checkpoint import Checkpoint, find_checkpoint, recover
from neurocoder.runs.config import TrainConfig
from neurocoder.runs.continual_session import ContinualSession
from neurocoder.runs.run import Run
from neurocoder.runs.sequence_session import SequenceSession
from neurocoder.runs.session import Outcome, Session, stop_on_signal
from neurocoder.runs.supervised_session import SupervisedSession

SESSIONS: dict[str, type[A3CSession] | type[SupervisedSession] | type[ContinualSession]] = {
    "a3c": A3CSession,
    "supervised": SupervisedSession,
    "continual": ContinualSession,
}
"""What trains, by the configuration's ``agent``; games one after the other have a session of their own."""


def run_training(
    config: TrainConfig, policy: Policy, run: Run, checkpoint: Checkpoint | None = None, *, trust: bool = True
) -> Outcome:
    """Train `policy` until ``config.steps``, writing into `run` (whose lock the caller holds).

    Goes on from `checkpoint`, whose parameters `policy` has already, if there is one. An exception leaves
    the last checkpoint as it is.
    """
    recover(run.checkpoints)
    kind = SequenceSession if is_game_sequence(config.env) else SESSIONS[config.agent]
    session: Session = kind(config, policy, run, checkpoint, trust)
    with stop_on_signal() as stop, denormals.as_zero():
        try:
            return session.run_until(stop)
        except (NonFiniteLossError, WorkerError) as error:
            kept = find_checkpoint(run.checkpoints)
            raise type(error)(f"{error}\nthe last good checkpoint is kept: {kept}") from None
        finally:
            session.close()
