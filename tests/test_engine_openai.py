"""Endpoints: who they are, what they are asked, and that no request is lost or doubled."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np
import pytest
from openai_stand_in import (
    MODEL,
    Fault,
    StandIn,
    always,
    answer_text,
    likeliest,
    seeded,
    stand_in,
)

from harness.adapters import endpoint
from harness.adapters.endpoint import Endpoint, endpoint_url
from harness.engines import Completion, Failure, Request
from harness.engines.http import MAX_WAIT_S, PATIENCE, UnusableError, retry_after, wait_s
from harness.engines.openai import OpenAIEngine, entropy_of_likeliest, read_reply
from harness.engines.settings import EndpointSettings
from harness.errors import CheckpointError, EngineError
from harness.types import CheckpointSpec, FinishReason, Form, Loadable, Message, Role, Sampling

QUICK = EndpointSettings(concurrency=16, attempts=12, timeout_s=0.4, backoff_s=0.005)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(endpoint, "WAITS_S", (0.01, 0.01))


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as found:
        yield found


def spec(server: StandIn, **changes: Any) -> CheckpointSpec:
    return CheckpointSpec(**({"name": "served", "source": server.url} | changes))


def asked(content: str, **changes: Any) -> Request:
    return Request(
        key=f"suite\n{content}\n0",
        messages=(Message(role=Role.SYSTEM, content="be brief"), user(content)),
        sampling=Sampling(**({"temperature": 0.7, "top_p": 0.9, "max_tokens": 5} | changes)),
        seed=11,
    )


def user(content: str) -> Message:
    return Message(role=Role.USER, content=content)


def engine(server: StandIn, settings: EndpointSettings = QUICK, **changes: Any) -> OpenAIEngine:
    found = OpenAIEngine(settings, np.random.default_rng(0))
    assert found.load(Endpoint().prepare(spec(server, **changes))) is False
    return found


def only(replies: Iterator[Completion | Failure]) -> Completion | Failure:
    (found,) = replies
    return found


def many(count: int) -> list[Request]:
    return [asked(f"question {i}") for i in range(count)]


# Who is asked


def test_the_only_model_is_taken_and_known_by_its_address(server: StandIn) -> None:
    found = Endpoint().prepare(spec(server, source=server.url + "/"))
    assert (found.form, found.folder) == (Form.ENDPOINT, server.url)
    assert found.template_sha256 is found.tokenizer_sha256 is None
    assert any("weights cannot be seen" in note for note in found.notes)
    assert any(f"model '{MODEL}'" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"created": 99}, True),
        ({"owned_by": "someone"}, True),
        ({"root": "other"}, False),
        ({"max_model_len": 64}, False),
        ({"id": "renamed"}, False),
    ],
)
def test_identity_is_what_the_server_says_of_the_model(
    server: StandIn, change: dict[str, Any], same: bool
) -> None:
    before = Endpoint().prepare(spec(server))
    server.models[0] |= change
    after = Endpoint().prepare(spec(server))
    assert (after.weights_sha256 == before.weights_sha256) is same


def test_several_models_need_a_name(server: StandIn) -> None:
    server.models.append({"id": "second"})
    with pytest.raises(CheckpointError, match=r"serves 2 models\. Served: second, tiny\..*model="):
        Endpoint().prepare(spec(server))
    with pytest.raises(CheckpointError, match="no model 'third'"):
        Endpoint().prepare(spec(server, model="third"))
    assert "'second'" in Endpoint().prepare(spec(server, model="second")).notes[0]


def test_a_server_that_lists_nothing_is_believed_where_the_model_is_named(server: StandIn) -> None:
    server.status["/v1/models"] = 404
    with pytest.raises(CheckpointError, match=r"HTTP 404.*up to\s+and with /v1"):
        Endpoint().prepare(spec(server))
    assert isinstance(only(engine(server, model=MODEL).generate([asked("a")])), Completion)


def test_models_are_asked_for_again_before_giving_up(server: StandIn) -> None:
    server.status["/v1/models"] = 503
    with pytest.raises(CheckpointError, match="no answer \\(HTTP 503\\)"):
        Endpoint().prepare(spec(server))
    assert server.paths == ["/v1/models"] * 3


def test_nobody_listens(server: StandIn) -> None:
    with pytest.raises(CheckpointError, match=r"/v1/models gives no answer \(ConnectError"):
        Endpoint().prepare(spec(server, source="http://127.0.0.1:9/v1"))


def test_a_page_is_no_list_of_models(server: StandIn) -> None:
    server.models = "hello"  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="does not list models"):
        Endpoint().prepare(spec(server))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("http://me:secret@host/v1", "user name or a password"),
        ("http://secret@host/v1", "user name or a password"),
        ("ftp://host/v1", "not an endpoint"),
        ("http:///v1", "not an endpoint"),
        ("http://host/v1?key=secret", "not an endpoint"),
        ("http://host:port/v1", "not a URL"),
        ("http://[::1/v1", "not a URL"),
        ("http://host/v1/chat/completions", "before /chat/completions"),
    ],
)
def test_addresses_that_are_refused(source: str, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem) as caught:
        endpoint_url(source)
    assert "secret" not in str(caught.value)


def test_the_key_is_sent_and_never_told(
    server: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.key = "sk-right"
    monkeypatch.setenv("MY_KEY", "sk-right")
    found = Endpoint().prepare(spec(server, api_key_env="MY_KEY"))
    held = engine(server, api_key_env="MY_KEY")
    assert isinstance(only(held.generate([asked("a")])), Completion)
    assert "sk-right" not in found.model_dump_json() + repr(held.identity) + caplog.text
    server.status["/v1/chat/completions"] = 400
    reply = only(held.generate([asked("a")]))
    assert isinstance(reply, Failure)
    assert "Bearer (key)" in reply.reason
    assert reply.final


def test_the_usual_variable_is_read_unless_another_is_named(
    server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "sk-right"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    Endpoint().prepare(spec(server))
    monkeypatch.setenv("MY_KEY", "sk-wrong")
    with pytest.raises(CheckpointError, match="refuses the key"):
        Endpoint().prepare(spec(server, api_key_env="MY_KEY"))
    monkeypatch.setenv("MY_KEY", "sk-\u00e9")
    with pytest.raises(CheckpointError, match="no HTTP header"):
        Endpoint().prepare(spec(server, api_key_env="MY_KEY"))
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(CheckpointError, match=r"MY_KEY for its key, but it is\s+not set"):
        Endpoint().prepare(spec(server, api_key_env="MY_KEY"))


def test_vllm_tells_its_version_and_another_version_is_another_checkpoint(server: StandIn) -> None:
    server.models[0] |= {"owned_by": "vllm"}
    before = Endpoint().prepare(spec(server))
    assert before.notes[0].endswith("of vllm 9.9")
    assert Endpoint().prepare(spec(server)).weights_sha256 == before.weights_sha256
    server.version = "10.0"
    after = Endpoint().prepare(spec(server))
    assert after.notes[0].endswith("of vllm 10.0")
    assert after.weights_sha256 != before.weights_sha256
    with pytest.raises(EngineError, match="by another version of the server"):
        OpenAIEngine(QUICK).load(before)


def test_a_version_is_asked_of_vllm_alone_and_again_before_it_counts_as_untold(
    server: StandIn,
) -> None:
    plain = Endpoint().prepare(spec(server))
    assert "/version" not in server.paths
    server.models[0] |= {"owned_by": "vllm"}
    server.status["/version"] = 404
    untold = Endpoint().prepare(spec(server))
    assert untold.notes[0].endswith("of vllm")
    assert untold.weights_sha256 == plain.weights_sha256
    assert server.paths.count("/version") == 1
    server.status["/version"] = 503
    assert Endpoint().prepare(spec(server)).weights_sha256 == plain.weights_sha256
    assert server.paths.count("/version") == 4


def test_what_the_engine_is_does_not_depend_on_what_it_holds(server: StandIn) -> None:
    assert engine(server).identity == OpenAIEngine(QUICK).identity


# What is asked and read


def test_a_request_is_sent_whole_and_its_reply_read_whole(server: StandIn) -> None:
    reply = only(engine(server).generate([asked("why?")]))
    assert server.bodies == [
        {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "why?"},
            ],
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 5,
            "seed": 11,
            "n": 1,
            "logprobs": True,
            "top_logprobs": 20,
        }
    ]
    assert isinstance(reply, Completion)
    assert (reply.text, reply.finish_reason) == (answer_text("why?"), FinishReason.STOP)
    assert (reply.prompt_tokens, reply.tokens, reply.token_ids) == (7, 3, None)
    assert reply.statistics.logprobs == (likeliest(1)[0],) * 3
    p = np.exp(likeliest(20)) / np.exp(likeliest(20)).sum()
    expected = -(p * np.log(p)).sum()
    assert reply.statistics.entropies_top20 == pytest.approx([expected] * 3)
    assert reply.statistics.entropies == ()


def test_entropy_is_of_the_twenty_likeliest_in_any_order() -> None:
    listed = [*likeliest(25)[::-1]]
    assert entropy_of_likeliest(listed) == pytest.approx(entropy_of_likeliest(likeliest(20)))
    assert entropy_of_likeliest([0.0] * 20) == pytest.approx(np.log(20))
    assert entropy_of_likeliest([0.0] + [-9999.0] * 19) == 0.0


def test_no_statistics_where_none_are_asked_for(server: StandIn) -> None:
    held = engine(server, QUICK.model_copy(update={"top_logprobs": 0}))
    reply = only(held.generate([asked("a")]))
    assert isinstance(reply, Completion)
    assert reply.statistics.logprobs == reply.statistics.entropies_top20 == ()
    assert "logprobs" not in server.bodies[0]


def drop_usage(reply: dict[str, Any]) -> None:
    del reply["usage"]


def one_place_short(reply: dict[str, Any]) -> None:
    reply["choices"][0]["logprobs"]["content"] = reply["choices"][0]["logprobs"]["content"][:2]


def unknown_place(reply: dict[str, Any]) -> None:
    reply["choices"][0]["logprobs"]["content"][1] = {"logprob": -9999.0, "top_logprobs": []}


def five_likeliest(reply: dict[str, Any]) -> None:
    for place in reply["choices"][0]["logprobs"]["content"]:
        place["top_logprobs"] = place["top_logprobs"][:5]


@pytest.mark.parametrize(
    ("change", "logprobs", "entropies", "tokens"),
    [
        (drop_usage, 3, 3, None),
        (one_place_short, 0, 0, 3),
        (unknown_place, 0, 0, 3),
        (five_likeliest, 3, 0, 3),
    ],
)
def test_what_a_reply_leaves_out_is_missing(
    server: StandIn, change: Any, logprobs: int, entropies: int, tokens: int | None
) -> None:
    server.change = change
    reply = only(engine(server).generate([asked("a")]))
    assert isinstance(reply, Completion)
    assert len(reply.statistics.logprobs) == logprobs
    assert len(reply.statistics.entropies_top20) == entropies
    assert reply.tokens == tokens


def test_a_server_that_refuses_logprobs_is_asked_without_and_it_is_said_once(
    server: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuse_logprobs = True
    held = engine(server)
    with caplog.at_level(logging.WARNING, logger="harness"):
        replies = list(held.generate(many(40)))
    assert all(isinstance(reply, Completion) for reply in replies)
    assert [r.getMessage() for r in caplog.records if "log-prob" in r.getMessage()] == [
        "the server gives no log-probabilities (HTTP 400: logprobs are not supported); asking "
        "without them"
    ]
    assert sum("logprobs" in body for body in server.bodies) <= QUICK.concurrency
    server.refuse_logprobs = False
    held.load(Endpoint().prepare(spec(server)))
    reply = only(held.generate([asked("again")]))
    assert isinstance(reply, Completion)
    assert reply.statistics.logprobs


@pytest.mark.parametrize("content", ["half", None])
@pytest.mark.parametrize("reason", ["content_filter", "tool_calls", "model_length"])
def test_an_end_without_an_answer_is_a_final_failure(
    server: StandIn, reason: str, content: str | None
) -> None:
    ended = {"finish_reason": reason, "message": {"content": content}}
    server.change = lambda reply: reply["choices"][0].update(ended)
    reply = only(engine(server).generate([asked("a")]))
    assert isinstance(reply, Failure)
    assert reason in reply.reason
    assert reply.final
    assert server.asked.total() == 1


@pytest.mark.parametrize("reason", [None, "abort", "error"])
def test_an_answer_that_the_server_broke_off_is_asked_for_again(
    server: StandIn, reason: str | None
) -> None:
    left = iter([reason, reason])
    server.change = lambda reply: reply["choices"][0].update(finish_reason=next(left, "stop"))
    assert isinstance(only(engine(server).generate([asked("a")])), Completion)
    assert server.asked.total() == 3


def test_a_server_that_only_breaks_off_leaves_nothing_final(server: StandIn) -> None:
    server.change = lambda reply: reply["choices"][0].update(finish_reason="abort")
    held = engine(server, QUICK.model_copy(update={"attempts": 2}))
    reply = only(held.generate([asked("a")]))
    assert isinstance(reply, Failure)
    assert not reply.final
    assert "2 x unusable body; last: the server ended the answer with 'abort'" in reply.reason
    assert server.asked.total() == 2


@pytest.mark.parametrize(
    ("ended", "message", "text"),
    [
        ("length", {"content": None}, ""),
        ("length", {"content": None, "reasoning_content": "Hm, let me"}, ""),
        ("stop", {"content": ""}, ""),
        ("stop", {"content": None, "refusal": "I cannot help."}, "I cannot help."),
        ("stop", {"content": "", "refusal": "I cannot help."}, "I cannot help."),
        ("stop", {"content": "Yes.", "refusal": None}, "Yes."),
    ],
)
def test_an_answer_without_content_is_empty_or_the_refusal(
    server: StandIn, ended: str, message: dict[str, Any], text: str
) -> None:
    server.change = lambda r: r["choices"][0].update(finish_reason=ended, message=message)
    reply = only(engine(server).generate([asked("a")]))
    assert isinstance(reply, Completion)
    assert (reply.text, reply.finish_reason) == (text, FinishReason(ended))
    assert server.asked.total() == 1


def test_length_is_an_end(server: StandIn) -> None:
    server.change = lambda reply: reply["choices"][0].update(finish_reason="length")
    reply = only(engine(server).generate([asked("a")]))
    assert isinstance(reply, Completion)
    assert reply.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "object"),
        (b'{"choices": []}', "choices: "),
        (b'{"choices": [{"finish_reason": "stop"}]}', "choices.0.message"),
        (b'{"choices": [{"message": {}, "finish_reason": "stop"}]}', "message.content"),
        (
            b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}',
            "choices.0.message.content: null",
        ),
        (b'{"choices": [{"message": {"content": "a"}}]}', "ended the answer with 'None'"),
    ],
)
def test_bodies_that_hold_no_answer(body: bytes, problem: str) -> None:
    with pytest.raises(UnusableError, match=problem):
        read_reply("k", body)


# Nothing lost, nothing doubled


def test_every_request_is_answered_once_by_a_server_that_fails_often(server: StandIn) -> None:
    server.plan = seeded(3, share=0.3)
    requests = many(80)
    replies = list(engine(server).generate(requests))
    assert Counter(r.key for r in replies) == Counter(r.key for r in requests)
    for reply in replies:
        assert isinstance(reply, Completion)
        assert reply.text == answer_text(reply.key.split("\n")[1])
    assert set(server.faults) == set(Fault)
    assert server.asked.total() >= len(requests) + server.faults.total()


def test_what_is_not_tried_again_is_reported(server: StandIn) -> None:
    server.plan = seeded(5, share=0.3)
    once = QUICK.model_copy(update={"attempts": 1, "timeout_s": 3.0})
    replies = list(engine(server, once).generate(many(60)))
    failures = [r for r in replies if isinstance(r, Failure)]
    assert len(replies) == server.asked.total() == 60
    assert len(failures) == server.faults.total() > 8
    assert not any(f.final for f in failures)
    assert all("no usable reply in 1 attempts" in f.reason for f in failures)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault.BUSY, "3 x HTTP 429; last: too many requests"),
        (Fault.LATER, "3 x HTTP 429; last: later"),
        (Fault.ERROR, "3 x HTTP 500; last: out of memory"),
        (Fault.HANG, "3 x no reply within 0.2 s"),
        (Fault.GARBAGE, "3 x unusable body; last: Invalid JSON"),
        (Fault.TRUNCATED, "3 x connection failed (RemoteProtocolError)"),
        (Fault.SHAPE, "3 x unusable body; last: choices: "),
        (Fault.DROP, "3 x connection failed (RemoteProtocolError)"),
    ],
)
def test_the_reason_says_what_came_instead(server: StandIn, fault: Fault, reason: str) -> None:
    server.plan = always(fault)
    settings = QUICK.model_copy(update={"attempts": 3, "timeout_s": 0.2})
    reply = only(engine(server, settings).generate([asked("a")]))
    assert isinstance(reply, Failure)
    assert f"no usable reply in 3 attempts: {reason}" in reply.reason
    assert server.asked.total() == 3


def test_a_dead_server_costs_bounded_time(server: StandIn) -> None:
    held = engine(server, QUICK.model_copy(update={"concurrency": 4, "attempts": 3}))
    server.plan = always(Fault.DROP)
    began = time.monotonic()
    replies = list(held.generate(many(500)))
    assert time.monotonic() - began < 5
    assert len({r.key for r in replies}) == len(replies) == 500
    assert all(isinstance(r, Failure) and r.reason for r in replies)
    assert server.asked.total() <= 3 * 2 * PATIENCE
    assert sum("not asked" in r.reason for r in replies if isinstance(r, Failure)) >= 490


def test_a_server_that_is_gone_gives_failures(server: StandIn) -> None:
    with stand_in() as other:
        held = engine(other, QUICK.model_copy(update={"attempts": 2}))
    replies = list(held.generate(many(3)))
    assert all(isinstance(r, Failure) and "2 x connection failed" in r.reason for r in replies)
    assert len(replies) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_what_no_request_will_survive_ends_the_call(server: StandIn, status: int) -> None:
    held = engine(server)
    server.status["/v1/chat/completions"] = status
    with pytest.raises(EngineError, match=f"HTTP {status}"):
        list(held.generate(many(50)))


def test_a_refusal_of_one_request_leaves_the_others(server: StandIn) -> None:
    held = engine(server)
    server.status["/v1/chat/completions"] = 422
    assert isinstance(only(held.generate([asked("too long")])), Failure)
    del server.status["/v1/chat/completions"]
    assert isinstance(only(held.generate([asked("b")])), Completion)
    assert server.bodies[-1]["logprobs"] is True


def test_never_more_under_way_than_allowed(server: StandIn) -> None:
    server.busy_s = 0.3
    list(engine(server, QUICK.model_copy(update={"concurrency": 5})).generate(many(15)))
    assert server.most == 5


def test_replies_come_as_they_finish(server: StandIn) -> None:
    release = threading.Event()

    def hold_back(reply: dict[str, Any]) -> None:
        if reply["choices"][0]["message"]["content"] == answer_text("slow"):
            release.wait(5)

    server.change = hold_back
    patient = QUICK.model_copy(update={"timeout_s": 10.0})
    replies = engine(server, patient).generate([asked("slow"), asked("b"), asked("c")])
    early = {reply.key for reply in islice(replies, 2)}
    release.set()
    assert early == {asked("b").key, asked("c").key}
    assert only(replies).key == asked("slow").key


def test_closing_early_cancels_what_is_under_way(server: StandIn) -> None:
    server.busy_s = 0.02
    before = threading.active_count()
    replies = engine(server, QUICK.model_copy(update={"concurrency": 2})).generate(many(200))
    next(replies)
    replies.close()  # type: ignore[attr-defined]
    assert not any(t.name == "tbpo-http" for t in threading.enumerate())
    seen = server.asked.total()
    time.sleep(0.1)
    assert server.asked.total() == seen < 20
    assert threading.active_count() <= before + 2


def test_it_works_inside_a_running_loop(server: StandIn) -> None:
    held = engine(server)

    async def inside() -> list[Completion | Failure]:
        return list(held.generate(many(3)))

    assert len(asyncio.run(inside())) == 3


def test_no_requests_no_replies(server: StandIn) -> None:
    assert list(engine(server).generate([])) == []


def test_another_model_under_the_same_name_is_noticed(server: StandIn) -> None:
    server.models[0]["root"] = "first"
    checkpoint = Endpoint().prepare(spec(server))
    held = OpenAIEngine(QUICK)
    held.load(checkpoint)
    server.models[0]["root"] = "second"
    with pytest.raises(EngineError, match="serves another model"):
        held.load(checkpoint)
    with pytest.raises(EngineError, match="no endpoint is held"):
        list(held.generate([asked("a")]))


def test_weights_are_not_for_this_engine(server: StandIn) -> None:
    weights = Loadable(
        spec=spec(server), folder="f", weights_sha256="w", architecture="a", template_sha256=None
    )
    with pytest.raises(EngineError, match="is no endpoint"):
        OpenAIEngine(QUICK).load(weights)


# How long is waited


def test_waits_double_with_chance_and_have_an_end() -> None:
    rng = np.random.default_rng(0)
    for attempt in (1, 2, 3, 4):
        waits = [wait_s(attempt, 0.0, 0.5, rng) for _ in range(200)]
        least = 0.5 * 2 ** (attempt - 1)
        assert least <= min(waits) < 1.2 * least
        assert 1.8 * least < max(waits) < 2 * least
    assert wait_s(10_000, 0.0, 0.5, rng) == MAX_WAIT_S
    assert wait_s(1, 7.0, 0.5, rng) == 7.0
    assert wait_s(1, 7200.0, 0.5, rng) == MAX_WAIT_S


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0.0),
        ("2", 2.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        ("soon", 0.0),
        ("Wed, 25 Nov 2026 00:00:30 GMT", 30.0),
        ("Wed, 25 Nov 2026 00:00:30 -0000", 30.0),
        ("Tue, 24 Nov 2026 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    assert retry_after(value, datetime(2026, 11, 25, tzinfo=UTC)) == seconds


def test_retry_after_is_kept(server: StandIn) -> None:
    first = iter([Fault.LATER])
    server.plan = lambda: next(first, None)
    held = engine(server, QUICK.model_copy(update={"backoff_s": 0.0}))
    began = time.monotonic()
    assert isinstance(only(held.generate([asked("a")])), Completion)
    assert time.monotonic() - began >= 0.05
