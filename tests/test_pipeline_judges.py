"""Whole runs with a language model as a judge, whose server fails as servers do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_records import Tbpo, refused
from form_runs import fake_weights, run_words
from judge_stand_in import JudgeStandIn, judge_stand_in, prefers_first, slips
from openai_stand_in import Fault, seeded
from suite_records import EXAMPLES, NAMES, run_config, write_suite

from harness.errors import EngineError, InputError
from harness.judges.llm import BudgetError, LlmJudge
from harness.pipeline import run
from harness.plan import RunConfig, make_plan
from harness.reading import compare_run
from harness.store import JUDGMENTS, read_run
from harness.types import JudgeSpec, Judgment, Outcome, Shown, Status

PAIRS = EXAMPLES * 6
"""Three pairs of checkpoints and three with the reference, on each prompt."""

KEY = "sk-never-to-be-written"
PATIENT = {"attempts": 14, "timeout_s": 0.3, "backoff_s": 0.002, "concurrency": 4}
SLOW = PATIENT | {"timeout_s": 60.0}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_weights(monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def server() -> Iterator[JudgeStandIn]:
    with judge_stand_in() as state:
        state.choose = prefers_first
        yield state


def config_of(given: Path, output: Path, server: JudgeStandIn, **changes: Any) -> RunConfig:
    fields = {"name": "llm", "source": server.url, "suites": ("own",)} | changes.pop("judge", {})
    settings = {"judges": [JudgeSpec(**fields)], "endpoint": PATIENT}
    return run_config(given, output, **(settings | changes))


def judged(output: Path) -> list[Judgment]:
    return [j for j in read_run(output).records(JUDGMENTS) if j.judge == "llm"]


def test_every_pair_is_judged_once_in_both_orders_in_spite_of_faults(
    given: Path, tmp_path: Path, server: JudgeStandIn
) -> None:
    server.plan, server.slip = seeded(1, 0.3), slips(2, 0.3)
    run(config_of(given, tmp_path / "run", server, judge={"retries": 20}))
    found = judged(tmp_path / "run")
    assert len(found) == len({JUDGMENTS.identity(j) for j in found}) == PAIRS
    assert all([o.shown for o in j.orders] == list(Shown) for j in found)
    assert {j.outcome for j in found} == {Outcome.TIE}
    assert {j.preference for j in found} == {0.5}
    assert server.slipped.total() > 10


def test_report_shows_a_judge_of_positions_for_what_it_is(
    given: Path, tmp_path: Path, server: JudgeStandIn
) -> None:
    run(config_of(given, tmp_path / "run", server))
    comparison = compare_run(tmp_path / "run")
    rates = [w for w in comparison.win_rates if w.judge == "llm"]
    assert {(w.ties, w.estimate.value) for w in rates} == {(EXAMPLES, 0.5)}
    (quality,) = comparison.judge_quality
    assert (quality.suite, quality.quality.judge) == ("own", "llm")
    assert quality.quality.flip_rate.value == 1.0
    assert quality.quality.position_preference.value == 1.0
    assert quality.quality.invalid.value == 0.0


def test_replies_that_cannot_be_read_are_gaps_and_no_ties(
    given: Path, tmp_path: Path, server: JudgeStandIn, tbpo: Tbpo
) -> None:
    server.slip = slips(3, 1.0)
    run(config_of(given, tmp_path / "run", server, judge={"retries": 0}))
    assert {j.outcome for j in judged(tmp_path / "run")} == {Outcome.INVALID}
    comparison = compare_run(tmp_path / "run")
    assert {w.estimate.value for w in comparison.win_rates if w.judge == "llm"} == {None}
    assert sum("judge llm" in gap for gap in comparison.gaps) == 6
    assert tbpo("report", tmp_path / "run")[0] == 0
    text = (tmp_path / "run" / "report.md").read_text()
    assert "Agreement with people: not measured" in text


def test_budget_stops_cleanly_and_the_rest_is_judged_later(
    given: Path, tmp_path: Path, server: JudgeStandIn
) -> None:
    output = tmp_path / "run"
    with pytest.raises(BudgetError, match=r"30 requests.*larger budget"):
        run(config_of(given, output, server, budget={"requests": 30}, endpoint=SLOW))
    assert server.posts == 30
    assert read_run(output).manifest.status is Status.RUNNING
    run(config_of(given, output, server, endpoint=SLOW))
    assert server.posts == 2 * PAIRS
    assert len(judged(output)) == PAIRS


def test_server_that_went_down_is_asked_only_for_the_rest(
    given: Path, tmp_path: Path, server: JudgeStandIn
) -> None:
    output, left = tmp_path / "run", iter([None] * 40)
    server.plan = lambda: next(left, Fault.ERROR)
    hasty = PATIENT | {"attempts": 2}
    with pytest.raises(EngineError, match=r"\d+ judgments are missing .*judge 'llm'.*for the rest"):
        run(config_of(given, output, server, endpoint=hasty))
    kept = len(judged(output))
    assert 0 < kept < PAIRS
    assert all(j.outcome is Outcome.TIE for j in judged(output))
    server.plan, server.posts = seeded(1, 0.0), 0
    run(config_of(given, output, server))
    assert len(judged(output)) == PAIRS
    assert server.posts <= 2 * (PAIRS - kept)


def test_judge_of_several_suites_is_held_once(
    given: Path, tmp_path: Path, server: JudgeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(LlmJudge, "close", lambda judge: closed.append(judge.spec.name))
    suites = [str(given / "own.yaml"), str(write_suite(tmp_path, name="second"))]
    both = {"suites": ("own", "second")}
    run(config_of(given, tmp_path / "run", server, judge=both, suites=suites))
    assert {j.suite for j in judged(tmp_path / "run")} == {"own", "second"}
    assert closed == ["llm"]


def test_changed_judge_is_another_run(given: Path, tmp_path: Path, server: JudgeStandIn) -> None:
    output = tmp_path / "run"
    run(config_of(given, output, server))
    with pytest.raises(InputError, match=r"another run.*judges"):
        run(config_of(given, output, server, judge={"temperature": 0.5}))


def test_judges_are_refused_before_anything_is_sampled(
    given: Path, tmp_path: Path, server: JudgeStandIn
) -> None:
    def refuse(message: str, **judge: Any) -> None:
        with pytest.raises(InputError, match=message):
            make_plan(config_of(given, tmp_path, server, judge=judge))

    refuse("two judges are named 'reference'", name="reference")
    refuse("unknown suite of judge 'llm' 'mine'", suites=("mine",))
    refuse("nothing to judge: every suite of this run samples", suites=())
    refuse("prompts", prompts="no-such-prompts")


def test_command_takes_judges_and_budget_and_keeps_the_key(
    given: Path,
    tmp_path: Path,
    server: JudgeStandIn,
    tbpo: Tbpo,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server.key = KEY
    output = tmp_path / "run"
    files = {name: given / name for name in NAMES[:2]}
    words = run_words(files, output, given / "own.yaml")
    judge = f"llm={server.url},api_key_env=MY_KEY,suites=own"
    code, out, err = tbpo(*words, "--judge", judge, "--budget", "requests=5")
    assert code == 5
    assert "the budget of the judges (5 requests) is spent" in err
    again, out_again, err_again = tbpo(*words, "--judge", judge)
    assert again == 0, err_again
    files_written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert KEY not in out + err + out_again + err_again + caplog.text
    assert [p for p in files_written if KEY.encode() in p.read_bytes()] == []
    refused(tbpo(*words, "--judge", "llm"), "--judge 'llm': expected NAME=SOURCE")
    other = run_words(files, tmp_path / "other", given / "own.yaml")
    refused(tbpo(*other, "--judge", judge, "--budget", "usd=1"), "no price is known for the model")
