"""Supervised tasks as environments against what they replace: a DataLoader, and a training loop by hand.

============ =============================================================================================
environment  the native batch of ``neurocoder/MNIST-v0``, step by step
DataLoader   torch's, over the same images in memory, each normalised by itself (``num_workers=0``)
learner      SupervisedLearner: an MLP 784-400-400-10, through the environment
by hand      the same network, data, optimiser and batches in a bare loop
============ =============================================================================================
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from neurocoder.agents.supervised import SupervisedConfig, SupervisedLearner
from neurocoder.envs import make_tasks
from neurocoder.envs.datasets import load_dataset
from neurocoder.envs.supervised import PIXEL_STATISTICS
from neurocoder.policies import Policy, PolicyConfig
from neurocoder.runs.bench.rounds import Compared, Work

IDS = {"digits": "neurocoder/Digits-v0", "mnist": "neurocoder/MNIST-v0"}
BATCH = 128
HIDDEN = (400, 400)
RATE = 1e-3
SEED = 0


class _Images(TorchDataset):
    """A data set as it is usually written: one image at a time, normalised on the way out."""

    def __init__(self, name: str) -> None:
        data = load_dataset(name, "train")
        self.images = torch.tensor(data.images)
        self.labels = torch.tensor(data.labels)
        (self.mean,), (self.deviation,) = PIXEL_STATISTICS[name]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index].float().div(255)
        return (image - self.mean) / self.deviation, self.labels[index]


def environment(name: str) -> Work:
    """Return a step of the environment."""
    envs = make_tasks(IDS[name], BATCH)
    envs.reset(seed=SEED)
    idle = envs.action_space.sample()

    def step() -> int:
        envs.step(idle)
        return BATCH

    return step


def data_loader(name: str) -> Work:
    """Return a batch of the DataLoader."""
    loader: DataLoader[Any] = DataLoader(_Images(name), BATCH, shuffle=True, drop_last=True)

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    batches = endless()
    return lambda: len(next(batches)[1])


def learner(name: str) -> Work:
    """Return an update of the learner."""
    envs = make_tasks(IDS[name], BATCH)
    torch.manual_seed(SEED)
    encoder_config = {"hidden": list(HIDDEN), "activation": "relu"}
    config = PolicyConfig(
        encoder="mlp", core="none", head="linear", critic=False, encoder_config=encoder_config
    )
    policy = Policy(envs.single_observation_space, envs.single_action_space, config)
    made = SupervisedLearner(
        policy, envs, SupervisedConfig(batch_size=BATCH, learning_rate=RATE), 2**40, seed=SEED
    )
    return lambda: made.update().steps


def by_hand(name: str) -> Work:
    """Return an update of a bare loop."""
    data = load_dataset(name, "train")
    (mean,), (deviation,) = PIXEL_STATISTICS[name]
    images, labels = torch.tensor(data.images).flatten(1), torch.tensor(data.labels)
    torch.manual_seed(SEED)
    widths = (images.shape[1], *HIDDEN)
    layers = [part for a, b in zip(widths, HIDDEN, strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
    network = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], data.n_classes))
    optimizer = torch.optim.Adam(network.parameters(), RATE, fused=True)
    order: Iterator[Tensor] = iter(())

    def update() -> int:
        nonlocal order
        chosen = next(order, None)
        if chosen is None or len(chosen) < BATCH:
            order = iter(torch.randperm(len(labels)).split(BATCH))
            chosen = next(order)
        x = (images[chosen].float() / 255 - mean) / deviation
        loss = nn.functional.cross_entropy(network(x), labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()
        return len(chosen)

    return update


COMPARED: dict[str, tuple[Callable[[str], Work], str]] = {
    # name: what makes it, what it is compared with
    "environment": (environment, "DataLoader"),
    "DataLoader": (data_loader, "DataLoader"),
    "learner": (learner, "by hand"),
    "by hand": (by_hand, "by hand"),
}


def works(name: str) -> dict[str, Compared]:
    """Return what is measured of data set `name`: batches, and images for each."""
    return {what: Compared(make(name), other) for what, (make, other) in COMPARED.items()}
