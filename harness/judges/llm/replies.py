"""Replies of a chat API read strictly: a verdict, or nothing.

A reply that names no label in one of the agreed forms has no verdict, however likely one could be
guessed from it.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from harness.engines.http import UnusableError
from harness.engines.openai import BROKEN_OFF, UNKNOWN_LOGPROB, parse_body
from harness.judges.llm.budget import Tokens
from harness.judges.llm.prompts import ByLabel, ByPattern, ByRank, ByToken, JudgePrompt
from harness.judges.llm.reasoning import behind_reasoning, end_of_reasoning
from harness.judges.llm.verdicts import Choice, Verdict, certain, weighed
from harness.types import FinishReason

VERDICT = "verdict"
"""Key of a reply in JSON."""

EDGES = " \t\r\n\"'`*.:,[]{}"
"""What may stand around a label in its token."""

BRACKETED = re.compile(r"\[\[(\w+)\]\]")
FENCED = re.compile(r"```json(.*?)```", re.DOTALL)


class _Token(BaseModel):
    token: str = ""
    logprob: float


class _Place(_Token):
    top_logprobs: list[_Token] | None = None


class _Logprobs(BaseModel):
    content: list[_Place] | None = None


class _Function(BaseModel):
    arguments: str = ""


class _Call(BaseModel):
    function: _Function = _Function()


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    # Where the server takes the reasoning out of the content; vLLM changed to the second name.
    reasoning_content: Any = None
    reasoning: Any = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class _Body(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


@dataclass(frozen=True)
class Place:
    """A position of a reply: the token that was taken, and log-probabilities (nats) by token."""

    token: str
    logprobs: Mapping[str, float]


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Attributes:
        text: the content behind its reasoning, or the arguments of the tool that was called.
        places: one a token of ``text`` where the server gives log-probabilities, else empty.
        used: tokens that the server counted; None where it does not say.
        cut: it ended before it said anything, within its reasoning.
    """

    text: str
    places: tuple[Place, ...] = ()
    used: Tokens | None = None
    cut: bool = False


def read_reply(body: bytes) -> Reply:
    """Return the reply in a body.

    Raises:
        UnusableError: it is no JSON, not of the shape of a chat completion, or not ended.
    """
    found = parse_body(_Body, body)
    choice, usage = found.choices[0], found.usage
    if choice.finish_reason in BROKEN_OFF:
        raise UnusableError(f"the server ended the reply with '{choice.finish_reason}'")
    message, told = choice.message, _places(choice.logprobs)
    used = Tokens(input=usage.prompt_tokens, output=usage.completion_tokens) if usage else None
    if message.tool_calls:
        return Reply(message.tool_calls[0].function.arguments, told, used)
    said = message.content or message.refusal or ""
    text = behind_reasoning(said)
    if text is None:
        return Reply("", used=used, cut=True)
    if text != said or message.reasoning_content or message.reasoning:
        text = text.strip()
        told = _behind(told, text)
    ended = choice.finish_reason == FinishReason.LENGTH
    return Reply(text, told, used, cut=ended and not text.strip())


def _places(logprobs: _Logprobs | None) -> tuple[Place, ...]:
    told = (logprobs.content if logprobs else None) or []
    return tuple(Place(place.token, _known(place)) for place in told)


def _known(place: _Place) -> dict[str, float]:
    listed: list[_Token] = [*(place.top_logprobs or []), place]
    return {x.token: min(0.0, x.logprob) for x in listed if UNKNOWN_LOGPROB < x.logprob < math.inf}


def _behind(places: tuple[Place, ...], text: str) -> tuple[Place, ...]:
    """Return the places of a text behind reasoning; none where they are not told apart."""
    end = end_of_reasoning([place.token for place in places])
    start = next((i for i in range(end, len(places)) if places[i].token.strip()), len(places))
    said = "".join(place.token for place in places[start:]).strip()
    # Without a tag among the tokens they are those of the text alone, or nobody knows.
    known = said.startswith(text) if end else said == text
    return places[start:] if text and known else ()


def read_verdict(prompt: JudgePrompt, reply: Reply) -> Verdict | None:
    """Return the verdict that a reply states in the prompt's manner; None where it states none."""
    match prompt.manner:
        case ByLabel() as manner:
            return _by_label(manner.choices, reply)
        case ByToken() as manner:
            return _by_token(manner, reply.places)
        case ByRank() as manner:
            return _by_rank(manner, reply.text)
        case ByPattern() as manner:
            fits = [c for c, pattern in manner.patterns.items() if re.search(pattern, reply.text)]
            return certain(fits[0]) if len(fits) == 1 else None


def _by_label(choices: Mapping[str, Choice], reply: Reply) -> Verdict | None:
    found = find_label(reply.text, choices)
    if found is None:
        return None
    label, offset = found
    seen = _label_logprobs(choices, reply, offset)
    return weighed(seen) if seen else certain(choices[label])


def find_label(text: str, labels: Mapping[str, Choice]) -> tuple[str, int] | None:
    """Return the label that a reply states and where it stands; None where it states none.

    A label stands alone (quotes, stars and a full stop around it aside), is the one value of
    ``{"verdict": label}``, or ends the text as ``[[label]]``, other labels nowhere in brackets.
    """
    return _alone(text, labels) or _in_json(text, labels) or _in_brackets(text, labels)


def _alone(text: str, labels: Mapping[str, Choice]) -> tuple[str, int] | None:
    bare = text.strip(" \t\r\n\"'`*.")
    return (bare, text.index(bare)) if bare in labels else None


def _in_json(text: str, labels: Mapping[str, Choice]) -> tuple[str, int] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    said = value[VERDICT] if isinstance(value, dict) and value.keys() == {VERDICT} else None
    return (said, text.rindex(said)) if isinstance(said, str) and said in labels else None


def _in_brackets(text: str, labels: Mapping[str, Choice]) -> tuple[str, int] | None:
    found = list(BRACKETED.finditer(text))
    words = {match[1] for match in found}
    if len(words) != 1 or not words <= labels.keys():
        return None
    last = found[-1]
    return (last[1], last.start(1)) if not text[last.end() :].strip(EDGES) else None


def _label_logprobs(
    choices: Mapping[str, Choice], reply: Reply, offset: int
) -> dict[Choice, float]:
    """Return the log-probabilities of the labels that could have stood at ``offset``, nats."""
    found: dict[Choice, float] = {}
    place = _covering(reply, offset)
    for token, logprob in place.logprobs.items() if place else ():
        choice = _choice_of(token, choices)
        if choice is not None:
            found[choice] = float(np.logaddexp(found.get(choice, -np.inf), logprob))
    return found


def _covering(reply: Reply, offset: int) -> Place | None:
    """Return the place whose token covers a character of the reply's text."""
    start = "".join(place.token for place in reply.places).find(reply.text)
    if start < 0:
        return None
    left = start + offset
    for place in reply.places:
        if left < len(place.token):
            return place
        left -= len(place.token)
    return None


def _choice_of(token: str, choices: Mapping[str, Choice]) -> Choice | None:
    """Return what a token says: a label, or the beginning of one label alone."""
    bare = token.strip(EDGES)
    if bare in choices:
        return choices[bare]
    begun = [choice for label, choice in choices.items() if bare and label.startswith(bare)]
    return begun[0] if len(begun) == 1 else None


def _by_token(manner: ByToken, places: Sequence[Place]) -> Verdict | None:
    try:
        logprobs = places[manner.place].logprobs
    except IndexError:
        return None
    seen = {token: logprobs[token] for token in manner.choices if token in logprobs}
    if not seen:
        return None
    numerator = seen.pop(manner.numerator, -math.inf)
    others = float(np.logaddexp.reduce(list(seen.values()) or [-math.inf]))
    if manner.binarize:
        won = numerator > max(seen.values(), default=-math.inf)
        return certain(Choice.FIRST if won else Choice.SECOND)
    both = {Choice.FIRST: numerator, Choice.SECOND: others}
    return weighed({choice: value for choice, value in both.items() if value > -math.inf})


RANKS = {1: Choice.FIRST, 2: Choice.SECOND}


def _by_rank(manner: ByRank, text: str) -> Verdict | None:
    try:
        listed = _parsed(text)
        rows = listed[manner.within] if manner.within else listed
        ranks: dict[Any, Any] = {row["model"]: row["rank"] for row in rows}
        shared = len(set(ranks.values())) < len(rows)  # two models have one rank, or one name
        choice = None if shared else RANKS.get(ranks[manner.model])
    except (ValueError, SyntaxError, LookupError, TypeError, RecursionError, MemoryError):
        return None
    return None if choice is None else certain(choice)


def _parsed(text: str) -> Any:
    """Return a reply's JSON or Python literal, also where it stands in a fence of Markdown."""
    fenced = FENCED.search(text)
    bare = (fenced[1] if fenced else text).strip()
    try:
        return json.loads(bare)
    except ValueError:
        return ast.literal_eval(bare)
