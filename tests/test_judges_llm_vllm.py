"""The judge against vLLM's own server and a real small model: verdicts, degrees and constraint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metric_records import example
from test_engine_openai_vllm import end, environment, free_port, prepared

from harness.adapters.embedded import embedded_folder
from harness.engines.settings import EndpointSettings
from harness.judges import AnswerPair
from harness.judges.llm import LlmJudge, endpoint_judge
from harness.judges.llm.endpoint import AskEndpoint
from harness.judges.llm.forms import Constraint, Form
from harness.judges.llm.questions import question_messages
from harness.types import CheckpointSpec, JudgeSpec, Judgment, Outcome, Shown

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
    port, log = free_port(), tmp_path_factory.mktemp("log") / "server.log"
    options = {
        "model": folder,
        "served-model-name": "smol",
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max-model-len": CONTEXT,
        "max-num-seqs": 4,
        "generation-config": "vllm",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [*command, "--enforce-eager"],
            env=environment(),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    found = f"http://127.0.0.1:{port}/v1"
    try:
        prepared(CheckpointSpec(name="smol", source=found), server, log)
        yield found
    finally:
        end(server)


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
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    labels = [tokenizer.encode(label, add_special_tokens=False)[0] for label in ("A", "B")]
    prompt = judged["judge"].prompts.prompts["judge_helpful"]
    for pair, judgment in zip(PAIRS, judged["first"], strict=True):
        for order in judgment.orders:
            chat = [
                {"role": m.role.value, "content": m.content}
                for m in question_messages(prompt, pair, order.shown)
            ]
            ids = tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt"
            )["input_ids"]
            with torch.no_grad():
                logits = model(ids).logits[0, -1, labels]
            first = float(torch.softmax(logits, dim=0)[0])
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
