"""p values of a comparison within their families, by Holm's correction.

A family is what one reads together, over all suites: the primary metrics of every checkpoint
against the first one, and those of all other pairs; the same of the win rates of one judge, with
the reference answers in the first checkpoint's place where it judged them. A pair seen from its
other side has the same test.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import TypeVar

from harness.stats.hypothesis import holm
from harness.types import REFERENCE, Corrected, MetricDifference, WinRate

Item = TypeVar("Item", MetricDifference, WinRate)


def corrected_differences(
    differences: Iterable[MetricDifference], first: str
) -> Iterator[Corrected]:
    """Yield the adjusted p values of primary differences.

    Args:
        first: the checkpoint that all others are read against.
    """
    families: dict[Hashable, list[MetricDifference]] = {}
    for found in differences:
        if found.primary and found.test is not None:
            families.setdefault(found.baseline == first, []).append(found)
    for family in families.values():
        yield from _corrected([(found, found.metric.key) for found in family])


def corrected_win_rates(win_rates: Iterable[WinRate], first: str) -> Iterator[Corrected]:
    """Yield the adjusted p values of win rates, each followed by its other side's.

    Args:
        win_rates: each pair from one side or from both.
        first: the checkpoint that all others are read against.
    """
    rates = [rate for rate in win_rates if rate.test is not None]
    with_reference = {rate.judge for rate in rates if REFERENCE in (rate.candidate, rate.baseline)}
    pairs: dict[Hashable, WinRate] = {}
    for rate in rates:
        sides = frozenset((rate.candidate, rate.baseline))
        pairs.setdefault((rate.suite, rate.judge, sides), rate)
    families: dict[Hashable, list[WinRate]] = {}
    for rate in pairs.values():
        focus = REFERENCE if rate.judge in with_reference else first
        families.setdefault((rate.judge, focus in (rate.candidate, rate.baseline)), []).append(rate)
    for family in families.values():
        for found in _corrected([(rate, rate.judge) for rate in family]):
            yield found
            turned = {"candidate": found.baseline, "baseline": found.candidate}
            yield found.model_copy(update=turned)


def _corrected(family: list[tuple[Item, str]]) -> Iterator[Corrected]:
    tests = [item.test for item, _ in family]
    p_values = {str(k): None if test is None else test.p_value for k, test in enumerate(tests)}
    adjusted = holm(p_values)
    for (item, about), found in zip(family, adjusted, strict=True):
        yield Corrected(
            suite=item.suite,
            about=about,
            candidate=item.candidate,
            baseline=item.baseline,
            p_value=found.raw,
            adjusted=found.adjusted,
            family=found.family,
        )
