"""Forms in which a chat API can be asked for one of a few words, from the strictest down."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Any

from harness.adapters.endpoint import VLLM, Served
from harness.judges.llm.prompts import ByLabel, ByToken
from harness.judges.llm.questions import Question
from harness.judges.llm.replies import VERDICT
from harness.types import JudgeSpec

RENAMED = (0, 11)
"""First version of vLLM in which every field of structured output has its present name.

``structured_outputs`` came in 0.10.2; ``guided_choice`` went in 0.12. Servers of either kind pass
over a field that they do not know, so that the name cannot be found out by asking.
"""


class Constraint(StrEnum):
    """What keeps a reply to the labels."""

    STRUCTURED_OUTPUTS = "structured_outputs"
    GUIDED_CHOICE = "guided_choice"
    JSON_SCHEMA = "response_format"
    NONE = "none"


class LimitName(StrEnum):
    """Names of the limit on a reply's tokens; OpenAI's reasoning models refuse the first."""

    MAX_TOKENS = "max_tokens"
    MAX_COMPLETION_TOKENS = "max_completion_tokens"


OTHER_NAME = re.compile(r"support|instead", re.IGNORECASE)
"""How a server that names both says which it wants, and not that the limit is too large."""


def wants_other_limit(refusal: str) -> bool:
    """Return whether a server refused ``max_tokens`` for its name."""
    return LimitName.MAX_COMPLETION_TOKENS in refusal and OTHER_NAME.search(refusal) is not None


@dataclass(frozen=True)
class Form:
    """How a question is put: under which constraint, and with log-probabilities or without."""

    constraint: Constraint
    logprobs: bool

    def __str__(self) -> str:
        return f"{self.constraint}{' with log-probabilities' if self.logprobs else ''}"


def constraints(served: Served) -> tuple[Constraint, ...]:
    """Return the constraints to try on a server, the best first."""
    if served.server != VLLM:
        return Constraint.JSON_SCHEMA, Constraint.NONE
    numbers = re.findall(r"\d+", served.version or "")[:2]
    old = len(numbers) == 2 and tuple(map(int, numbers)) < RENAMED
    named = (Constraint.STRUCTURED_OUTPUTS, Constraint.GUIDED_CHOICE)
    return (*(named[::-1] if old else named), Constraint.JSON_SCHEMA, Constraint.NONE)


def forms(question: Question, served: Served, *, logprobs: bool) -> tuple[Form, ...]:
    """Return the forms to try for a question, the best first.

    AlpacaEval's evaluators are asked in their own form alone.
    """
    manner = question.prompt.manner
    if not isinstance(manner, ByLabel):
        return (Form(Constraint.NONE, isinstance(manner, ByToken)),)
    wanted = (True, False) if logprobs else (False,)
    return tuple(Form(c, told) for told, c in product(wanted, constraints(served)))


def chat_body(
    question: Question,
    form: Form,
    spec: JudgeSpec,
    model: str,
    attempt: int,
    top_logprobs: int,
    limit: LimitName = LimitName.MAX_TOKENS,
) -> dict[str, Any]:
    """Return the body of a request.

    Args:
        attempt: from 0; each has a seed of its own, else greedy servers repeat themselves.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": m.role.value, "content": m.content} for m in question.messages],
        limit.value: spec.max_tokens or question.prompt.max_tokens,
        "seed": spec.seed + attempt,
        "n": 1,
    }
    if spec.temperature is not None:
        body["temperature"] = spec.temperature
    body |= _constraint(form.constraint, list(question.prompt.labels)) | question.prompt.extra
    return body | ({"logprobs": True, "top_logprobs": top_logprobs} if form.logprobs else {})


def _constraint(constraint: Constraint, labels: list[str]) -> dict[str, Any]:
    match constraint:
        case Constraint.STRUCTURED_OUTPUTS:
            return {constraint.value: {"choice": labels}}
        case Constraint.GUIDED_CHOICE:
            return {constraint.value: labels}
        case Constraint.JSON_SCHEMA:
            return {constraint.value: {"type": "json_schema", "json_schema": _schema(labels)}}
        case Constraint.NONE:
            return {}


def _schema(labels: list[str]) -> dict[str, Any]:
    return {
        "name": VERDICT,
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {VERDICT: {"type": "string", "enum": labels}},
            "required": [VERDICT],
            "additionalProperties": False,
        },
    }
