"""p values of a comparison within their families, by Holm's correction.

A family is what one reads together: all primary metrics of all suites, or all win rates of one
judge over all suites, of every other checkpoint against one baseline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from harness.stats.hypothesis import holm
from harness.types import REFERENCE, Corrected, MetricDifference, WinRate

Entry = tuple[str, str, str, str]
"""Suite, metric or judge, candidate, baseline."""


def corrected_differences(
    differences: Iterable[MetricDifference], checkpoints: tuple[str, ...]
) -> Iterator[Corrected]:
    """Yield the adjusted p values of primary differences: a family to each baseline."""
    found: dict[str, dict[Entry, float | None]] = {name: {} for name in checkpoints}
    for difference in differences:
        if difference.primary and difference.test is not None:
            about = difference.suite, difference.metric.key
            entry = (*about, difference.candidate, difference.baseline)
            found[difference.baseline][entry] = difference.test.p_value
    for family in found.values():
        yield from _corrected(family)


def corrected_win_rates(win_rates: Iterable[WinRate]) -> Iterator[Corrected]:
    """Yield the adjusted p values of checkpoints: a family to each judge and baseline."""
    found: dict[tuple[str, str], dict[Entry, float | None]] = {}
    for rate in win_rates:
        if rate.candidate != REFERENCE and rate.test is not None:
            family = found.setdefault((rate.judge, rate.baseline), {})
            entry = rate.suite, rate.judge, rate.candidate, rate.baseline
            family[entry] = rate.test.p_value
    for family in found.values():
        yield from _corrected(family)


def _corrected(family: dict[Entry, float | None]) -> Iterator[Corrected]:
    adjusted = holm({str(place): p for place, p in enumerate(family.values())})
    for (suite, about, candidate, baseline), found in zip(family, adjusted, strict=True):
        yield Corrected(
            suite=suite,
            about=about,
            candidate=candidate,
            baseline=baseline,
            p_value=found.raw,
            adjusted=found.adjusted,
            family=found.family,
        )
