"""Distinct-n: different n-grams over all n-grams, pooled over the first samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.metrics import answer_score, by_answer
from harness.metrics.diversity.words import ngram_counts
from harness.stats.jackknife import contributions
from harness.types import Direction, Example, Generation, MetricInfo, Score

_ORDERS = {"distinct_1": 1, "distinct_2": 2}

Statistic = Callable[[int, int], float]
"""A figure of a corpus from its different n-grams and all its n-grams, at least one."""

GRAMS = {
    1: "words",
    2: "pairs of neighbouring words",
    3: "runs of three words",
    4: "runs of four words",
}


def distinct_info(key: str, n: int) -> MetricInfo:
    """Return what Distinct-n under this key means."""
    grams = GRAMS[n]
    return MetricInfo(
        key=key,
        title=f"Distinct-{n}",
        unit="ratio",
        direction=Direction.HIGHER,
        definition=f"Different {grams} / all {grams}, pooled over the first sample of every "
        "prompt; falls with the amount of text, so compare equal prompt sets. The score of one "
        "prompt is its linearised jackknife contribution, whose mean over prompts is this ratio.",
    )


DISTINCT_INFO = (
    *(distinct_info(key, n) for key, n in _ORDERS.items()),
    MetricInfo(
        key="distinct_1_answer",
        title="Distinct-1 within an answer",
        unit="ratio",
        direction=Direction.HIGHER,
        definition="Different words / all words inside one answer, averaged over answers; low "
        "where an answer repeats itself.",
    ),
)


def ratio(different: int, total: int) -> float:
    """Return Distinct-n itself."""
    return different / total


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Return Distinct-n: different n-grams / all n-grams, pooled over ``texts``.

    N-grams never cross from one text to the next. None where no text has an n-gram.

    Source: Li et al. (2016), "A Diversity-Promoting Objective Function for Neural Conversation
    Models", arXiv 1510.03055.
    """
    return pool(texts, n).of(ratio)


@dataclass(frozen=True)
class Pool:
    """The n-grams of some texts taken together.

    Attributes:
        different, total: n-grams of all texts.
        own: by text, the different n-grams that occur in no other text.
        totals: by text, all its n-grams.
    """

    different: int
    total: int
    own: tuple[int, ...]
    totals: tuple[int, ...]

    def of(self, statistic: Statistic) -> float | None:
        """Return a statistic of all texts; None where there is no n-gram."""
        return statistic(self.different, self.total) if self.total else None

    def contributions(self, statistic: Statistic) -> list[float] | None:
        """Return one number per text whose mean is the statistic; see `distinct_contributions`."""
        if len(self.totals) == 1 and self.total:
            return [statistic(self.different, self.total)]
        if sum(map(bool, self.totals)) < 2:
            return None
        left_out = [
            statistic(self.different - own, self.total - total)
            for own, total in zip(self.own, self.totals, strict=True)
        ]
        return contributions(statistic(self.different, self.total), left_out)


def pool(texts: Sequence[str], n: int) -> Pool:
    """Return the n-grams of all texts; document frequencies give what each adds in one pass."""
    counts = [ngram_counts(text, n) for text in texts]
    texts_with = Counter(gram for c in counts for gram in c)
    return Pool(
        different=len(texts_with),
        total=sum(c.total() for c in counts),
        own=tuple(sum(texts_with[gram] == 1 for gram in c) for c in counts),
        totals=tuple(c.total() for c in counts),
    )


def distinct_contributions(texts: Sequence[str], n: int) -> list[float] | None:
    """Return one number per text whose mean is ``distinct(texts, n)``.

    They are linearised jackknife contributions (`harness.stats.jackknife`), so that intervals
    and paired differences of a corpus ratio come from per-prompt numbers. Leaving text i out
    removes its n-grams from the total and, from the different ones, those that occur in no other
    text. A text without an n-gram, such as an empty one, counts as a text whose absence changes
    nothing.

    None where no text has an n-gram, or where all n-grams are in one of several texts: without
    it the ratio is undefined.
    """
    return pool(texts, n).contributions(ratio)


def corpus_scores(
    firsts: Sequence[Generation], key: str, values: Sequence[float] | None
) -> list[Score]:
    """Return one score for each first sample; None with a reason where there are no values."""
    if values is None:
        reason = f"fewer than two of {len(firsts)} first samples are long enough"
        return [answer_score(answer, key, None, reason=reason) for answer in firsts]
    return [answer_score(a, key, value) for a, value in zip(firsts, values, strict=True)]


def in_order(scores: Sequence[Score], examples: Sequence[Example]) -> list[Score]:
    """Return scores of answers by example and sample."""
    place: Mapping[str, int] = {example.id: index for index, example in enumerate(examples)}
    return sorted(scores, key=lambda s: (place[s.example_id], s.sample or 0))


def _answer_score(answer: Generation) -> Score:
    value = distinct([answer.text], 1)
    reason = "the answer has no word" if value is None else None
    undefined = value is None
    return answer_score(answer, "distinct_1_answer", value, reason=reason, undefined=undefined)


class Distinct:
    """``distinct_1`` and ``distinct_2`` of the first samples, ``distinct_1_answer`` of each answer.

    The values of the first two are jackknife contributions, not ratios: only their mean is one,
    and a single contribution may lie outside [0, 1].
    """

    info = DISTINCT_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return two scores for each sample 0 and one for each answer, by example and sample."""
        answers = [answer for _, answer in by_answer(examples, generations)]
        firsts = [answer for answer in answers if answer.sample == 0]
        texts = [answer.text for answer in firsts]
        scores = [
            score
            for key, n in _ORDERS.items()
            for score in corpus_scores(firsts, key, distinct_contributions(texts, n))
        ]
        return in_order([*scores, *map(_answer_score, answers)], examples)
