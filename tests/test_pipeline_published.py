"""Whole runs over published outputs: counts and lengths are those that their makers state."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import pytest
from command_records import Tbpo
from form_runs import forbid_models, run_words, write_ifeval_suite
from metric_records import SHARED

from harness.files import json_lines
from harness.reading import compare_run
from harness.store import GENERATIONS, SCORES, RunFolder, read_run
from harness.types import Comparison, Estimate, Status

ALPACA, MT_BENCH, ARENA, IFEVAL = (
    SHARED / name for name in ("alpaca_eval", "mt_bench", "arena_hard", "ifeval")
)


def needs(folder: Path) -> pytest.MarkDecorator:
    absent = not folder.is_dir()
    return pytest.mark.skipif(absent, reason=f"needs ../shared/data/{folder.name}")


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_models(monkeypatch)


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["model"]: row for row in csv.DictReader(stream)}


def whole_run(
    tbpo: Tbpo, files: Mapping[str, Path], output: Path, *suites: Path
) -> tuple[RunFolder, Comparison]:
    assert tbpo(*run_words(files, output, *suites))[0] == 0
    folder = read_run(output)
    assert folder.manifest.status == Status.COMPLETE
    assert {"report.html", "report.md"} <= {path.name for path in output.iterdir()}
    return folder, compare_run(output)


def by_checkpoint(comparison: Comparison, key: str) -> dict[str, Estimate]:
    return {r.checkpoint: r.estimate for r in comparison.metrics if r.metric.key == key}


def answers(folder: RunFolder, name: str) -> list[str]:
    return [g.text for g in folder.records(GENERATIONS) if g.checkpoint == name]


@needs(ALPACA)
def test_alpaca_eval(tmp_path: Path, tbpo: Tbpo) -> None:
    names = ("claude-2", "gpt35_turbo_instruct")
    files = {name: ALPACA / "ae2" / f"{name}.jsonl.gz" for name in names}
    folder, comparison = whole_run(tbpo, files, tmp_path / "run")

    expected = table(ALPACA / "expected.csv")
    lengths = by_checkpoint(comparison, "characters")
    for name in names:
        texts, published = answers(folder, name), expected[name]
        assert lengths[name].n == len(texts) == int(published["n"])
        # The published mean counts the space around an answer, and rows that were not judged.
        outer = fmean(len(text) - len(text.strip()) for text in texts)
        slack = 0 if len(texts) == 805 else 2
        assert abs(int((lengths[name].value or 0) + outer) - int(published["avg_length"])) <= slack
    (card,) = comparison.manifest.suites
    assert card.examples == 805
    lacking = 805 - int(expected["gpt35_turbo_instruct"]["n"])
    gap = f"outputs, gpt35_turbo_instruct: {lacking} of 805 answers not generated"
    assert comparison.gaps[0] == gap
    assert all(", gpt35_turbo_instruct: " in text for text in comparison.gaps)


@needs(MT_BENCH)
def test_mt_bench_with_its_second_turns(tmp_path: Path, tbpo: Tbpo) -> None:
    names = ("phi-3", "phi-3-dpo")
    files = {name: MT_BENCH / f"answer_{name}.jsonl" for name in names}
    folder, comparison = whole_run(tbpo, files, tmp_path / "run")

    assert comparison.gaps == ()
    for name in names:
        rows = [row for _, row in json_lines(files[name])]
        turns = {
            f"{row['question_id']}{suffix}": row["choices"][0]["turns"][place]
            for row in rows
            for place, suffix in enumerate(("", "/2"))
        }
        found = folder.records(GENERATIONS)
        assert {g.example_id: g.text for g in found if g.checkpoint == name} == turns
        assert by_checkpoint(comparison, "characters")[name].n == len(turns) == 160
    (change,) = [d for d in comparison.differences if d.metric.key == "characters"]
    assert (change.estimate.n, change.estimate.missing) == (160, 0)


@needs(ARENA)
def test_arena_hard(tmp_path: Path, tbpo: Tbpo) -> None:
    names = ("gpt-3.5-turbo-0125", "gpt-4-0314")
    files = {name: ARENA / f"v0.1_answer_{name}.jsonl.gz" for name in names}
    folder, comparison = whole_run(tbpo, files, tmp_path / "run")

    assert comparison.gaps == ()
    counts = {n: e.n for n, e in by_checkpoint(comparison, "characters").items()}
    assert counts == dict.fromkeys(names, 500)
    prompts = {row["uid"] for _, row in json_lines(ARENA / "v0.1_question.jsonl")}
    assert {g.example_id for g in folder.records(GENERATIONS)} == prompts


DIFFERING = {"m0": {"1122", "3089", "3429", "3534"}, "m1": set[str]()}
"""Prompts with another strict verdict than published; test_score_published says why."""


@pytest.mark.slow
@needs(IFEVAL)
def test_ifeval_scored_again(tmp_path: Path, tbpo: Tbpo) -> None:
    models = ("gpt-4o-mini-2024-07-18", "mistralai__Mistral-7B-Instruct-v0.3")
    files = {f"m{i}": IFEVAL / f"results_{m}.jsonl.gz" for i, m in enumerate(models)}
    suite = write_ifeval_suite(tmp_path, IFEVAL / "input_data.jsonl")
    folder, comparison = whole_run(tbpo, files, tmp_path / "run", suite)

    key = "ifeval_prompt_strict"
    estimates = by_checkpoint(comparison, key)
    for name, file in files.items():
        verdicts = {str(row["key"]): all(row["strict"]) for _, row in json_lines(file)}
        scores = {
            s.example_id: s.value
            for s in folder.records(SCORES)
            if (s.checkpoint, s.metric) == (name, key)
        }
        assert len(scores) == len(verdicts) == 541
        # Without NLTK's sentence model some prompts have no score, and each says why.
        scored = [i for i, value in scores.items() if value is not None]
        assert estimates[name].n == len(scored) >= 450
        assert estimates[name].missing == 541 - len(scored)
        # Those that NLTK's model would be needed for differ only where it is there.
        assert {i for i in scored if scores[i] != verdicts[i]} == DIFFERING[name] & set(scored)
