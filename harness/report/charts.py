"""Which charts a report has, and what it says where one cannot be drawn."""

from __future__ import annotations

from dataclasses import dataclass

from harness.report.figures import Chart, Point, usable
from harness.report.lookup import Lookup
from harness.report.palette import Style
from harness.report.tables import Line, metric_lines
from harness.report.text import joined, short_names, shown
from harness.report.verdict import agreement_text
from harness.report.winrates import JudgeBlock
from harness.types import SHARE, SuiteCard

DISTINCT, ENTROPY, SELF_BLEU = "distinct_1", "entropy", "self_bleu"
DIVERSITY = (DISTINCT, "distinct_2", SELF_BLEU, ENTROPY)


@dataclass(frozen=True)
class Plot:
    """A chart with its caption, and the checkpoints that could not be drawn."""

    chart: Chart
    caption: str
    absent: tuple[str, ...]

    @property
    def note(self) -> str:
        """Which checkpoints are not in the figure, or nothing."""
        return f"Not drawn, for want of data: {joined(self.absent)}." if self.absent else ""


@dataclass(frozen=True)
class DiversityBlock:
    """Diversity of the answers on one suite."""

    card: SuiteCard
    lines: tuple[Line, ...]
    plot: Plot | None


def win_rate_plot(lookup: Lookup, block: JudgeBlock, styles: dict[str, Style]) -> Plot | None:
    """Return length-controlled win rate against mean length; None where no point can be drawn."""
    drawn = _win_rate_points(lookup, block, styles)
    if not drawn:
        return None
    against = f"against {block.focus}"
    expected = [n for n in lookup.names if n != block.focus]
    chart = Chart(
        stem=block.stem,
        alt=f"{block.card.title}, {block.title}: length-controlled win rate {against} "
        f"over mean answer length. {_values(drawn, SHARE)}",
        x_label="Mean answer length (characters)",
        y_label="Length-controlled win rate (%)",
        points=tuple(drawn.values()),
        y_factor=100.0,
        level=50.0,
    )
    agreement = agreement_text(block.judge) if block.judge else ""
    caption = (
        f"Length-controlled win rate {against} over mean answer length, {block.title}. "
        f"The dashed line is an even contest; bars are intervals. {agreement}"
    )
    return Plot(chart, caption, tuple(n for n in expected if n not in drawn))


def _win_rate_points(
    lookup: Lookup, block: JudgeBlock, styles: dict[str, Style]
) -> dict[str, Point]:
    labels = short_names(lookup.names)
    found = {}
    for row in block.rows:
        name, length, controlled = (
            row.rate.candidate,
            row.length_estimate,
            row.rate.length_controlled,
        )
        if length is not None and controlled is not None and usable([length, controlled]):
            found[name] = Point(labels[name], styles[name], length, controlled)
    return found


def _values(points: dict[str, Point], unit: str) -> str:
    return "; ".join(f"{name} {shown(point.y, unit).line}" for name, point in points.items()) + "."


def diversity_blocks(lookup: Lookup, styles: dict[str, Style]) -> tuple[DiversityBlock, ...]:
    """Return a block for each suite that measures Distinct-1."""
    cards = lookup.comparison.manifest.suites
    return tuple(
        DiversityBlock(card, metric_lines(lookup, card, DIVERSITY), _plot(lookup, card, styles))
        for card in cards
        if lookup.metric(card, DISTINCT) is not None
    )


def _plot(lookup: Lookup, card: SuiteCard, styles: dict[str, Style]) -> Plot | None:
    drawn = _diversity_points(lookup, card, styles)
    if not drawn:
        return None
    distinct, entropy, overlap = (lookup.metric(card, k) for k in (DISTINCT, ENTROPY, SELF_BLEU))
    if distinct is None or entropy is None:
        return None
    factor = 100.0 if distinct.unit == SHARE else 1.0
    scale = None if overlap is None else overlap.title
    coloured = f", coloured by {scale}" if scale else ""
    chart = Chart(
        stem=f"diversity-{card.name}",
        alt=f"{card.title}: {distinct.title} over {entropy.title.lower()}{coloured}. "
        f"{distinct.title}: {_values(drawn, distinct.unit)}",
        x_label=f"{entropy.title} ({entropy.unit})",
        y_label=f"{distinct.title} ({'%' if distinct.unit == SHARE else distinct.unit})",
        points=tuple(drawn.values()),
        y_factor=factor,
        scale=scale,
    )
    caption = f"{distinct.title} over {entropy.title.lower()}{coloured}; bars are intervals."
    return Plot(chart, caption, tuple(n for n in lookup.names if n not in drawn))


def _diversity_points(
    lookup: Lookup, card: SuiteCard, styles: dict[str, Style]
) -> dict[str, Point]:
    labels = short_names(lookup.names)
    found = {}
    for name in lookup.names:
        entropy, distinct, overlap = (
            lookup.estimate(card.name, key, name) for key in (ENTROPY, DISTINCT, SELF_BLEU)
        )
        if entropy is not None and distinct is not None and usable([entropy, distinct]):
            shade = overlap.value if overlap else None
            found[name] = Point(labels[name], styles[name], entropy, distinct, shade)
    return found
