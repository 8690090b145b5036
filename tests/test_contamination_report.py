"""Contamination from the plan to the manifest, the comparison, the report and the command."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from capability_records import ROWS, declared, write_data
from command_records import Tbpo, refused
from run_records import make_examples, run_manifest, suite_card
from suite_records import NAMES, run_config, write_suite
from test_contamination import ELSE, SHORT, STORY, pair
from test_report import HOSTILE, comparison, page_of
from training_records import write_rows

from harness.errors import DataError, InputError
from harness.files import sha256_file
from harness.plan import RunConfig, make_plan
from harness.reading import compare_run, summary_text
from harness.report import render
from harness.report.contamination import TITLE, of_all, warnings
from harness.report.markdown import escape
from harness.report.text import NBSP
from harness.store import MANIFEST, open_run, read_run
from harness.training.known import FOLDER, NOT_KNOWN
from harness.types import (
    CheckpointSpec,
    Comparison,
    Contamination,
    DataOverlap,
    Overlap,
    OverlapKind,
    OverlapParameters,
    RunManifest,
    Status,
    SuiteExample,
    SuiteOverlap,
)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite of three prompts, which are STORY, ELSE and SHORT."""
    folder = tmp_path / "suite"
    folder.mkdir()
    path = write_suite(folder)
    rows = [
        {
            "id": f"e{i}",
            "messages": [{"role": "user", "content": text}],
            "good": f"the cat {i}",
            "bad": "no",
        }
        for i, text in enumerate((STORY, ELSE, SHORT))
    ]
    write_rows(folder / "own.jsonl", rows)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Training rows: another text, STORY, ELSE with a word changed."""
    changed = ELSE.replace("piano", "harmonium")
    texts = ("Where do the cranes go in winter, and when do they return?", STORY, changed)
    return write_rows(tmp_path / "rows.jsonl", [pair(text) for text in texts])


def config(given: Path, suite: Path, data: dict[str, str | None], **changes: Any) -> RunConfig:
    specs = [
        CheckpointSpec(name=n, source=str(given / n), training_data=data.get(n)) for n in NAMES
    ]
    values = {"suites": [str(suite)], "checkpoints": specs} | changes
    return run_config(given, suite.parent / "run", **values)


def planned(*given: Any, **changes: Any) -> RunManifest:
    return make_plan(config(*given, **changes)).manifest


def test_plan_looks_for_the_prompts_in_the_data_that_are_known(
    given: Path, suite: Path, rows: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = planned(given, suite, {"dpo": str(rows)}).contamination
    assert [c.checkpoint for c in found] == list(NAMES)
    assert [c.reason for c in found] == [NOT_KNOWN, None, NOT_KNOWN]
    data = found[1].data
    assert data is not None
    assert (data.rows, data.sources) == (3, ({"file": rows.name, "sha256": sha256_file(rows)},))
    (own,) = data.suites
    assert (own.suite, own.examples, own.short, own.exact, own.near) == ("own", 3, 1, 1, 1)
    assert [(o.example_id, o.kind, o.origin) for o in own.overlaps] == [
        ("e0", OverlapKind.EXACT, "rows.jsonl:2"),
        ("e1", OverlapKind.NEAR, "rows.jsonl:3"),
    ]
    assert "dpo was trained on data that hold 1 of 3" in caplog.text


def test_run_without_known_data_keeps_its_form_and_its_key(
    given: Path, suite: Path, rows: Path
) -> None:
    plain, known = planned(given, suite, {}), planned(given, suite, {"dpo": str(rows)})
    assert plain.contamination == ()
    text = plain.model_dump_json()
    assert "contamination" not in text
    assert "training_data" not in text
    assert known.run_key == plain.run_key
    assert RunManifest.model_validate_json(known.model_dump_json()) == known
    old = known.model_dump(mode="json", exclude={"contamination"})
    assert RunManifest.model_validate(old).contamination == ()


def test_data_that_two_checkpoints_share_are_read_once(
    given: Path, suite: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import contamination

    read = []

    def counted(*of: Any) -> DataOverlap:
        read.append(of)
        return DataOverlap(sources=(), rows=1, parameters=OverlapParameters(), suites=())

    monkeypatch.setattr(contamination, "data_overlap", counted)
    copy = shutil.copy(rows, rows.with_name("copy.jsonl"))
    named = {"base": str(rows), "dpo": str(rows), "tbpo": str(copy)}
    assert len(planned(given, suite, named).contamination) == 3
    assert len(read) == 2


def test_folder_of_a_training_run_names_its_data(
    given: Path, suite: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(given / "dpo", trained)
    entry = {"file": rows.name, "sha256": sha256_file(rows)}
    (trained / MANIFEST).write_text(json.dumps({"objective": "dpo", "data": [entry]}))
    specs = [CheckpointSpec(name="dpo", source=str(trained))]
    assert planned(given, suite, {}, checkpoints=specs).contamination == ()
    more = [*specs, CheckpointSpec(name="sft", source=str(given / "base"), training_data=str(rows))]
    found = planned(given, suite, {}, checkpoints=more).contamination
    assert found[0].reason == (
        f"the manifest names rows.jsonl (sha256 {entry['sha256'][:12]}), which is not here: give "
        "training_data="
    )
    monkeypatch.setenv(FOLDER, str(rows.parent))
    (found_now,) = planned(given, suite, {}, checkpoints=specs).contamination
    assert found_now.data == found[1].data


def test_data_that_cannot_be_read_stop_the_plan(given: Path, suite: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'tbpo': training_data: .*neither an existing file"):
        planned(given, suite, {"tbpo": "gone.jsonl"})
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "chosen": "b"}\nno JSON\n')
    with pytest.raises(DataError, match=r"broken\.jsonl:2: not valid JSON"):
        planned(given, suite, {"tbpo": str(broken)})


def test_finding_reaches_the_comparison_and_the_report(
    given: Path, suite: Path, rows: Path, tmp_path: Path
) -> None:
    plan = make_plan(config(given, suite, {"dpo": str(rows)}))
    examples = [SuiteExample(suite="own", example=e) for e in plan.suites[0].examples]
    with open_run(tmp_path / "run", plan.manifest, examples):
        pass
    found = compare_run(tmp_path / "run")
    assert found.manifest.contamination == plan.manifest.contamination
    line = (
        "WARNING: dpo was trained on data that hold 1 of 3 prompts and a near-duplicate of 1 of Own"
    )
    assert line in summary_text(found).splitlines()
    files = render(found, tmp_path / "report")
    page, text = page_of(files), files.markdown.read_text(encoding="utf-8")
    assert f"## {TITLE}" in text
    assert "| dpo | Own | 3 | 3 | 1 of 3 (33.3\u00a0%) | 1 of 2 (50.0\u00a0%) |" in text
    assert "e0 (same prompt, rows.jsonl:2) and e1 (near-duplicate, rows.jsonl:3)" in text
    assert f"base and tbpo: not known; {escape(NOT_KNOWN)}" in text
    assert line.removeprefix("WARNING: ").replace("3 prompts", f"3{NBSP}prompts") in page.text
    assert page.ids.count("contamination") == 1


def test_folder_takes_what_is_known_later(tmp_path: Path) -> None:
    manifest = run_manifest(suite_card(examples=2), status=Status.RUNNING)
    examples = [SuiteExample(suite="s", example=e) for e in make_examples(2)]
    with open_run(tmp_path / "run", manifest, examples):
        pass
    before = (tmp_path / "run" / MANIFEST).read_bytes()
    with open_run(tmp_path / "run", manifest, examples):
        pass
    assert (tmp_path / "run" / MANIFEST).read_bytes() == before
    known = (Contamination(checkpoint="sft", reason="r"),)
    for later in (known, ()):
        changed = manifest.model_copy(update={"contamination": later, "created": "later"})
        with open_run(tmp_path / "run", changed, examples):
            pass
        found = read_run(tmp_path / "run").manifest
        assert found.contamination == known
        assert found.created == manifest.created


def overlap(**counts: int) -> SuiteOverlap:
    """Return an overlap of the suite hh; its examples are named in hostile words."""
    numbers = {"exact": 0, "near": 0, "answers": 0} | counts
    kinds = {"exact": OverlapKind.EXACT, "near": OverlapKind.NEAR, "answers": OverlapKind.ANSWER}
    overlaps = tuple(
        Overlap(
            example_id=f"{kind}-{i} " + HOSTILE.split("\r\n")[0],
            kind=of,
            share=0.5,
            origin=f"a:{i}",
        )
        for kind, of in kinds.items()
        for i in range(numbers[kind])
    )
    return SuiteOverlap(
        suite="hh", examples=60, short=4, references=50, overlaps=overlaps, **numbers
    )


def known(name: str, *suites: SuiteOverlap, sha256: str = "ab" * 32) -> Contamination:
    source = {"file": "rows.jsonl", "sha256": sha256}
    data = DataOverlap(sources=(source,), rows=1234, parameters=OverlapParameters(), suites=suites)
    return Contamination(checkpoint=name, data=data)


def contaminated(*found: Contamination) -> Comparison:
    plain = comparison()
    changes = {"contamination": found}
    return plain.model_copy(update={"manifest": plain.manifest.model_copy(update=changes)})


def test_report_shows_every_count_once_for_checkpoints_that_share_data(tmp_path: Path) -> None:
    suite = overlap(exact=2, near=7, answers=1)
    files = render(
        contaminated(
            Contamination(checkpoint="base", reason="nobody says"),
            known("dpo", suite),
            known("tbpo-q", suite),
            known("tbpo-a", overlap(), sha256="cd" * 32),
        ),
        tmp_path,
    )
    html = files.html.read_text(encoding="utf-8")
    cells = re.findall(r"<tr[^>]*data-exact=[^>]*>", html)
    assert [re.findall(r'data-(\w+)="([^"]*)"', cell) for cell in cells] == [
        [
            ("suite", "hh"),
            ("rows", "1234"),
            ("examples", "60"),
            ("exact", str(a)),
            ("near", str(b)),
            ("answers", str(c)),
        ]
        for a, b, c in ((2, 7, 1), (0, 0, 0))
    ]
    text, page = files.markdown.read_text(encoding="utf-8"), page_of(files)
    row = "| dpo and tbpo-q | Helpful and harmless | 1,234 | 60 | 2 of 60 (3.3\u00a0%) | "
    assert f"{row}7 of 56 (12.5\u00a0%) | 1 of 50 (2.0\u00a0%) |" in text
    assert "base: not known; nobody says." in page.text
    assert "(near-duplicate, a:2) and 5 more." in page.text
    assert "<script>" not in html.split("</style>")[1]
    assert page.open == []
    warning = (
        f"dpo and tbpo-q were trained on data that hold 2 of 60{NBSP}prompts, near-duplicates of 7 "
        f"and 1{NBSP}reference answer of Helpful and harmless"
    )
    assert page.text.count(warning) == 1
    assert f"> - {escape(warning)}" in text
    assert "tbpo-a was" not in page.text
    for lines in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1


def test_clean_data_are_shown_without_a_warning(tmp_path: Path) -> None:
    files = render(contaminated(known("dpo", overlap())), tmp_path)
    text = files.markdown.read_text(encoding="utf-8")
    assert f"## {TITLE}" in text
    assert "[!WARNING]" not in text
    assert "banner" not in files.html.read_text(encoding="utf-8").split("</style>")[1]


def test_report_without_known_data_is_as_it_was(tmp_path: Path) -> None:
    files = render(comparison(), tmp_path)
    for file in (files.html, files.markdown):
        text = file.read_text(encoding="utf-8")
        assert "contamination" not in text
        assert TITLE not in text


def test_warnings_in_words() -> None:
    (near,) = warnings([known("a", overlap(near=1))])
    assert near == f"a was trained on data that hold a near-duplicate of 1 of 60{NBSP}prompts of hh"
    (answers,) = warnings([known("a", overlap(answers=2))])
    assert answers.endswith(f"data that hold 2{NBSP}reference answers of hh")
    assert warnings([known("a", overlap()), Contamination(checkpoint="b", reason="r")]) == ()
    assert of_all(0, 0) == "none to look for"


def test_command_counts_without_a_run(suite: Path, rows: Path, tbpo: Tbpo) -> None:
    code, out, err = tbpo("contamination", "--training", rows, "--suite", suite)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"3 rows of rows.jsonl (SHA-256 {sha256_file(rows)[:12]})",
        "own: 1 exact and 1 near of 3 prompts, 1 of them too short for it; "
        "0 of 0 reference answers",
        "  exact  100%  e0  rows.jsonl:2",
        "  near    73%  e1  rows.jsonl:3",
    ]
    code, out, _ = tbpo("contamination", "--training", rows, "--suite", suite, "--json")
    found = DataOverlap.model_validate_json(out)
    assert (found.rows, found.suites[0].exact, found.suites[0].near) == (3, 1, 1)
    strict = ("--share", "0.9", "--words", "5", "--json")
    code, out, _ = tbpo("contamination", "--training", rows, "--suite", suite, *strict)
    assert code == 0
    stricter = DataOverlap.model_validate_json(out)
    assert stricter.parameters == OverlapParameters(words=5, share=0.9)
    assert stricter.suites[0].near == 0


def test_command_says_which_tasks_of_lm_eval_it_looked_at(
    suite: Path, rows: Path, tmp_path: Path, tbpo: Tbpo
) -> None:
    general = tmp_path / "general.yaml"
    general.write_text(yaml.safe_dump(declared(["gsm8k"])))
    given = ("contamination", "--training", rows, "--suites", suite, "--suites", general)
    code, out, err = tbpo(*given)
    assert (code, len(out.splitlines())) == (0, 4)
    assert err == "tbpo: general was not looked at; name a copy: --data general=FOLDER\n"
    data = write_data(tmp_path / "data", ["gsm8k"])
    code, out, err = tbpo(*given, "--data", f"general={data}")
    assert (code, err) == (0, "")
    assert f"general: 0 exact and 0 near of {ROWS} prompts" in out
    refused(tbpo(*given[:3], "--suite", general), "general was not looked at; name a copy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--training": "gone.jsonl"}, "'gone.jsonl' is neither an existing file nor a hub id"),
        ({"--suite": "hhh"}, "unknown suite 'hhh'"),
        ({"--share": "0"}, "--share"),
        ({"--words": "1"}, "--words"),
    ],
)
def test_command_refuses_what_it_cannot_read(
    suite: Path, rows: Path, tbpo: Tbpo, changes: dict[str, str], message: str
) -> None:
    given = {"--training": str(rows), "--suite": str(suite)} | changes
    found = tbpo("contamination", *(word for option in given.items() for word in option))
    code, out, err = found
    assert (code, out) == (2, "")
    assert message in err
    if not err.startswith("Usage"):
        refused(found, message)
