"""Judges that reason before they answer: what they refuse, and where in a reply the verdict is."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
from judge_stand_in import SETTINGS, JudgeStandIn, judge, judge_stand_in, pairs

from harness.engines.settings import EndpointSettings
from harness.judges.llm.forms import wants_other_limit
from harness.judges.llm.prompts import ByToken, JudgePrompt, own_prompts
from harness.judges.llm.reasoning import behind_reasoning, end_of_reasoning
from harness.judges.llm.replies import read_reply, read_verdict
from harness.judges.llm.verdicts import Choice
from harness.types import Message, Outcome, Role

ALONE = EndpointSettings(concurrency=1, attempts=3, timeout_s=60.0, backoff_s=0.002)
NEWER = (
    "Unsupported parameter: '{}' is not supported with this model. "
    "Use 'max_completion_tokens' instead."
)
BY_LABEL = own_prompts().prompts["judge_helpful"]
BY_TOKEN = JudgePrompt(
    name="by_token",
    version=1,
    title="By token",
    messages=(Message(role=Role.USER, content="?"),),
    max_tokens=1,
    manner=ByToken(numerator="m", denominators=("m", "M"), binarize=False),
)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[JudgeStandIn]:
    with judge_stand_in() as state:
        yield state


# The limit's name.


def test_a_refused_limit_is_renamed_once_and_for_good(
    server: JudgeStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuses, server.refusal = {"max_tokens"}, NEWER
    found = judge(server, settings=ALONE)
    judgments = found.compare(pairs(4))

    assert [j.outcome for j in judgments] == [Outcome.WIN, Outcome.LOSS] * 2
    assert len(server.bodies) == 8
    assert server.posts == 9
    assert all(body["max_completion_tokens"] == 16 for body in server.bodies)
    assert not any("max_tokens" in body for body in server.bodies)
    assert all("response_format" in body and "logprobs" in body for body in server.bodies)
    (said,) = [r.getMessage() for r in caplog.records if "max_completion_tokens" in r.getMessage()]
    assert said.startswith("judge 'llm' is sent max_completion_tokens, for: HTTP 400: Unsupported")

    found.compare(pairs(5))
    assert server.posts == 9 + 2


def test_many_at_once_are_all_asked_under_the_new_name(
    server: JudgeStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuses, server.refusal = {"max_tokens"}, NEWER
    judgments = judge(server).compare(pairs(40))
    assert {j.outcome for j in judgments} == {Outcome.WIN, Outcome.LOSS}
    assert server.posts <= 80 + SETTINGS.concurrency
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


def test_the_name_is_found_before_the_form_is(server: JudgeStandIn) -> None:
    server.refuses = {"response_format", "logprobs"}
    plain = server.refused_for

    def told(body: dict[str, Any]) -> str | None:
        old = "max_tokens" in body
        server.refusal = NEWER if old else "cannot take {}"
        return "max_tokens" if old else plain(body)

    server.refused_for = told  # type: ignore[method-assign]
    (judgment,) = judge(server, settings=ALONE).compare(pairs(1))
    assert judgment.outcome is Outcome.WIN
    # The name once, then JSON and plain with log-probabilities, JSON and plain without.
    assert server.posts == 1 + 4 + 1
    assert "max_completion_tokens" in server.bodies[-1]


def test_a_judge_that_is_asked_as_before_is_the_same_judge(server: JudgeStandIn) -> None:
    before = judge(server)
    known, place = before.info.identity, before.cache.path
    server.refuses, server.refusal = {"max_tokens"}, NEWER
    renamed = judge(server)
    renamed.compare(pairs(1))
    assert (renamed.info.identity, renamed.cache.path) == (known, place)


@pytest.mark.parametrize(
    ("refusal", "named"),
    [
        (NEWER.format("max_tokens"), True),
        ("max_tokens is unsupported, send max_completion_tokens", True),
        ("Please use max_completion_tokens instead of max_tokens.", True),
        ("'max_tokens' or 'max_completion_tokens' is too large: 9. The maximum is 8.", False),
        ("Unsupported parameter: 'logprobs' is not supported with this model.", False),
        ("max_tokens is too large: 9", False),
    ],
)
def test_only_a_refused_name_renames_the_limit(
    server: JudgeStandIn, refusal: str, named: bool
) -> None:
    assert wants_other_limit(refusal) is named
    server.refuses, server.refusal = {"max_tokens"}, refusal
    (judgment,) = judge(server, settings=ALONE).compare(pairs(1))
    assert judgment.outcome is (Outcome.WIN if named else Outcome.INVALID)
    assert judgment.reason is None if named else refusal in str(judgment.reason)


def test_a_limit_that_is_refused_under_both_names_ends(server: JudgeStandIn) -> None:
    server.refuses, server.refusal = {"max_tokens", "max_completion_tokens"}, NEWER
    (judgment,) = judge(server, settings=ALONE).compare(pairs(1))
    assert judgment.outcome is Outcome.INVALID
    assert server.posts == 2 * 4 + 1


# Reasoning.


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("A", "A"),
        ("<think>Hm, B?</think>\n\nA", "\n\nA"),
        (" <think>\n\n</think>A", "A"),
        ("<think>a </think> b </think> c", " b </think> c"),
        ("Hm, B?\n</think>\n\nA", "\nA"),
        ("Hm.\n</think> \r\n[[A]]", "[[A]]"),
        ("Hm.\n</think>", ""),
        ("<think>Hm, [[A]]", None),
        ("\n<think>", None),
        ("The answer quotes '</think>' as it is. [[B]]", None),
        ('[{"model": "m", "why": "a </think> tag"}]', None),
        ("[[A]]\n<think>Hm.</think>\n[[B]]", None),
    ],
)
def test_reasoning_is_told_from_what_is_said(said: str, left: str | None) -> None:
    unfinished = said.lstrip().startswith("<think>") and "</think>" not in said
    expected = None if unfinished else said if left is None else left
    assert behind_reasoning(said) == expected


def test_the_end_of_reasoning_is_found_in_any_tokens() -> None:
    assert end_of_reasoning(["<think>", "a", "</think>", "A"]) == 3
    assert end_of_reasoning(["Hm", ".</", "thi", "nk>", "\n\n", "A"]) == 4
    assert end_of_reasoning(["a", "b"]) == 0
    assert end_of_reasoning([]) == 0


def body(content: str | None, ended: str = "stop", **message: Any) -> bytes:
    said = {"role": "assistant", "content": content, **message}
    return json.dumps({"choices": [{"message": said, "finish_reason": ended}]}).encode()


@pytest.mark.parametrize(
    ("raw", "text", "cut"),
    [
        (body("<think>B?</think>\n\nA"), "A", False),
        (body("A", reasoning_content="Is it B?"), "A", False),
        (body("\n\nA", reasoning="Is it B?"), "A", False),
        (body("<think>Is it A"), "", True),
        (body("<think>Is it A", "length"), "", True),
        (body(None, "length", reasoning_content="Is it A"), "", True),
        (body("", "length"), "", True),
        (body("", "stop"), "", False),
        (body(None, "stop", reasoning="[[A]]"), "", False),
        (body("A", "length"), "A", False),
        (body("A", reasoning=[{"type": "text"}]), "A", False),
    ],
)
def test_a_reply_is_what_stands_behind_its_reasoning(raw: bytes, text: str, cut: bool) -> None:
    found = read_reply(raw)
    assert (found.text, found.cut) == (text, cut)
    verdict = read_verdict(BY_LABEL, found)
    assert (verdict and verdict.choice) == (Choice.FIRST if text else None)


def test_verdicts_are_read_behind_reasoning_and_cached(server: JudgeStandIn) -> None:
    server.thinks = "<think>A or B? I would say [[B]].</think>\n\n"
    found = judge(server)
    judgments = found.compare(pairs(4))
    assert [j.outcome for j in judgments] == [Outcome.WIN, Outcome.LOSS] * 2
    assert all(o.attempts == 1 for j in judgments for o in j.orders)
    assert {o.reply for j in judgments for o in j.orders} == {
        '{"verdict": "A"}',
        '{"verdict": "B"}',
    }
    assert len(found.cache.path.read_text().splitlines()) == 8


def test_the_degree_is_read_where_the_verdict_is_and_not_in_the_reasoning(
    server: JudgeStandIn,
) -> None:
    server.thinks = "<think>A? B?</think>\n\n"
    server.refuses = {"response_format"}
    server.told = lambda label: {label: -0.2, "B" if label == "A" else "A": -1.7}
    win, loss = judge(server, settings=ALONE).compare(pairs(2))
    expected = 1 / (1 + math.exp(-1.5))
    assert win.preference == pytest.approx(expected)
    assert loss.preference == pytest.approx(1 - expected)


def test_places_that_cover_the_content_alone_are_believed(server: JudgeStandIn) -> None:
    server.refuses = {"response_format"}
    server.told = lambda label: {label: -0.2, "B" if label == "A" else "A": -1.7}
    server.change = lambda reply: reply["choices"][0]["message"].update(reasoning="B, or A?")
    (win,) = judge(server, settings=ALONE).compare(pairs(1))
    assert win.preference == pytest.approx(1 / (1 + math.exp(-1.5)))


def test_places_that_cannot_be_told_from_reasoning_are_not_believed(server: JudgeStandIn) -> None:
    server.refuses = {"response_format"}
    server.told = lambda label: {label: -0.2, "B" if label == "A" else "A": -1.7}

    def reasoned(reply: dict[str, Any]) -> None:
        choice = reply["choices"][0]
        even = [{"token": label, "logprob": -0.7} for label in ("A", "B")]
        hidden = [{"token": token, "logprob": -0.7, "top_logprobs": even} for token in ("A", "?")]
        choice["message"]["reasoning_content"] = "A?"
        choice["logprobs"]["content"][:0] = hidden

    server.change = reasoned
    (win,) = judge(server, settings=ALONE).compare(pairs(1))
    assert (win.outcome, win.preference) == (Outcome.WIN, 1.0)


def test_a_token_is_read_behind_reasoning_and_never_within() -> None:
    def place(token: str) -> dict[str, Any]:
        top = [{"token": "m", "logprob": -0.2}, {"token": "M", "logprob": -1.7}]
        return {"token": token, "logprob": -0.2, "top_logprobs": top if token == "m" else []}

    def reply(content: str, *tokens: str) -> bytes:
        said = {"message": {"content": content}, "finish_reason": "stop"}
        said["logprobs"] = {"content": [place(token) for token in tokens]}
        return json.dumps({"choices": [said]}).encode()

    whole = read_reply(reply("<think>m</think>\n\nm", "<think>", "m", "</think>", "\n\n", "m"))
    verdict = read_verdict(BY_TOKEN, whole)
    assert verdict is not None
    assert verdict.first == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert read_verdict(BY_TOKEN, read_reply(reply("<think>m", "m", "<think>"))) is None


@pytest.mark.parametrize("thinks", ["<think>It is [[A]] or ", "<think>\n"])
def test_reasoning_without_an_end_is_invalid_and_says_what_to_do(
    server: JudgeStandIn, thinks: str
) -> None:
    server.thinks = thinks
    found = judge(server)
    judgments = found.compare(pairs(3))
    assert {j.outcome for j in judgments} == {Outcome.INVALID}
    assert server.posts == 3 * 2 * 3
    assert {o.attempts for j in judgments for o in j.orders} == {3}
    assert all("raise the judge's max_tokens" in str(j.reason) for j in judgments)
    assert not found.cache.path.exists()


def test_reasoning_that_ends_in_a_later_try_is_read(server: JudgeStandIn) -> None:
    tries = iter(["<think>Hm"] * 2 + ["<think>Hm</think>"] * 2)

    def reasoned(reply: dict[str, Any]) -> None:
        message = reply["choices"][0]["message"]
        message["content"] = next(tries) + message["content"]

    server.change = reasoned
    (judgment,) = judge(server, settings=ALONE).compare(pairs(1))
    assert judgment.outcome is Outcome.WIN
    assert [o.attempts for o in judgment.orders] == [3, 1]
