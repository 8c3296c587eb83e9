"""Shared fixtures: deterministic torch, one thread; programs that Ctrl-C reaches; data sets of a few images."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from neurocoder.envs import datasets

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what runs in its background, and every program that a test starts would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """MNIST, CIFAR-10 and CIFAR-100 of 300 training and 100 test images, every class three times and once; in this process."""
    sizes = {"train": 300, "test": 100}
    generator = np.random.default_rng(0)
    for name in ("mnist", "cifar10", "cifar100"):
        source = replace(datasets.DATASETS[name], sizes=sizes)
        monkeypatch.setitem(datasets.DATASETS, name, source)
        folder = tmp_path / "data" / source.folder
        folder.mkdir(parents=True)
        for split, n in sizes.items():
            images = generator.integers(0, 256, (n, *source.image_shape), dtype=np.uint8)
            labels = np.arange(n, dtype=np.uint8)[:, None] % source.n_classes
            names = source.files[split]
            if name == "mnist":
                for file, array in zip(names, (images[:, 0], labels[:, 0]), strict=True):
                    header = bytes((0, 0, 8, array.ndim)) + b"".join(
                        k.to_bytes(4, "big") for k in array.shape
                    )
                    (folder / file).write_bytes(header + array.tobytes())
            else:
                coarse = [labels // 5] if name == "cifar100" else []
                records = np.concatenate([*coarse, labels, images.reshape(n, -1)], axis=1)
                for file, part in zip(names, np.split(records, len(names)), strict=True):
                    (folder / file).write_bytes(part.tobytes())
    monkeypatch.setenv("NEUROCODER_DATA", str(tmp_path / "data"))
    datasets._load.cache_clear()
    yield tmp_path / "data"
    datasets._load.cache_clear()
