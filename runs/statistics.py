"""Scores of few runs, and how sure one can be of them (Agarwal et al. 2021, arXiv 2108.13264).

Everything here takes the scores of several games as one array a game, because games need not have the same
number of runs, and is repeatable: the bootstrap draws from a fixed seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 5_000
"""Bootstrap resamples behind an interval."""
CONFIDENCE = 0.95
SEED = 0
MIN_RUNS = 3
"""Fewer runs than this support no claim that one group is better than another."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate and the ends of its interval, each [...]; the ends are None where one run is all there is."""

    value: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def iqm(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the interquartile mean over `axis`: the mean without the ⌊n/4⌋ lowest and ⌊n/4⌋ highest scores.

    This is rliable's definition, whole runs and no fractions of one, so that published numbers compare: of
    three runs it is the mean, of five the mean of the middle three.
    """
    n = scores.shape[axis]
    middle = np.take(np.sort(scores, axis=axis), range(n // 4, n - n // 4), axis=axis)
    return middle.mean(axis=axis)


def estimate_iqm(games: Sequence[np.ndarray]) -> Estimate:
    """Return the IQM over all runs of all games and its 95 % interval by stratified bootstrap.

    `games` holds [runs, points] of each game; the estimate is [points]. Runs are resampled within each game,
    whole runs at a time; the interval is of percentiles, as in rliable. A game with a single run leaves
    nothing to resample: no interval.
    """
    value = iqm(np.concatenate(games))
    if any(len(scores) < 2 for scores in games):
        return Estimate(value)
    rng = np.random.default_rng(SEED)
    picks = [_picks(rng, len(scores)) for scores in games]
    ends = [_interval(iqm(point, axis=1)) for point in _resampled(games, picks)]
    low, high = np.array(ends).reshape(-1, 2).T
    return Estimate(value, low, high)


def _resampled(games: Sequence[np.ndarray], picks: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield [RESAMPLES, all runs] of one point after the other: all at once would not fit for 57 games."""
    for point in range(games[0].shape[1]):
        yield np.concatenate([scores[pick, point] for scores, pick in zip(games, picks, strict=True)], axis=1)


def probability_of_improvement(games_x: Sequence[np.ndarray], games_y: Sequence[np.ndarray]) -> Estimate:
    """Return how probably a run of x scores higher than one of y, a mean over games, with its interval.

    P(X > Y) + P(X = Y) / 2 from all pairs of runs: the Mann-Whitney U statistic over n_x · n_y. Both hold
    [runs] of each game, in the same order of games; the runs of x and y are resampled independently.
    """
    rng = np.random.default_rng(SEED)
    values, resampled = [], []
    for x, y in zip(games_x, games_y, strict=True):
        wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)  # [runs of x, runs of y]
        rows, columns = _picks(rng, len(x)), _picks(rng, len(y))
        values.append(wins.mean())
        resampled.append(wins[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2)))
    low, high = _interval(np.mean(resampled, axis=0))
    return Estimate(np.mean(values), low, high)


def _picks(rng: np.random.Generator, n_runs: int) -> np.ndarray:
    """Return [RESAMPLES, n_runs] indices of runs, drawn with replacement."""
    return rng.integers(n_runs, size=(RESAMPLES, n_runs))


def _interval(resampled: np.ndarray) -> np.ndarray:
    """Return the two percentiles of [RESAMPLES] that enclose ``CONFIDENCE`` of them."""
    tail = 100 * (1 - CONFIDENCE) / 2
    return np.percentile(resampled, (tail, 100 - tail))
