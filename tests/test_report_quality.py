"""The report's view of quality against diversity: of the judged answers, or of another suite's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from test_report import METRICS, NAMES, comparison, estimate, info, page_of

from harness.report import ReportFiles, render
from harness.report.charts import quality_plots
from harness.report.lookup import Lookup
from harness.report.palette import styles
from harness.report.winrates import judge_blocks
from harness.types import REFERENCE, Comparison, MetricResult, Sampling

STEM = "quality-win-rate-summarization-reference"


def with_metric(
    found: Comparison, keys: Sequence[str], absent: Sequence[str] = (), samples: int = 2
) -> Comparison:
    """Give the summarization suite metrics of the diversity suite, and several answers."""
    infos = [info("diversity", key) for key in keys]
    results = [
        MetricResult(
            suite="summarization",
            metric=metric,
            primary=False,
            checkpoint=name,
            estimate=estimate(None if name in absent else METRICS["diversity"][metric.key][3] + i),
        )
        for metric in infos
        for i, name in enumerate(NAMES)
    ]
    cards = [
        card.model_copy(
            update={
                "metrics": (*card.metrics, *infos),
                "sampling": Sampling(temperature=0.7, max_tokens=96, samples=samples),
            }
        )
        if card.name == "summarization"
        else card
        for card in found.manifest.suites
    ]
    manifest = found.manifest.model_copy(update={"suites": tuple(cards)})
    metrics = (*found.metrics, *results)
    return found.model_copy(update={"manifest": manifest, "metrics": metrics})


def against_base(found: Comparison) -> Comparison:
    rates = [w for w in found.win_rates if w.baseline != REFERENCE]
    return found.model_copy(update={"win_rates": tuple(rates)})


def texts(files: ReportFiles) -> tuple[str, str]:
    return page_of(files).text, files.markdown.read_text(encoding="utf-8")


def without_diversity(found: Comparison) -> Comparison:
    cards = tuple(c for c in found.manifest.suites if c.name != "diversity")
    manifest = found.manifest.model_copy(update={"suites": cards})
    metrics = tuple(r for r in found.metrics if r.suite != "diversity")
    return found.model_copy(update={"manifest": manifest, "metrics": metrics})


def test_a_run_that_measures_no_diversity_has_no_such_view(tmp_path: Path) -> None:
    files = render(without_diversity(comparison()), tmp_path)
    for text in texts(files):
        assert "Quality and diversity" not in text
    assert not [path for path in files.figures if path.name.startswith("quality-")]


def test_win_rate_stands_against_self_bleu_with_both_intervals(tmp_path: Path) -> None:
    found = with_metric(comparison(), ["distinct_1", "self_bleu"])
    lookup = Lookup(found)
    plots = quality_plots(lookup, judge_blocks(lookup), styles(NAMES))
    (plot,) = [p for p in plots if p.chart.stem == STEM]
    assert f"{STEM}-diversity" not in {p.chart.stem for p in plots}
    assert [point.label for point in plot.chart.points] == list(NAMES)
    for point in plot.chart.points:
        assert point.x == lookup.estimate("summarization", "self_bleu", point.label)
        rate = lookup.win_rates["summarization", "reference", point.label, REFERENCE]
        assert point.y == rate.estimate
    assert plot.chart.x_label == "Self-BLEU (BLEU; lower is more diverse)"
    assert plot.absent == ()

    files = render(found, tmp_path)
    assert f"{STEM}.svg" in {path.name for path in files.figures}
    for text in texts(files):
        assert "Quality and diversity" in text
        assert "win rate against reference over Self-BLEU (lower is more diverse)" in text
    assert f"(figures/{STEM}.svg)" in texts(files)[1]


@pytest.mark.parametrize("keys", [[], ["distinct_1"]])
def test_diversity_is_another_suites_where_the_judged_one_has_one_answer(
    keys: list[str], tmp_path: Path
) -> None:
    found = with_metric(comparison(), keys, samples=1)
    lookup = Lookup(found)
    blocks = judge_blocks(lookup)
    plots = quality_plots(lookup, blocks, styles(NAMES))
    assert [p.chart.stem for p in plots] == [f"quality-{b.stem}-diversity" for b in blocks]
    (plot,) = [p for p in plots if p.chart.stem == f"{STEM}-diversity"]
    for point in plot.chart.points:
        assert point.x == lookup.estimate("diversity", "self_bleu", point.label)
        rate = lookup.win_rates["summarization", "reference", point.label, REFERENCE]
        assert point.y == rate.estimate
    assert plot.chart.x_label == "Self-BLEU on diversity (BLEU; lower is more diverse)"

    files = render(found, tmp_path)
    for text in texts(files):
        assert "win rate against reference over Self-BLEU on Diversity (lower is" in text


def test_a_run_without_several_answers_shows_what_one_tells() -> None:
    found = with_metric(without_diversity(comparison()), ["distinct_1"], samples=1)
    lookup = Lookup(found)
    (plot,) = quality_plots(lookup, judge_blocks(lookup), styles(NAMES))
    assert plot.chart.stem == STEM


def test_distinct_1_stands_in_and_the_baseline_is_even() -> None:
    found = against_base(with_metric(without_diversity(comparison()), ["distinct_1"]))
    lookup = Lookup(found)
    plots = quality_plots(lookup, judge_blocks(lookup), styles(NAMES))
    (plot,) = [p for p in plots if p.chart.stem == STEM]
    assert "Distinct-1 (%; higher is more diverse)" in plot.chart.x_label
    first = plot.chart.points[0]
    assert (first.label, first.y.value, first.y.low) == ("base", 0.5, None)
    assert "base itself stands at 50 %." in plot.caption


@pytest.mark.parametrize("absent", [["dpo"], list(NAMES[1:])])
def test_checkpoints_without_either_are_named(absent: list[str]) -> None:
    found = against_base(with_metric(without_diversity(comparison()), ["self_bleu"], absent))
    lookup = Lookup(found)
    drawn = quality_plots(lookup, judge_blocks(lookup), styles(NAMES))
    plots = [p for p in drawn if p.chart.stem.startswith(STEM)]
    assert [plot.absent for plot in plots] == ([("dpo",)] if absent == ["dpo"] else [])
