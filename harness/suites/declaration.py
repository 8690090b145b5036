"""Declarations of suites: what a YAML file may say, and what is wrong with one that says more."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from harness.errors import InputError
from harness.types import (
    Example,
    Record,
    Sampling,
    StabilityParameters,
    TrainingCard,
    TrainingSource,
)
from harness.types.records import DataUsed, PromptStyle, blank, is_chat, unset

LONGEST_PROMPT = 50_000
"""Characters of a chat beyond which a row is taken for a mistake, unless the suite says more."""

Names = str | tuple[str, ...]
"""A field of a row, or several of which the first that the row has counts."""

LIKELIHOOD = "preference_accuracy"
"""Name of the metric family that is filled from log-probabilities of given answers."""

NAME = r"^[a-z][a-z0-9_]*$"


class SuiteKind(StrEnum):
    """What a suite looks at: answers to prompts, training logs, or tasks that lm-eval runs."""

    PROMPTS = "prompts"
    TRAINING = "training"
    LM_EVAL = "lm_eval"


class Duplicates(StrEnum):
    """What becomes of a row whose prompt an earlier row has."""

    REFUSE = "refuse"
    DROP = "drop"
    KEEP = "keep"


class Empty(StrEnum):
    """What becomes of a row whose prompt has an empty turn."""

    REFUSE = "refuse"
    DROP = "drop"


class HubFile(Record):
    """A file of a data set on the Hugging Face hub.

    Attributes:
        revision: commit, tag or branch; the main branch where it is None. The commit that was
            read is part of the run's manifest.
        split: the split that the file holds, for people.
    """

    dataset: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    file: str = Field(min_length=1)
    revision: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        """Return ``owner/name, file F (revision R)``."""
        at = f" (revision {self.revision})" if self.revision else ""
        return f"hub data set {self.dataset}, file {self.file}{at}"


def _refuses(value: object) -> bool:
    return value in (Duplicates.REFUSE, Empty.REFUSE)


def _usual(value: object) -> bool:
    return value == LONGEST_PROMPT


class DataRef(Record):
    """Where a suite's rows are, and which of them are taken.

    The file is JSONL, a JSON list, CSV or Parquet, plain or gzip.

    Attributes:
        path: a file beside the YAML. url: a file on the web. One of path, hub and url is given.
        sha256: of the file's bytes; another file is refused.
        rows: number of rows taken, chosen by the hash of ``seed`` and the row, so that neither
            their order nor the file's form matters; all where it is None.
        longest_prompt: characters of a chat beyond which a row is refused.
    """

    path: str | None = Field(default=None, exclude_if=unset)
    hub: HubFile | None = Field(default=None, exclude_if=unset)
    url: str | None = Field(default=None, exclude_if=unset, pattern=r"^https://")
    licence: str
    sha256: str | None = Field(default=None, exclude_if=unset, pattern=r"^[0-9a-f]{64}$")
    rows: int | None = Field(default=None, ge=1, exclude_if=unset)
    seed: int | None = Field(default=None, ge=0, exclude_if=unset)
    duplicates: Duplicates = Field(default=Duplicates.REFUSE, exclude_if=_refuses)
    empty: Empty = Field(default=Empty.REFUSE, exclude_if=_refuses)
    longest_prompt: int = Field(default=LONGEST_PROMPT, ge=1, exclude_if=_usual)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.path, self.hub, self.url)) != 1:
            raise ValueError("name one of path, hub and url")
        return self

    def __str__(self) -> str:
        """Return the place in words."""
        return str(self.hub or self.url or self.path)


class ExpectedField(Record):
    """The field that says whether a prompt should be answered, and which values say so."""

    field: str
    answer: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()


class Fields(Record):
    """Which fields of a data row hold what.

    Attributes:
        user: a template for rows without ``messages``: ``{title}`` and the like stand for the
            row's own fields.
        turns: field with the user's turns in a list (texts, or objects with ``content``), asked
            one after the other; a text is one turn.
        pair: rows are preference pairs in any of the forms of ``harness.preference_rows``:
            the better answer becomes the reference, the worse one the rejected answer.
        reference, rejected: fields with a good and a worse answer.
        id: field with the example's id, text or a whole number, if not ``id``.
        id_from_prompt: rows are named by the hash of their prompt.
        subset: field with the named part of the suite, if not ``subset``.
        expected: whether the prompt should be answered, if not in ``expected``.
        instructions: field with the verifiable instructions, if not ``instructions``.
        arguments: field with the instructions' arguments, one mapping each, where the field of
            instructions lists ids alone, as IFEval's own data do (``instruction_id_list`` and
            ``kwargs``). An argument that is null is not given.
    """

    user: str | None = None
    reference: Names | None = None
    rejected: Names | None = None
    # Left out of a dump where unset: suites that do without keep their published hash.
    id: Names | None = Field(default=None, exclude_if=unset)
    instructions: str | None = Field(default=None, exclude_if=unset)
    arguments: str | None = Field(default=None, exclude_if=unset)
    turns: Names | None = Field(default=None, exclude_if=unset)
    pair: bool = Field(default=False, exclude_if=blank)
    id_from_prompt: bool = Field(default=False, exclude_if=blank)
    subset: Names | None = Field(default=None, exclude_if=unset)
    expected: ExpectedField | None = Field(default=None, exclude_if=unset)

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if sum([self.user is not None, self.turns is not None, self.pair]) > 1:
            raise ValueError("name one of user, turns and pair")
        about = (self.reference, self.rejected, self.expected, self.instructions, self.arguments)
        if self.turns is not None and any(value is not None for value in about):
            raise ValueError(
                "turns: a reference, a rejected answer, what is expected and instructions belong "
                "to one question, and a row with turns asks several"
            )
        return self


class SuiteSpec(Record):
    """A suite's declaration.

    Attributes:
        style: how prompts are put: in the checkpoint's chat template, or plain.
        sampling: None where nothing is asked and given answers are read alone.
        temperatures: by subset, where it differs from that of ``sampling``.
        metrics, judges: names registered under ``tbpo.metrics`` and ``tbpo.judges``.
        primary: metric keys that the gate and the summary look at.
    """

    name: str = Field(pattern=NAME)
    version: int = Field(ge=1)
    title: str
    description: str
    data: DataRef
    fields: Fields = Fields()
    style: PromptStyle = Field(default=PromptStyle.CHAT, exclude_if=is_chat)
    sampling: Sampling | None = None
    temperatures: dict[str, float] = Field(default_factory=dict, exclude_if=blank)
    metrics: tuple[str, ...] = Field(min_length=1)
    judges: tuple[str, ...] = ()
    primary: tuple[str, ...] = Field(min_length=1)
    citation: str = ""

    @model_validator(mode="after")
    def _asked(self) -> Self:
        if self.sampling is None and (self.judges or self.temperatures):
            raise ValueError("judges and temperatures need 'sampling': nothing is asked without")
        if self.data.duplicates is Duplicates.KEEP and self.fields.id_from_prompt:
            raise ValueError("equal prompts have equal ids: keep them under ids of their own")
        if self.style is PromptStyle.PLAIN and LIKELIHOOD in self.metrics:
            raise ValueError(f"'{LIKELIHOOD}' reads answers in the chat template: leave out style")
        if any(not 0 <= value <= 2 for value in self.temperatures.values()):
            raise ValueError("temperatures: a temperature lies in [0, 2]")
        return self

    @property
    def samples(self) -> int:
        """Answers that are asked for of each prompt."""
        return 0 if self.sampling is None else self.sampling.samples

    @property
    def max_tokens(self) -> int:
        """Longest answer, in tokens."""
        return 0 if self.sampling is None else self.sampling.max_tokens


class Suite(Record):
    """A declaration with its examples and the hash of both.

    Attributes:
        used: the file that the examples come from, where it is not the suite's own.
    """

    spec: SuiteSpec
    examples: tuple[Example, ...]
    content_sha256: str
    used: DataUsed | None = None

    def sampling(self, example: Example) -> Sampling | None:
        """Return how an example's answers are sampled; None where none are asked for."""
        own = self.spec.temperatures.get(example.subset or "")
        if self.spec.sampling is None or own is None:
            return self.spec.sampling
        return self.spec.sampling.model_copy(update={"temperature": own})


class TrainingSuiteSpec(Record):
    """Declaration of a training suite: no prompts, only how the checkpoints' logs are read."""

    kind: Literal[SuiteKind.TRAINING]
    name: str = Field(pattern=NAME)
    version: int = Field(ge=1)
    title: str
    description: str
    parameters: StabilityParameters = StabilityParameters()
    citation: str = ""


class TrainingSuite(Record):
    """A training suite's declaration and its hash."""

    spec: TrainingSuiteSpec
    content_sha256: str

    def card(self, sources: Iterable[TrainingSource]) -> TrainingCard:
        """Return the suite as it is run on ``sources``."""
        return TrainingCard(
            name=self.spec.name,
            version=self.spec.version,
            title=self.spec.title,
            content_sha256=self.content_sha256,
            parameters=self.spec.parameters,
            sources=tuple(sources),
        )


def validation_text(error: ValidationError) -> str:
    """Return a validation error as one line: field, problem, given value."""
    parts = []
    for problem in error.errors():
        where = ".".join(str(p) for p in problem["loc"]) or "(top level)"
        if problem["type"] == "extra_forbidden":
            parts.append(f"unknown key '{where}'")
        elif problem["type"] == "missing":
            parts.append(f"'{where}' is missing")
        else:
            parts.append(f"{where}: {problem['msg']} (given: {str(problem['input'])[:80]!r})")
    return "; ".join(parts)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML mapping; an InputError says where the file is broken."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a mapping of keys, not {type(value).__name__}")
    return value
