"""Everything a report shows, computed once and laid out twice: as HTML and as Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from harness.report.charts import (
    DiversityBlock,
    Plot,
    diversity_blocks,
    quality_plots,
    win_rate_plot,
)
from harness.report.contamination import OverlapBlock, overlap_block, report_warnings
from harness.report.figures import svg
from harness.report.judges import panel_lines
from harness.report.lookup import Lookup
from harness.report.palette import Style, styles
from harness.report.stability import STEM, StabilityBlock, stability_block
from harness.report.stability_figure import stability_svg
from harness.report.tables import Line, SuiteTables, suite_tables, summary_lines
from harness.report.text import clean
from harness.report.verdict import chance, intervals, limits, verdict
from harness.report.winrates import JudgeBlock, judge_blocks
from harness.types import Comparison, SampleAnswers

LONG = 24
"""Characters of a name above which tables give names more room."""


@dataclass(frozen=True)
class Column:
    """A checkpoint as every table shows it."""

    name: str
    method: str
    style: Style


@dataclass(frozen=True)
class Sample:
    """Answers to one prompt; an answer is None where the run has none."""

    suite: str
    example_id: str
    prompt: str
    reference: str | None
    answers: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Report:
    """The content of a report."""

    comparison: Comparison
    columns: tuple[Column, ...]
    verdict: str
    chance: str | None
    intervals: str
    gaps: tuple[str, ...]
    summary: tuple[Line, ...]
    judges: tuple[tuple[JudgeBlock, Plot | None], ...]
    panels: tuple[str, ...]
    diversity: tuple[DiversityBlock, ...]
    quality: tuple[Plot, ...]
    stability: StabilityBlock | None
    contamination: OverlapBlock | None
    contaminated: tuple[str, ...]
    suites: tuple[SuiteTables, ...]
    samples: tuple[Sample, ...]
    limits: tuple[str, ...]

    @property
    def title(self) -> str:
        """Heading of the report."""
        count = len(self.columns)
        return f"Comparison of {count} checkpoints" if count > 1 else "Report on one checkpoint"

    @property
    def long_names(self) -> bool:
        """Whether a name needs a wider column than the usual."""
        return any(len(column.name) > LONG for column in self.columns)

    def figures(self) -> dict[str, str]:
        """Return every figure as a stand-alone SVG document, by file stem."""
        plots = [plot for _, plot in self.judges] + [block.plot for block in self.diversity]
        plots += self.quality
        drawn = {plot.chart.stem: svg(plot.chart) for plot in plots if plot is not None}
        if self.stability is not None and self.stability.traces:
            drawn[STEM] = stability_svg(self.stability)
        return drawn


def build(comparison: Comparison) -> Report:
    """Return the content of the report on ``comparison``."""
    lookup = Lookup(comparison)
    style = styles(lookup.names)
    blocks = judge_blocks(lookup)
    return Report(
        comparison=comparison,
        columns=_columns(comparison, style),
        verdict=verdict(lookup),
        chance=chance(lookup),
        intervals=intervals(comparison),
        gaps=tuple(clean(gap) for gap in comparison.gaps),
        summary=summary_lines(lookup),
        judges=tuple((block, win_rate_plot(lookup, block, style)) for block in blocks),
        panels=panel_lines(lookup),
        diversity=diversity_blocks(lookup, style),
        quality=quality_plots(lookup, blocks, style),
        stability=stability_block(comparison, style),
        contamination=overlap_block(comparison),
        contaminated=report_warnings(comparison),
        suites=tuple(suite_tables(lookup, card) for card in comparison.manifest.suites),
        samples=tuple(_sample(lookup, sample) for sample in comparison.samples),
        limits=tuple(limits(lookup)),
    )


def _columns(comparison: Comparison, style: dict[str, Style]) -> tuple[Column, ...]:
    specs = [c.spec for c in comparison.manifest.checkpoints]
    return tuple(Column(s.name, s.method, style[s.name]) for s in specs)


def _sample(lookup: Lookup, sample: SampleAnswers) -> Sample:
    titles = {card.name: card.title for card in lookup.comparison.manifest.suites}
    answers = tuple((name, _cleaned(sample.answers.get(name))) for name in lookup.names)
    return Sample(
        suite=titles.get(sample.suite, sample.suite),
        example_id=sample.example_id,
        prompt=clean(sample.prompt),
        reference=_cleaned(sample.reference),
        answers=answers,
    )


def _cleaned(text: str | None) -> str | None:
    return None if text is None else clean(text)
