"""Self-BLEU across prompts: how much answers to different prompts say in the same words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from harness.metrics import answer_score, by_answer
from harness.metrics.diversity.bleu import (
    MAX_ORDER,
    Floats,
    Grams,
    Ints,
    Words,
    bleu_scores,
    grams,
)
from harness.stats.jackknife import contributions
from harness.types import Direction, Example, Generation, MetricInfo, Score

KEY = "self_bleu_across"

ROWS = 128
"""Hypotheses that are scored at once, so that memory grows with the texts and not their pairs."""

SELF_BLEU_ACROSS_INFO = (
    MetricInfo(
        key=KEY,
        title="Self-BLEU across prompts",
        unit="BLEU, 0 to 100",
        direction=Direction.LOWER,
        definition="Mean sentence BLEU of sacrebleu over all ordered pairs of first samples of "
        "different prompts: high where the same phrases answer every prompt. The score of one "
        "prompt is its linearised jackknife contribution, whose mean over prompts is this figure.",
    ),
)


def _occurrences(owner: Ints, rank: Ints) -> Ints:
    """Return a number for each n-gram and the how-manieth of its text it is."""
    order = np.lexsort((rank, owner))
    pair = np.stack([owner[order], rank[order]])
    new = np.ones(len(order), dtype=bool)
    new[1:] = (pair[:, 1:] != pair[:, :-1]).any(axis=0)
    places = np.arange(len(order))
    nth = np.empty(len(order), dtype=np.int64)
    nth[order] = places - np.maximum.accumulate(np.where(new, places, 0))
    return np.asarray(np.unique(nth * (rank.max(initial=0) + 1) + rank, return_inverse=True)[1])


def _incidence(found: Grams, texts: int) -> list[Any]:
    """Return by order a sparse (m, occurrences) matrix of ones; products count shared n-grams.

    Two texts share the k-th occurrence of an n-gram where both have it k times or more: summed
    over k that is the smaller of their counts.
    """
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

    matrices = []
    for owner, rank in zip(found.owners, found.ranks, strict=True):
        columns = _occurrences(owner, rank)
        shape = (texts, int(columns.max(initial=-1)) + 1)
        ones = np.ones(len(columns), dtype=np.float32)
        matrices.append(csr_matrix((ones, (owner, columns)), shape=shape))
    return matrices


def _blocks(texts: Sequence[str]) -> Iterator[tuple[slice, Floats]]:
    """Yield rows of the (m, m) sentence BLEU of each text against each."""
    words = Words()
    found = grams([words(text) for text in texts])
    matrices = _incidence(found, len(texts))
    for start in range(0, len(texts), ROWS):
        rows = slice(start, min(start + ROWS, len(texts)))
        matches = np.empty((MAX_ORDER, rows.stop - rows.start, len(texts)))
        for order, matrix in enumerate(matrices):
            matches[order] = (matrix[rows] @ matrix.T).toarray()
        yield rows, bleu_scores(matches, found.totals[:, rows], found.lengths[rows], found.lengths)


def across_contributions(texts: Sequence[str]) -> list[float] | None:
    """Return one number per text whose mean is the mean BLEU of all ordered pairs of texts.

    Leaving text i out takes away the pairs that it is in. The work grows with the square of the
    number of texts. None with fewer than three texts.
    """
    count = len(texts)
    if count < 3:
        return None
    of_text = np.zeros(count)
    total = 0.0
    for rows, scores in _blocks(texts):
        scores[np.arange(len(scores)), np.arange(rows.start, rows.stop)] = 0
        of_text[rows] += scores.sum(axis=1)
        of_text += scores.sum(axis=0)
        total += float(scores.sum())
    left_out = (total - of_text) / ((count - 1) * (count - 2))
    return contributions(total / (count * (count - 1)), left_out.tolist())


class SelfBleuAcross:
    """``self_bleu_across`` of the first samples, as jackknife contributions."""

    info = SELF_BLEU_ACROSS_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return one score for each sample 0; None without text, or with fewer than three."""
        firsts = [a for _, a in by_answer(examples, generations) if a.sample == 0]
        written = [answer for answer in firsts if answer.text.strip()]
        values = across_contributions([answer.text for answer in written])
        if values is None:
            reason = f"it needs three first samples with text, there are {len(written)}"
            return [answer_score(answer, KEY, None, reason=reason) for answer in firsts]
        by_id = {a.example_id: value for a, value in zip(written, values, strict=True)}
        return [
            answer_score(a, KEY, by_id[a.example_id])
            if a.example_id in by_id
            else answer_score(a, KEY, None, reason="the answer has no text", undefined=True)
            for a in firsts
        ]
