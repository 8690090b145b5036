"""Tables of metrics by checkpoint, ready to be laid out as HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.report.lookup import Lookup
from harness.report.significance import p_data, p_pair, rejected
from harness.report.text import Shown, shown
from harness.types import Corrected, Direction, Estimate, MetricInfo, SuiteCard


class Change(StrEnum):
    """What a paired difference says, given which way its metric is better."""

    BETTER = "better"
    WORSE = "worse"
    HIGHER = "higher"
    LOWER = "lower"
    UNRESOLVED = "not resolved"

    @property
    def sign(self) -> str:
        """The mark in tables: better and worse point up and down; the rest is neutral."""
        return {"better": "\u25b2", "worse": "\u25bc", "higher": "\u2260", "lower": "\u2260"}.get(
            self.value, ""
        )


class Rank(StrEnum):
    """Place of a value among the checkpoints."""

    BEST = "best"
    SECOND = "second"
    OTHER = "other"


@dataclass(frozen=True)
class Bar:
    """Where an interval lies on its column's common scale, in percent of the width."""

    start: float
    length: float
    dot: float


@dataclass(frozen=True)
class Cell:
    """One estimate with its place in the table and what its difference to a baseline says."""

    suite: str
    metric: str
    checkpoint: str
    baseline: str | None
    estimate: Estimate | None
    text: Shown
    rank: Rank = Rank.OTHER
    change: Change = Change.UNRESOLVED
    bar: Bar | None = None
    test: Corrected | None = None

    @property
    def data(self) -> dict[str, str]:
        """HTML data attributes: what the cell is about and its value in full precision."""
        found = {"suite": self.suite, "metric": self.metric, "checkpoint": self.checkpoint}
        if self.baseline is not None:
            found["baseline"] = self.baseline
        return found | precise(self.estimate) | p_data(self.test)


@dataclass(frozen=True)
class Line:
    """A metric and its cells, one for each checkpoint."""

    card: SuiteCard
    metric: MetricInfo
    cells: tuple[Cell, ...]


def precise(estimate: Estimate | None) -> dict[str, str]:
    """Return value, bounds and counts with every digit; absent numbers are empty strings."""
    if estimate is None:
        return {"value": "", "low": "", "high": "", "n": "0", "missing": ""}
    numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    texts = {key: "" if number is None else repr(number) for key, number in numbers.items()}
    return texts | {"n": str(estimate.n), "missing": str(estimate.missing)}


def change_of(difference: Estimate | None, direction: Direction) -> Change:
    """Return what a difference says; an interval that touches zero resolves nothing."""
    if difference is None or difference.low is None or difference.high is None:
        return Change.UNRESOLVED
    if difference.low <= 0.0 <= difference.high:
        return Change.UNRESOLVED
    up = difference.low > 0.0
    if direction == Direction.NEITHER:
        return Change.HIGHER if up else Change.LOWER
    return Change.BETTER if up == (direction == Direction.HIGHER) else Change.WORSE


def resolved(lookup: Lookup, metric: MetricInfo, about: tuple[str, str, str]) -> Change:
    """Return what a difference says where its test, if it has one, finds it too.

    With few prompts that differ, an interval may exclude zero and the exact test not reject.

    Args:
        about: suite, candidate, baseline.
    """
    suite, candidate, baseline = about
    change = change_of(lookup.difference(suite, metric.key, candidate, baseline), metric.direction)
    test = lookup.difference_tests.get((suite, metric.key, candidate, baseline))
    return Change.UNRESOLVED if rejected(test) is False else change


def excludes(cell: Cell) -> str:
    """Return what the interval of a difference says, in words, and its p values if tested."""
    if cell.estimate is None or cell.estimate.low is None:
        return "no interval"
    low, high = cell.estimate.low, cell.estimate.high
    words = "includes zero"
    if cell.change != Change.UNRESOLVED:
        words = f"excludes zero: {cell.change.value}"
    elif high is not None and not low <= 0.0 <= high:
        words = "excludes zero, the test does not"
    return "; ".join(part for part in (words, p_pair(cell.test)) if part)


def ranks(estimates: Sequence[Estimate | None], direction: Direction) -> list[Rank]:
    """Return the rank of each value; equal values share theirs, and without a contest none is best.

    There is no contest where the metric has no better direction or all values are equal.
    """
    values = [None if e is None else e.value for e in estimates]
    order = sorted({v for v in values if v is not None}, reverse=direction == Direction.HIGHER)
    if direction == Direction.NEITHER or len(order) < 2:
        return [Rank.OTHER] * len(values)
    names = {order[0]: Rank.BEST, order[1]: Rank.SECOND}
    return [Rank.OTHER if v is None else names.get(v, Rank.OTHER) for v in values]


def bars(estimates: Sequence[Estimate | None]) -> list[Bar | None]:
    """Return where each interval lies between the lowest and the highest bound of all.

    A single interval has nothing to be set against and gets no bar.
    """
    bounds = [(e.low, e.high) for e in estimates if e and e.low is not None and e.high is not None]
    if len(bounds) < 2:
        return [None] * len(estimates)
    lowest = min(low for low, _ in bounds)
    span = max(high for _, high in bounds) - lowest
    return [_bar(e, lowest, span) for e in estimates]


def _bar(estimate: Estimate | None, lowest: float, span: float) -> Bar | None:
    if estimate is None or span <= 0.0:
        return None
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None or low is None or high is None:
        return None
    parts = ((low - lowest) / span, (high - low) / span, (value - lowest) / span)
    return Bar(*(round(100 * part, 2) for part in parts))


def metric_line(lookup: Lookup, card: SuiteCard, metric: MetricInfo) -> Line:
    """Return a metric's values, ranked, marked with their difference to the first checkpoint."""
    names = lookup.names
    estimates = [lookup.estimate(card.name, metric.key, name) for name in names]
    placed = zip(names, estimates, ranks(estimates, metric.direction), bars(estimates), strict=True)
    cells = []
    for name, estimate, rank, bar in placed:
        text = shown(estimate, metric.unit)
        change = resolved(lookup, metric, (card.name, name, names[0]))
        cells.append(Cell(card.name, metric.key, name, None, estimate, text, rank, change, bar))
    return Line(card, metric, tuple(cells))


def difference_line(
    lookup: Lookup, card: SuiteCard, metric: MetricInfo, candidates: Sequence[str], baseline: str
) -> Line:
    """Return a metric's paired differences to ``baseline``, one cell for each candidate."""
    cells = []
    for name in candidates:
        estimate = lookup.difference(card.name, metric.key, name, baseline)
        text = shown(estimate, metric.unit, difference=True)
        change = resolved(lookup, metric, (card.name, name, baseline))
        test = lookup.difference_tests.get((card.name, metric.key, name, baseline))
        about = (card.name, metric.key, name, baseline)
        cells.append(Cell(*about, estimate, text, change=change, test=test))
    return Line(card, metric, tuple(cells))


def metric_lines(lookup: Lookup, card: SuiteCard, keys: Sequence[str]) -> tuple[Line, ...]:
    """Return the lines of those metrics that the suite has, in the order of ``keys``."""
    found = [metric for key in keys if (metric := lookup.metric(card, key)) is not None]
    return tuple(metric_line(lookup, card, metric) for metric in found)


@dataclass(frozen=True)
class SuiteTables:
    """All metrics of a suite, and their paired differences grouped by baseline."""

    card: SuiteCard
    lines: tuple[Line, ...]
    differences: dict[str, tuple[Line, ...]]


def suite_tables(lookup: Lookup, card: SuiteCard) -> SuiteTables:
    """Return a suite's full tables."""
    metrics = lookup.metrics_of(card)
    lines = tuple(metric_line(lookup, card, metric) for metric in metrics)
    return SuiteTables(card, lines, _differences(lookup, card, metrics))


def _differences(
    lookup: Lookup, card: SuiteCard, metrics: Sequence[MetricInfo]
) -> dict[str, tuple[Line, ...]]:
    found = {}
    pairs = {(d.baseline, d.candidate) for d in lookup.comparison.differences}
    for baseline in lookup.names:
        candidates = [name for name in lookup.names if (baseline, name) in pairs]
        if candidates:
            found[baseline] = tuple(
                difference_line(lookup, card, metric, candidates, baseline) for metric in metrics
            )
    return found


def summary_lines(lookup: Lookup) -> tuple[Line, ...]:
    """Return the primary metrics of every suite, in the order of the run."""
    cards = lookup.comparison.manifest.suites
    return tuple(line for card in cards for line in metric_lines(lookup, card, card.primary))
