"""Cluster bootstrap: intervals that resample what is independent, the prompts.

Several samples of one prompt, or several instructions in it, stand or fall together. Resampling
them one by one would make every interval too narrow; whole prompts are drawn instead.

Source: Davison and Hinkley (1997), Bootstrap Methods and their Application, sections 3.8 and 5.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.types import Estimate

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]

Key = tuple[str, int | None]
"""Example id, and sample index or None for a number about the whole prompt."""

BLOCK_CELLS = 4_000_000
"""Most cells of one block of the counts matrix: bounds memory at 32 MB for suites of any size."""


class Weighted(NamedTuple):
    """A value with its share in the mean."""

    value: float
    weight: float = 1.0


def cluster_counts(resamples: int, clusters: int, rng: np.random.Generator) -> FloatArray:
    """Return how often each cluster occurs in each bootstrap sample, shape (resamples, clusters).

    Rows are multinomial with equal probabilities. Drawing indices and counting them is some ten
    times as fast as ``rng.multinomial``, which draws one binomial per cell.
    """
    drawn = rng.integers(0, clusters, size=(resamples, clusters))
    drawn += clusters * np.arange(resamples)[:, None]
    flat = np.bincount(drawn.ravel(), minlength=resamples * clusters)
    return flat.reshape(resamples, clusters).astype(np.float64)


def replicate(
    statistic: Callable[[FloatArray], FloatArray],
    clusters: int,
    resamples: int,
    rng: np.random.Generator,
) -> FloatArray:
    """Return ``statistic`` of every bootstrap sample, shape (resamples,).

    ``statistic`` maps a block of counts (r, clusters) to (r,) values, all rows at once.
    """
    rows = max(1, BLOCK_CELLS // clusters)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([statistic(cluster_counts(r, clusters, rng)) for r in sizes])


def percentile_interval(replicates: FloatArray, level: float) -> tuple[float, float]:
    """Return the central interval that holds the share ``level`` of the replicates."""
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def with_interval(
    result: Estimate,
    value: float,
    statistic: Callable[[FloatArray], FloatArray],
    rng: np.random.Generator,
    resamples: int,
) -> Estimate:
    """Return ``result`` with its value and, given two clusters or more, its bootstrap interval."""
    if result.clusters < 2:
        return result.model_copy(update={"value": value})
    found = replicate(statistic, result.clusters, resamples, rng)
    low, high = percentile_interval(found, result.level)
    return result.model_copy(update={"value": value, "low": low, "high": high})


def cluster_index(clusters: Sequence[str]) -> tuple[int, IntArray]:
    """Return the number of distinct clusters and, for each observation, its cluster's rank.

    Ranks follow the sorted names, so that the order of the observations changes no result.
    """
    names, index = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)
    return len(names), index


def check_settings(resamples: int, level: float) -> None:
    """Raise a ValueError for a level outside (0, 1) or fewer than one resample."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, given {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, given {resamples}")


def _weighted_sums(values: FloatArray, weights: FloatArray, index: IntArray) -> FloatArray:
    """Return the sum of w v and of w for each cluster, shape (clusters, 2)."""
    return np.stack([np.bincount(index, weights * values), np.bincount(index, weights)], axis=1)


def _ratio(sums: FloatArray) -> FloatArray:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _checked(
    values: Sequence[float], weights: Sequence[float] | None
) -> tuple[FloatArray, FloatArray]:
    array = np.asarray(values, dtype=np.float64)
    shares = np.ones_like(array) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != array.shape:
        raise ValueError(f"{array.size} values but {shares.size} weights")
    if not np.isfinite(array).all():
        raise ValueError("a value is not finite: leave missing values out and count them")
    if not (np.isfinite(shares).all() and (shares > 0).all()):
        raise ValueError("every weight must be finite and above 0")
    return array, shares


def cluster_mean(
    values: Sequence[float],
    clusters: Sequence[str],
    *,
    rng: np.random.Generator,
    weights: Sequence[float] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    missing: int = 0,
) -> Estimate:
    """Return the weighted mean sum(w v) / sum(w) with its percentile interval.

    Args:
        values: (n,) finite numbers; missing ones are left out and counted in ``missing``.
        clusters: (n,) name of the independent unit of each value.
        weights: (n,) shares above 0; equal ones if None.

    Returns:
        ``value`` is None without observations; the interval is None with one cluster.

    Raises:
        ValueError: unequal lengths, a value that is not finite, a weight not above 0.
    """
    check_settings(resamples, level)
    array, shares = _checked(values, weights)
    if len(clusters) != array.size:
        raise ValueError(f"{array.size} values but {len(clusters)} clusters")
    method = f"cluster bootstrap, percentile, {resamples} resamples"
    count, index = cluster_index(clusters)
    result = Estimate(
        value=None, level=level, n=array.size, clusters=count, missing=missing, method=method
    )
    if count == 0:
        return result
    sums = _weighted_sums(array, shares, index)
    value = float(_ratio(sums.sum(axis=0)))
    return with_interval(result, value, lambda c: _ratio(c @ sums), rng, resamples)


def paired_difference(
    candidate: Mapping[Key, Weighted],
    baseline: Mapping[Key, Weighted],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
    missing: int = 0,
) -> Estimate:
    """Return the candidate's weighted mean minus the baseline's on the prompts both have.

    Each bootstrap sample draws prompts once and takes both means on them, so that what makes a
    prompt hard for both cancels. Samples of one prompt are exchangeable: sample 0 of one side is
    not matched to sample 0 of the other.

    Args:
        candidate, baseline: values by (example id, sample); the example is the cluster.
        missing: observations known to be missing on the shared prompts, or on both sides.

    Returns:
        ``n`` counts the observations of the side that has fewer; ``missing`` adds the prompts
        that only one side has. ``value`` is None without a shared prompt, the interval with one.

    Raises:
        ValueError: a value that is not finite, a weight not above 0.
    """
    check_settings(resamples, level)
    units = [{example for example, _ in side} for side in (candidate, baseline)]
    shared = units[0] & units[1]
    first, second = (_shared_sums(side, shared) for side in (candidate, baseline))
    result = Estimate(
        value=None,
        level=level,
        n=min(sum(example in shared for example, _ in side) for side in (candidate, baseline)),
        clusters=len(shared),
        missing=missing + len(units[0] ^ units[1]),
        method=f"paired cluster bootstrap, percentile, {resamples} resamples",
    )
    if not shared:
        return result

    def statistic(counts: FloatArray) -> FloatArray:
        return _ratio(counts @ first) - _ratio(counts @ second)

    value = float(_ratio(first.sum(axis=0)) - _ratio(second.sum(axis=0)))
    return with_interval(result, value, statistic, rng, resamples)


def _shared_sums(side: Mapping[Key, Weighted], shared: set[str]) -> FloatArray:
    kept = {key: entry for key, entry in side.items() if key[0] in shared}
    values, weights = _checked([e.value for e in kept.values()], [e.weight for e in kept.values()])
    return _weighted_sums(values, weights, cluster_index([key[0] for key in kept])[1])
