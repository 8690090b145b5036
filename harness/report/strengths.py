"""Bradley-Terry strengths laid out: win rates against one side, as judged and at equal style."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.report.lookup import Lookup
from harness.report.text import Shown, shown
from harness.types import REFERENCE, SHARE, Estimate, SuiteStrengths

LOG_ODDS = "log-odds"


@dataclass(frozen=True)
class StrengthRow:
    """One side: the win rate against the baseline that its strength implies."""

    name: str
    raw: Estimate
    styled: Estimate

    @property
    def texts(self) -> tuple[Shown, Shown]:
        """As judged, and at equal style."""
        return _shown(self.raw), _shown(self.styled)


@dataclass(frozen=True)
class StrengthBlock:
    """Strengths by one judge on one suite.

    Attributes:
        effects: name of a style covariate, and the log-odds that one root mean square of it adds.
    """

    baseline: str
    rows: tuple[StrengthRow, ...]
    effects: tuple[tuple[str, Shown], ...]


def strength_block(lookup: Lookup, suite: str, judge: str) -> StrengthBlock | None:
    """Return the strengths by a judge on a suite; None where the comparison has none."""
    for found in lookup.comparison.strengths:
        if (found.suite, found.judge) == (suite, judge):
            return _block(lookup, found)
    return None


def _block(lookup: Lookup, found: SuiteStrengths) -> StrengthBlock:
    raw = {m.model: m.win_rate for m in found.raw.models}
    styled = {m.model: m.win_rate for m in found.styled.models}
    effects = [(e.name, e.effect) for e in found.styled.style if e.effect.value is not None]
    return StrengthBlock(
        baseline=found.raw.baseline,
        rows=tuple(
            StrengthRow(name, raw[name], styled[name])
            for name in (*lookup.names, REFERENCE)
            if name in raw and name != found.raw.baseline
        ),
        effects=tuple((name, shown(effect, LOG_ODDS)) for name, effect in effects),
    )


def _shown(rate: Estimate) -> Shown:
    """Return a win rate as text; where there is none, with the reason in the interval's place."""
    found = shown(rate, SHARE, null=0.5)
    return found if rate.value is not None else replace(found, interval=rate.method)


def strength_note(block: StrengthBlock) -> str:
    """Return what equal style means, and how the judge's verdicts follow the style."""
    found = ", ".join(f"{name} {text.line}" for name, text in block.effects)
    effects = f" Log-odds that one root mean square of each adds: {found}." if found else ""
    return (
        "One Bradley-Terry model of all pairs of this judge, fitted to its degrees of preference "
        "in each order; at equal style, the differences in "
        f"length, headings, list items and bold type are held at zero.{effects}"
    )
