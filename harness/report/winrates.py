"""Win rates laid out: a matrix for each suite and judge, and raw against length-controlled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from harness.report.judges import QualityLine, quality_lines
from harness.report.lookup import Lookup
from harness.report.significance import p_data, p_pair
from harness.report.strengths import StrengthBlock, strength_block
from harness.report.tables import Change, Line, metric_lines, precise
from harness.report.text import NBSP, Shown, clean, counted, number, shown
from harness.stats.power import WinRateDesign, minimum_detectable_win_rate
from harness.types import REFERENCE, SHARE, Corrected, Estimate, JudgeInfo, SuiteCard, WinRate

CHARACTERS = "characters"
"""Metric that holds the mean length of a checkpoint's answers."""

MOST_TIES = 0.99
"""Share of ties above which nothing is left to detect."""

P_VALUES = (
    "p: test of a win rate of one half, prompts as the units; Holm: the same corrected for so many "
    "tests of this judge over all suites, of pairs with this baseline or of all others."
)

HEAT = 0.9
"""Opacity of a heat-map cell for each unit of distance from one half; at most 0.45."""


@dataclass(frozen=True)
class DuelCell:
    """One win rate in the matrix; ``rate`` is None where there is no verdict on the pair."""

    candidate: str
    baseline: str
    same: bool
    rate: WinRate | None

    @property
    def text(self) -> Shown:
        """Win rate in percent with its interval."""
        return shown(self.rate.estimate if self.rate else None, SHARE, null=0.5)

    @property
    def change(self) -> Change:
        """Better or worse where the interval excludes one half."""
        return against_half(self.rate.estimate if self.rate else None)

    @property
    def tally(self) -> str:
        """Wins, ties and losses, such as ``30/10/20``."""
        return f"{self.rate.wins}/{self.rate.ties}/{self.rate.losses}" if self.rate else ""

    @property
    def sentence(self) -> str:
        """The verdicts in words, for the title of the cell."""
        if self.rate is None:
            return f"{self.candidate} against {self.baseline}: no verdict"
        rate = self.rate
        return (
            f"{self.candidate} against {self.baseline}: {rate.wins} wins, {rate.ties} ties, "
            f"{rate.losses} losses, {rate.invalid} without a verdict; "
            f"win rate {self.text.line.replace(NBSP, ' ')}"
        )

    @property
    def heat(self) -> tuple[str, float]:
        """Side of one half (``win``, ``loss`` or ``even``) and the opacity of its colour."""
        value = self.rate.estimate.value if self.rate else None
        if value is None or value == 0.5:
            return "even", 0.0
        return ("win" if value > 0.5 else "loss"), round(abs(value - 0.5) * HEAT, 3)


@dataclass(frozen=True)
class RateRow:
    """Raw and length-controlled win rate of one pair, with the lengths behind them."""

    rate: WinRate
    length: Shown
    length_estimate: Estimate | None
    test: Corrected | None

    @property
    def raw(self) -> Shown:
        """Win rate as judged."""
        return shown(self.rate.estimate, SHARE, null=0.5)

    @property
    def controlled(self) -> Shown:
        """Win rate predicted at equal length."""
        if self.rate.length_controlled is None:
            return Shown("no data", "", "not fitted")
        return shown(self.rate.length_controlled, SHARE, null=0.5)

    @property
    def degree(self) -> Shown | None:
        """Mean degree of preference, where the judge gives degrees."""
        found = self.rate.mean_preference
        return None if found is None else shown(found, SHARE, null=0.5)

    @property
    def difference(self) -> str:
        """Mean length difference in characters."""
        length = self.rate.mean_length_difference
        return "no data" if length is None else number(length, 0, signed=True)

    @property
    def tested(self) -> str:
        """p value of a win rate of one half, and the same within its family."""
        return p_pair(self.test)

    @property
    def tally(self) -> str:
        """Wins, ties and losses."""
        return f"{self.rate.wins}/{self.rate.ties}/{self.rate.losses}"


@dataclass(frozen=True)
class JudgeBlock:
    """Everything a report says about one judge on one suite.

    Attributes:
        lead: metrics shown before the verdicts where these are no better than chance.
        matrix: a row of cells for each checkpoint; empty where only one was run.
        focus: the baseline of the table and the figure.
        rows: pairs with ``focus``. others: the remaining pairs.
        quality: how far the judge can be trusted; empty for a rule.
        strengths: of all sides together; None for a rule, and for two sides.
        detectable: the smallest win rate that so many prompts can tell from one half.
    """

    card: SuiteCard
    judge: JudgeInfo | None
    name: str
    lead: tuple[Line, ...]
    columns: tuple[str, ...]
    matrix: tuple[tuple[DuelCell, ...], ...]
    focus: str
    rows: tuple[RateRow, ...]
    others: tuple[RateRow, ...]
    quality: tuple[QualityLine, ...]
    strengths: StrengthBlock | None
    detectable: str

    @property
    def title(self) -> str:
        """Name of the judge as the reader knows it."""
        return self.judge.title if self.judge else self.name

    @property
    def at_chance(self) -> bool:
        """Whether the judge's verdicts are no better than chance."""
        return self.judge is not None and self.judge.no_better_than_chance

    @property
    def stem(self) -> str:
        """File name of the figure, without its suffix."""
        return re.sub(r"[^A-Za-z0-9_-]", "-", f"win-rate-{self.card.name}-{self.name}")


def against_half(estimate: Estimate | None) -> Change:
    """Return whether a win rate's interval excludes one half."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return Change.UNRESOLVED
    if estimate.low > 0.5:
        return Change.BETTER
    return Change.WORSE if estimate.high < 0.5 else Change.UNRESOLVED


def judge_blocks(lookup: Lookup) -> tuple[JudgeBlock, ...]:
    """Return a block for each suite and judge, in the order of the run."""
    cards = lookup.comparison.manifest.suites
    return tuple(_block(lookup, card, name) for card in cards for name in _judges(lookup, card))


def _judges(lookup: Lookup, card: SuiteCard) -> list[str]:
    seen = (w.judge for w in lookup.comparison.win_rates if w.suite == card.name)
    return list(dict.fromkeys([*card.judges, *seen]))


def _block(lookup: Lookup, card: SuiteCard, name: str) -> JudgeBlock:
    judge = lookup.judges.get(name)
    baselines = _baselines(lookup, card, name)
    focus = REFERENCE if REFERENCE in baselines else lookup.names[0]
    weak = judge is not None and judge.no_better_than_chance
    return JudgeBlock(
        card=card,
        judge=judge,
        name=name,
        lead=metric_lines(lookup, card, judge.lead_metrics) if judge and weak else (),
        columns=baselines,
        matrix=_matrix(lookup, card, name, baselines) if len(lookup.names) > 1 else (),
        focus=focus,
        rows=tuple(_rows(lookup, card, name, [focus])),
        others=tuple(_rows(lookup, card, name, [b for b in baselines if b != focus])),
        quality=quality_lines(lookup, card.name, name),
        strengths=strength_block(lookup, card.name, name),
        detectable=_detectable(lookup, card, name),
    )


def _baselines(lookup: Lookup, card: SuiteCard, judge: str) -> tuple[str, ...]:
    pairs = [w for w in lookup.comparison.win_rates if (w.suite, w.judge) == (card.name, judge)]
    with_reference = any(w.baseline == REFERENCE for w in pairs)
    return (*lookup.names, REFERENCE) if with_reference else lookup.names


def _matrix(
    lookup: Lookup, card: SuiteCard, judge: str, baselines: tuple[str, ...]
) -> tuple[tuple[DuelCell, ...], ...]:
    def cell(candidate: str, baseline: str) -> DuelCell:
        rate = lookup.win_rates.get((card.name, judge, candidate, baseline))
        return DuelCell(candidate, baseline, candidate == baseline, rate)

    return tuple(tuple(cell(name, baseline) for baseline in baselines) for name in lookup.names)


def _rows(lookup: Lookup, card: SuiteCard, judge: str, baselines: list[str]) -> Iterator[RateRow]:
    for baseline in baselines:
        for name in lookup.names:
            rate = lookup.win_rates.get((card.name, judge, name, baseline))
            if rate is not None:
                length = lookup.estimate(card.name, CHARACTERS, name)
                test = lookup.win_rate_tests.get((card.name, judge, name, baseline))
                yield RateRow(rate, shown(length, CHARACTERS), length, test)


def _detectable(lookup: Lookup, card: SuiteCard, judge: str) -> str:
    """Return what the fewest prompts behind a win rate can find; empty with fewer than two."""
    rates = [w for w in lookup.comparison.win_rates if (w.suite, w.judge) == (card.name, judge)]
    prompts, total = (
        min((w.estimate.clusters for w in rates), default=0),
        sum(w.wins + w.ties + w.losses for w in rates),
    )
    if prompts < 2 or not total:
        return ""
    ties = min(sum(w.ties for w in rates) / total, MOST_TIES)
    planned = minimum_detectable_win_rate(WinRateDesign(prompts=prompts, ties=ties))
    who = f"With {counted(prompts, 'prompt')} and {number(100 * ties, 0)}{NBSP}% ties, as here"
    if planned.difference is None:
        return f"{who}, no win rate is told from 50{NBSP}% in 8 of 10 such runs."
    least = number(100 * (0.5 + planned.difference), 0)
    return (
        f"{who}, a true win rate of {least}{NBSP}% or more is told from 50{NBSP}% in 8 of 10 such "
        "runs; one nearer to it mostly stays unresolved."
    )


def duel_data(
    rate: WinRate, *, controlled: bool = False, test: Corrected | None = None
) -> dict[str, str]:
    """Return the HTML data attributes of a win rate, its value in full precision."""
    about = {
        "suite": rate.suite,
        "judge": rate.judge,
        "checkpoint": rate.candidate,
        "baseline": rate.baseline,
        "metric": "length_controlled_win_rate" if controlled else "win_rate",
    }
    estimate = rate.length_controlled if controlled else rate.estimate
    return about | precise(estimate) | p_data(test)


def describe(block: JudgeBlock) -> str:
    """Return the judge's definition, or say that the manifest has none."""
    if block.judge is None:
        return f"The manifest does not describe the judge '{clean(block.name)}'."
    return block.judge.definition
