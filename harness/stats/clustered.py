"""Cluster-robust means and differences in closed form: standard error, t test, t interval.

Nothing here draws at random. The standard error is the delete-one-cluster jackknife, known for
linear models as CR3: with clusters of one size it is the usual CR1 error exactly, with clusters of
very different sizes it does not fall short as CR1 does.

Sources: Cameron and Miller (2015), "A practitioner's guide to cluster-robust inference", Journal
of Human Resources 50, section VI; Miller (2024), "Adding error bars to evals", arXiv 2411.00640,
sections 2.2 and 4.2, on clustered and paired errors in the evaluation of language models.
"""

from __future__ import annotations

import numpy as np

from harness.stats.bootstrap import (
    Clusters,
    FloatArray,
    cluster_index,
    jackknife_error,
    ratio,
    t_quantile,
    weighted_sums,
)
from harness.stats.proportion import wilson
from harness.types import Estimate, Record

METHOD = "cluster-robust (CR3, delete-one-cluster jackknife), t"

ROUNDING = 1e-12
"""Errors and differences below this, in terms of the means they come from, are rounding."""

_ALIKE = "p of the sign test, as all clusters have the same value"
_WILSON = "wilson interval on clusters, as all clusters have the same value"


class MeanTest(Record):
    """An estimate with its standard error and a two-sided test of one value.

    Attributes:
        estimate: the statistic with its t interval.
        standard_error: None with fewer than two clusters.
        null: the value that is tested.
        statistic: (value - null) / standard_error; None where there is no such quotient.
        degrees: degrees of freedom, clusters - 1.
        p_value: None with fewer than two clusters. Where the standard error is 0 and the value is
            not ``null``, every cluster points the same way, and p is the sign test's 2^(1 - G).
    """

    estimate: Estimate
    standard_error: float | None
    null: float
    statistic: float | None
    degrees: int
    p_value: float | None


def t_test(
    result: Estimate,
    value: float,
    left_out: FloatArray,
    null: float = 0.0,
    scale: float = 0.0,
) -> MeanTest:
    """Return ``result`` with its value, t interval and test.

    Args:
        left_out: (G,) the statistic without each cluster; as good as empty where G is 1.
        scale: size of the numbers that the statistic was computed from, to tell rounding by.
    """
    degrees = len(left_out) - 1
    result = result.model_copy(update={"value": value})
    if degrees < 1:
        return untested(result, null, degrees)
    error = jackknife_error(value, left_out)
    tiny = ROUNDING * max(scale, abs(value), abs(null))
    if error <= tiny:
        return _all_alike(result, value, null, degrees, differs=abs(value - null) > tiny)
    half = t_quantile(result.level, degrees) * error
    statistic = (value - null) / error
    return MeanTest(
        estimate=result.model_copy(update={"low": value - half, "high": value + half}),
        standard_error=error,
        null=null,
        statistic=statistic,
        degrees=degrees,
        p_value=_two_sided(statistic, degrees),
    )


def _all_alike(
    result: Estimate, value: float, null: float, degrees: int, *, differs: bool
) -> MeanTest:
    """Return the test of clusters that all have one value: t knows no p for it, the signs do."""
    method = f"{result.method}; {_ALIKE}"
    return MeanTest(
        estimate=result.model_copy(update={"low": value, "high": value, "method": method}),
        standard_error=0.0,
        null=null,
        statistic=None,
        degrees=degrees,
        p_value=2.0**-degrees if differs else 1.0,
    )


def untested(estimate: Estimate, null: float, degrees: int) -> MeanTest:
    """Return an estimate that too few clusters leave without error and test."""
    return MeanTest(
        estimate=estimate,
        standard_error=None,
        null=null,
        statistic=None,
        degrees=max(0, degrees),
        p_value=None,
    )


def _two_sided(statistic: float, degrees: int) -> float:
    from scipy.special import stdtr  # type: ignore[import-untyped]

    return float(2 * stdtr(degrees, -abs(statistic)))


def as_share(tested: MeanTest) -> MeanTest:
    """Return the test of a share: its interval stays within [0, 1] and is never of no width."""
    found = tested.estimate
    if found.value is None or found.low is None or found.high is None:
        return tested
    if tested.standard_error == 0:
        bounds = wilson(found.value * found.clusters, found.clusters, level=found.level)
        method = f"{found.method}; {_WILSON}"
        update = {"low": bounds.low, "high": bounds.high, "method": method}
    else:
        update = {"low": max(0.0, found.low), "high": min(1.0, found.high)}
    return tested.model_copy(update={"estimate": found.model_copy(update=update)})


def clustered_mean(
    values: FloatArray,
    clusters: Clusters,
    *,
    null: float = 0.0,
    weights: FloatArray | None = None,
    level: float = 0.95,
    missing: int = 0,
) -> MeanTest:
    """Return the weighted mean with its cluster-robust error, and the test that it is ``null``.

    Args:
        values: (n,); NaN is left out and counted missing.
        clusters: (n,) name or code of the independent unit of each value.
        weights: (n,) shares above 0; equal ones if None.

    Raises:
        ValueError: unequal lengths.
    """
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} values but {len(clusters)} clusters")
    kept = np.isfinite(values)
    shares = np.ones(len(values)) if weights is None else weights
    count, index = cluster_index(np.asarray(clusters)[kept])
    result = Estimate(
        value=None,
        level=level,
        n=int(kept.sum()),
        clusters=count,
        missing=missing + int((~kept).sum()),
        method=METHOD,
    )
    return mean_test(result, weighted_sums(values[kept], shares[kept], index), null)


def clustered_share(
    values: FloatArray,
    clusters: Clusters,
    *,
    null: float = 0.5,
    level: float = 0.95,
    missing: int = 0,
) -> MeanTest:
    """Return :func:`clustered_mean` of numbers in [0, 1], such as verdicts on one candidate.

    The interval is cut to [0, 1]; where all clusters have the same value it is Wilson's.
    """
    found = clustered_mean(values, clusters, null=null, level=level, missing=missing)
    return as_share(found)


def mean_test(result: Estimate, sums: FloatArray, null: float) -> MeanTest:
    """Return the test of a ratio of sums (G, 2)."""
    if not len(sums):
        return untested(result, null, 0)
    total = sums.sum(axis=0)
    left_out = ratio(total - sums) if len(sums) > 1 else np.empty(1)
    return t_test(result, float(ratio(total)), left_out, null)
