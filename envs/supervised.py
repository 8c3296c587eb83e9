"""Classification as an environment: one step is one batch of images, its reward whether the class was right.

gymnasium.make_vec("neurocoder/MNIST-v0", num_envs=128, split="test")
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np

from neurocoder.envs.datasets import DATASETS, load_dataset, load_features
from neurocoder.envs.registry import EnvError
from neurocoder.envs.tasks import EPISODE, Drawn, Task, TaskEnv, TaskVectorEnv
from neurocoder.errors import lookup

PIXEL_STATISTICS = {
    # mean and standard deviation per channel of the training images / 255
    "digits": ((0.305,), (0.376,)),
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
SHIFT = 4
"""Pixels by which augmented images are shifted at most (He et al. 2016, section 4.2: padded by 4 and cropped)."""
LAST = ("wrap", "partial")
_SHUFFLE, _AUGMENT, _SUBSET = range(3)  # what a random number is for: streams of their own


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(key[0], spawn_key=key[1:]))


class Classification(Task):
    """Images of a data set in seeded shuffles, without end.

    Parameters
    ----------
    dataset, split
        See :func:`~neurocoder.envs.datasets.load_dataset`.
    normalize
        Images become floats: per channel (x / 255 - mean) / deviation of the training images. Otherwise they are
        uint8, which every encoder here divides by 255.
    augment
        Shift images by up to 4 pixels and mirror half of them (CIFAR).
    pad
        Black pixels added on every side.
    samples
        Use only this many images, drawn once without replacement whatever the seed; 0: all.
    shuffle
        Every pass in an order of its own; otherwise in the files' order.
    features
        Show what an encoder makes of the images instead: the name under which ``neurocoder features`` stored it,
        e.g. efficientnet_lite0-96. Numbers are stored standardised; pictures' options do not apply.
    last
        What happens where a pass does not end with a batch. "wrap": the batch goes on with the next pass; "partial": it
        is filled up with images that the mask leaves out, so that draws are counted in passes.
    """

    endless = True

    def __init__(
        self,
        dataset: str,
        split: str = "train",
        *,
        normalize: bool = True,
        augment: bool = False,
        pad: int = 0,
        samples: int = 0,
        shuffle: bool = True,
        features: str = "",
        last: str = "wrap",
    ) -> None:
        lookup(dict.fromkeys(LAST), last, "last", EnvError)
        if features and (pad or augment):
            raise EnvError(f"features={features!r} are no pictures: leave out pad and augment")
        self.data = load_features(dataset, split, features) if features else load_dataset(dataset, split)
        self.provenance = self.data.provenance
        images = self.data.images
        if not 0 <= samples <= len(images):
            raise EnvError(
                f"samples={samples} must be in [0, {len(images)}], the images of {dataset} {split}"
            )
        if pad < 0:
            raise EnvError(f"pad={pad} must be >= 0")
        self.kept: np.ndarray | None = None
        """Indices of the images in use, None for all."""
        if samples:
            self.kept = np.sort(_generator(0, _SUBSET).permutation(len(images))[:samples])
        self.n = samples or len(images)
        """How many images a pass has."""
        self.augment, self.pad, self.shuffle, self.last = augment, pad, shuffle, last
        self._order: tuple[tuple[int, int, int], np.ndarray] | None = None
        """The order of the pass last shown, after what it depends on."""
        self._affine: tuple[np.ndarray, np.ndarray] | None = None
        self.action_space = gym.spaces.Discrete(DATASETS[dataset].n_classes)
        if features:
            limit = float(np.finfo(np.float16).max)  # they are stored in 16 bits
            self.observation_space = gym.spaces.Box(-limit, limit, images.shape[1:], np.float32)
            return
        _, channels, height, width = images.shape
        shape = (channels, height + 2 * pad, width + 2 * pad)
        if normalize:
            mean, deviation = (np.array(part).reshape(channels, 1, 1) for part in PIXEL_STATISTICS[dataset])
            scale, shift = 1 / (255 * deviation), -mean / deviation
            self._affine = (scale.astype(np.float32), shift.astype(np.float32))
            low, high = (
                np.broadcast_to(self._float(np.full((channels, 1, 1), edge)), shape) for edge in (0, 255)
            )
            self.observation_space = gym.spaces.Box(low, high, dtype=np.float32)
        else:
            self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)

    def _float(self, images: np.ndarray) -> np.ndarray:
        assert self._affine is not None
        scale, shift = self._affine
        result = images.astype(np.float32)
        result *= scale
        result += shift
        return result

    def passes(self, batch: int) -> int | None:
        """Return how many draws of `batch` images a pass takes; None with last="wrap", where it takes no whole number."""
        return math.ceil(self.n / batch) if self.last == "partial" else None

    def draw(self, seed: int, index: int, batch: int) -> Drawn:
        """Return one step: images [1, B, C, H, W] and their classes [1, B]."""
        indices, mask = self._indices(seed, index, batch)
        images = self.data.images[indices]
        if self.pad:
            images = np.pad(images, ((0, 0), (0, 0), (self.pad, self.pad), (self.pad, self.pad)))
        if self.augment:
            images = shift_and_mirror(images, _generator(seed, _AUGMENT, index))
        seen = images if self._affine is None else self._float(images)
        return Drawn(seen[None], self.data.labels[indices][None], None if mask is None else mask[None])

    def _order_of(self, seed: int, pass_: int) -> np.ndarray:
        """Return the order in which pass number `pass_` shows the images, [n]."""
        if not self.shuffle:
            return np.arange(self.n)
        key = (seed, pass_, self.n)
        if self._order is None or self._order[0] != key:
            self._order = (key, _generator(seed, _SHUFFLE, pass_).permutation(self.n))
        return self._order[1]

    def _indices(self, seed: int, index: int, batch: int) -> tuple[np.ndarray, np.ndarray | None]:
        mask = None
        if (draws := self.passes(batch)) is not None:
            pass_, place = divmod(index, draws)
            chosen = self._order_of(seed, pass_)[place * batch : (place + 1) * batch]
            mask = np.arange(batch) < len(chosen)
            chosen = np.resize(chosen, batch)
        else:
            pass_, start = divmod(index * batch, self.n)
            chosen = self._order_of(seed, pass_)[start : start + batch]
            while len(chosen) < batch:
                pass_ += 1
                more = self._order_of(seed, pass_)[: batch - len(chosen)]
                chosen = np.concatenate((chosen, more))
        return (chosen if self.kept is None else self.kept[chosen]), mask


def shift_and_mirror(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return images [B, C, H, W], each shifted by up to SHIFT pixels (black comes in), every second one mirrored."""
    batch, channels, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    down, right = generator.integers(0, 2 * SHIFT + 1, (2, batch))
    rows = down[:, None] + np.arange(height)
    columns = right[:, None] + np.arange(width)
    mirrored = generator.random(batch) < 0.5
    columns[mirrored] = columns[mirrored, ::-1]
    index = np.arange(batch)[:, None, None, None], np.arange(channels)[:, None, None]
    return padded[(*index, rows[:, None, :, None], columns[:, None, None, :])]


def classification_env(dataset: str, *, episode_length: int = EPISODE, **options: Any) -> TaskEnv:
    """Return a single environment; `options` are those of :class:`Classification`."""
    return TaskEnv(Classification(dataset, **options), episode_length)


def classification_vector_env(
    dataset: str, num_envs: int = 1, *, episode_length: int = EPISODE, **options: Any
) -> TaskVectorEnv:
    """Return `num_envs` of them as one batch."""
    return TaskVectorEnv(Classification(dataset, **options), num_envs, episode_length)
