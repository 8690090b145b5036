"""Prompts of a judge: what it is asked, in which words, and how its reply is to be read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from harness.errors import InputError
from harness.files import packaged, sha256_json
from harness.judges.llm.verdicts import Choice
from harness.suites import read_yaml, validation_text
from harness.types import Message, Record, Role

OWN = "tbpo"
"""Name of this package's own prompts."""

CHOICE = "choice.yaml"
NEEDED = ("conversation", "first", "second", "mark")
"""Fields without which a prompt lacks the material, or what tells it from the frame."""

FIELD = re.compile(r"\{(\w+)\}")
"""A place in a template that is filled; other braces stand for themselves."""


class Labels(Record):
    """Words that stand for the choices; none opens with another."""

    first: str = Field(pattern=r"^\w+$")
    second: str = Field(pattern=r"^\w+$")
    tie: str | None = Field(default=None, pattern=r"^\w+$")

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        words = [word for word in (self.first, self.second, self.tie) if word]
        if any(a.startswith(b) for a in words for b in words if a is not b):
            raise ValueError(f"labels must differ from their first letters on: {', '.join(words)}")
        return self


class ByLabel(Record):
    """The reply is a label: alone, as ``[[label]]`` at its end, or as ``{"verdict": label}``."""

    kind: Literal["label"] = "label"
    labels: Labels

    @property
    def choices(self) -> dict[str, Choice]:
        """Choice by label."""
        named = {choice: getattr(self.labels, choice.value) for choice in Choice}
        return {label: choice for choice, label in named.items() if label}


class ByToken(Record):
    """AlpacaEval's ``logprob_parser``: the numerator's share of the denominators' probability.

    Attributes:
        place: of the token in the reply, from 0.
        binarize: no degree; the second is better unless the numerator is the likeliest.
    """

    kind: Literal["token"] = "token"
    numerator: str
    denominators: tuple[str, ...] = Field(min_length=2)
    binarize: bool = True
    place: int = 0

    @property
    def choices(self) -> dict[str, Choice]:
        """Choice by token."""
        return dict.fromkeys(self.denominators, Choice.SECOND) | {self.numerator: Choice.FIRST}


class ByRank(Record):
    """AlpacaEval's ``ranking_parser``: the rank of the first model in a list.

    Attributes:
        model: name under which the first answer was shown.
        within: key of the list in a JSON object; None where the reply is the list.
    """

    kind: Literal["rank"] = "rank"
    model: str
    within: str | None = None


class ByPattern(Record):
    """AlpacaEval's ``regex_parser``: the one regular expression that fits decides."""

    kind: Literal["pattern"] = "pattern"
    patterns: dict[Choice, str] = Field(min_length=2)


Manner = Annotated[ByLabel | ByToken | ByRank | ByPattern, Field(discriminator="kind")]


class JudgePrompt(Record):
    """A template and how replies to it are read.

    Attributes:
        criteria: by what the answers are compared, in the open; empty where the template says.
        messages: the chat, with fields in braces.
        max_tokens: longest reply.
        manner: how the reply is read.
        extra: more of the request's body, such as the tools that the reply is to call.
    """

    name: str
    version: int = Field(ge=1)
    title: str
    criteria: str = ""
    messages: tuple[Message, ...] = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    manner: Manner
    extra: dict[str, Any] = Field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of all of it."""
        return sha256_json(self.model_dump(mode="json"))

    @property
    def labels(self) -> dict[str, Choice]:
        """The words that can be asked for one by one; none where the reply is more than a word."""
        return self.manner.choices if isinstance(self.manner, ByLabel | ByToken) else {}


class _PromptFile(Record):
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    version: int = Field(ge=1)
    title: str
    criteria: str = Field(min_length=1)
    system: str | None = Field(default=None, min_length=1)
    user: str = Field(min_length=1)
    labels: Labels
    max_tokens: int = Field(default=16, ge=1)


class PromptSet(Record):
    """A judge's prompts and which pairs each is for.

    Attributes:
        default: the prompt for suites that are not named.
        multi_turn: the prompt for answers over several turns.
        suites: prompt by ``suite/subset`` or ``suite``.
    """

    prompts: dict[str, JudgePrompt]
    default: str
    multi_turn: str
    suites: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _all_there(self) -> Self:
        wanted = {self.default, self.multi_turn, *self.suites.values()}
        if missing := wanted - self.prompts.keys():
            raise ValueError(f"no prompt named {', '.join(sorted(missing))}")
        return self

    @property
    def sha256(self) -> str:
        """Hash of all prompts and of the choice between them."""
        return sha256_json(self.model_dump(mode="json"))

    def choose(self, suite: str, subset: str | None, *, several_turns: bool) -> JudgePrompt:
        """Return the prompt for a pair: by its form, then subset, then suite, then the default."""
        if several_turns:
            return self.prompts[self.multi_turn]
        name = self.suites.get(f"{suite}/{subset}") or self.suites.get(suite) or self.default
        return self.prompts[name]


def single(prompt: JudgePrompt) -> PromptSet:
    """Return the set of one prompt for everything."""
    return PromptSet(prompts={prompt.name: prompt}, default=prompt.name, multi_turn=prompt.name)


def load_prompt(path: Path) -> JudgePrompt:
    """Return the prompt of a YAML file.

    Raises:
        InputError: the file cannot be read, or lacks a key or a field that a prompt needs.
    """
    try:
        given = _PromptFile.model_validate(read_yaml(path))
    except ValidationError as error:
        raise InputError(f"{path}: {validation_text(error)}") from error
    _check_fields(path, given)
    spoken = [(Role.SYSTEM, given.system), (Role.USER, given.user)]
    return JudgePrompt(
        name=given.name,
        version=given.version,
        title=given.title,
        criteria=given.criteria,
        messages=tuple(Message(role=role, content=text) for role, text in spoken if text),
        max_tokens=given.max_tokens,
        manner=ByLabel(labels=given.labels),
    )


def _check_fields(path: Path, given: _PromptFile) -> None:
    found = set(FIELD.findall(given.user))
    missing = [f"{{{name}}}" for name in NEEDED if name not in found]
    unknown = [f"{{{name}}}" for name in sorted(found - {*NEEDED, "criteria"})]
    if missing:
        raise InputError(f"{path}: the template 'user' has no {', '.join(missing)}")
    if unknown:
        raise InputError(
            f"{path}: the template 'user' has unknown fields: {', '.join(unknown)}. "
            f"Known: {', '.join([*NEEDED, 'criteria'])}."
        )


def own_prompts() -> PromptSet:
    """Return this package's own prompts."""
    folder = packaged("prompts")
    prompts = [load_prompt(path) for path in sorted(folder.glob("judge_*.yaml"))]
    table: Mapping[str, Any] = read_yaml(folder / CHOICE)
    try:
        return PromptSet.model_validate({"prompts": {p.name: p for p in prompts}, **table})
    except ValidationError as error:
        raise InputError(f"{folder / CHOICE}: {validation_text(error)}") from error


def load_prompts(name: str) -> PromptSet:
    """Return the prompts that a judge's ``prompts`` names.

    Raises:
        InputError: no such file or evaluator, or one that cannot be used.
    """
    if name == OWN:
        return own_prompts()
    if name.endswith((".yaml", ".yml")):
        return single(load_prompt(Path(name)))
    from harness.judges.llm.alpaca_eval import evaluator_prompt

    return single(evaluator_prompt(name))
