"""Training sequences per second of the Neural Turing Machine on its copy task, as the paper has it: lengths 1 to 20.

=========== ===============================================================================
by hand     an update of the supervised learner, with the core's own backward pass
autograd    the same update, differentiated step by step by PyTorch
=========== ===============================================================================

A controller LSTM of 100, memory 128 x 20, one read and one write head.
"""

import torch

from neurocoder.agents.supervised import SupervisedConfig, SupervisedLearner
from neurocoder.envs import make_tasks
from neurocoder.policies import Policy, PolicyConfig
from neurocoder.policies.ntm import NTMCore
from neurocoder.runs.bench.rounds import Compared, Work

ENV = "neurocoder/Copy-v0"
BATCHES = (1, 32)
CONTROLLER = 100
SEED = 0


def update(batch: int, *, by_hand: bool) -> Work:
    """Return an update of `batch` sequences."""
    envs = make_tasks(ENV, batch)
    torch.manual_seed(SEED)
    config = PolicyConfig(
        encoder="mlp",
        encoder_config={"hidden": []},
        core="ntm",
        core_size=CONTROLLER,
        head="linear",
        critic=False,
    )
    policy = Policy(envs.single_observation_space, envs.single_action_space, config)
    assert isinstance(policy.core, NTMCore)
    policy.core.by_hand = by_hand
    learner = SupervisedLearner(policy, envs, SupervisedConfig(batch_size=batch), 2**40, seed=SEED)

    def work() -> int:
        learner.update()
        return batch

    return work


def works(batch: int) -> dict[str, Compared]:
    """Return what is measured at a batch of that size."""
    return {
        f"by hand, batch {batch}": Compared(update(batch, by_hand=True), f"autograd, batch {batch}"),
        f"autograd, batch {batch}": Compared(update(batch, by_hand=False), f"autograd, batch {batch}"),
    }
