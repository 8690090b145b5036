"""The judge behind an API, against a server that fails in every way that servers do."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_stand_in import (
    SETTINGS,
    JudgeStandIn,
    Slip,
    judge,
    judge_stand_in,
    pairs,
    prefers_first,
    slips,
)
from openai_stand_in import Fault, always, seeded

from harness.engines.settings import EndpointSettings
from harness.errors import EngineError, InputError
from harness.judges import Judge
from harness.judges.llm import Budget, BudgetError, Limits, LlmJudge, load_prices
from harness.types import JudgeSpec, Judgment, Outcome, Shown

KEY = "sk-planted-4711"
ALONE = EndpointSettings(concurrency=1, attempts=3, timeout_s=60.0, backoff_s=0.002)
HASTY = SETTINGS.model_copy(update={"timeout_s": 2.0})
"""Gives up on a server that hangs; long enough for one that is only slow."""


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[JudgeStandIn]:
    with judge_stand_in() as state:
        yield state


def outcomes(judgments: list[Judgment]) -> list[Outcome]:
    return [j.outcome for j in judgments]


def cached(found: LlmJudge) -> list[dict[str, Any]]:
    return [json.loads(line) for line in found.cache.path.read_text().splitlines()]


# Both orders.


def test_each_pair_is_asked_in_both_orders_and_the_better_answer_wins(server: JudgeStandIn) -> None:
    found: Judge = judge(server)
    judgments = found.compare(pairs(6))

    assert outcomes(judgments) == [Outcome.WIN, Outcome.LOSS] * 3
    assert [j.preference for j in judgments] == [1.0, 0.0] * 3
    assert [j.example_id for j in judgments] == [f"e{i}" for i in range(6)]
    assert {j.judge for j in judgments} == {found.info.name} == {"llm"}
    for judgment in judgments:
        assert [o.shown for o in judgment.orders] == list(Shown)
        assert {o.outcome for o in judgment.orders} == {judgment.outcome}
        assert all(o.attempts == 1 and o.reason is None for o in judgment.orders)
    assert server.posts == 12


def test_a_judge_that_prefers_the_first_place_ties_everywhere(server: JudgeStandIn) -> None:
    server.choose = prefers_first
    judgments = judge(server).compare(pairs(5))

    assert outcomes(judgments) == [Outcome.TIE] * 5
    assert [j.preference for j in judgments] == [0.5] * 5
    for judgment in judgments:
        assert [o.outcome for o in judgment.orders] == [Outcome.WIN, Outcome.LOSS]
        assert [o.preference for o in judgment.orders] == [1.0, 0.0]


def test_the_degree_is_the_softmax_over_the_labels(server: JudgeStandIn) -> None:
    server.told = lambda label: {label: -0.2, "B" if label == "A" else "A": -1.7, "The": -4.0}
    win, loss = judge(server).compare(pairs(2))
    expected = 1 / (1 + math.exp(-1.5))

    assert win.preference == pytest.approx(expected)
    assert loss.preference == pytest.approx(1 - expected)
    assert [o.preference for o in win.orders] == pytest.approx([expected] * 2)


def test_a_label_that_is_not_listed_counts_as_absent(server: JudgeStandIn) -> None:
    server.told = lambda label: {label: -0.2, "The": -1.0}
    assert [j.preference for j in judge(server).compare(pairs(2))] == [1.0, 0.0]


def test_orders_that_disagree_in_degree_average(server: JudgeStandIn) -> None:
    server.choose = prefers_first
    server.told = lambda _: {"A": math.log(0.8), "B": math.log(0.2)}
    (judgment,) = judge(server).compare(pairs(1))

    assert judgment.outcome is Outcome.TIE
    assert judgment.preference == pytest.approx(0.5)
    assert [o.preference for o in judgment.orders] == pytest.approx([0.8, 0.2])


def test_judgments_without_orders_are_written_as_before() -> None:
    fields: dict[str, Any] = {"suite": "s", "judge": "j", "candidate": "a", "baseline": "b"}
    fields |= {"example_id": "e", "outcome": "win", "preference": 1.0, "length_difference": 0}
    plain = Judgment(**fields)
    assert "orders" not in plain.model_dump()
    assert "orders" not in json.loads(plain.model_dump_json())
    assert Judgment.model_validate(plain.model_dump()) == plain


def test_judgments_with_orders_are_read_back(server: JudgeStandIn) -> None:
    (judgment,) = judge(server).compare(pairs(1))
    assert Judgment.model_validate_json(judgment.model_dump_json()) == judgment


# What the server offers.


@pytest.mark.parametrize(
    ("refuses", "field"),
    [
        (set(), "structured_outputs"),
        ({"structured_outputs"}, "guided_choice"),
        ({"structured_outputs", "guided_choice"}, "response_format"),
        ({"structured_outputs", "guided_choice", "response_format"}, None),
        ({"logprobs"}, "structured_outputs"),
    ],
)
def test_a_refused_form_falls_back_one_step_and_is_remembered(
    server: JudgeStandIn, refuses: set[str], field: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    server.be_vllm()
    server.refuses = refuses
    found = judge(server, settings=ALONE)
    assert outcomes(found.compare(pairs(4))) == [Outcome.WIN, Outcome.LOSS] * 2

    constraints = {"structured_outputs", "guided_choice", "response_format"}
    for body in server.bodies:
        assert constraints & body.keys() == ({field} if field else set())
        assert ("logprobs" in body) == ("logprobs" not in refuses)
    assert len(server.bodies) == 8
    assert server.posts == 8 + (4 if "logprobs" in refuses else len(refuses))
    assert len([r for r in caplog.records if "is asked by" in r.message]) == (1 if refuses else 0)


@pytest.mark.parametrize(
    ("version", "field"),
    [("0.10.1", "guided_choice"), ("0.11.0", "structured_outputs"), ("x", "structured_outputs")],
)
def test_vllm_is_asked_by_the_name_of_its_version(
    server: JudgeStandIn, version: str, field: str
) -> None:
    server.be_vllm(version)
    judge(server).compare(pairs(1))
    assert all(field in body for body in server.bodies)


def test_other_servers_are_asked_for_json(server: JudgeStandIn) -> None:
    server.told = lambda label: {label: -0.1, '"' + ("B" if label == "A" else "A"): -2.1}
    (judgment,) = judge(server).compare(pairs(1))

    assert judgment.preference == pytest.approx(1 / (1 + math.exp(-2)))
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["verdict"]["enum"] == ["A", "B"]
    assert judgment.orders[0].reply == '{"verdict": "A"}'


def test_a_question_that_is_refused_is_reported_and_does_not_change_the_form(
    server: JudgeStandIn,
) -> None:
    server.be_vllm()
    server.refuses = {f"{word} 1" for word in ("GOOD", "POOR")}
    judgments = judge(server, settings=ALONE).compare(pairs(3))

    assert outcomes(judgments) == [Outcome.WIN, Outcome.INVALID, Outcome.WIN]
    assert "candidate first: HTTP 400: cannot take GOOD 1; baseline first" in str(
        judgments[1].reason
    )
    assert server.posts == 6
    assert all("structured_outputs" in body for body in server.bodies)


def test_what_no_form_helps_against_is_the_reason(server: JudgeStandIn) -> None:
    server.refuses = {"logprobs", "response_format", "temperature"}
    (judgment,) = judge(server, settings=ALONE).compare(pairs(1))
    assert judgment.outcome is Outcome.INVALID
    assert {o.reason for o in judgment.orders} == {"HTTP 400: cannot take temperature"}


def test_a_model_that_refuses_a_temperature_is_asked_without(server: JudgeStandIn) -> None:
    server.refuses = {"temperature"}
    (judgment,) = judge(server, settings=ALONE, temperature="unset").compare(pairs(1))
    assert judgment.outcome is Outcome.WIN
    assert all("temperature" not in body for body in server.bodies)


def test_without_logprobs_none_are_asked_for(server: JudgeStandIn) -> None:
    judge(server, logprobs=False).compare(pairs(1))
    assert not any("logprobs" in body for body in server.bodies)


# Faults.


def test_faults_lose_and_double_nothing(server: JudgeStandIn) -> None:
    kinds = (Fault.BUSY, Fault.LATER, Fault.ERROR, Fault.HANG, Fault.GARBAGE, Fault.TRUNCATED)
    server.plan = seeded(3, 0.17, kinds)
    server.slip = slips(4, 0.157)
    found = judge(server, settings=HASTY, retries=9)
    judgments = found.compare(pairs(60))

    assert server.faults.keys() == set(kinds)
    assert server.slipped.keys() == set(Slip)
    failed = server.faults.total() + server.slipped.total()
    assert 0.2 < failed / server.posts < 0.4
    assert [j.example_id for j in judgments] == [f"e{i}" for i in range(60)]
    assert outcomes(judgments) == [Outcome.WIN, Outcome.LOSS] * 30
    assert sum(o.attempts - 1 for j in judgments for o in j.orders) == server.slipped.total()
    keys = [line["key"] for line in cached(found)]
    assert len(keys) == len(set(keys)) == 120


def test_faults_without_retries_are_reported(server: JudgeStandIn) -> None:
    server.slip = slips(5, 0.3)
    judgments = judge(server, retries=0).compare(pairs(30))

    unread = [o for j in judgments for o in j.orders if o.outcome is Outcome.INVALID]
    assert len(unread) == server.slipped.total() > 5
    assert {o.reason for o in unread} == {"no verdict could be read from 1 replies"}
    for judgment in judgments:
        bad = any(o.outcome is Outcome.INVALID for o in judgment.orders)
        assert (judgment.outcome is Outcome.INVALID) == bad
        assert (judgment.preference is None) == bad == (judgment.reason is not None)


@pytest.mark.parametrize("slip", list(Slip))
def test_garbage_forever_is_invalid_and_never_guessed(server: JudgeStandIn, slip: Slip) -> None:
    server.slip = lambda: slip
    found = judge(server)
    judgments = found.compare(pairs(3))

    assert outcomes(judgments) == [Outcome.INVALID] * 3
    assert server.posts == 3 * 2 * 3
    assert {o.attempts for j in judgments for o in j.orders} == {3}
    assert sorted(body["seed"] for body in server.bodies) == [0] * 6 + [1] * 6 + [2] * 6
    assert not found.cache.path.exists()


def test_a_dead_server_is_reported_and_asked_again_next_time(server: JudgeStandIn) -> None:
    server.plan = always(Fault.ERROR)
    found = judge(server, settings=ALONE)
    (judgment,) = found.compare(pairs(1))
    assert judgment.outcome is Outcome.INVALID
    assert "3 x HTTP 500" in str(judgment.reason)

    server.plan = lambda: None
    assert outcomes(found.compare(pairs(1))) == [Outcome.WIN]


def test_a_refused_key_ends_the_judging(server: JudgeStandIn) -> None:
    found = judge(server)
    assert found.info.identity
    server.status["/v1/chat/completions"] = 401
    with pytest.raises(EngineError, match="HTTP 401"):
        found.compare(pairs(2))


# The cache.


def test_what_was_judged_is_not_asked_again(server: JudgeStandIn) -> None:
    first = judge(server).compare(pairs(4))
    asked = server.posts
    again = judge(server, name="other").compare(pairs(4))

    assert server.posts == asked
    assert [j.model_copy(update={"judge": "llm"}) for j in again] == first


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.5}, {"seed": 1}, {"max_tokens": 5}, {"logprobs": False}, {"model": "big"}],
)
def test_a_changed_judge_gets_no_verdict_of_another(
    server: JudgeStandIn, change: dict[str, Any]
) -> None:
    server.models.append({"id": "big"})
    before = judge(server, model="tiny")
    before.compare(pairs(2))
    after = judge(server, **({"model": "tiny"} | change))
    after.compare(pairs(2))

    assert server.posts == 8
    assert before.info.identity != after.info.identity
    assert before.cache.path != after.cache.path


def test_another_version_of_the_server_is_another_judge(server: JudgeStandIn) -> None:
    server.be_vllm("1.0")
    judge(server).compare(pairs(1))
    server.be_vllm("1.1")
    judge(server).compare(pairs(1))
    assert server.posts == 4


def test_another_prompt_is_asked_anew(server: JudgeStandIn) -> None:
    found = judge(server)
    found.compare(pairs(1))
    found.compare(pairs(1, suite="summarization"))
    assert server.posts == 4


def test_a_torn_line_is_passed_over_and_overwrites_nothing(
    server: JudgeStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    found = judge(server)
    found.compare(pairs(2))
    whole = found.cache.path.read_text()
    found.cache.path.write_text(whole[:-20])

    judgments = judge(server).compare(pairs(3))
    assert outcomes(judgments) == [Outcome.WIN, Outcome.LOSS, Outcome.WIN]
    assert server.posts == 4 + 1 + 2
    assert "1 unreadable lines are passed over" in caplog.text

    judge(server).compare(pairs(3))
    assert server.posts == 7


# The key.


def test_the_key_reaches_no_file_and_no_log(
    server: JudgeStandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.key, server.echo = KEY, f" (sent with {KEY})"
    server.slip = slips(1, 0.5)
    found = judge(server, api_key_env="JUDGE_KEY", retries=1)
    judgments = found.compare(pairs(20))
    server.status["/v1/chat/completions"] = 400
    judgments += judge(server, api_key_env="JUDGE_KEY").compare(pairs(24))

    assert {Outcome.INVALID, Outcome.WIN} <= set(outcomes(judgments))
    written = "".join(j.model_dump_json() for j in judgments) + found.info.model_dump_json()
    assert "(key)" in written
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert found.cache.path in files
    texts = [written, caplog.text, *capfd.readouterr(), *(p.read_text() for p in files)]
    assert not any(KEY in text for text in texts)
    assert server.posts > 40


def test_a_key_that_is_named_but_not_set_is_said(server: JudgeStandIn) -> None:
    with pytest.raises(InputError, match="names the environment variable NO_SUCH_KEY"):
        judge(server, api_key_env="NO_SUCH_KEY").compare(pairs(1))


# The budget.


def test_a_spent_budget_stops_cleanly_and_the_next_run_goes_on(server: JudgeStandIn) -> None:
    capped = judge(server, budget=Budget(Limits(requests=10)))
    with pytest.raises(BudgetError, match=r"10 requests\) is spent.*14 questions were not") as told:
        capped.compare(pairs(12))
    assert told.value.exit_code == 5
    assert server.posts == len(cached(capped)) == 10

    judgments = judge(server).compare(pairs(12))
    assert outcomes(judgments) == [Outcome.WIN, Outcome.LOSS] * 6
    assert server.posts == 24


def test_retries_count_against_the_budget(server: JudgeStandIn) -> None:
    server.slip = lambda: Slip.EMPTY
    with pytest.raises(BudgetError):
        judge(server, budget=Budget(Limits(requests=4))).compare(pairs(2))
    assert server.posts == 4


def test_tokens_are_counted_as_the_server_does(server: JudgeStandIn) -> None:
    budget = Budget(Limits(tokens=4000))
    with pytest.raises(BudgetError):
        judge(server, budget=budget, settings=ALONE).compare(pairs(30))
    spent = budget.spent
    assert spent.tokens.total == 102 * spent.requests
    assert 2500 < spent.tokens.total <= 4000
    assert spent.usd is None


def test_money_is_capped_by_the_price_table(server: JudgeStandIn) -> None:
    server.models.append({"id": "gpt-4o-mini"})
    budget = Budget(Limits(usd=0.001))
    with pytest.raises(BudgetError, match=r"about 0\.00"):
        judge(server, budget=budget, model="gpt-4o-mini").compare(pairs(60))
    assert budget.spent.usd == pytest.approx(budget.spent.requests * (15 + 1.2) / 1e6)
    assert budget.spent.usd <= 0.001


def test_a_cap_in_money_needs_a_price(server: JudgeStandIn) -> None:
    with pytest.raises(InputError, match="no price is known for the model 'tiny'"):
        judge(server, budget=Budget(Limits(usd=1.0))).compare(pairs(1))
    assert server.posts == 0


def test_a_forecast_asks_nothing_and_knows_what_is_cached(server: JudgeStandIn) -> None:
    found = judge(server)
    found.compare(pairs(3))
    forecast = found.forecast(pairs(5), load_prices())

    assert server.posts == 6
    assert (forecast.requests, forecast.cached, forecast.usd) == (4, 6, None)
    assert forecast.most.output == 4 * 16
    assert 4 * 200 < forecast.most.input < 4 * 1000


def test_a_spec_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        JudgeSpec.model_validate({"name": "a", "source": "http://x/v1", "key": KEY})


def test_settings_do_not_decide_the_identity(server: JudgeStandIn) -> None:
    a, b = judge(server), judge(server, settings=SETTINGS.model_copy(update={"attempts": 2}))
    assert a.info.identity == b.info.identity
    assert np.all([len(x.info.identity) == 64 for x in (a, b)])
