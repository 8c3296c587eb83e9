"""The polynomial auto-regression of the Neurocoder paper (appendix, "Synthetic polynomial auto-regression").

A sequence runs from x = -5 to x = 5 in equal steps and is cut into `chunks` equal pieces, each a polynomial of its own:
degree uniform in {2, …, 10}, coefficients uniform in [-1, 1]. Seen at step t: (x_t, y_{t-1}), with y_0 = 0; to be
predicted: y_t.

The paper does not say how long a sequence is, in how many chunks, and how y is scaled. As printed it reaches 1e7
(degree 10 at x = 5), so that the mean square error would be that of a few chunks at the edges. Here every chunk is divided
by the largest |y| in it, if that is more than 1: all chunks count alike, and |y| <= 1 but for the noise.
"""

from typing import Any

import gymnasium as gym
import numpy as np

from neurocoder.envs.registry import EnvError
from neurocoder.envs.tasks import Drawn, Task, TaskEnv, TaskVectorEnv

X = 5.0
DEGREES = (2, 10)
FAR = 8.0
"""Deviations of the noise that the spaces' bounds allow for."""


def polynomial(coefficients: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return Σ_k c_k x^k [..., T] for coefficients [..., K] and x [T] (Horner's rule)."""
    y = np.zeros((*coefficients.shape[:-1], len(x)))
    for k in reversed(range(coefficients.shape[-1])):
        y = y * x + coefficients[..., k, None]
    return y


class Polynomial(Task):
    """Sequences of polynomial chunks: inputs [T, B, 2], targets [T, B, 1].

    Parameters
    ----------
    length
        Points of a sequence.
    chunks
        Polynomials in it; divides `length`.
    noise
        Standard deviation of Gaussian noise on y, in what is seen and in the target.
    """

    def __init__(self, *, length: int = 100, chunks: int = 5, noise: float = 0.0) -> None:
        if chunks < 1 or length < 1 or length % chunks:
            raise EnvError(f"chunks={chunks} must divide length={length}, both >= 1")
        if not 0 <= noise < np.inf:
            raise EnvError(f"noise={noise} must be finite and >= 0")
        self.length, self.chunks, self.noise = length, chunks, noise
        bound = 1 + FAR * noise
        largest = np.array([X, bound], np.float32)
        self.observation_space = gym.spaces.Box(-largest, largest, dtype=np.float32)
        self.action_space = gym.spaces.Box(-bound, bound, (1,), np.float32)

    def with_options(self, **options: Any) -> "Polynomial":
        mine: dict[str, Any] = {"length": self.length, "chunks": self.chunks, "noise": self.noise}
        self._refuse(options, mine)
        return Polynomial(**{**mine, **options})

    def draw(self, seed: int, index: int, batch: int) -> Drawn:
        """Return the sequences number `index` of `batch` environments."""
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
        low, high = DEGREES
        degree = generator.integers(low, high + 1, (batch, self.chunks))
        coefficients = generator.uniform(-1, 1, (batch, self.chunks, high + 1))
        coefficients[np.arange(high + 1) > degree[..., None]] = 0
        x = np.linspace(-X, X, self.length)
        pieces = x.reshape(self.chunks, -1)
        y = np.stack([polynomial(coefficients[:, c], piece) for c, piece in enumerate(pieces)], axis=1)
        y /= np.maximum(1, np.abs(y).max(axis=-1, keepdims=True))
        y = y.reshape(batch, self.length).T
        if self.noise:
            y = y + generator.normal(0, self.noise, y.shape)
        before = np.concatenate((np.zeros((1, batch)), y[:-1]))
        inputs = np.stack((np.broadcast_to(x[:, None], y.shape), before), axis=-1)
        return Drawn(inputs.astype(np.float32), y[..., None].astype(np.float32))


def polynomial_env(**options: Any) -> TaskEnv:
    """Return a single environment; `options` are those of :class:`Polynomial`."""
    return TaskEnv(Polynomial(**options))


def polynomial_vector_env(num_envs: int = 1, **options: Any) -> TaskVectorEnv:
    """Return `num_envs` of them as one batch."""
    return TaskVectorEnv(Polynomial(**options), num_envs)
