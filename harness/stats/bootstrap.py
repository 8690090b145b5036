"""Cluster bootstrap: intervals that resample what is independent, the prompts.

Several samples of one prompt, or several instructions in it, stand or fall together. Resampling
them one by one would make every interval too narrow; whole prompts are drawn instead.

The plain percentile interval is itself too narrow with few clusters: with ten it covers some 91 %
where it says 95. Its tails are therefore moved outwards (:func:`expanded_tail`). Two ranges of
cluster counts take a t interval from the delete-one-cluster jackknife instead: below FEW_CLUSTERS
the tails lie beyond what so few clusters can be resampled into, above MANY_CLUSTERS resampling
costs time and changes nothing. benchmarks/coverage.py measures the coverage of all three.

Sources: Davison and Hinkley (1997), Bootstrap Methods and their Application, sections 3.8 and 5.3;
Hesterberg (2015), "What teachers should know about the bootstrap", The American Statistician 69.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.types import Estimate

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]

Clusters = Sequence[str] | NDArray[np.integer[Any]]
"""Name or code of the independent unit of each observation."""

Range = tuple[float, float]
"""Bounds that a statistic cannot leave, such as (0, 1) for a share."""

Key = tuple[str, int | None]
"""Example id, and sample index or None for a number about the whole prompt."""

BLOCK_CELLS = 500_000
"""Most cells of one block of the counts matrix: 4 MB, which stay in the processor's cache.

Larger blocks take up to twice as long, and a suite of any size needs no more memory than this.
"""


FEW_CLUSTERS = 8
"""Below it the jackknife: with 5 clusters the expanded percentile interval covers 91 %, t 94 %."""

MANY_CLUSTERS = 5_000
"""Above it the jackknife, in closed form: a mean of so many clusters is normal for any data."""


class Weighted(NamedTuple):
    """A value with its share in the mean."""

    value: float
    weight: float = 1.0


def named_stream(seed: int, *about: str) -> np.random.Generator:
    """Return a generator that depends on what is estimated, and on nothing estimated beside it."""
    digest = hashlib.sha256(json.dumps(about).encode()).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=words))


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


def expanded_tail(level: float, clusters: int) -> float:
    """Return the share of replicates to cut off at each end.

        Phi(-sqrt(G / (G - 1)) t),    t = the (1 + level)/2 quantile of Student's t, G - 1 degrees

    The bootstrap distribution has the variance of the plug-in estimate, too small by (G - 1)/G, and
    normal tails where t tails are due. Both are made up for; as G grows this becomes
    (1 - level)/2.

    Source: Hesterberg (2015), section 4.3, "expanded percentile".
    """
    widening = math.sqrt(clusters / (clusters - 1))
    return NormalDist().cdf(-widening * t_quantile(level, clusters - 1))


def t_quantile(level: float, degrees: int) -> float:
    """Return the half-width, in standard errors, of the central t interval at ``level``."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(degrees, (1 + level) / 2))


def percentile_interval(
    replicates: FloatArray, level: float, clusters: int | None = None
) -> tuple[float, float]:
    """Return the central interval of the replicates.

    It holds the share ``level`` of them, or more where ``clusters``, the number of units that were
    resampled, is given: see :func:`expanded_tail`.
    """
    tail = (1 - level) / 2 if clusters is None else expanded_tail(level, clusters)
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_method(resamples: int) -> str:
    """Return what an Estimate's ``method`` calls the interval of :func:`with_interval`."""
    return f"cluster bootstrap, expanded percentile, {resamples} resamples"


def with_interval(
    result: Estimate,
    value: float,
    statistic: Callable[[FloatArray], FloatArray],
    rng: np.random.Generator,
    resamples: int,
    within: Range | None = None,
) -> Estimate:
    """Return ``result`` with its value and, given two clusters or more, its interval.

    Args:
        statistic: maps counts (r, clusters) to (r,) values, one for each sample of clusters; NaN
            where a sample has none. Such samples are left out, and the method says how many.
        within: bounds to which the interval is cut; only the jackknife's can leave them.
    """
    result = result.model_copy(update={"value": value})
    count = result.clusters
    if count < 2:
        return result
    if count < FEW_CLUSTERS:
        left_out = statistic(1 - np.eye(count))
        why = f"as there are fewer than {FEW_CLUSTERS} clusters"
        return _jackknifed(result, value, left_out, why, within)
    found = replicate(statistic, count, resamples, rng)
    return _percentile(result, found[np.isfinite(found)], resamples)


def _percentile(result: Estimate, defined: FloatArray, resamples: int) -> Estimate:
    undefined = resamples - len(defined)
    method = result.method
    if undefined:
        method += f"; {undefined} resamples without a value left out"
    if 2 * undefined > resamples:
        return result.model_copy(update={"method": f"{method}, too many for an interval"})
    low, high = percentile_interval(defined, result.level, result.clusters)
    return result.model_copy(update={"low": low, "high": high, "method": method})


def interval_of_sums(
    result: Estimate,
    sums: FloatArray,
    statistic: Callable[[FloatArray], FloatArray],
    rng: np.random.Generator,
    resamples: int,
    within: Range | None = None,
) -> Estimate:
    """Return ``result`` with value and interval of a statistic of sums over clusters.

    Takes O(resamples x clusters) whatever the number of observations, and O(clusters) above
    MANY_CLUSTERS.

    Args:
        sums: (clusters, k) sums of k quantities over the observations of each cluster.
        statistic: maps sums (..., k) to (...) values; NaN where there is none.
    """
    total = sums.sum(axis=0)
    value = float(statistic(total))
    if not math.isfinite(value):
        return result
    if result.clusters > MANY_CLUSTERS:
        why = f"as there are more than {MANY_CLUSTERS} clusters"
        result = result.model_copy(update={"value": value})
        return _jackknifed(result, value, statistic(total - sums), why, within)
    return with_interval(result, value, lambda c: statistic(c @ sums), rng, resamples, within)


def jackknife_error(value: float, left_out: FloatArray) -> float:
    """Return the standard error sqrt((G - 1)/G sum_g (theta_(-g) - theta)^2).

    For means and differences of means this is the cluster-robust error known as CR3.

    Args:
        value: theta, on all G clusters. left_out: (G,) theta without each cluster.
    """
    count = len(left_out)
    return math.sqrt((count - 1) / count * float(np.sum((left_out - value) ** 2)))


def jackknife_interval(value: float, left_out: FloatArray, level: float) -> tuple[float, float]:
    """Return value -+ t_(G-1) standard errors of the jackknife over the G clusters.

    Source: Efron and Stein (1981), "The jackknife estimate of variance", Annals of Statistics 9.
    """
    half = t_quantile(level, len(left_out) - 1) * jackknife_error(value, left_out)
    return value - half, value + half


def _jackknifed(
    result: Estimate, value: float, left_out: FloatArray, why: str, within: Range | None
) -> Estimate:
    if not np.isfinite(left_out).all():
        method = f"{result.method}; no interval, as a sample without one cluster has no value"
        return result.model_copy(update={"method": method})
    low, high = jackknife_interval(value, left_out, result.level)
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    method = f"{result.method}; t interval of the cluster jackknife instead, {why}"
    return result.model_copy(update={"low": low, "high": high, "method": method})


def cluster_index(clusters: Clusters) -> tuple[int, IntArray]:
    """Return the number of distinct clusters and, for each observation, its cluster's rank.

    Ranks follow the sorted names, so that the order of the observations changes no result.
    """
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    return len(names), index


def check_settings(resamples: int, level: float) -> None:
    """Raise a ValueError for a level outside (0, 1) or fewer than one resample."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, given {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, given {resamples}")


def weighted_sums(values: FloatArray, weights: FloatArray, index: IntArray) -> FloatArray:
    """Return the sum of w v and of w for each cluster, shape (clusters, 2)."""
    return np.stack([np.bincount(index, weights * values), np.bincount(index, weights)], axis=1)


def ratio(sums: FloatArray) -> FloatArray:
    """Return the quotient of the first two sums, shape (...): a weighted mean."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def _difference(sums: FloatArray) -> FloatArray:
    return ratio(sums[..., :2]) - ratio(sums[..., 2:])


def _checked(
    values: Sequence[float] | FloatArray, weights: Sequence[float] | FloatArray | None
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
    values: Sequence[float] | FloatArray,
    clusters: Clusters,
    *,
    rng: np.random.Generator,
    weights: Sequence[float] | FloatArray | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    missing: int = 0,
    within: Range | None = None,
) -> Estimate:
    """Return the weighted mean sum(w v) / sum(w) with its interval.

    Args:
        values: (n,) finite numbers; missing ones are left out and counted in ``missing``.
        clusters: (n,) name or code of the independent unit of each value.
        weights: (n,) shares above 0; equal ones if None.
        within: bounds that the mean cannot leave, such as (0, 1) for a share.

    Returns:
        ``value`` is None without observations; the interval is None with one cluster.

    Raises:
        ValueError: unequal lengths, a value that is not finite, a weight not above 0.
    """
    check_settings(resamples, level)
    array, shares = _checked(values, weights)
    if len(clusters) != array.size:
        raise ValueError(f"{array.size} values but {len(clusters)} clusters")
    method = bootstrap_method(resamples)
    count, index = cluster_index(clusters)
    result = Estimate(
        value=None, level=level, n=array.size, clusters=count, missing=missing, method=method
    )
    if count == 0:
        return result
    sums = weighted_sums(array, shares, index)
    return interval_of_sums(result, sums, ratio, rng, resamples, within)


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
    result = Estimate(
        value=None,
        level=level,
        n=min(sum(example in shared for example, _ in side) for side in (candidate, baseline)),
        clusters=len(shared),
        missing=missing + len(units[0] ^ units[1]),
        method=f"paired {bootstrap_method(resamples)}",
    )
    if not shared:
        return result
    sums = np.hstack([shared_sums(side, shared) for side in (candidate, baseline)])
    return interval_of_sums(result, sums, _difference, rng, resamples)


def shared_sums(side: Mapping[Key, Weighted], shared: set[str]) -> FloatArray:
    """Return the sums of w v and of w over each shared prompt, in their order, (G, 2)."""
    kept = {key: entry for key, entry in side.items() if key[0] in shared}
    values, weights = _checked([e.value for e in kept.values()], [e.weight for e in kept.values()])
    return weighted_sums(values, weights, cluster_index([key[0] for key in kept])[1])
