"""Evaluation prompts that occur in training data."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from harness.types.records import Probability, Record


class OverlapParameters(Record):
    """When a prompt counts as a near-duplicate of a training row.

    Attributes:
        words: length of a word n-gram. Prompts of fewer words are compared as a whole only.
        share: of the prompt's distinct n-grams that one row must hold.
    """

    words: int = Field(default=8, ge=2)
    share: float = Field(default=0.5, gt=0.0, le=1.0)


class OverlapKind(StrEnum):
    """What of an example is in the training data.

    EXACT: its prompt, word for word. NEAR: a near-duplicate of it. ANSWER: its reference answer,
    word for word.
    """

    EXACT = "exact"
    NEAR = "near"
    ANSWER = "answer"


class Overlap(Record):
    """An example of which the training data hold something.

    Attributes:
        share: of the prompt's n-grams that the row holds; 1 of what is there word for word.
        origin: the first such row, such as ``helpful.jsonl.gz:118``.
    """

    example_id: str
    kind: OverlapKind
    share: Probability
    origin: str


class SuiteOverlap(Record):
    """What training data hold of one suite.

    Attributes:
        examples: evaluation examples that were looked for.
        short: those whose prompt has no n-gram, so that only an exact one is found.
        references: those whose reference answer is at least one n-gram long; shorter ones agree
            by chance and are not looked for.
        exact: examples whose prompt is there word for word.
        near: examples with a near-duplicate of their prompt there, and not itself.
        answers: examples whose reference answer is there word for word.
        overlaps: which these are, in the order of the suite.
    """

    suite: str
    examples: int = Field(ge=0)
    short: int = Field(ge=0)
    references: int = Field(ge=0)
    exact: int = Field(ge=0)
    near: int = Field(ge=0)
    answers: int = Field(ge=0)
    overlaps: tuple[Overlap, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing of the suite was found."""
        return not (self.exact or self.near or self.answers)


class DataOverlap(Record):
    """What some training data hold of the suites of a run.

    Attributes:
        sources: identity of each file (name and SHA-256) or hub data set, as a training run
            records it. rows: read of all of them.
    """

    sources: tuple[dict[str, Any], ...]
    rows: int = Field(ge=0)
    parameters: OverlapParameters
    suites: tuple[SuiteOverlap, ...]


class Contamination(Record):
    """What a checkpoint's training data hold of a run's suites; without data, ``reason``."""

    checkpoint: str
    data: DataOverlap | None = None
    reason: str | None = None
