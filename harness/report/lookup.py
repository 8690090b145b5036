"""Finding an estimate in a comparison by what it is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from harness.stats.estimates import mirrored
from harness.types import (
    REFERENCE,
    Comparison,
    Corrected,
    Estimate,
    JudgeInfo,
    MetricDifference,
    MetricInfo,
    MetricResult,
    SuiteCard,
    WinRate,
)


@dataclass(frozen=True)
class Lookup:
    """A comparison with its estimates under keys."""

    comparison: Comparison

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Checkpoints in the order of the run; the first is the baseline."""
        return tuple(c.spec.name for c in self.comparison.manifest.checkpoints)

    @cached_property
    def results(self) -> dict[tuple[str, str, str], MetricResult]:
        """Metric results by suite, metric and checkpoint."""
        return {(r.suite, r.metric.key, r.checkpoint): r for r in self.comparison.metrics}

    @cached_property
    def differences(self) -> dict[tuple[str, str, str, str], MetricDifference]:
        """Paired differences by suite, metric, candidate and baseline."""
        return {
            (d.suite, d.metric.key, d.candidate, d.baseline): d for d in self.comparison.differences
        }

    @cached_property
    def win_rates(self) -> dict[tuple[str, str, str, str], WinRate]:
        """Win rates by suite, judge, candidate and baseline, from both sides of every pair.

        A side that the comparison holds is kept as it is; the other one is derived from it.
        """
        given = {(w.suite, w.judge, w.candidate, w.baseline): w for w in self.comparison.win_rates}
        sides = [mirrored(w) for w in given.values() if w.baseline != REFERENCE]
        return {(w.suite, w.judge, w.candidate, w.baseline): w for w in sides} | given

    @cached_property
    def difference_tests(self) -> dict[tuple[str, str, str, str], Corrected]:
        """Tests of paired differences by suite, metric, candidate and baseline."""
        return _by_pair(self.comparison.corrected_differences)

    @cached_property
    def win_rate_tests(self) -> dict[tuple[str, str, str, str], Corrected]:
        """Tests of win rates by suite, judge, candidate and baseline."""
        return _by_pair(self.comparison.corrected_win_rates)

    @cached_property
    def judges(self) -> dict[str, JudgeInfo]:
        """Judges by name."""
        return {j.name: j for j in self.comparison.manifest.judges}

    def metrics_of(self, card: SuiteCard) -> list[MetricInfo]:
        """Return a suite's metrics: the declared ones, then any other that has a result."""
        extra = (r.metric for r in self.comparison.metrics if r.suite == card.name)
        return list(_by_key([*card.metrics, *extra]).values())

    def metric(self, card: SuiteCard, key: str) -> MetricInfo | None:
        """Return one metric of a suite, or None."""
        return _by_key(self.metrics_of(card)).get(key)

    def estimate(self, suite: str, key: str, checkpoint: str) -> Estimate | None:
        """Return the estimate of a metric, or None where it was not computed."""
        found = self.results.get((suite, key, checkpoint))
        return found.estimate if found else None

    def difference(self, suite: str, key: str, candidate: str, baseline: str) -> Estimate | None:
        """Return a paired difference, or None where it was not computed."""
        found = self.differences.get((suite, key, candidate, baseline))
        return found.estimate if found else None


def _by_pair(tests: Iterable[Corrected]) -> dict[tuple[str, str, str, str], Corrected]:
    return {(t.suite, t.about, t.candidate, t.baseline): t for t in tests}


def _by_key(metrics: Iterable[MetricInfo]) -> dict[str, MetricInfo]:
    found: dict[str, MetricInfo] = {}
    for metric in metrics:
        found.setdefault(metric.key, metric)
    return found
