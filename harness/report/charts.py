"""Which charts a report has, and what it says where one cannot be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.figures import Chart, Point, usable
from harness.report.lookup import Lookup
from harness.report.palette import Style
from harness.report.tables import Line, metric_lines
from harness.report.text import joined, short_names, shown
from harness.report.verdict import agreement_text
from harness.report.winrates import JudgeBlock
from harness.types import SHARE, Estimate, MetricInfo, SuiteCard

DISTINCT, ENTROPY, SELF_BLEU = "distinct_1", "entropy", "self_bleu"
DIVERSITY = (DISTINCT, "distinct_2", SELF_BLEU, ENTROPY, "embedding_distance", "vendi")

EVEN = Estimate(value=0.5, n=0, clusters=0, method="a checkpoint against itself")


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


def quality_plots(
    lookup: Lookup, blocks: Sequence[JudgeBlock], styles: dict[str, Style]
) -> tuple[Plot, ...]:
    """Return win rate against diversity for each judge of each suite.

    The diversity is that of the judged answers where there are several to a prompt, else that of
    each suite of the run with several; without any, what one answer to a prompt shows of it.
    """
    cards = lookup.comparison.manifest.suites
    several = [
        card
        for card in cards
        if card.sampling is not None
        and card.sampling.samples > 1
        and _diversity_metric(lookup, card) is not None
    ]
    plots = (
        _quality_plot(lookup, block, card, styles)
        for block in blocks
        for card in ([block.card] if block.card in several or not several else several)
    )
    return tuple(plot for plot in plots if plot is not None)


def _diversity_metric(lookup: Lookup, card: SuiteCard) -> MetricInfo | None:
    found = (lookup.metric(card, key) for key in (SELF_BLEU, DISTINCT))
    return next((info for info in found if info is not None), None)


def _quality_plot(
    lookup: Lookup, block: JudgeBlock, card: SuiteCard, styles: dict[str, Style]
) -> Plot | None:
    metric = _diversity_metric(lookup, card)
    drawn = {} if metric is None else _quality_points(lookup, block, (card, metric), styles)
    if metric is None or not drawn:
        return None
    against = f"against {block.focus}"
    share = metric.unit == SHARE
    better = f"{metric.direction} is more diverse"
    own = card.name == block.card.name
    over = metric.title if own else f"{metric.title} on {card.title}"
    on = metric.title if own else f"{metric.title} on {card.name}"
    chart = Chart(
        stem=f"quality-{block.stem}" if own else f"quality-{block.stem}-{card.name}",
        alt=f"{block.card.title}, {block.title}: win rate {against} over {over} "
        f"({better}). Win rate: {_values(drawn, SHARE)}",
        x_label=f"{on} ({'%' if share else metric.unit}; {better})",
        y_label="Win rate (%)",
        points=tuple(drawn.values()),
        x_factor=100.0 if share else 1.0,
        y_factor=100.0,
        level=50.0,
    )
    even = f" {block.focus} itself stands at 50 %." if block.focus in drawn else ""
    agreement = f" {agreement_text(block.judge)}" if block.judge else ""
    caption = (
        f"{block.card.title}: win rate {against} over {over} ({better}), {block.title}. "
        f"The dashed line is an even contest; bars are intervals.{even}{agreement}"
    )
    return Plot(chart, caption, tuple(n for n in lookup.names if n not in drawn))


def _quality_points(
    lookup: Lookup,
    block: JudgeBlock,
    measure: tuple[SuiteCard, MetricInfo],
    styles: dict[str, Style],
) -> dict[str, Point]:
    """Return the checkpoints with both figures; the baseline too, if there is any other."""
    card, metric = measure
    rates = {row.rate.candidate: row.rate.estimate for row in block.rows}
    labels = short_names(lookup.names)
    found = {}
    for name in lookup.names:
        rate = EVEN if name == block.focus else rates.get(name)
        diversity = lookup.estimate(card.name, metric.key, name)
        if diversity is not None and rate is not None and usable([diversity, rate]):
            found[name] = Point(labels[name], styles[name], diversity, rate)
    return {} if found.keys() <= {block.focus} else found


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
