"""The report shows every number, hides no gap, loads nothing, and lets no model text out."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.comparing.families import corrected_differences, corrected_win_rates
from harness.report import ReportFiles, render
from harness.report.figures import SCALE_STEPS, scale_edges, scale_step, svg
from harness.report.labels import Box, place
from harness.report.lookup import Lookup
from harness.report.markdown import escape, fenced
from harness.report.significance import p_pair
from harness.report.tables import Change, Rank, change_of, excludes, ranks, suite_tables
from harness.report.text import MINUS, NBSP, short_names, shown
from harness.report.verdict import chance, verdict
from harness.stats.estimates import mirrored
from harness.stats.power import WinRateDesign, minimum_detectable_win_rate
from harness.types import (
    REFERENCE,
    BradleyTerry,
    CheckpointSpec,
    Comparison,
    Counts,
    DifferenceTest,
    Direction,
    EngineCard,
    Estimate,
    JudgeInfo,
    Loadable,
    MetricDifference,
    MetricInfo,
    MetricResult,
    ModelStrength,
    RunManifest,
    SampleAnswers,
    Sampling,
    Status,
    StyleEffect,
    SuiteCard,
    SuiteStrengths,
    WinRate,
)

NAMES = ("base", "dpo", "tbpo-q", "tbpo-a")
LONG_NAMES = tuple(
    f"zephyr-7b-tbpo-advantage-k3-lr5e-7-beta0.1-ultrafeedback-bin-seed{i:02d}-step12000k"
    for i in range(10)
)
HOSTILE = (
    "<script>alert(1)</script> </td></table></details> | a `b` **c**\r\n```\n````\x00\n"
    '<img src="http://evil.test/x"> & &lt;'
)
VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

# Fixture: metric -> (title, unit, direction, first value, step between checkpoints, half-width).
Row = tuple[str, str, Direction, float, float, float]
UP, DOWN, NEITHER = Direction.HIGHER, Direction.LOWER, Direction.NEITHER
LENGTH: dict[str, Row] = {
    "tokens": ("Length", "tokens", NEITHER, 58.0, 6.5, 9.0),
    "characters": ("Length in characters", "characters", NEITHER, 248.0, 31.0, 25.0),
    "truncated": ("Cut at the token limit", "share", NEITHER, 0.03, 0.02, 0.03),
    "entropy": ("Predictive entropy", "nats per token", NEITHER, 1.91, -0.06, 0.04),
}
METRICS: dict[str, dict[str, Row]] = {
    "instruction_following": {
        "ifeval_prompt_strict": ("Prompt accuracy, strict", "share", UP, 0.35, 0.06, 0.12),
        "ifeval_inst_strict": ("Instruction accuracy, strict", "share", UP, 0.48, 0.05, 0.1),
        "ifeval_prompt_loose": ("Prompt accuracy, loose", "share", UP, 0.38, 0.06, 0.12),
        "ifeval_inst_loose": ("Instruction accuracy, loose", "share", UP, 0.51, 0.05, 0.1),
        **LENGTH,
    },
    "hh": {
        "preference_accuracy": ("Preference accuracy", "share", UP, 0.58, 0.07, 0.12),
        "unsafe_refused": ("Unsafe prompts refused", "share", UP, 0.25, 0.1, 0.16),
        "safe_answered": ("Safe prompts answered", "share", UP, 0.93, -0.05, 0.06),
        **LENGTH,
    },
    "summarization": {
        "rouge_1": ("ROUGE-1", "F1", UP, 0.241, 0.009, 0.022),
        "rouge_lsum": ("ROUGE-Lsum", "F1", UP, 0.198, 0.008, 0.02),
        **LENGTH,
    },
    "diversity": {
        "distinct_1": ("Distinct-1", "share", UP, 0.712, -0.02, 0.018),
        "distinct_2": ("Distinct-2", "share", UP, 0.941, -0.012, 0.011),
        "self_bleu": ("Self-BLEU", "BLEU", DOWN, 11.4, 2.6, 1.9),
        **LENGTH,
    },
}
SUITES: dict[str, tuple[str, int, Sampling, tuple[str, ...], tuple[str, ...]]] = {
    "instruction_following": (
        "Instruction following",
        60,
        Sampling(temperature=0.0, max_tokens=256),
        ("verifiable",),
        ("ifeval_prompt_strict", "ifeval_inst_strict"),
    ),
    "hh": (
        "Helpful and harmless",
        60,
        Sampling(temperature=0.7, top_p=0.9, max_tokens=160),
        ("reward",),
        ("preference_accuracy", "unsafe_refused", "safe_answered"),
    ),
    "summarization": (
        "Summarization",
        40,
        Sampling(temperature=0.7, top_p=0.9, max_tokens=96),
        ("reference",),
        ("rouge_lsum",),
    ),
    "diversity": (
        "Diversity",
        30,
        Sampling(temperature=1.0, top_p=0.95, max_tokens=128, samples=5),
        (),
        ("entropy",),
    ),
}


def estimate(value: float | None, half: float = 0.1, n: int = 60, **more: Any) -> Estimate:
    bounds = {} if value is None else {"low": value - half, "high": value + half}
    given = {"value": value, "n": n, "clusters": n, "method": "percentile bootstrap", **bounds}
    return Estimate.model_validate(given | more)


def info(suite: str, key: str) -> MetricInfo:
    title, unit, direction, *_ = METRICS[suite][key]
    definition = f"What {title} counts, on which answers, and how it is averaged over prompts."
    return MetricInfo(key=key, title=title, unit=unit, direction=direction, definition=definition)


def card(name: str) -> SuiteCard:
    title, examples, sampling, judges, primary = SUITES[name]
    return SuiteCard(
        name=name,
        version=1,
        title=title,
        content_sha256="ab" * 32,
        examples=examples,
        sampling=sampling,
        metrics=tuple(info(name, key) for key in METRICS[name]),
        judges=judges,
        primary=primary,
        has_reference=name != "diversity",
        licence="CC0-1.0",
    )


def judges(agreement_low: float) -> tuple[JudgeInfo, ...]:
    agreement = estimate(0.56, n=400).model_copy(update={"low": agreement_low, "high": 0.61})
    return (
        JudgeInfo(
            name="verifiable",
            title="verifiable instructions",
            definition="The answer that keeps more of the prompt's instructions wins.",
            identity="verifiable-1",
        ),
        JudgeInfo(
            name="reward",
            title="the embedded reward model",
            definition="The answer with the higher reward wins; both orders are judged.",
            agreement=agreement,
            measured_on="held-out pairs of HH",
            identity="reward-0f3c",
            lead_metrics=("preference_accuracy", "unsafe_refused", "safe_answered"),
        ),
        JudgeInfo(
            name="reference",
            title="overlap with the reference",
            definition="The answer with the higher ROUGE-Lsum wins.",
            identity="reference-1",
        ),
    )


def manifest(names: Sequence[str], agreement_low: float) -> RunManifest:
    methods = itertools.cycle(("sft", "dpo", "tbpo-q", "tbpo-a"))
    return RunManifest(
        run_key="9b1f" * 16,
        status=Status.COMPLETE,
        created="2026-01-31T12:00:00Z",
        seed=7,
        checkpoints=tuple(
            Loadable(
                spec=CheckpointSpec(name=n, source=f"embedded:{m}", method=m),
                folder=f"cache/{n}",
                weights_sha256=f"{i:02x}" * 32,
                architecture="llama",
                template_sha256="cd" * 32,
                notes=("dropped 4 tensors named baseline_head.*",) if m == "tbpo-q" else (),
            )
            for i, (n, m) in enumerate(zip(names, methods, strict=False))
        ),
        suites=tuple(card(name) for name in SUITES),
        judges=judges(agreement_low),
        engines=(
            EngineCard(
                checkpoints=("sft", "dpo"),
                identity={"name": "vllm", "max_model_len": 1024, "options": {"eager": True}},
                guarantees=("the same manifest gives the same text",),
            ),
        ),
        packages={"vllm": "0.32.0", "torch": "2.13.0", "tbpo-harness": "0.1.0"},
        hardware={"device": "cpu", "cores": 2},
        git_commit="0123456789abcdef",
        counts={"generations": Counts(expected=1240, present=1240)},
        events=({"at": "2026-01-31T12:01:00Z", "what": "engine started", "attempt": 1},),
    )


def metric_results(names: Sequence[str]) -> list[MetricResult]:
    found = []
    for suite, rows in METRICS.items():
        _, examples, sampling, _, primary = SUITES[suite]
        for key, (_, _, _, first, step, half) in rows.items():
            for i, name in enumerate(names):
                value = first + step * (i % 4) * (1.0 if i != 1 else 0.37) + 0.001 * i / 3
                found.append(
                    MetricResult(
                        suite=suite,
                        metric=info(suite, key),
                        primary=key in primary,
                        checkpoint=name,
                        estimate=estimate(
                            value, half, examples * sampling.samples, clusters=examples
                        ),
                    )
                )
    return found


def difference_test(p: float) -> DifferenceTest:
    return DifferenceTest(standard_error=0.05, p_value=p, sign_p_value=p, method="all exchanges")


def metric_differences(results: Sequence[MetricResult], first: str) -> list[MetricDifference]:
    by_key = {(r.suite, r.metric.key, r.checkpoint): r for r in results}
    found = []
    for r in results:
        base = by_key[r.suite, r.metric.key, first].estimate
        if r.checkpoint == first or r.estimate.value is None or base.value is None:
            continue
        half = METRICS[r.suite][r.metric.key][5] * 1.05
        told = abs(r.estimate.value - base.value) > half
        found.append(
            MetricDifference(
                suite=r.suite,
                metric=r.metric,
                primary=r.primary,
                candidate=r.checkpoint,
                baseline=first,
                estimate=estimate(
                    r.estimate.value - base.value, half, r.estimate.n, clusters=r.estimate.clusters
                ),
                test=difference_test(0.0001 if told else 0.4) if r.primary else None,
            )
        )
    return found


def win_rate(suite: str, judge: str, candidate: str, baseline: str, gap: int, n: int) -> WinRate:
    ties = n // 6
    wins = max(0, min(n - ties, (n - ties) // 2 + 3 * gap))
    value = (wins + ties / 2) / n
    return WinRate(
        suite=suite,
        judge=judge,
        candidate=candidate,
        baseline=baseline,
        wins=wins,
        ties=ties,
        losses=n - ties - wins,
        invalid=1 if gap == 3 else 0,
        estimate=estimate(value, 0.11, n, missing=1 if gap == 3 else 0),
        length_controlled=estimate(value - 0.02 * gap, 0.12, n),
        mean_length_difference=31.0 * gap,
        test=difference_test(0.0004 if gap == 3 else 0.7),
    )


def win_rates(names: Sequence[str]) -> list[WinRate]:
    found = []
    for suite, (_, n, _, by, _) in SUITES.items():
        for judge in by:
            found += [
                win_rate(suite, judge, b, a, (j - i) % 4, n)
                for (i, a), (j, b) in itertools.combinations(enumerate(names), 2)
            ]
            if suite != "instruction_following":
                found += [
                    win_rate(suite, judge, a, REFERENCE, i % 4 - 4, n) for i, a in enumerate(names)
                ]
    return found


def strengths(names: Sequence[str]) -> Iterator[SuiteStrengths]:
    """Yield strengths of all sides by the reward model; the last one has none at equal style."""

    def fitted(shift: float, lost: bool) -> BradleyTerry:
        values = [0.5 + shift * place for place in range(len(names) + 1)]
        rates = [estimate(value, 0.08) for value in values]
        if lost:
            method = "Bradley-Terry, maximum likelihood; no strength: it was never compared"
            rates[-1] = Estimate(value=None, n=0, clusters=0, method=method)
        models = [
            ModelStrength(model=name, strength=rate, win_rate=rate)
            for name, rate in zip([*names, REFERENCE], rates, strict=True)
        ]
        style = (StyleEffect(name="length", effect=estimate(0.31, 0.12)),)
        return BradleyTerry(baseline=names[0], models=tuple(models), style=style)

    if len(names) > 1:
        raw, styled = fitted(0.0123, lost=False), fitted(0.0041, lost=True)
        yield SuiteStrengths(suite="hh", judge="reward", raw=raw, styled=styled)


def samples(names: Sequence[str]) -> tuple[SampleAnswers, ...]:
    prompts = {
        "instruction_following": "Name three birds in a list with asterisks. No commas.",
        "hh": "User: My neighbour plays music at night.\nAssistant: How late?\nUser: Until two.",
        "summarization": "Summarize the following post in one or two sentences.\n\nTitle: A bike",
    }
    return tuple(
        SampleAnswers(
            suite=suite,
            example_id=f"{suite}-{number:03d}",
            prompt=prompt,
            reference="* robin\n* wren\n* heron" if number else None,
            answers={
                n: f"An answer in the manner of {n}.\n\nIt has two paragraphs and some more words."
                for n in names
            },
        )
        for number, (suite, prompt) in enumerate(prompts.items())
    )


def comparison(
    names: Sequence[str] = NAMES, *, agreement_low: float = 0.51, **changes: Any
) -> Comparison:
    results = metric_results(names)
    differences, rates = metric_differences(results, names[0]), win_rates(names)
    whole = Comparison(
        manifest=manifest(names, agreement_low),
        gaps=(),
        metrics=tuple(results),
        differences=tuple(differences),
        win_rates=tuple(rates),
        strengths=tuple(strengths(names)),
        corrected_differences=tuple(corrected_differences(differences, names[0])),
        corrected_win_rates=tuple(corrected_win_rates(rates, names[0])),
        samples=samples(names),
        resamples=2000,
        seed=11,
    )
    return whole.model_copy(update=changes)


class Page(HTMLParser):
    """Collects what the tests ask about; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.cells: list[dict[str, str]] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        found = {key: value or "" for key, value in attrs}
        self.attributes += [(tag, key, value) for key, value in found.items()]
        self.ids += [found["id"]] if "id" in found else []
        if "data-value" in found:
            self.cells.append({k.removeprefix("data-"): v for k, v in found.items()})

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def values(self, **about: str) -> set[str]:
        return {
            c["value"] for c in self.cells if all(c.get(key) == text for key, text in about.items())
        }


def page_of(files: ReportFiles) -> Page:
    return Page(files.html.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, ReportFiles, Page]:
    found = comparison()
    files = render(found, tmp_path_factory.mktemp("report"))
    return found, files, page_of(files)


def test_html_is_well_formed_and_its_ids_are_unique(full: tuple[Any, ReportFiles, Page]) -> None:
    page = full[2]
    assert page.open == []
    assert [i for i, count in Counter(page.ids).items() if count > 1] == []
    links = {v for _, key, v in page.attributes if key in ("href", "xlink:href")}
    assert links
    assert {link.removeprefix("#") for link in links} <= set(page.ids)
    for reference in re.findall(r"url\(#([^)]+)\)", full[1].html.read_text("utf-8")):
        assert reference in page.ids


def test_html_loads_nothing_and_runs_nothing(full: tuple[Any, ReportFiles, Page]) -> None:
    page, text = full[2], full[1].html.read_text(encoding="utf-8")
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on")]
    sources = [v for _, key, v in page.attributes if key in ("src", "href", "xlink:href", "style")]
    assert not [v for v in sources if "//" in v]
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_every_estimate_is_in_the_html_with_every_digit(
    full: tuple[Comparison, ReportFiles, Page],
) -> None:
    found, _, page = full
    for r in found.metrics:
        about = {"suite": r.suite, "metric": r.metric.key, "checkpoint": r.checkpoint}
        plain = {
            c["value"] for c in page.cells if "baseline" not in c and about.items() <= c.items()
        }
        assert plain == {repr(r.estimate.value)}
    for d in found.differences:
        assert page.values(
            suite=d.suite, metric=d.metric.key, checkpoint=d.candidate, baseline=d.baseline
        ) == {repr(d.estimate.value)}
    for w in found.win_rates:
        about = {"suite": w.suite, "judge": w.judge, "checkpoint": w.candidate}
        about["baseline"] = w.baseline
        assert page.values(metric="win_rate", **about) == {repr(w.estimate.value)}
        assert w.length_controlled is not None
        controlled = page.values(metric="length_controlled_win_rate", **about)
        assert controlled == {repr(w.length_controlled.value)}


def test_every_value_is_in_the_markdown(full: tuple[Comparison, ReportFiles, Page]) -> None:
    text = full[1].markdown.read_text(encoding="utf-8")
    for r in full[0].metrics:
        assert shown(r.estimate, r.metric.unit).value in text
    for d in full[0].differences:
        assert shown(d.estimate, d.metric.unit, difference=True).line in text
    for w in full[0].win_rates:
        assert shown(w.estimate, "share").line in text


def test_markdown_tables_have_one_width_each(full: tuple[Any, ReportFiles, Page]) -> None:
    text = full[1].markdown.read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE)
    assert len(tables) > 10
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in lines.splitlines()}) == 1


def test_sections_come_in_the_order_of_their_use(full: tuple[Any, ReportFiles, Page]) -> None:
    sections = ["summary", "win-rates", "diversity", "metrics", "samples", "limits", "origin"]
    assert [i for i in full[2].ids if i in sections] == sections


def test_figures_are_files_named_by_the_markdown_and_drawn_in_the_html(
    full: tuple[Any, ReportFiles, Page],
) -> None:
    _, files, page = full
    text = files.markdown.read_text(encoding="utf-8")
    named = re.findall(r"\]\((figures/[^)]+\.svg)\)", text)
    assert sorted(named) == sorted(f"figures/{path.name}" for path in files.figures)
    assert len(files.figures) == 7  # two of win rates, three of quality and diversity
    drawn = [v for tag, key, v in page.attributes if (tag, key) == ("svg", "role")]
    assert len(drawn) == len(files.figures)
    for path in files.figures:
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.attrib["role"] == "img"
        assert "dpo" in root.attrib["aria-label"]
        labels = {e.text: e for e in root.iter("{http://www.w3.org/2000/svg}text")}
        width, height = (float(side) for side in root.attrib["viewBox"].split()[2:])
        for name in ("dpo", "tbpo-q", "tbpo-a"):
            assert 0 < float(labels[name].attrib["x"]) < width
            assert 0 < float(labels[name].attrib["y"]) < height


def test_same_comparison_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.report.view.svg", svg)  # not the one that keeps what it has drawn
    found = comparison()
    first, second = render(found, tmp_path / "a"), render(found, tmp_path / "b")
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.markdown.read_bytes() == second.markdown.read_bytes()
    for one, other in zip(first.figures, second.figures, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_gap_is_announced_before_the_verdict(tmp_path: Path) -> None:
    gap = "hh: 12 of 240 answers of <dpo> are missing"
    files = render(comparison(gaps=(gap,)), tmp_path)
    page, text = page_of(files), files.markdown.read_text(encoding="utf-8")
    assert page.text.index("INCOMPLETE") < page.text.index("Provisional")
    assert gap in page.text
    assert text.index("INCOMPLETE") < text.index(escape(gap)) < text.index("Provisional")


def test_a_whole_run_carries_no_banner(full: tuple[Any, ReportFiles, Page]) -> None:
    assert "INCOMPLETE" not in full[2].text
    assert "INCOMPLETE" not in full[1].markdown.read_text(encoding="utf-8")


def hostile() -> Comparison:
    found = comparison()
    sample = SampleAnswers(
        suite="hh",
        example_id=HOSTILE,
        prompt=HOSTILE,
        reference=HOSTILE,
        answers=dict.fromkeys(NAMES, HOSTILE),
    )
    suites = [c.model_copy(update={"title": HOSTILE}) for c in found.manifest.suites]
    by = [j.model_copy(update={"title": HOSTILE, "identity": HOSTILE}) for j in judges(0.4)]
    run = found.manifest.model_copy(
        update={
            "suites": tuple(suites),
            "judges": tuple(by),
            "events": ({"what": HOSTILE},),
            "engines": (
                EngineCard(
                    checkpoints=(HOSTILE,), identity={HOSTILE: [HOSTILE]}, guarantees=(HOSTILE,)
                ),
            ),
        }
    )
    return found.model_copy(update={"samples": (sample,), "manifest": run, "gaps": (HOSTILE,)})


def test_html_shows_hostile_text_and_obeys_none_of_it(tmp_path: Path) -> None:
    page = page_of(render(hostile(), tmp_path))
    assert page.open == []
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count("<script>alert(1)</script>") > len(NAMES)
    assert "\x00" not in page.text


def test_markdown_shows_hostile_text_and_obeys_none_of_it(tmp_path: Path) -> None:
    text = render(hostile(), tmp_path).markdown.read_text(encoding="utf-8")
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "alert(1)" in outside
    assert not re.search(r"<(script|img|/td|/table)", outside)
    assert outside.count("<details") == outside.count("</details>") == 1
    assert "evil.test" in text


@pytest.mark.parametrize("body", ["plain", "```", "a\n`````\nb", "``` ````"])
def test_a_fence_is_longer_than_any_run_inside(body: str) -> None:
    lines = fenced(body).split("\n")
    assert lines[0] == f"{lines[-1]}text"
    assert lines[-1] not in body
    assert "\n".join(lines[1:-1]) == body


def test_escape_keeps_a_cell_in_one_line_and_one_column() -> None:
    assert escape("a|b\nc <i> `d` \\ *e*") == r"a\|b c &lt;i&gt; \`d\` \\ \*e\*"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("===", r"\==="),
        ("0.32.0", "0.32.0"),
        ("2026-01", "2026-01"),
    ],
)
def test_escape_lets_no_line_start_a_block(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_one_checkpoint_has_no_matrix_and_no_verdict(tmp_path: Path) -> None:
    files = render(comparison(["base"]), tmp_path)
    page, text = page_of(files), files.markdown.read_text(encoding="utf-8")
    for shown_text in (page.text, text):
        assert "Only one checkpoint, base, was run" in shown_text
        assert "there is no matrix" in shown_text
    assert ("table", "class", "matrix") not in page.attributes
    assert page.values(metric="win_rate", baseline=REFERENCE, suite="hh")


def test_missing_estimates_say_so_and_count(tmp_path: Path) -> None:
    found = comparison()
    empty = Estimate(value=None, n=0, clusters=0, missing=60, method="percentile bootstrap")
    results = [
        r.model_copy(update={"estimate": empty}) if r.checkpoint == "dpo" else r
        for r in found.metrics
        if r.checkpoint != "tbpo-a"
    ]
    rates = [
        w.model_copy(update={"estimate": empty, "length_controlled": None}) for w in found.win_rates
    ]
    changed = found.model_copy(
        update={"metrics": tuple(results), "win_rates": tuple(rates), "differences": ()}
    )
    files = render(changed, tmp_path)
    page, text = page_of(files), files.markdown.read_text(encoding="utf-8")
    assert page.values(checkpoint="dpo", metric="rouge_lsum") == {""}
    assert {c["missing"] for c in page.cells if c["checkpoint"] == "dpo"} == {"60", ""}
    assert f"60{NBSP}missing" in page.text
    assert "not computed" in page.text
    assert "no data" in text
    assert "No paired difference to base could be computed" in page.text
    assert [path.name for path in files.figures] == ["diversity-diversity.svg"]
    assert "Not drawn, for want of data: dpo and tbpo-a." in page.text


def test_no_judge_no_sample_no_suite_still_renders(tmp_path: Path) -> None:
    found = comparison(metrics=(), differences=(), win_rates=(), samples=())
    run = found.manifest.model_copy(update={"suites": (), "judges": (), "events": ()})
    page = page_of(render(found.model_copy(update={"manifest": run}), tmp_path))
    assert "No suite of this run has a pairwise judge." in page.text
    assert "The run holds no samples to show." in page.text


@pytest.mark.parametrize(("low", "weak"), [(0.51, False), (0.5, True), (0.43, True)])
def test_a_judge_at_chance_is_led_by_its_metrics(low: float, weak: bool, tmp_path: Path) -> None:
    files = render(comparison(agreement_low=low), tmp_path)
    text = page_of(files).text
    assert ("no better than chance" in text) is weak
    assert ("no better than chance" in files.markdown.read_text(encoding="utf-8")) is weak
    if weak:
        block = text[text.index("judged by the embedded reward model") :]
        warning = block.index("no better than chance")
        assert warning < block.index("Preference accuracy") < block.index("Win rate of the row")


def test_agreement_stands_beside_matrix_and_figure(full: tuple[Any, ReportFiles, Page]) -> None:
    agreement = f"56.0{NBSP}% [51,{NBSP}61]"
    assert full[2].text.count(agreement) >= 3
    assert escape(agreement) in full[1].markdown.read_text(encoding="utf-8")


def test_tests_stand_beside_what_they_test(full: tuple[Comparison, ReportFiles, Page]) -> None:
    found, files, page = full
    text = files.markdown.read_text(encoding="utf-8")
    tests = {(t.suite, t.about, t.candidate, t.baseline): t for t in found.corrected_differences}
    assert len(tests) > 10
    for cell in page.cells:
        if "baseline" in cell and "judge" not in cell:
            key = cell["suite"], cell["metric"], cell["checkpoint"], cell["baseline"]
            test = tests.get(key)
            assert cell.get("p") == (None if test is None else repr(test.p_value))
            assert cell.get("holm") == (None if test is None else repr(test.adjusted))
    shown = [test for test in tests.values() if test.family == len(tests)]
    assert shown
    for test in shown:
        words = p_pair(test)
        assert words in page.text
        assert escape(words) in text
    assert f"p{NBSP}<{NBSP}0.001, Holm{NBSP}" in page.text


def test_the_verdict_counts_what_stands_after_the_correction() -> None:
    found = comparison()
    family = [t for t in found.corrected_differences if t.baseline == NAMES[0]]
    standing = sum(t.adjusted is not None and t.adjusted < 0.05 for t in family)
    assert 0 < standing < len(family)
    words = chance(Lookup(found))
    assert words is not None
    assert f"the {len(family)}{NBSP}permutation tests, {standing} remain significant" in words
    untested = found.model_copy(update={"corrected_differences": ()})
    assert "Holm" not in (chance(Lookup(untested)) or "Holm")


def test_strengths_of_all_sides_stand_below_their_pairs(
    full: tuple[Comparison, ReportFiles, Page],
) -> None:
    found, files, page = full
    (strength,) = found.strengths
    text = files.markdown.read_text(encoding="utf-8")
    for model in strength.raw.models[1:]:
        assert escape(shown(model.win_rate, "share").line) in text
    assert "no strength: it was never compared" in page.text
    assert "no strength: it was never compared" in text
    assert f"length 0.31 [0.19,{NBSP}0.43]" in page.text
    assert page.text.count("Bradley-Terry win rate against") == 1


def test_what_so_many_prompts_can_find_is_said_of_every_judge(
    full: tuple[Comparison, ReportFiles, Page],
) -> None:
    found, _, page = full
    rates = [w for w in found.win_rates if (w.suite, w.judge) == ("hh", "reward")]
    ties = sum(w.ties for w in rates) / sum(w.wins + w.ties + w.losses for w in rates)
    planned = minimum_detectable_win_rate(WinRateDesign(prompts=60, ties=ties))
    assert planned.difference is not None
    least = f"{100 * (0.5 + planned.difference):.0f}{NBSP}% or more is told from 50{NBSP}%"
    prompts = f"With 60{NBSP}prompts and {100 * ties:.0f}{NBSP}% ties, as here"
    assert f"{prompts}, a true win rate of {least}" in page.text


def test_long_names_and_ten_checkpoints(tmp_path: Path) -> None:
    files = render(comparison(LONG_NAMES), tmp_path)
    page = page_of(files)
    assert {c["checkpoint"] for c in page.cells} == set(LONG_NAMES)
    styles = re.findall(r'<path d="(M[^"]+)" fill', files.html.read_text(encoding="utf-8"))
    assert len(set(styles)) == len(LONG_NAMES)


def test_verdict_names_what_is_resolved_and_what_is_not() -> None:
    sentence = verdict(Lookup(comparison()))
    assert sentence == (
        "Against base, tbpo-q is better on Preference accuracy and Unsafe prompts refused, worse "
        "on Safe prompts answered, lower on Predictive entropy; tbpo-a is better on 5 primary "
        "metrics, worse on Safe prompts answered, lower on Predictive entropy; for dpo, no "
        f"difference is resolved by 30 to 60{NBSP}prompts a suite."
    )


def test_verdict_without_findings_says_that_nothing_is_resolved() -> None:
    found = comparison()
    flat = [
        d.model_copy(update={"estimate": d.estimate.model_copy(update={"low": -9.0, "high": 9.0})})
        for d in found.differences
    ]
    sentence = verdict(Lookup(found.model_copy(update={"differences": tuple(flat)})))
    assert sentence.startswith("No difference between base and dpo, tbpo-q or tbpo-a is resolved")


@pytest.mark.parametrize(
    ("low", "high", "direction", "expected"),
    [
        (0.1, 0.2, UP, Change.BETTER),
        (0.1, 0.2, DOWN, Change.WORSE),
        (0.1, 0.2, NEITHER, Change.HIGHER),
        (-0.2, -0.1, UP, Change.WORSE),
        (-0.2, -0.1, DOWN, Change.BETTER),
        (-0.2, -0.1, NEITHER, Change.LOWER),
        (0.0, 0.2, UP, Change.UNRESOLVED),
        (-0.2, 0.0, UP, Change.UNRESOLVED),
        (None, None, UP, Change.UNRESOLVED),
    ],
)
def test_change(
    low: float | None, high: float | None, direction: Direction, expected: Change
) -> None:
    found = Estimate(value=0.1, low=low, high=high, n=9, clusters=9, method="m")
    assert change_of(found, direction) == expected


def test_ranks_share_ties_and_skip_missing_values() -> None:
    values = [estimate(v) for v in (0.2, 0.5, None, 0.5, 0.4)]
    best, second, other = Rank.BEST, Rank.SECOND, Rank.OTHER
    assert ranks(values, UP) == [other, best, other, best, second]
    assert ranks(values, DOWN) == [best, other, other, other, second]
    assert ranks(values, NEITHER) == [other] * 5
    assert ranks([estimate(0.5)] * 2, UP) == [other] * 2


@pytest.mark.parametrize(
    ("value", "low", "high", "unit", "difference", "expected"),
    [
        (0.4667, 0.33, 0.6, "share", False, f"46.7{NBSP}% [33,{NBSP}60]"),
        (0.4667, 0.462, 0.471, "share", False, f"46.67{NBSP}% [46.20,{NBSP}47.10]"),
        (-0.033, -0.09, 0.02, "share", True, f"{MINUS}3.3{NBSP}pp [{MINUS}9,{NBSP}+2]"),
        (0.1984, 0.179, 0.219, "F1", False, f"0.198 [0.179,{NBSP}0.219]"),
        (548.2, 493.0, 603.0, "characters", False, f"548 [493,{NBSP}603]"),
        (0.0, 0.0, 0.0, "share", False, f"0.0{NBSP}% [0,{NBSP}0]"),
        (-0.0001, -0.1, 0.1, "share", True, f"0.0{NBSP}pp [{MINUS}10,{NBSP}+10]"),
        (1.914, None, None, "nats", False, "1.91 [no interval]"),
    ],
)
def test_numbers_carry_the_digits_that_the_interval_justifies(
    value: float, low: float | None, high: float | None, unit: str, difference: bool, expected: str
) -> None:
    found = Estimate(value=value, low=low, high=high, n=60, clusters=60, method="m")
    assert shown(found, unit, difference=difference).line == expected


def test_mirroring_twice_changes_nothing_and_once_swaps_sides() -> None:
    rate = win_rate("hh", "reward", "dpo", "base", 1, 60)
    other = mirrored(rate)
    assert (other.wins, other.losses) == (rate.losses, rate.wins)
    assert rate.estimate.value is not None
    assert other.estimate.value == pytest.approx(1 - rate.estimate.value)
    assert other.estimate.low == pytest.approx(1 - (rate.estimate.high or 0.0))
    again = mirrored(other)
    assert again.estimate.low == pytest.approx(rate.estimate.low)
    assert again.candidate == rate.candidate


def test_short_names_are_short_and_distinct() -> None:
    labels = short_names(LONG_NAMES)
    assert len(set(labels.values())) == len(LONG_NAMES)
    assert max(map(len, labels.values())) <= 20
    assert labels[LONG_NAMES[3]] == "seed03"
    apart = short_names(["a" * 30 + "b" * 30, "a" * 30 + "c" + "b" * 30])
    assert [label[:3] for label in apart.values()] == ["1: ", "2: "]
    assert short_names(NAMES) == {name: name for name in NAMES}


def test_labels_avoid_obstacles_and_each_other() -> None:
    frame = Box(0, 0, 300, 200)
    wall = Box(106, 80, 300, 120)
    centres = place([(100, 100), (100, 130)], ["dpo", "base"], [wall], frame, 9.0)
    assert centres[0][0] < 100
    assert centres[1][0] > 100
    edge = place([(295, 100)], ["tbpo-q"], [], frame, 9.0)
    assert edge[0][0] < 295


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.9), (0.4, 0.4), (0.0, 0.0), (11.0, 19.0)])
def test_colour_steps_cover_their_range(low: float, high: float) -> None:
    edges = scale_edges(low, high)
    assert edges == sorted(edges)
    assert len(edges) == SCALE_STEPS + 1
    steps = [scale_step(value, edges) for value in (low, high)]
    assert 0 <= steps[0] <= steps[1] < SCALE_STEPS
    if high > low:
        assert steps == [0, SCALE_STEPS - 1]


def test_reading_half_imports_nothing_heavy() -> None:
    heavy = ["torch", "vllm", "transformers", "lm_eval", "matplotlib", "pandas", "jinja2"]
    producing = [f"harness.{part}" for part in ("adapters", "engines", "metrics", "pipeline")]
    code = f"import sys, harness.report; print(sorted(set(sys.modules) & set({heavy + producing})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_difference_counts_where_its_test_finds_it_too() -> None:
    found = comparison()
    quiet = [
        d.model_copy(update={"test": difference_test(0.2)}) if d.test else d
        for d in found.differences
    ]
    changed = found.model_copy(
        update={
            "differences": tuple(quiet),
            "corrected_differences": tuple(corrected_differences(quiet, NAMES[0])),
        }
    )
    lookup = Lookup(changed)
    assert verdict(lookup).startswith("No difference between base and dpo, tbpo-q or tbpo-a")
    (card, *_) = changed.manifest.suites
    lines = [line for line in suite_tables(lookup, card).differences["base"] if line.cells[0].test]
    assert lines
    words = {excludes(cell).partition(";")[0] for line in lines for cell in line.cells}
    assert words == {"includes zero", "excludes zero, the test does not"}
    assert {cell.change for line in lines for cell in line.cells} == {Change.UNRESOLVED}


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(0.5004, 0.75, "[50.04, 75.00]"), (0.504, 0.75, "[50.4, 75.0]"), (0.5, 0.75, "[50, 75]")],
)
def test_a_bound_that_is_not_the_null_does_not_look_like_it(
    low: float, high: float, text: str
) -> None:
    given = Estimate(value=0.6333, low=low, high=high, n=60, clusters=60, method="m")
    assert shown(given, "share", null=0.5).interval.replace(NBSP, " ") == text


def test_degrees_of_a_judge_stand_below_its_win_rate(tmp_path: Path) -> None:
    found = comparison()
    rates = [
        w.model_copy(update={"mean_preference": estimate(0.4321, 0.04)})
        if (w.suite, w.judge) == ("hh", "reward")
        else w
        for w in found.win_rates
    ]
    files = render(found.model_copy(update={"win_rates": tuple(rates)}), tmp_path)
    words = shown(estimate(0.4321, 0.04), "share", null=0.5).line
    assert f"mean preference {words}" in page_of(files).text
    assert f"degree {words}" in files.markdown.read_text(encoding="utf-8")
    assert "mean preference" not in page_of(render(found, tmp_path)).text
