"""Cluster-robust means and differences in closed form: standard error, t test, t interval.

Nothing here draws at random. The standard error is the delete-one-cluster jackknife, known for
linear models as CR3: with clusters of one size it is the usual CR1 error exactly, with clusters of
very different sizes it does not fall short as CR1 does.

A share has Wilson's interval for as many independent observations as have that error, with t in
the place of z. It never leaves [0, 1] and is never of no width. With wins of 0.9 on five samples of
ten prompts it covers 98 %, where t and the bootstrap cover 87; the least seen in simulations of
shares up to 0.85 is 92 %. The test of a share belongs to it: the interval leaves out 1/2 exactly
where p says so.

Sources: Cameron and Miller (2015), "A practitioner's guide to cluster-robust inference", Journal
of Human Resources 50, section VI; Miller (2024), "Adding error bars to evals", arXiv 2411.00640, on
clustered and paired errors in the evaluation of language models; Franco, Little, Louis and Slud
(2019), "Comparative study of confidence intervals for proportions in complex sample surveys",
Journal of Survey Statistics and Methodology 7, on Wilson's interval with an effective size.
"""

from __future__ import annotations

import math

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
from harness.stats.proportion import alike
from harness.types import Estimate, Record

METHOD = "cluster-robust (CR3, delete-one-cluster jackknife), t"

ROUNDING = 1e-12
"""Errors and differences below this, in terms of the means they come from, are rounding."""

SHARE = "wilson with the cluster-robust (CR3) effective size, t"

_SAME = "exact bounds, as all clusters have the same share"

_ALIKE = "p of the sign test, as all clusters have the same value"


class MeanTest(Record):
    """An estimate with its standard error and a two-sided test of one value.

    Attributes:
        estimate: the statistic with its t interval.
        standard_error: None with fewer than two clusters.
        null: the value that is tested.
        statistic: (value - null) / standard error; of a share, over the error that it has at
            ``null``. None where there is no such quotient.
        degrees: degrees of freedom, clusters - 1.
        p_value: None with fewer than two clusters. Where the standard error is 0 and the value is
            not ``null``, every cluster points the same way, and p is the sign test's 2^(1 - G);
            a share needs no such exception.
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


def share_test(result: Estimate, sums: FloatArray, null: float = 0.5) -> MeanTest:
    """Return the test of a mean of numbers in [0, 1], from the sums (G, 2) of them and of weights.

    With s the jackknife error of the share p and t the quantile of G - 1 degrees, the effective
    size is m = p (1 - p) / s^2, and

        low, high = (p + t^2 / 2m -+ t sqrt(p (1 - p) / m + t^2 / 4m^2)) / (1 + t^2 / m)
        statistic = (p - null) / sqrt(null (1 - null) / m)

    Where all clusters have the same share, each is one observation: m = G if it is 0 or 1, and
    between them the bounds are those of :func:`harness.stats.proportion.alike` with the p that
    belongs to them, 2 (1/2 / max(p, 1 - p))^G for a null of 1/2.
    """
    tested = mean_test(result, sums, null)
    value, error = tested.estimate.value, tested.standard_error
    if value is None or error is None:
        return tested
    if error == 0 and 0 < value < 1:
        return _same_share(tested, value)
    size = value * (1 - value) / error**2 if error > 0 else float(len(sums))
    statistic = (value - null) / math.sqrt(null * (1 - null) / size)
    low, high = _wilson(value, size, t_quantile(result.level, tested.degrees))
    bounds = {"value": value, "low": low, "high": high}
    update = {
        "estimate": result.model_copy(update=bounds),
        "statistic": statistic,
        "p_value": _two_sided(statistic, tested.degrees),
    }
    return tested.model_copy(update=update)


def _same_share(tested: MeanTest, value: float) -> MeanTest:
    """Return the test of a share that all clusters have."""
    result, count = tested.estimate, tested.degrees + 1
    low, high = alike(value, count, result.level)
    bounds = {"value": value, "low": low, "high": high, "method": f"{SHARE}; {_SAME}"}
    nearer = tested.null / value if value > tested.null else (1 - tested.null) / (1 - value)
    update = {
        "estimate": result.model_copy(update=bounds),
        "statistic": 0.0 if value == tested.null else None,
        "p_value": min(1.0, 2 * nearer**count),
    }
    return tested.model_copy(update=update)


def _wilson(value: float, size: float, quantile: float) -> tuple[float, float]:
    spread = quantile**2 / size
    centre = (value + spread / 2) / (1 + spread)
    half = math.sqrt(spread * value * (1 - value) + spread**2 / 4) / (1 + spread)
    return max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))


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
    result, sums = _summed(values, clusters, weights, level, missing)
    return mean_test(result.model_copy(update={"method": METHOD}), sums, null)


def clustered_share(
    values: FloatArray,
    clusters: Clusters,
    *,
    null: float = 0.5,
    weights: FloatArray | None = None,
    level: float = 0.95,
    missing: int = 0,
) -> MeanTest:
    """Return the weighted mean of numbers in [0, 1], such as verdicts: a win rate with its test.

    Arguments and errors are those of :func:`clustered_mean`, the interval and the test those of
    :func:`share_test`.
    """
    result, sums = _summed(values, clusters, weights, level, missing)
    return share_test(result, sums, null)


def _summed(
    values: FloatArray,
    clusters: Clusters,
    weights: FloatArray | None,
    level: float,
    missing: int,
) -> tuple[Estimate, FloatArray]:
    """Return an estimate without a value, and the sums of w v and of w by cluster, (G, 2)."""
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
        method=SHARE,
    )
    return result, weighted_sums(values[kept], shares[kept], index)


def mean_test(result: Estimate, sums: FloatArray, null: float) -> MeanTest:
    """Return the test of a ratio of sums (G, 2)."""
    if not len(sums):
        return untested(result, null, 0)
    total = sums.sum(axis=0)
    left_out = ratio(total - sums) if len(sums) > 1 else np.empty(1)
    return t_test(result, float(ratio(total)), left_out, null)
