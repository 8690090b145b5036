"""How far a judge can be trusted, laid out: one line a weakness, with what it means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.report.lookup import Lookup
from harness.report.text import Shown, shown
from harness.types import SHARE, Estimate

LOG_ODDS = "log-odds"

WEAKNESSES = (
    ("flip_rate", SHARE, "Winner changes with the order", "0 % for a judge that reads"),
    ("position_preference", SHARE, "Preference for the answer shown first", "50 % is none"),
    ("length_preference", SHARE, "Decided for the longer answer", "50 % is none"),
    ("length_slope", LOG_ODDS, "Log-odds of a win for each doubling of the length", "0 is none"),
    ("ties", SHARE, "Ties", ""),
    ("invalid", SHARE, "Without a valid verdict", "excluded and counted"),
)
"""Figure of `JudgeQuality`, its unit, its title, and how to read it."""


@dataclass(frozen=True)
class QualityLine:
    """One figure about a judge."""

    title: str
    meaning: str
    estimate: Estimate
    unit: str

    @property
    def text(self) -> Shown:
        """Value with its interval."""
        return shown(self.estimate, self.unit)


def quality_lines(lookup: Lookup, suite: str, judge: str) -> tuple[QualityLine, ...]:
    """Return what there is to say of a judge on a suite; empty for a judge by rule.

    What rests on no observation is left out: a judge that was shown one order has no flip rate.
    """
    found = [
        row.quality
        for row in lookup.comparison.judge_quality
        if (row.suite, row.quality.judge) == (suite, judge)
    ]
    return tuple(
        QualityLine(title, meaning, getattr(quality, name), unit)
        for quality in found
        for name, unit, title, meaning in WEAKNESSES
        if getattr(quality, name).n
    )


def panel_lines(lookup: Lookup) -> tuple[str, ...]:
    """Return how far the judges of each suite agree with each other, in sentences."""
    return tuple(_panel_lines(lookup))


def _panel_lines(lookup: Lookup) -> Iterator[str]:
    titles = {card.name: card.title for card in lookup.comparison.manifest.suites}
    names = {judge.name: judge.title for judge in lookup.comparison.manifest.judges}
    for panel in lookup.comparison.judge_agreement:
        alpha = shown(panel.agreement.alpha, LOG_ODDS).line
        yield f"{titles[panel.suite]}: Krippendorff's alpha of the judges {alpha}."
        for pair in panel.agreement.pairs:
            both = " and ".join(names.get(n, n) for n in (pair.first, pair.second))
            kappa, alike = shown(pair.kappa, LOG_ODDS).line, shown(pair.agreement, SHARE).line
            yield f"{both}: the same verdict on {alike}, Cohen's kappa {kappa}."
