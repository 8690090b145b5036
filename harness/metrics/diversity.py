"""Diversity: Distinct-n over the first samples, Self-BLEU among the samples of a prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from statistics import fmean
from typing import TYPE_CHECKING

from harness.metrics import answer_score, by_answer, by_prompt, prompt_score
from harness.stats.jackknife import contributions
from harness.types import Direction, Example, Generation, MetricInfo, Score

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

_TOKEN = re.compile(r"\w+|[^\w\s]")
_ORDERS = {"distinct_1": 1, "distinct_2": 2}
_MAX_ORDER = 4

_Counted = tuple[Counter[tuple[str, ...]], int]
"""N-grams of all orders with their counts, and the number of tokens."""


def _distinct_info(key: str, grams: str) -> MetricInfo:
    return MetricInfo(
        key=key,
        title=f"Distinct-{_ORDERS[key]}",
        unit="ratio",
        direction=Direction.HIGHER,
        definition=f"Different {grams} / all {grams}, pooled over the first sample of every "
        "prompt; falls with the amount of text, so compare equal prompt sets. The score of one "
        "prompt is its linearised jackknife contribution, whose mean over prompts is this ratio.",
    )


DISTINCT_INFO = (
    _distinct_info("distinct_1", "words"),
    _distinct_info("distinct_2", "pairs of neighbouring words"),
    MetricInfo(
        key="distinct_1_answer",
        title="Distinct-1 within an answer",
        unit="ratio",
        direction=Direction.HIGHER,
        definition="Different words / all words inside one answer, averaged over answers; low "
        "where an answer repeats itself.",
    ),
)

SELF_BLEU_INFO = (
    MetricInfo(
        key="self_bleu",
        title="Self-BLEU",
        unit="BLEU, 0 to 100",
        direction=Direction.LOWER,
        definition="Mean sentence BLEU of sacrebleu over all ordered pairs of one prompt's "
        "samples; 100 where all samples are the same.",
    ),
)


def tokens(text: str) -> list[str]:
    r"""Return the lower-cased words (``\w+``) and single punctuation marks of ``text``.

    Source: evaluation protocol of the TokenRatio paper (arXiv 2605.12288).
    """
    return _TOKEN.findall(text.lower())


def _ngram_counts(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = tokens(text)
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Return Distinct-n: different n-grams / all n-grams, pooled over ``texts``.

    N-grams never cross from one text to the next. None where no text has an n-gram.

    Source: Li et al. (2016), "A Diversity-Promoting Objective Function for Neural Conversation
    Models", arXiv 1510.03055.
    """
    pooled: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        pooled.update(_ngram_counts(text, n))
    return len(pooled) / pooled.total() if pooled else None


def distinct_contributions(texts: Sequence[str], n: int) -> list[float] | None:
    """Return one number per text whose mean is ``distinct(texts, n)``.

    They are linearised jackknife contributions (`harness.stats.jackknife`), so that intervals
    and paired differences of a corpus ratio come from per-prompt numbers. Leaving text i out
    removes its n-grams from the total and, from the different ones, those that occur in no other
    text; document frequencies give all values in one pass. A text without an n-gram, such as an
    empty one, counts as a text whose absence changes nothing.

    None where no text has an n-gram, or where all n-grams are in one of several texts: without
    it the ratio is undefined.
    """
    counts = [_ngram_counts(text, n) for text in texts]
    texts_with = Counter(gram for c in counts for gram in c)
    different, total = len(texts_with), sum(c.total() for c in counts)
    if len(texts) == 1 and total:
        return [different / total]
    if sum(map(bool, counts)) < 2:
        return None
    own = [sum(texts_with[gram] == 1 for gram in c) for c in counts]
    left_out = [(different - o) / (total - c.total()) for o, c in zip(own, counts, strict=True)]
    return contributions(different / total, left_out)


def _corpus_scores(firsts: Sequence[Generation], key: str) -> list[Score]:
    values = distinct_contributions([answer.text for answer in firsts], _ORDERS[key])
    if values is None:
        reason = f"fewer than two of {len(firsts)} first samples are long enough"
        return [answer_score(answer, key, None, reason=reason) for answer in firsts]
    return [answer_score(a, key, value) for a, value in zip(firsts, values, strict=True)]


def _answer_score(answer: Generation) -> Score:
    value = distinct([answer.text], 1)
    reason = "the answer has no word" if value is None else None
    return answer_score(answer, "distinct_1_answer", value, reason=reason)


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
        scores = [score for key in _ORDERS for score in _corpus_scores(firsts, key)]
        scores += [_answer_score(answer) for answer in answers]
        place = {example.id: index for index, example in enumerate(examples)}
        return sorted(scores, key=lambda s: (place[s.example_id], s.sample))


def _sentence_bleu(bleu: BLEU, hypothesis: _Counted, reference: _Counted) -> float:
    matches, totals = [0] * _MAX_ORDER, [0] * _MAX_ORDER
    for gram, count in hypothesis[0].items():
        totals[len(gram) - 1] += count
        matches[len(gram) - 1] += min(count, reference[0][gram])
    score = bleu.compute_bleu(
        matches, totals, hypothesis[1], reference[1], smooth_method="exp", effective_order=True
    )
    return float(score.score)


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean sentence BLEU, 0 to 100, over all ordered pairs of two or more texts.

    Each pair has the value of ``sacrebleu.sentence_bleu(hypothesis, [reference])`` with its
    defaults (13a tokens, exponential smoothing, effective order), but every text is tokenised
    and counted once. An empty text scores 0 with every other.

    Raises:
        ValueError: fewer than two texts.

    Source: Zhu et al. (2018), "Texygen", arXiv 1802.01886; Post (2018), arXiv 1804.08771.
    """
    if len(texts) < 2:
        raise ValueError(f"self-BLEU needs two texts or more, given {len(texts)}")
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.helpers import extract_all_word_ngrams

    bleu = BLEU(effective_order=True)
    counted = [
        extract_all_word_ngrams(bleu.tokenizer(text.rstrip()), 1, _MAX_ORDER) for text in texts
    ]
    return fmean(_sentence_bleu(bleu, one, other) for one, other in permutations(counted, 2))


def _self_bleu_score(answers: Sequence[Generation]) -> Score:
    texts = [answer.text for answer in answers]
    written = sum(bool(text.strip()) for text in texts)
    if written < 2:
        reason = f"self-BLEU needs two samples with text, the prompt has {written}"
        return prompt_score(answers[0], "self_bleu", None, reason=reason)
    return prompt_score(answers[0], "self_bleu", self_bleu(texts))


class SelfBleu:
    """``self_bleu`` of every prompt, on sacrebleu's own scale of 0 to 100."""

    info = SELF_BLEU_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return one score for each prompt; None with fewer than two samples that have text."""
        return [_self_bleu_score(answers) for _, answers in by_prompt(examples, generations)]
