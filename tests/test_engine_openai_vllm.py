"""vLLM's own server as an endpoint: its greedy answers and statistics equal transformers'."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm_server import vllm_server

from harness.engines import Completion, Failure, Request
from harness.engines.openai import OpenAIEngine, entropy_of_likeliest
from harness.engines.settings import EndpointSettings
from harness.types import FinishReason, Loadable, Message, Role, Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
]

CONTEXT = 128
NEW = 16
QUESTIONS = ("What is two and two?", "Name a colour.", "Why?")
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
"""vLLM's attention on a CPU wants heads of 32 or more."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    pytest.importorskip("vllm", reason="vLLM is not installed (extra cpu or gpu)")
    from tiny_checkpoints import save_llama

    return save_llama(tmp_path_factory.mktemp("served") / "llama", tokenizer_folder, **SHAPE)


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loadable]:
    """An endpoint that vLLM's own server is behind."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with vllm_server(folder, "tiny", log, context=CONTEXT) as found:
        yield found


@pytest.fixture(scope="module")
def engine(served: Loadable) -> OpenAIEngine:
    held = OpenAIEngine(EndpointSettings(concurrency=4), np.random.default_rng(0))
    held.load(served)
    return held


def ask(question: str, temperature: float = 0.0, seed: int = 1) -> Request:
    return Request(
        key=f"suite\n{question}\n{seed}",
        messages=(Message(role=Role.USER, content=question),),
        sampling=Sampling(temperature=temperature, max_tokens=NEW),
        seed=seed,
    )


@cache
def by_transformers(folder: Path, question: str) -> dict[str, Any]:
    """Return the greedy answer of the same weights with its log-probabilities over the words."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        out = model.generate(
            prompt,
            do_sample=False,
            max_new_tokens=NEW,
            return_dict_in_generate=True,
            output_logits=True,
        )
    answer = out.sequences[0, prompt.shape[1] :]
    return {
        "text": tokenizer.decode(answer, skip_special_tokens=True),
        "prompt": prompt.shape[1],
        "tokens": answer.tolist(),
        "logprobs": torch.log_softmax(torch.cat(out.logits), dim=-1).numpy(),
    }


def test_greedy_answers_are_those_of_transformers(engine: OpenAIEngine, folder: Path) -> None:
    replies = {r.key: r for r in engine.generate([ask(q) for q in QUESTIONS])}
    assert len(replies) == len(QUESTIONS)
    for question in QUESTIONS:
        reply, expected = replies[ask(question).key], by_transformers(folder, question)
        assert isinstance(reply, Completion), reply
        assert reply.text == expected["text"]
        assert reply.tokens == len(expected["tokens"])
        assert reply.prompt_tokens == expected["prompt"]
        assert reply.finish_reason in tuple(FinishReason)


def test_statistics_are_those_of_transformers(engine: OpenAIEngine, folder: Path) -> None:
    for reply in engine.generate([ask(q) for q in QUESTIONS]):
        assert isinstance(reply, Completion)
        expected = by_transformers(folder, reply.key.split("\n")[1])
        rows = expected["logprobs"]
        taken = [row[token] for row, token in zip(rows, expected["tokens"], strict=True)]
        assert reply.statistics.logprobs == pytest.approx(taken, abs=1e-3)
        entropies = [entropy_of_likeliest(row) for row in rows]
        assert reply.statistics.entropies_top20 == pytest.approx(entropies, abs=1e-3)
        assert reply.statistics.entropies == ()


def test_this_server_keeps_the_seed_and_the_temperature(engine: OpenAIEngine) -> None:
    def texts(*seeds: int) -> list[str]:
        found = []
        for reply in engine.generate([ask(QUESTIONS[0], 1.0, seed) for seed in seeds]):
            assert isinstance(reply, Completion)
            assert len(reply.statistics.logprobs) == reply.tokens
            found.append((reply.key, reply.text))
        return [text for _, text in sorted(found)]

    first = texts(1, 2, 3)
    assert first == texts(1, 2, 3)
    assert len(set(first)) == 3


def test_a_prompt_beyond_the_context_is_refused_and_said(engine: OpenAIEngine) -> None:
    (reply,) = engine.generate([ask("long " * CONTEXT)])
    assert isinstance(reply, Failure)
    assert reply.final
    assert "HTTP 400" in reply.reason


def test_the_server_is_known(served: Loadable) -> None:
    assert "model 'tiny' of vllm " in served.notes[0]
