"""ROUGE: word overlap of an answer with the example's reference answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from harness.metrics import answer_score, by_answer
from harness.types import Direction, Example, Generation, MetricInfo, Score

_NAMES = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")

NO_REFERENCE = "the example has no reference answer"
UNSEEN_REFERENCE = (
    "the reference answer has no word that ROUGE can count: it sees the letters a-z and digits only"
)


def _info(key: str, title: str, what: str) -> MetricInfo:
    return MetricInfo(
        key=key,
        title=title,
        unit="F1",
        direction=Direction.HIGHER,
        definition=f"F1 of {what} shared with the reference answer, after Porter stemming.",
    )


ROUGE_INFO = (
    _info("rouge1", "ROUGE-1", "single words"),
    _info("rouge2", "ROUGE-2", "pairs of neighbouring words"),
    _info("rouge_l", "ROUGE-L", "the longest common subsequence of words"),
    _info("rouge_lsum", "ROUGE-Lsum", "the union of longest common subsequences over sentences"),
)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    return RougeScorer(list(_NAMES.values()), use_stemmer=True)


def sentences(text: str) -> list[str]:
    """Split at line breaks, and at white space after a full stop, ``!`` or ``?``.

    A deliberately plain rule without a model: an abbreviation such as "Dr. Lee" is split as well,
    which changes ROUGE-Lsum only where a common subsequence would cross the cut.
    """
    parts = (part.strip() for part in _SENTENCE_END.split(text))
    return [part for part in parts if part]


def rouge(reference: str, answer: str) -> dict[str, float] | None:
    """Return F1 by metric key, or None where the reference has no countable word.

    Source: Lin (2004), "ROUGE: A Package for Automatic Evaluation of Summaries", as computed by
    the rouge-score package; ROUGE-L over whole texts, ROUGE-Lsum over `sentences`.
    """
    if not re.search("[a-z0-9]", reference.lower()):
        return None
    found = _scorer().score("\n".join(sentences(reference)), "\n".join(sentences(answer)))
    return {key: float(found[name].fmeasure) for key, name in _NAMES.items()}


def _scores(example: Example, answer: Generation) -> list[Score]:
    if example.reference is None:
        return [answer_score(answer, key, None, reason=NO_REFERENCE) for key in _NAMES]
    values = rouge(example.reference, answer.text)
    if values is None:
        return [answer_score(answer, key, None, reason=UNSEEN_REFERENCE) for key in _NAMES]
    return [answer_score(answer, key, value) for key, value in values.items()]


class Rouge:
    """``rouge1``, ``rouge2``, ``rouge_l`` and ``rouge_lsum`` of every answer, in [0, 1]."""

    info = ROUGE_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return four scores for each answer; None where there is no usable reference."""
        return [
            score
            for example, answer in by_answer(examples, generations)
            for score in _scores(example, answer)
        ]
