"""Summaries: how long they are against the reference, and how much is copied from the post."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from harness.metrics import answer_score, by_answer, ngram_score
from harness.types import Direction, Example, Generation, MetricInfo, Role, Score

_WORD = re.compile(r"\w+")

NO_REFERENCE = "the example has no reference answer"
EMPTY_REFERENCE = "the reference answer has no word"
NO_WORDS = "the answer has no word"
NO_SOURCE = "the post has no word"

ORDERS = {"copied_2": 2, "copied_4": 4}


def _copied_info(key: str, n: int) -> MetricInfo:
    return MetricInfo(
        key=key,
        title=f"Copied runs of {n} words",
        unit="ratio",
        direction=Direction.NEITHER,
        definition=f"Share of the answer's runs of {n} words (lower case, without punctuation) "
        "that stand in the post, repeated ones counted each time; the mean over answers. The post "
        "is the last turn of the user, whole. 1 minus the share of novel n-grams.",
    )


SUMMARY_INFO = (
    MetricInfo(
        key="length_ratio",
        title="Length against the reference",
        unit="ratio",
        direction=Direction.NEITHER,
        definition="Words of the answer / words of the reference answer; the mean of these "
        "ratios over answers.",
    ),
    *(_copied_info(key, n) for key, n in ORDERS.items()),
    MetricInfo(
        key="copied_longest",
        title="Longest copied run",
        unit="words",
        direction=Direction.NEITHER,
        definition="Words (lower case, without punctuation) of the longest run of the answer that "
        "stands in the post.",
    ),
)


def words(text: str) -> list[str]:
    r"""Return the lower-cased words (``\w+``) of ``text``; punctuation is left out."""
    return _WORD.findall(text.lower())


def copied(source: Sequence[str], answer: Sequence[str], n: int) -> float | None:
    """Return the share of the answer's n-grams that occur in the source; None where it has none.

    Source: the complement of the novel n-grams of See et al. (2017), "Get To The Point", arXiv
    1704.04368, section 6.2.
    """
    found = _grams(answer, n)
    known = set(_grams(source, n))
    return sum(gram in known for gram in found) / len(found) if found else None


def _grams(text: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(text[start:] for start in range(n)), strict=False))


def longest_copied(source: Sequence[str], answer: Sequence[str]) -> int:
    """Return the length in words of the longest run of the answer that occurs in the source.

    Source: the longest extractive fragment in the sense of Grusky et al. (2018), "Newsroom",
    arXiv 1804.11283, section 4.
    """
    match = SequenceMatcher(None, source, answer, autojunk=False).find_longest_match()
    return match.size


def _post(example: Example) -> str:
    return next((m.content for m in reversed(example.messages) if m.role is Role.USER), "")


def _ratio(example: Example, answer: Generation) -> Score:
    key = "length_ratio"
    if example.reference is None:
        return answer_score(answer, key, None, reason=NO_REFERENCE)
    wanted = len(words(example.reference))
    if not wanted:
        return answer_score(answer, key, None, reason=EMPTY_REFERENCE)
    return answer_score(answer, key, len(words(answer.text)) / wanted)


def _copies(example: Example, answer: Generation) -> list[Score]:
    source, said = words(_post(example)), words(answer.text)
    keys = (*ORDERS, "copied_longest")
    if not (source and said):
        reason = NO_WORDS if source else NO_SOURCE
        return [answer_score(answer, key, None, reason=reason, undefined=True) for key in keys]
    return [
        *(ngram_score(answer, key, copied(source, said, n), n) for key, n in ORDERS.items()),
        answer_score(answer, "copied_longest", longest_copied(source, said)),
    ]


class Summary:
    """``length_ratio``, ``copied_2``, ``copied_4`` and ``copied_longest`` of every answer."""

    info = SUMMARY_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return four scores for each answer; None where one is not defined."""
        return [
            score
            for example, answer in by_answer(examples, generations)
            for score in (_ratio(example, answer), *_copies(example, answer))
        ]
