"""The stability section: every number, every reason, one figure, nothing where nothing was read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from stability_records import OBJECTIVES, card, row, write_seeds
from test_report import HOSTILE, NAMES, Page, comparison, page_of

from harness.report import ReportFiles, render
from harness.report.markdown import escape
from harness.report.palette import styles
from harness.report.stability import figure_text, plain
from harness.report.text import MINUS, NBSP
from harness.stability import FIGURES, read_stability
from harness.training_logs import find_logs
from harness.types import Comparison, TrainingRow, TrainingStability

EIGHT = ("base", *OBJECTIVES)
SVG = "{http://www.w3.org/2000/svg}"


def training(folder: Path, names: Sequence[str] = EIGHT, seeds: Any = (0, 1, 2)) -> Any:
    logs = [find_logs(n, write_seeds(folder / n, n, seeds)) for n in names if n in OBJECTIVES]
    rows = [r for found in logs for r in found.rows]
    return read_stability(card(rows, without=[n for n in names if n not in OBJECTIVES]), rows)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, ReportFiles, Page]:
    found = comparison(EIGHT, training=training(tmp_path_factory.mktemp("logs")))
    files = render(found, tmp_path_factory.mktemp("report"))
    return found, files, page_of(files)


def stability_of(found: Comparison) -> TrainingStability:
    assert found.training is not None
    return found.training


def attributes(files: ReportFiles) -> list[dict[str, str]]:
    cells = re.findall(r"<td[^>]*data-figure=[^>]*>", files.html.read_text(encoding="utf-8"))
    return [dict(re.findall(r'data-(\w+)="([^"]*)"', cell)) for cell in cells]


def test_every_number_is_in_the_html_with_every_digit(eight: Any) -> None:
    found, files, _ = eight
    cells = {(c["figure"], c["checkpoint"]): c for c in attributes(files)}
    expected = {
        (s.figure, c.checkpoint): s for c in stability_of(found).checkpoints for s in c.summaries
    }
    assert cells.keys() == expected.keys()
    assert len(cells) == len(FIGURES) * len(OBJECTIVES)
    for key, summary in expected.items():
        assert cells[key]["median"] == repr(summary.median)
        assert cells[key]["sd"] == repr(summary.sd)
        assert cells[key]["lowest"] == repr(summary.lowest)
        assert cells[key]["seeds"] == "3"


def test_every_number_and_every_definition_is_in_the_markdown(eight: Any) -> None:
    found, files, page = eight
    text = files.markdown.read_text(encoding="utf-8")
    units = {info.key: info.unit for info in stability_of(found).figures}
    for checkpoint in stability_of(found).checkpoints:
        for summary in checkpoint.summaries:
            assert figure_text(summary.median, units[summary.figure]) in text
    for info in stability_of(found).figures:
        assert escape(info.definition) in text
        assert info.definition in page.text
    assert escape(stability_of(found).divergence) in text


def test_peak_learning_rate_is_the_first_figure_of_the_table(eight: Any) -> None:
    assert attributes(eight[1])[0]["figure"] == "peak_learning_rate"
    table = eight[1].markdown.read_text(encoding="utf-8").split("| Diverged (runs)")[1]
    assert table.splitlines()[1].startswith("| Peak learning rate (of the policy) | no log | 5.0e")


def test_section_stands_between_diversity_and_metrics(eight: Any) -> None:
    wanted = ["diversity", "stability", "metrics"]
    assert [i for i in eight[2].ids if i in wanted] == wanted
    assert [v for tag, key, v in eight[2].attributes if (tag, key) == ("a", "href")].count(
        "#stability"
    ) == 1


def test_page_is_well_formed_and_markdown_tables_have_one_width(eight: Any) -> None:
    _, files, page = eight
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    text = files.markdown.read_text(encoding="utf-8")
    for lines in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1


def test_a_checkpoint_without_a_log_is_said_to_have_none(eight: Any) -> None:
    _, files, page = eight
    assert page.text.count("no training log: no log") == 1
    assert "no training log: no log" in files.markdown.read_text(encoding="utf-8")
    assert "base" not in {c["checkpoint"] for c in attributes(files)}


def test_number_of_seeds_and_what_they_cannot_say_are_beside_the_numbers(eight: Any) -> None:
    text = eight[2].text
    assert text.count(f"n{NBSP}={NBSP}3") >= len(FIGURES) * len(OBJECTIVES)
    assert "the spread is no interval and no test" in text
    assert "spreads over a few seeds are no intervals" in text
    assert f"±7{NBSP}percentage points" in text


def test_figure_has_a_row_for_each_log_in_the_checkpoints_colours(eight: Any) -> None:
    _, files, _ = eight
    (path,) = [p for p in files.figures if p.stem == "training-stability"]
    document = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(document)
    labels = [e.text for e in root.iter(f"{SVG}text")]
    assert [t for t in labels if t in EIGHT] == list(OBJECTIVES)
    assert labels.count(f"3{NBSP}seeds") == len(OBJECTIVES)
    assert {"Loss", "KL(ref||policy), nats a token"} <= set(labels)
    for name, style in styles(EIGHT).items():
        assert (style.colour.lower() in document) is (name != "base")
    assert {"0.1", "1"} <= set(labels)
    assert "mathdefault" not in document
    assert "figures/training-stability.svg" in files.markdown.read_text(encoding="utf-8")
    assert len(document) < 450_000


def test_same_comparison_gives_the_same_bytes(eight: Any, tmp_path: Path) -> None:
    again = render(eight[0], tmp_path)
    assert again.html.read_bytes() == eight[1].html.read_bytes()
    assert again.markdown.read_bytes() == eight[1].markdown.read_bytes()


def test_a_run_without_a_training_suite_has_no_section(tmp_path: Path) -> None:
    files = render(comparison(), tmp_path)
    assert "tability" not in page_of(files).text
    assert "tability" not in files.markdown.read_text(encoding="utf-8")


def test_one_seed_has_no_spread_and_no_band(tmp_path: Path) -> None:
    found = comparison(training=training(tmp_path / "logs", ["base", "dpo"], (0,)))
    files = render(found, tmp_path / "report")
    text = page_of(files).text
    assert "there is no spread" in text
    assert "1 seed, no spread" in text
    assert {c["sd"] for c in attributes(files)} == {""}
    (path,) = [p for p in files.figures if p.stem == "training-stability"]
    assert "FillBetween" not in path.read_text(encoding="utf-8")


def test_no_log_at_all_draws_nothing(tmp_path: Path) -> None:
    files = render(comparison(training=training(tmp_path, ["base"])), tmp_path / "report")
    assert "No checkpoint of this run has a training log" in page_of(files).text
    assert "training-stability" not in [p.stem for p in files.figures]


def test_logs_alone_make_a_report(tmp_path: Path) -> None:
    found = comparison(metrics=(), differences=(), win_rates=(), samples=())
    run = found.manifest.model_copy(update={"suites": (), "judges": ()})
    changes = {"manifest": run, "training": training(tmp_path / "logs", NAMES)}
    page = page_of(render(found.model_copy(update=changes), tmp_path / "report"))
    assert "No prompts were asked, so no answers are compared." in page.text
    assert "There are no intervals." in page.text
    assert "Gradient spikes" in page.text


def steady(name: str, seed: int, steps: int) -> list[TrainingRow]:
    return [row(name, seed, i, loss=1 - i / 50, gradient_norm=i % 2) for i in range(steps)]


def test_what_broke_is_short_or_is_missing_is_said(tmp_path: Path) -> None:
    end = row("dpo", 1, 20, loss=None, gradient_norm=None, diverged=HOSTILE)
    rows = [*steady("dpo", 0, 40), *steady("dpo", 1, 20), end, *steady("tbpo-q", 0, 10)]
    found = comparison(training=read_stability(card(rows, without=["base", "tbpo-a"]), rows))
    files = render(found, tmp_path)
    page, text = page_of(files), files.markdown.read_text(encoding="utf-8")
    assert page.open == []
    assert not {"script", "img"} & set(page.tags)
    assert "dpo, seed 1: diverged at step 20: <script>" in page.text
    assert "1 of 2" in page.text
    assert "tbpo-q, seed 0: its log ends at step 9, the longest of this comparison" in page.text
    assert "too short: 10 logged steps, 17 needed" in page.text
    assert "tbpo-q: one seed, so no spread." in page.text
    assert escape("the log has no kl_reference_policy") in text
    assert not re.search(r"<(script|img|/td|/table)", text.split("## All metrics")[0])
    (path,) = [p for p in files.figures if p.stem == "training-stability"]
    assert path.read_text(encoding="utf-8").count("not in the log") == 4


def test_names_of_the_run_are_those_of_the_section() -> None:
    rows = steady("elsewhere", 0, 40)
    with pytest.raises(ValueError, match="elsewhere"):
        render(comparison(NAMES, training=read_stability(card(rows), rows)), Path("unused"))


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.0213, "share", f"2.1{NBSP}%"),
        (0.0, "share", f"0.0{NBSP}%"),
        (None, "nats", "no data"),
        (-7.894, "nats", f"{MINUS}7.89"),
        (100.0, "nats", "100"),
        (0.19, "nats", "0.190"),
        (0.000021, "nats", f"2.1e{MINUS}05"),
        (123456.0, "nats", "123456"),
        (2.5e9, "nats", "2.50e+09"),
    ],
)
def test_numbers_have_three_digits(value: float | None, unit: str, expected: str) -> None:
    assert figure_text(value, unit) == expected


def test_deviations_have_two_digits() -> None:
    assert plain(0.0316, "nats", digits=2) == "0.032"
