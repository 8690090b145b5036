"""Every suite of the protocol on the real engine: four rows of real data each, one engine start."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from harness.plan import RunConfig
from harness.suites import known_suites, suite_kind
from harness.suites.declaration import SuiteKind
from harness.types import CheckpointSpec

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
COPIES = {
    "alpaca_eval_2": "alpaca_eval/reference_gpt4_1106_preview.jsonl.gz",
    "arena_hard": "arena_hard/v2.0_question_sample.jsonl",
    "hh_harmless": "hh_rlhf/harmless.jsonl",
    "hh_helpful": "hh_rlhf/helpful.jsonl",
    "ifeval": "ifeval/input_data.jsonl",
    "mt_bench": "mt_bench/question.jsonl",
    "mt_bench_greedy": "mt_bench/question.jsonl",
    "open_llm_leaderboard": "lm_eval_tasks",
    "preference_accuracy": "ultrafeedback_binarized/test_prefs.jsonl",
    "tldr": "tldr/judged_pairs.jsonl",
    "ultrafeedback_diversity": "ultrafeedback_binarized/test_prefs.jsonl",
    "xstest": "xstest/xstest.jsonl",
}
"""By suite, the copy of its data."""

EMBEDDED = {"instruction_following", "hh", "summarization", "diversity"}
ROWS, TOKENS = 4, 24
NAME = "tbpo-q"

pytestmark = [
    pytest.mark.long,
    pytest.mark.engine,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the evaluation data are not at {DATA.name}"),
]


def test_every_suite_of_prompts_is_run_here() -> None:
    kinds = {name: suite_kind(path) for name, path in known_suites().items()}
    asked = {name for name, kind in kinds.items() if kind is not SuiteKind.TRAINING}
    assert asked == {*COPIES, *EMBEDDED}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all suites with external data on the real engine."""
    pytest.importorskip("vllm", reason="vLLM is not installed (extra cpu or gpu)")
    from harness.engines.environment import prepare_process

    prepare_process()
    from harness.pipeline import run

    return run(
        RunConfig(
            checkpoints=(CheckpointSpec(name=NAME, source="embedded:tbpo-q"),),
            suites=tuple(COPIES),
            output=tmp_path_factory.mktemp("suites") / "run",
            limit=ROWS,
            max_tokens=TOKENS,
            data={name: DATA / copy for name, copy in COPIES.items()},
        )
    )


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def test_one_engine_start_and_every_answer(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["status"] == "complete"
    started = [event for event in manifest["events"] if event["event"] == "engine started"]
    assert len(started) == 1
    counts = manifest["counts"]["generations"]
    assert counts["present"] == counts["expected"] > 0
    asked = {g["suite"] for g in rows(folder, "generations.jsonl")}
    assert asked == COPIES.keys() - {"preference_accuracy", "open_llm_leaderboard"}


def test_every_suite_has_its_primary_metrics(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    found: dict[tuple[str, str], list[float]] = {}
    for score in rows(folder, "scores.jsonl"):
        if score["value"] is not None:
            found.setdefault((score["suite"], score["metric"]), []).append(score["value"])
    for card in manifest["suites"]:
        for metric in card["primary"]:
            values = found[card["name"], metric]
            assert all(map(math.isfinite, values)), (card["name"], metric)


def test_second_turns_go_on_from_first_ones(folder: Path) -> None:
    answers = [g for g in rows(folder, "generations.jsonl") if g["suite"] == "mt_bench"]
    first = {g["example_id"]: g for g in answers if "/" not in g["example_id"]}
    second = [g for g in answers if g["example_id"].endswith("/2")]
    assert len(second) == len(first) > 0
    for answer in second:
        before = first[answer["example_id"].removesuffix("/2")]
        assert answer["prompt_tokens"] > before["prompt_tokens"] + before["tokens"] - 2


def test_the_data_that_were_used_are_in_the_manifest(folder: Path) -> None:
    from harness.files import sha256_file

    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    for card in manifest["suites"]:
        copy = DATA / COPIES[card["name"]]
        if copy.is_file():
            assert card["used"]["source"] == copy.name
            assert card["used"]["sha256"] == sha256_file(copy)


def test_the_report_shows_every_suite(folder: Path) -> None:
    from harness.reading import compare_run
    from harness.report import render

    comparison = compare_run(folder)
    files = render(comparison, folder)
    text = files.html.read_text("utf-8")
    for card in comparison.manifest.suites:
        assert card.title in text
