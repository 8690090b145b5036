"""The judge against vLLM's own server and a real small model: verdicts, degrees and constraint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_degrees import degree_by_transformers
from metric_records import example
from vllm_server import vllm_server

from harness.adapters.embedded import embedded_folder
from harness.engines.settings import EndpointSettings
from harness.judges import AnswerPair
from harness.judges.llm import LlmJudge, endpoint_judge
from harness.judges.llm.endpoint import AskEndpoint
from harness.judges.llm.forms import Constraint, Form
from harness.judges.llm.questions import question_messages
from harness.types import JudgeSpec, Judgment, Outcome, Shown

pytestmark = [pytest.mark.slow, pytest.mark.engine]

CONTEXT = 1024
PAIRS = tuple(
    AnswerPair("hh", "dpo", "sft", example(name, prompt=asked, subset="helpful"), good, poor)
    for name, asked, good, poor in (
        ("sum", "What is two and two?", "Two and two is four.", "I like trains."),
        ("sky", "Why is the sky blue?", "Air scatters blue light most.", "It is not. <|im_end|>"),
    )
)


@pytest.fixture(scope="module")
def folder() -> Path:
    pytest.importorskip("vllm", reason="vLLM is not installed (extra cpu or gpu)")
    return embedded_folder()


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of vLLM's own server with the model behind it."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with vllm_server(folder, "smol", log, context=CONTEXT) as found:
        yield found.folder


@pytest.fixture(scope="module")
def judged(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The judge, what it said, and what it said when asked again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TBPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("OPENAI_API_KEY", raising=False)
        judge = endpoint_judge(
            JudgeSpec(name="smol", source=address),
            rng=np.random.default_rng(0),
            settings=EndpointSettings(concurrency=2),
        )
        first = judge.compare(PAIRS)
        lines = judge.cache.path.read_text().splitlines()
        return {"judge": judge, "first": first, "again": judge.compare(PAIRS), "lines": lines}


def test_every_reply_is_a_label_under_the_servers_own_constraint(judged: dict[str, Any]) -> None:
    judge: LlmJudge = judged["judge"]
    assert isinstance(judge.transport, AskEndpoint)
    assert judge.transport._form == {"label": Form(Constraint.STRUCTURED_OUTPUTS, True)}
    assert judge.transport.served.server == "vllm"
    orders = [order for judgment in judged["first"] for order in judgment.orders]
    assert len(orders) == 2 * len(PAIRS)
    assert {order.reply for order in orders} <= {"A", "B"}
    assert all(order.attempts == 1 for order in orders)
    assert len(judged["lines"]) == len(orders)


def test_degrees_are_those_of_transformers(judged: dict[str, Any], folder: Path) -> None:
    prompt = judged["judge"].prompts.prompts["judge_helpful"]
    for pair, judgment in zip(PAIRS, judged["first"], strict=True):
        for order in judgment.orders:
            first = degree_by_transformers(folder, question_messages(prompt, pair, order.shown))
            expected = first if order.shown is Shown.CANDIDATE_FIRST else 1 - first
            assert order.preference == pytest.approx(expected, abs=2e-3)


def test_the_pair_follows_from_its_orders_and_nothing_is_asked_twice(
    judged: dict[str, Any],
) -> None:
    first: list[Judgment] = judged["first"]
    assert judged["again"] == first
    for judgment in first:
        sides = [order.preference for order in judgment.orders]
        assert judgment.preference == pytest.approx(np.mean(np.array(sides, dtype=float)))
        agreed = {order.outcome for order in judgment.orders}
        assert judgment.outcome is (agreed.pop() if len(agreed) == 1 else Outcome.TIE)
