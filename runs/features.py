"""What an encoder makes of a data set's images, computed once: for heads that are trained on a frozen network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.numpy import save_file

from neurocoder.envs.datasets import SPLITS, features_folder, load_dataset
from neurocoder.policies.encoders import make_encoder

BATCH = 64


def features_name(encoder: str, size: int) -> str:
    """Return the name under which features are stored and found."""
    return f"{encoder}-{size}"


@torch.no_grad()
def compute_features(
    dataset: str,
    encoder: str,
    size: int,
    options: dict[str, Any],
    *,
    device: str = "cpu",
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Store `encoder`'s features of all images of `dataset`, enlarged to `size` x `size`; return their folder.

    Every feature has mean 0 and deviation 1 over the training images; stored in 16 bits. Nothing is there before all is.

    Raises
    ------
    ConfigError, DataError
        An encoder, option or data set that there is not.
    """
    splits = {split: load_dataset(dataset, split) for split in SPLITS}
    channels = splits["train"].images.shape[1]
    network = make_encoder(encoder, (channels, size, size), scaled=True, **options).eval().to(device)
    total, done = sum(len(data.labels) for data in splits.values()), 0
    found: dict[str, np.ndarray] = {}
    for split, data in splits.items():
        rows = []
        for start in range(0, len(data.labels), BATCH):
            pictures = enlarged(data.images[start : start + BATCH], size)
            rows.append(network(torch.from_numpy(pictures).to(device)).float().cpu().numpy())
            done += len(pictures)
            tell(done, total)
        found[split] = np.concatenate(rows)
    mean, deviation = found["train"].mean(axis=0), found["train"].std(axis=0)
    deviation[deviation < 1e-6] = 1.0  # a feature that is always the same
    folder = features_folder(dataset, features_name(encoder, size))
    folder.mkdir(parents=True, exist_ok=True)
    made = f"{encoder} at {size} x {size} pixels, {options or 'without options'}"
    for split, values in found.items():
        standard = ((values - mean) / deviation).astype(np.float16)
        part = folder / f".{split}.part"
        save_file({"features": standard}, part, metadata={"made": made})
        part.replace(folder / f"{split}.safetensors")
    return folder


def compute_showing_progress(
    dataset: str, encoder: str, size: int, options: dict[str, Any], *, device: str = "cpu"
) -> Path:
    """Call :func:`compute_features` with a progress bar on stderr, which goes away when all is done; return its folder."""
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("images", total=None)
        return compute_features(
            dataset,
            encoder,
            size,
            options,
            device=device,
            tell=lambda done, total: progress.update(bar, completed=done, total=total),
        )


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 images [B, C, H, W] at `size` x `size`, bilinear."""
    if images.shape[-2:] == (size, size):
        return images.copy()  # they may be read-only
    resized = [cv2.resize(image.transpose(1, 2, 0), (size, size)) for image in images]
    return np.stack([image.reshape(size, size, -1).transpose(2, 0, 1) for image in resized])
