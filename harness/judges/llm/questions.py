"""Questions to a judge: a pair of answers in one order, filled into a prompt.

What is quoted cannot pose as the frame. Parts are divided by a mark that occurs nowhere in them,
and what chat templates would read as control tokens is broken up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from typing import Any, Protocol

from pydantic import Field

from harness.errors import InputError
from harness.files import sha256_json
from harness.judges import AnswerPair
from harness.judges.llm.prompts import FIELD, JudgePrompt
from harness.judges.llm.verdicts import Verdict
from harness.types import Message, Record, Role, Shown

MARK = 12
"""Hexadecimal digits of the mark that divides the material."""

CONTROL = re.compile(
    r"<[|｜][^<>\n]{1,60}[|｜]>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|<(?:bos|eos)>"
)
"""How widespread chat templates write their control tokens."""

BREAK = "\u200b"
"""A space without width: what it divides is read alike and is no control token."""


@dataclass(frozen=True)
class MultiTurnPair(AnswerPair):
    """Two sides of a conversation over several turns, as in MT-Bench.

    ``example.messages`` holds what the user said; ``candidate_text`` and ``baseline_text`` are the
    replies to the last turn. Source: Zheng et al. (2023), arXiv 2306.05685.

    Attributes:
        candidate_before, baseline_before: each side's replies to the turns before the last.
    """

    candidate_before: tuple[str, ...] = ()
    baseline_before: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        turns = sum(message.role is Role.USER for message in self.example.messages)
        for side in (self.candidate_before, self.baseline_before):
            if len(side) != turns - 1:
                raise InputError(
                    f"{self.suite}/{self.example.id}: {turns} turns of the user need {turns} "
                    f"replies of each side, found {len(side) + 1}"
                )


@dataclass(frozen=True)
class Question:
    """One pair in one order, ready to be asked.

    Attributes:
        key: hash of all that decides the answer.
        messages: the chat that is sent.
    """

    key: str
    prompt: JudgePrompt
    messages: tuple[Message, ...]


class Reading(Record):
    """What came of a question.

    Attributes:
        verdict: None where there is none, for the ``reason``.
        reply: what was said, on one line and cut.
        attempts: replies that were asked for.
        unanswered: no usable reply came; asking again may bring one.
    """

    key: str
    verdict: Verdict | None
    reply: str | None = None
    attempts: int = Field(default=1, ge=0)
    reason: str | None = None
    unanswered: bool = False


class Transport(Protocol):
    """A way to a language model that judges."""

    @property
    def model(self) -> str:
        """The model's name, for people."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON values: all of model and server that decides verdicts."""
        ...

    def ask(self, questions: Sequence[Question]) -> Iterator[Reading]:
        """Yield one reading a question, as they come.

        Raises:
            BudgetError: the budget is spent; questions without a reading were not asked.
            EngineError: the model cannot be asked.
        """
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


def without_control(text: str) -> str:
    """Return ``text`` with its control tokens broken up; what is read stays the same."""
    return CONTROL.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)


def mark_for(texts: Sequence[str]) -> str:
    """Return a mark that occurs in none of ``texts``; the same for the same texts in any order."""
    digest = sha256_json(sorted(texts))
    marks = (sha256(f"{digest} {i}".encode()).hexdigest()[:MARK] for i in count())
    return next(mark for mark in marks if not any(mark in text for text in texts))


def question_messages(prompt: JudgePrompt, pair: AnswerPair, shown: Shown) -> tuple[Message, ...]:
    """Return a prompt's chat about a pair, whose answers stand in the order ``shown``."""
    values = _values(prompt, pair, shown)

    def filled(text: str) -> str:
        # In one pass: what an answer says in braces is not filled in turn.
        return FIELD.sub(lambda found: values.get(found[1], found[0]), text)

    return tuple(Message(role=m.role, content=filled(m.content)) for m in prompt.messages)


def _values(prompt: JudgePrompt, pair: AnswerPair, shown: Shown) -> dict[str, str]:
    said = [(m.role, without_control(m.content)) for m in pair.example.messages]
    sides = [[without_control(text) for text in side] for side in _sides(pair)]
    mark = mark_for([text for _, text in said] + [text for side in sides for text in side])
    answers = [_answer(side, mark) for side in sides]
    first, second = answers if shown is Shown.CANDIDATE_FIRST else answers[::-1]
    return {
        "criteria": prompt.criteria,
        "mark": mark,
        "conversation": "\n".join(f"[{mark}] {role}\n{text}" for role, text in said),
        "first": first,
        "second": second,
        # AlpacaEval's names for the same.
        "instruction": dialogue_text(said),
        "output_1": first,
        "output_2": second,
    }


def _sides(pair: AnswerPair) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(pair, MultiTurnPair):
        before = pair.candidate_before, pair.baseline_before
        return (*before[0], pair.candidate_text), (*before[1], pair.baseline_text)
    return (pair.candidate_text,), (pair.baseline_text,)


def _answer(side: Sequence[str], mark: str) -> str:
    if len(side) == 1:
        return side[0]
    return "\n".join(f"[{mark}] reply to turn {i}\n{text}" for i, text in enumerate(side, start=1))


def dialogue_text(said: Sequence[tuple[Role, str]]) -> str:
    """Return a dialogue as text: a single turn as it is, several with who speaks."""
    if len(said) == 1:
        return said[0][1]
    return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in said)
