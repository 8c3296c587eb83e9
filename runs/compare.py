"""Groups of runs side by side: their curves, final and best scores, and which group is probably better.

Raw scores are put together within one game only; across games it is human-normalised scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from neurocoder.runs.anchors import anchors, human_normalised
from neurocoder.runs.curves import Curve, Group
from neurocoder.runs.statistics import MIN_RUNS, Estimate, estimate_iqm, probability_of_improvement

POINTS = 100
"""Points of agent steps at which the curves of a group are put together."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Scores of one group of runs in one game, or of one label over several games (then human-normalised)."""

    groups: tuple[Group, ...]
    """One for each game."""
    final: Estimate
    """IQM of the last scores of the runs, [1]."""
    best: Estimate
    """IQM of the highest scores of the runs, [1]: optimistic, as a maximum over noise is."""
    agent_steps: np.ndarray
    """[points], where every run has scores before and after; empty if there is no such place."""
    curve: Estimate
    """IQM of the scores there, [points]."""

    @property
    def label(self) -> str:
        return self.groups[0].label

    @property
    def envs(self) -> tuple[str, ...]:
        return tuple(group.env for group in self.groups)

    @property
    def ends(self) -> tuple[int, int]:
        """Smallest and largest number of agent steps at which the last score of a run was taken."""
        ends = [int(curve.agent_steps[-1]) for group in self.groups for curve in group.curves]
        return min(ends), max(ends)


@dataclass(frozen=True, slots=True)
class Improvement:
    """How probably a run of group `x` ends higher than one of `y`; None, and the reason, where nobody can say."""

    x: str
    y: str
    envs: tuple[str, ...]
    probability: Estimate | None
    reason: str = ""


def common_grid(curves: Sequence[Curve]) -> np.ndarray:
    """Return up to ``POINTS`` agent steps, evenly over the range that all curves cover; empty if there is none."""
    first = max(curve.agent_steps[0] for curve in curves)
    last = min(curve.agent_steps[-1] for curve in curves)
    return (
        np.unique(np.linspace(first, last, POINTS).round().astype(int))
        if first <= last
        else np.array([], int)
    )


def summarise(groups: Sequence[Group]) -> Summary:
    """Return the scores of `groups`, which are one label: raw ones in one game, human-normalised in several.

    Between two scores of a run the curve is a straight line. No interval where a game has one seed only.
    """

    def estimate(scores: Sequence[np.ndarray]) -> Estimate:
        """Return the IQM of scores [runs, points] of each group."""
        if len(groups) > 1:
            scores = [human_normalised(group.env, x) for group, x in zip(groups, scores, strict=True)]
        found = estimate_iqm(scores)
        return found if all(len(group.seeds) > 1 for group in groups) else Estimate(found.value)

    grid = common_grid([curve for group in groups for curve in group.curves])
    return Summary(
        groups=tuple(groups),
        final=estimate([final_scores(group)[:, None] for group in groups]),
        best=estimate([np.array([[curve.scores.max()] for curve in group.curves]) for group in groups]),
        agent_steps=grid,
        curve=estimate(
            [
                np.array([np.interp(grid, curve.agent_steps, curve.scores) for curve in group.curves])
                for group in groups
            ]
        ),
    )


def normalised(env: str, estimate: Estimate) -> Estimate:
    """Return `estimate` of raw scores as one of human-normalised scores, in per cent.

    IQM and percentiles commute with the normalisation, which is linear and increasing.
    """
    ends = (estimate.low, estimate.high)
    low, high = (None if end is None else human_normalised(env, end) for end in ends)
    return Estimate(human_normalised(env, estimate.value), low, high)


def final_scores(group: Group) -> np.ndarray:
    """Return the last score of each run, [runs]."""
    return np.array([curve.scores[-1] for curve in group.curves])


def aggregate(groups: Sequence[Group]) -> list[Summary]:
    """Return human-normalised scores of each label over the games that all labels of one protocol have.

    None where these are fewer than two games.
    """
    summaries = []
    for meaning in dict.fromkeys(group.meaning for group in groups):
        labels = _by_label([group for group in groups if group.meaning == meaning])
        shared = set.intersection(set(anchors()), *(set(games) for games in labels.values()))
        if len(shared) > 1:
            summaries += [summarise([games[env] for env in sorted(shared)]) for games in labels.values()]
    return summaries


def improvements(groups: Sequence[Group]) -> list[Improvement]:
    """Return, for each two labels with games in common, how probably the first ends higher than the second."""
    found = []
    for (x, games_x), (y, games_y) in combinations(_by_label(groups).items(), 2):
        envs = tuple(env for env in games_x if env in games_y)
        if not envs:
            continue
        pairs = [(games_x[env], games_y[env]) for env in envs]
        few = [group for pair in pairs for group in pair if len(group.seeds) < MIN_RUNS]
        if any(one.meaning != other.meaning for one, other in pairs):
            found.append(Improvement(x, y, envs, None, "different protocols"))
        elif few:
            counts = ", ".join(f"{group.label}: {len(group.seeds)}" for group in few)
            found.append(Improvement(x, y, envs, None, f"fewer than {MIN_RUNS} runs ({counts})"))
        else:
            ours, theirs = zip(
                *[(final_scores(one), final_scores(other)) for one, other in pairs], strict=True
            )
            found.append(Improvement(x, y, envs, probability_of_improvement(ours, theirs)))
    return found


def _by_label(groups: Sequence[Group]) -> dict[str, dict[str, Group]]:
    """Return label → environment → group."""
    labels: dict[str, dict[str, Group]] = {}
    for group in groups:
        labels.setdefault(group.label, {})[group.env] = group
    return labels
