"""Each metric of a checkpoint, and its paired differences between checkpoints, with their tests."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from harness.comparing.columns import Table
from harness.comparing.resampling import Resampling
from harness.stats.bootstrap import Key, cluster_mean, paired_difference
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
    ordered = sorted(column.values.items(), key=_place)
    clusters = [key[0] for key, _ in ordered]
    values = np.array([entry.value for _, entry in ordered], dtype=np.float64)
    weights = np.array([entry.weight for _, entry in ordered], dtype=np.float64)
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


def _place(item: tuple[Key, object]) -> tuple[str, int]:
    example, sample = item[0]
    return example, -1 if sample is None else sample


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
    one_sided = {key[0] for key in sides[0].values} ^ {key[0] for key in sides[1].values}
    lacking = sides[0].lacking.keys() | sides[1].lacking.keys()
    ordered = [dict(sorted(side.values.items(), key=_place)) for side in sides]
    about = (table.suite, table.metric.key, candidate, baseline)
    estimate = paired_difference(
        *ordered,
        rng=resampling.rng("difference", *about),
        resamples=resampling.resamples,
        missing=sum(key[0] not in one_sided for key in lacking),
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
