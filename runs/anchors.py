"""What a random player and a professional games tester score, game by game, as data (``anchors.toml``)."""

import tomllib
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np


class Anchor(NamedTuple):
    """Mean raw scores of one game."""

    random: float
    human: float


@cache
def anchors() -> dict[str, Anchor]:
    """Return the anchors of 57 games by environment id, e.g. ``ALE/Pong-v5``."""
    text = (resources.files("neurocoder.runs") / "anchors.toml").read_text("utf-8")
    return {f"ALE/{game}-v5": Anchor(**scores) for game, scores in tomllib.loads(text)["scores"].items()}


def human_normalised(env: str, scores: np.ndarray) -> np.ndarray:
    """Return 100 · (score − random) / (human − random), in per cent, for raw scores of any shape.

    Mnih et al. 2015, "Human-level control through deep reinforcement learning", figure 3. Raises KeyError
    for an `env` without anchors.
    """
    anchor = anchors()[env]
    return 100 * (scores - anchor.random) / (anchor.human - anchor.random)
