"""Each metric of a checkpoint, and its paired differences between checkpoints, with their tests."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from harness.comparing.columns import Table
from harness.comparing.resampling import Resampling
from harness.stats.bootstrap import cluster_mean, paired_difference
from harness.stats.clustered import clustered_share
from harness.stats.paired import bounded, paired_tests
from harness.types import SHARE, Estimate, MetricDifference, MetricResult


def results(table: Table, resampling: Resampling) -> Iterator[MetricResult]:
    """Yield the metric of each checkpoint; shares have Wilson's interval, means a bootstrap's."""
    for checkpoint in table.columns:
        yield MetricResult(
            suite=table.suite,
            metric=table.metric,
            primary=table.primary,
            checkpoint=checkpoint,
            estimate=_mean(table, checkpoint, resampling),
        )


def _mean(table: Table, checkpoint: str, resampling: Resampling) -> Estimate:
    column = table.columns[checkpoint]
    found = table.observations[checkpoint]
    clusters = [unit for unit, _ in found]
    values = np.array([entry.value for entry in found.values()], dtype=np.float64)
    weights = np.array([entry.weight for entry in found.values()], dtype=np.float64)
    if table.metric.unit == SHARE:
        share = clustered_share(values, clusters, weights=weights, missing=len(column.lacking))
        return share.estimate
    return cluster_mean(
        values,
        clusters,
        weights=weights,
        rng=resampling.rng("mean", table.suite, table.metric.key, checkpoint),
        resamples=resampling.resamples,
        missing=len(column.lacking),
    )


def differences(table: Table, resampling: Resampling) -> Iterator[MetricDifference]:
    """Yield the paired difference of every two checkpoints; those of primary metrics are tested."""
    for baseline, candidate in combinations(table.columns, 2):
        yield _difference(table, candidate, baseline, resampling)


def _difference(
    table: Table, candidate: str, baseline: str, resampling: Resampling
) -> MetricDifference:
    """Return the paired difference; an observation that either side lacks is missing once.

    Prompts that only one side has are left to :func:`paired_difference`, which counts them.
    """
    sides = table.columns[candidate], table.columns[baseline]
    lacking = sides[0].lacking.keys() | sides[1].lacking.keys()
    ordered = [table.observations[name] for name in (candidate, baseline)]
    one_sided = {unit for unit, _ in ordered[0]} ^ {unit for unit, _ in ordered[1]}
    about = (table.suite, table.metric.key, candidate, baseline)
    estimate = paired_difference(
        *ordered,
        rng=resampling.rng("difference", *about),
        resamples=resampling.resamples,
        missing=sum(table.units[key[0]] not in one_sided for key in lacking),
    )
    permuting = resampling.rng("permutation", *about)
    return MetricDifference(
        suite=table.suite,
        metric=table.metric,
        primary=table.primary,
        candidate=candidate,
        baseline=baseline,
        estimate=bounded(estimate) if table.metric.unit == SHARE else estimate,
        test=paired_tests(*ordered, rng=permuting) if table.primary else None,
    )
