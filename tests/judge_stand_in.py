"""A server that judges pairs of answers and fails as it is told, beside what any server does."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import numpy as np
from metric_records import example
from openai_stand_in import StandIn, _Handler, serving

from harness.engines.settings import EndpointSettings
from harness.judges import AnswerPair
from harness.judges.llm import LlmJudge, endpoint_judge
from harness.types import JudgeSpec

GOOD, POOR = "GOOD", "POOR"


class Slip(StrEnum):
    """A reply that holds no verdict."""

    EMPTY = ""
    CUT = '{"verd'
    GARBAGE = "Both are fine, A for its style."
    WRONG = "C"


def prefers_good(content: str) -> str:
    return "A" if content.rindex(GOOD) < content.rindex(POOR) else "B"


def prefers_first(_: str) -> str:
    return "A"


SHOWN = re.compile(
    r"^\[(\w+)\] ANSWER A\n(.*)\n\[\1\] ANSWER B\n(.*)\n\[\1\] END OF MATERIAL$",
    re.DOTALL | re.MULTILINE,
)
"""The two answers in a question of this package's own prompts."""


def prefers_longer(content: str) -> str:
    """Prefer the longer answer, and of two equally long ones the later in the alphabet."""
    found = SHOWN.search(content)
    assert found
    first, second = ((len(text), text) for text in found.groups()[1:])
    return "A" if first > second else "B"


def never() -> Slip | None:
    return None


def slips(seed: int, share: float) -> Callable[[], Slip | None]:
    """Return a plan that spoils each reply with probability ``share``, in order of arrival."""
    rng = np.random.default_rng(seed)
    kinds = tuple(Slip)
    return lambda: kinds[rng.integers(len(kinds))] if rng.random() < share else None


class JudgeStandIn(StandIn):
    """The state of a server that judges.

    Attributes:
        choose: the label for the content of the last message.
        slip: asked once a reply for how to spoil it; ``slipped``: those committed.
        refuses: keys of a body, or words of the last message, that are answered with HTTP 400.
        refusal: what is said then.
        thinks: put before the content as it is, each of its characters a token.
        told: log-probabilities of the label's alternatives by token; None gives none.
        tool: what the arguments of a tool call are, for a label; None replies with content.
        echo: put behind every spoilt reply.
    """

    def __init__(self) -> None:
        super().__init__()
        self.choose: Callable[[str], str] = prefers_good
        self.slip: Callable[[], Slip | None] = never
        self.slipped: Counter[Slip] = Counter()
        self.refuses: set[str] = set()
        self.refusal = "cannot take {}"
        self.thinks = ""
        self.told: Callable[[str], dict[str, float]] | None = None
        self.tool: Callable[[str], object] | None = None
        self.echo = ""
        self.posts = 0

    def be_vllm(self, version: str = "9.9") -> None:
        self.models[0]["owned_by"] = "vllm"
        self.version = version

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        content = body["messages"][-1]["content"]
        label, slip = self.choose(content), self.slip()
        pieces = ['{"verdict": "', label, '"}'] if "response_format" in body else [label]
        if slip is not None:
            self.slipped[slip] += 1
            pieces = [slip + self.echo]
        pieces = [*self.thinks, *pieces]
        message: dict[str, Any] = {"role": "assistant", "content": "".join(pieces)}
        if self.tool and slip is None:
            called = {"name": "rank", "arguments": json.dumps(self.tool(label))}
            message |= {"content": None, "tool_calls": [{"type": "function", "function": called}]}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
        if body.get("logprobs") and self.told:
            choice["logprobs"] = {"content": [self.place(p, label) for p in pieces]}
        usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
        found = {"object": "chat.completion", "choices": [choice], "usage": usage}
        self.change(found)
        return found

    def place(self, piece: str, label: str) -> dict[str, Any]:
        assert self.told
        known = self.told(label) if piece == label else {piece: -0.01}
        top = [{"token": token, "logprob": value} for token, value in known.items()]
        return {"token": piece, "logprob": known.get(piece, -9999.0), "top_logprobs": top}

    def refused_for(self, body: dict[str, Any]) -> str | None:
        content = body["messages"][-1]["content"]
        return next((x for x in sorted(self.refuses) if x in body or x in content), None)


class _JudgeHandler(_Handler):
    state: JudgeStandIn

    def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.state.posts += 1
        if why := self.state.refused_for(json.loads(raw)):
            self.send(400, {"error": {"message": self.state.refusal.format(why)}})
            return
        kept, self.rfile = self.rfile, io.BytesIO(raw)
        try:
            super().do_POST()
        finally:
            self.rfile = kept


@contextmanager
def judge_stand_in() -> Iterator[JudgeStandIn]:
    """Serve a stand-in that judges until the block ends."""
    with serving(JudgeStandIn(), _JudgeHandler) as state:
        yield state


SETTINGS = EndpointSettings(concurrency=8, attempts=8, timeout_s=60.0, backoff_s=0.002)


def judge(server: JudgeStandIn, *, budget: Any = None, settings: Any = None, **f: Any) -> LlmJudge:
    spec = JudgeSpec(**({"name": "llm", "source": server.url} | f))
    rng = np.random.default_rng(0)
    return endpoint_judge(spec, rng=rng, settings=settings or SETTINGS, budget=budget)


def pairs(count: int, *, suite: str = "mini", won: Sequence[bool] = (True, False)) -> list[Any]:
    """Return pairs that the candidate wins where ``won`` says so, in turn."""
    found = []
    for i in range(count):
        texts = (f"{GOOD} {i}", f"{POOR} {i}")
        given = example(f"e{i}", prompt=f"Question {i}")
        first, second = texts if won[i % len(won)] else texts[::-1]
        found.append(AnswerPair(suite, "dpo", "sft", given, first, second))
    return found
