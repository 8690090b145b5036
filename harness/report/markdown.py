"""A report as GitHub-flavoured Markdown with the figures beside it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence

from harness.report.charts import DiversityBlock, Plot
from harness.report.origin import (
    Facts,
    counts,
    dtype_text,
    engine_facts,
    facts,
    licence_text,
    run_facts,
    sampling_text,
    weights_text,
)
from harness.report.stability import STEM, SeedCell, StabilityBlock, unit_text
from harness.report.strengths import StrengthBlock, strength_note
from harness.report.tables import Cell, Change, Line, Rank, SuiteTables, excludes
from harness.report.text import clean
from harness.report.verdict import agreement_text, interval_methods
from harness.report.view import Report, Sample
from harness.report.winrates import P_VALUES, DuelCell, JudgeBlock, RateRow, describe
from harness.types import SHARE

_SPECIAL = re.compile(r"([\\`*_\[\]|~])")
_BLOCK = re.compile(r"^(?:(\d+)(?=[.)](?:\s|$))|(?=[#+=-]))")
"""What would make a line a heading, a rule or a list item."""


def escape(text: str) -> str:
    """Return ``text`` as one line that Markdown shows as it stands, also inside a table cell."""
    flat = " ".join(clean(text).split("\n"))
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _BLOCK.sub(r"\1\\", _SPECIAL.sub(r"\\\1", flat))


def fenced(text: str) -> str:
    """Return ``text`` as a code block whose fence is longer than any run of backticks in it."""
    runs = [len(run) for run in re.findall(r"`+", text)]
    fence = "`" * max(3, max(runs, default=0) + 1)
    return f"{fence}text\n{clean(text)}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its cells must be escaped already."""
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(header), rule, *rows])


def markdown(report: Report) -> str:
    """Return the report as Markdown; figures are expected in ``figures/``."""
    parts = [
        *_top(report),
        *_win_rates(report),
        *_diversity(report),
        *_stability(report),
        *_contamination(report),
        *_metrics(report),
        *_samples(report.samples),
        *_origin(report),
    ]
    return "\n\n".join(parts) + "\n"


def _top(report: Report) -> Iterator[str]:
    yield f"# {escape(report.title)}"
    if report.gaps:
        yield "> [!WARNING]\n> **INCOMPLETE: this run has gaps.**\n" + "\n".join(
            f"> - {escape(gap)}" for gap in report.gaps
        )
    yield f"**{escape(report.verdict)}**"
    if report.contaminated:
        yield "> [!WARNING]\n> **Training data in the evaluation.**\n" + "\n".join(
            f"> - {escape(text)}" for text in report.contaminated
        )
    notes = [report.intervals, *([report.chance] if report.chance else [])]
    yield escape(" ".join(notes))
    yield "## Summary"
    yield _summary(report)
    yield _legend(report)


def _summary(report: Report) -> str:
    header = ["Checkpoint", *(_metric_head(line) for line in report.summary)]
    rows = [
        [_name(report, place), *(_cell(line.cells[place]) for line in report.summary)]
        for place in range(len(report.columns))
    ]
    return table(header, rows)


def _metric_head(line: Line) -> str:
    return f"{escape(line.card.title)}:<br>{_metric_title(line)}"


def _metric_title(line: Line) -> str:
    unit = "" if line.metric.unit == SHARE else f" ({escape(line.metric.unit)})"
    return f"{escape(line.metric.title)}{unit}"


def _name(report: Report, place: int) -> str:
    column = report.columns[place]
    return f"{escape(column.name)} ({escape(column.method)})"


def _cell(cell: Cell) -> str:
    value = cell.text.value
    if cell.rank == Rank.BEST:
        value = f"**{value}**"
    elif cell.rank == Rank.SECOND:
        value = f"<ins>{value}</ins>"
    sign = f" {cell.change.sign} {cell.change.value}" if cell.change.sign else ""
    interval = f" {cell.text.interval}" if cell.text.interval else ""
    return f"{value}{interval}{sign}<br><sub>{cell.text.counts}</sub>"


def _legend(report: Report) -> str:
    first = escape(report.columns[0].name)
    marks = (
        f"Bold: best; underlined: second. \u25b2 better, \u25bc worse, \u2260 higher or lower than "
        f"{first}: the interval of the paired difference excludes zero and the test finds it, "
        f"before correction. n: observations."
    )
    return marks if len(report.columns) > 1 else "n: observations."


def _win_rates(report: Report) -> Iterator[str]:
    yield "## Win rates"
    if not report.judges:
        yield "No suite of this run has a pairwise judge."
    for block, plot in report.judges:
        yield from _judge(report, block, plot)
    if report.panels:
        yield "### Agreement between judges"
        yield "\n".join(f"- {escape(line)}" for line in report.panels)


def _judge(report: Report, block: JudgeBlock, plot: Plot | None) -> Iterator[str]:
    yield f"### {escape(block.card.title)}, judged by {escape(block.title)}"
    yield escape(describe(block))
    if block.judge:
        agreement = escape(agreement_text(block.judge))
        yield f"**{agreement}**" if block.judge.agreement else agreement
    if block.quality:
        yield table(
            ["The judge", "Value", "How to read it", "Observations"],
            [
                [escape(x.title), x.text.line, escape(x.meaning), str(x.estimate.n)]
                for x in block.quality
            ],
        )
    if block.at_chance:
        yield "> [!CAUTION]\n> These verdicts are no better than chance. Read these metrics first:"
        yield _lines(report, block.lead) if block.lead else "The suite has no such metric."
    yield _matrix(block) if block.matrix else "Only one checkpoint was run: there is no matrix."
    if plot:
        yield _figure(plot)
    if block.rows or block.others:
        yield _rate_table([*block.rows, *block.others])
        yield escape(f"{P_VALUES} {block.detectable}")
    if block.strengths:
        yield from _strength_table(block.strengths)


def _strength_table(block: StrengthBlock) -> Iterator[str]:
    yield table(
        [f"Bradley-Terry win rate against {escape(block.baseline)}", "As judged", "At equal style"],
        [[escape(row.name), *(escape(text.line) for text in row.texts)] for row in block.rows],
    )
    yield escape(strength_note(block))


def _matrix(block: JudgeBlock) -> str:
    header = ["Win rate of", *(f"against {escape(name)}" for name in block.columns)]
    return table(header, [[escape(row[0].candidate), *map(_duel, row)] for row in block.matrix])


def _duel(cell: DuelCell) -> str:
    if cell.same:
        return "\u2013"
    sign = f" {cell.change.sign}" if cell.change != Change.UNRESOLVED else ""
    tally = f"<br><sub>{cell.tally}</sub>" if cell.tally else ""
    return f"{cell.text.line}{sign}{tally}"


def _rate_table(rows: Sequence[RateRow]) -> str:
    header = [
        "Pair",
        "Win rate",
        "Length-controlled",
        "Mean length (characters)",
        "Length difference",
        "Win/tie/loss",
        "No verdict",
        "Test of 50 %",
    ]
    return table(header, map(_rate_row, rows))


def _rate_row(row: RateRow) -> list[str]:
    return [
        f"{escape(row.rate.candidate)} against {escape(row.rate.baseline)}",
        row.raw.line
        if row.degree is None
        else f"{row.raw.line}<br><sub>degree {row.degree.line}</sub>",
        row.controlled.line,
        row.length.line,
        row.difference,
        row.tally,
        str(row.rate.invalid),
        escape(row.tested),
    ]


def _figure(plot: Plot) -> str:
    image = f"![{escape(plot.chart.alt)}](figures/{plot.chart.stem}.svg)"
    return f"{image}\n\n{escape(plot.caption)} {escape(plot.note)}".rstrip()


def _diversity(report: Report) -> Iterator[str]:
    yield "## Diversity"
    if not report.diversity:
        yield "No suite of this run measures diversity."
    for block in report.diversity:
        yield from _diversity_block(report, block)
    if report.quality:
        yield "### Quality and diversity"
        yield from map(_figure, report.quality)


def _diversity_block(report: Report, block: DiversityBlock) -> Iterator[str]:
    yield f"### {escape(block.card.title)}: distinct words and entropy"
    yield _figure(block.plot) if block.plot else "No checkpoint has the data for the figure."
    yield _lines(report, block.lines)


def _stability(report: Report) -> Iterator[str]:
    block = report.stability
    if block is None:
        return
    yield f"## {escape(block.title)}"
    yield escape(block.lead)
    yield _stability_table(report, block)
    if block.notes:
        yield "\n".join(f"- {escape(note)}" for note in block.notes)
    if block.traces:
        yield f"![{escape(block.alt)}](figures/{STEM}.svg)\n\n{escape(block.caption)}"
    yield "### Definitions"
    defined = [("Diverged", block.training.divergence)]
    defined += [(info.title, info.definition) for info in block.training.figures]
    yield "\n".join(f"- {escape(title)}: {escape(text)}" for title, text in defined)


def _stability_table(report: Report, block: StabilityBlock) -> str:
    columns = block.columns
    runs = [escape(c.why) or f"{c.seeds}<br><sub>{c.steps}</sub>" for c in columns]
    rows = [["Training runs", *runs]]
    rows.append(["Diverged (runs)", *("no log" if c.why else c.diverged for c in columns)])
    for info in block.training.figures:
        cells = [_seed_cell(c.cells.get(info.key)) for c in columns]
        rows.append([f"{escape(info.title)} {escape(unit_text(info))}".rstrip(), *cells])
    return table(["Figure", *(_name(report, c.place) for c in columns)], rows)


def _seed_cell(cell: SeedCell | None) -> str:
    if cell is None:
        return "no log"
    spread = f"<br>{cell.spread}" if cell.spread else ""
    return f"{cell.value}{spread}<br><sub>{escape(cell.counts)}</sub>"


def _contamination(report: Report) -> Iterator[str]:
    block = report.contamination
    if block is None:
        return
    yield f"## {escape(block.title)}"
    yield escape(block.lead)
    if block.rows:
        yield table(
            block.header,
            [[escape(row.names), escape(row.title), *map(escape, row.cells)] for row in block.rows],
        )
    yield "\n".join(f"- {escape(note)}" for note in block.notes)


def _metrics(report: Report) -> Iterator[str]:
    yield "## All metrics"
    for tables in report.suites:
        yield f"### {escape(tables.card.title)}"
        yield _lines(report, tables.lines)
        yield from _differences(tables)
        yield "\n".join(
            f"- {_metric_title(line)}: {escape(line.metric.definition)}" for line in tables.lines
        )


def _lines(report: Report, lines: Sequence[Line]) -> str:
    header = ["Metric", *(escape(column.name) for column in report.columns)]
    return table(header, [[_metric_title(line), *map(_cell, line.cells)] for line in lines])


def _differences(tables: SuiteTables) -> Iterator[str]:
    for baseline, lines in tables.differences.items():
        names = [cell.checkpoint for cell in lines[0].cells] if lines else []
        header = [f"Difference to {escape(baseline)}", *map(escape, names)]
        yield table(
            header, [[_metric_title(line), *map(_difference, line.cells)] for line in lines]
        )


def _difference(cell: Cell) -> str:
    return f"{cell.text.line}<br><sub>{escape(excludes(cell))}</sub>"


def _samples(samples: Sequence[Sample]) -> Iterator[str]:
    yield "## Samples side by side"
    if not samples:
        yield "The run holds no samples to show."
    for place, sample in enumerate(samples):
        yield _sample(sample, is_open=place == 0)


def _sample(sample: Sample, *, is_open: bool) -> str:
    head = html.escape(" ".join(clean(f"{sample.suite}: {sample.example_id}").split("\n")))
    parts = [
        f"<details{' open' if is_open else ''}><summary>{head}</summary>",
        f"**Prompt**\n\n{fenced(sample.prompt)}",
    ]
    if sample.reference is not None:
        parts.append(f"**Reference**\n\n{fenced(sample.reference)}")
    parts += [f"**{escape(name)}**\n\n{_answer(text)}" for name, text in sample.answers]
    return "\n\n".join([*parts, "</details>"])


def _answer(text: str | None) -> str:
    if text is None:
        return "No answer recorded."
    return fenced(text) if text.strip() else "Empty answer."


def _origin(report: Report) -> Iterator[str]:
    manifest = report.comparison.manifest
    yield "## Limits"
    yield "\n".join(f"- {escape(limit)}" for limit in report.limits)
    yield "## How this was made"
    yield _facts("Run", run_facts(report.comparison))
    yield _checkpoints(report)
    yield _suite_cards(report)
    yield _facts("Records present", counts(manifest))
    for card in manifest.engines:
        yield _facts(f"Engine of {', '.join(card.checkpoints)}", engine_facts(card))
    yield _facts("Hardware", facts(manifest.hardware))
    yield _facts("Packages", facts(manifest.packages))
    for event in manifest.events:
        yield _facts("Event", facts(event))
    methods = "; ".join(interval_methods(report.comparison))
    yield escape(f"Methods of the estimates: {methods or 'none'}.")


def _facts(title: str, found: Facts) -> str:
    rows = [[escape(label), escape(value)] for label, value in found]
    return table([escape(title), ""], rows or [["none recorded", ""]])


def _checkpoints(report: Report) -> str:
    header = ["Checkpoint", "Method", "Form", "Source", "Weights SHA-256", "Dtype", "Notes"]
    rows = [
        [
            escape(c.spec.name),
            escape(c.spec.method),
            c.form.value,
            escape(c.spec.source),
            weights_text(c),
            dtype_text(c),
            escape("; ".join(c.notes)) or "none",
        ]
        for c in report.comparison.manifest.checkpoints
    ]
    return table(header, rows)


def _suite_cards(report: Report) -> str:
    manifest = report.comparison.manifest
    header = ["Suite", "Version", "Content SHA-256", "Prompts", "Sampling", "Licence of the data"]
    rows = [
        [
            f"{escape(c.title)} ({escape(c.name)})",
            str(c.version),
            c.content_sha256[:12],
            str(c.examples),
            escape(sampling_text(c, manifest.checkpoints)),
            escape(licence_text(c)),
        ]
        for c in manifest.suites
    ]
    return table(header, rows)
