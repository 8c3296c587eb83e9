"""Training sequences per second of the Neural Turing Machine on its copy task, as the paper has it: lengths 1 to 20.

=========== ===============================================================================
by hand     an update of the supervised learner, with the core's own backward pass
autograd    the same update, differentiated step by step by PyTorch
pytorch-ntm an update as its train.py has it, of a checkout of github.com/loudinthecloud/pytorch-ntm
=========== ===============================================================================

A controller LSTM of 100, memory 128 x 20, one read and one write head.
"""

import importlib
import importlib.util
import random
import sys
from pathlib import Path

import torch

from neurocoder.agents.supervised import SupervisedConfig, SupervisedLearner
from neurocoder.envs import make_tasks
from neurocoder.errors import ConfigError
from neurocoder.policies import Policy, PolicyConfig
from neurocoder.policies.ntm import NTMCore
from neurocoder.runs.bench.rounds import Compared, Work

ENV = "neurocoder/Copy-v0"
BATCHES = (1, 32)
CONTROLLER, ROWS, WIDTH = 100, 128, 20
LENGTHS, BITS = (1, 20), 8
PEER = "pytorch-ntm"
SEED = 0


def update(batch: int, *, by_hand: bool) -> Work:
    """Return an update of `batch` sequences."""
    low, high = LENGTHS
    envs = make_tasks(ENV, batch, {"bits": BITS, "min_length": low, "max_length": high})
    torch.manual_seed(SEED)
    config = PolicyConfig(
        encoder="mlp",
        encoder_config={"hidden": []},
        core="ntm",
        core_size=CONTROLLER,
        core_config={"rows": ROWS, "width": WIDTH},
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


def peer_update(folder: Path, batch: int) -> Work:
    """Return an update of `batch` sequences by the pytorch-ntm in `folder`, whose code is run.

    Model, loss, optimiser and clipping are those of its train.py; what it counts and prints is left out.

    Raises
    ------
    ConfigError
        It is not there.
    """
    package = "pytorch_ntm"
    start = folder / "ntm" / "__init__.py"
    if not start.is_file():
        raise ConfigError(f"--peer {folder}: expected a checkout of {PEER}, and there is no {start}")
    spec = importlib.util.spec_from_file_location(
        package, start, submodule_search_locations=[str(start.parent)]
    )
    assert spec is not None
    sys.modules[package] = importlib.util.module_from_spec(spec)
    machine = importlib.import_module(f"{package}.aio").EncapsulatedNTM
    torch.manual_seed(SEED)
    model = machine(BITS + 1, BITS, CONTROLLER, 1, 1, ROWS, WIDTH)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-4, alpha=0.95, momentum=0.9)
    lengths = random.Random(SEED)

    def work() -> int:
        length = lengths.randint(*LENGTHS)
        target = torch.randint(2, (length, batch, BITS)).float()
        seen = torch.zeros(length + 1, batch, BITS + 1)
        seen[:length, :, :BITS], seen[length, :, BITS] = target, 1
        optimizer.zero_grad()
        model.init_sequence(batch)
        for step in seen:
            model(step)
        said = torch.stack([model()[0] for _ in range(length)])
        torch.nn.functional.binary_cross_entropy(said, target).backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 10)
        optimizer.step()
        return batch

    return work


def works(batch: int, peer: Path | None = None) -> dict[str, Compared]:
    """Return what is measured at a batch of that size; with the pytorch-ntm in folder `peer`, if there is one."""
    ours = update(batch, by_hand=True)
    if peer is not None:
        other = f"{PEER}, batch {batch}"
        return {
            f"by hand, batch {batch}": Compared(ours, other),
            f"autograd, batch {batch}": Compared(update(batch, by_hand=False), other),
            other: Compared(peer_update(peer, batch), other),
        }
    return {
        f"by hand, batch {batch}": Compared(ours, f"autograd, batch {batch}"),
        f"autograd, batch {batch}": Compared(update(batch, by_hand=False), f"autograd, batch {batch}"),
    }
