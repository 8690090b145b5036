"""The report's view of quality against diversity: drawn where a suite has both, else nowhere."""

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
from harness.types import REFERENCE, Comparison, MetricResult

STEM = "quality-win-rate-summarization-reference"


def with_metric(found: Comparison, keys: Sequence[str], absent: Sequence[str] = ()) -> Comparison:
    """Give the summarization suite metrics of the diversity suite."""
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
        card.model_copy(update={"metrics": (*card.metrics, *infos)})
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


def test_a_run_without_both_in_one_suite_has_no_such_view(tmp_path: Path) -> None:
    files = render(comparison(), tmp_path)
    for text in texts(files):
        assert "Quality and diversity" not in text
    assert not [path for path in files.figures if path.name.startswith("quality-")]


def test_win_rate_stands_against_self_bleu_with_both_intervals(tmp_path: Path) -> None:
    found = with_metric(comparison(), ["distinct_1", "self_bleu"])
    lookup = Lookup(found)
    (plot,) = quality_plots(lookup, judge_blocks(lookup), styles(NAMES))
    assert plot.chart.stem == STEM
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


def test_distinct_1_stands_in_and_the_baseline_is_even() -> None:
    found = against_base(with_metric(comparison(), ["distinct_1"]))
    lookup = Lookup(found)
    (plot,) = quality_plots(lookup, judge_blocks(lookup), styles(NAMES))
    assert "Distinct-1 (%; higher is more diverse)" in plot.chart.x_label
    first = plot.chart.points[0]
    assert (first.label, first.y.value, first.y.low) == ("base", 0.5, None)
    assert "base itself stands at 50 %." in plot.caption


@pytest.mark.parametrize("absent", [["dpo"], list(NAMES[1:])])
def test_checkpoints_without_either_are_named(absent: list[str]) -> None:
    found = against_base(with_metric(comparison(), ["self_bleu"], absent))
    lookup = Lookup(found)
    plots = quality_plots(lookup, judge_blocks(lookup), styles(NAMES))
    assert [plot.absent for plot in plots] == ([("dpo",)] if absent == ["dpo"] else [])
