"""Self-BLEU: how much the samples of one prompt say in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics import by_prompt, prompt_score
from harness.types import Direction, Example, Generation, MetricInfo, Score

MAX_ORDER = 4

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]

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


class Words:
    """sacrebleu's 13a tokens of texts as numbers; each different word is tokenised once.

    Between words there is white space, which none of the 13a rules looks beyond, so that a text's
    tokens are those of its words. Two replacements that reach further come before: a hyphen at a
    line's end joins two words, and ``<skipped>`` is dropped, for which the text is left whole.
    """

    def __init__(self) -> None:
        self._of_word = _Numbered()

    def __call__(self, text: str) -> list[int]:
        """Return the token numbers of a text; equal tokens have equal numbers."""
        line = text.rstrip()
        joined = line.replace("-\n", "")
        if "<skipped>" in line or "<skipped>" in joined:
            return self._of_word[line]
        return list(chain.from_iterable(map(self._of_word.__getitem__, joined.split())))


class _Numbered(dict[str, list[int]]):
    """The token numbers of words, found when they are first asked for."""

    def __init__(self) -> None:
        from sacrebleu.metrics.bleu import BLEU

        self._tokenise = BLEU(effective_order=True).tokenizer
        self._numbers: dict[str, int] = {}

    def __missing__(self, word: str) -> list[int]:
        numbers = self._numbers
        found = [numbers.setdefault(token, len(numbers)) for token in self._tokens(word)]
        self[word] = found
        return found

    def _tokens(self, word: str) -> list[str]:
        # Letters and digits stay, and a stop or comma at a word's end is always split off: most
        # words need none of the rules.
        stem, mark = (word[:-1], word[-1]) if word.endswith((".", ",")) else (word, "")
        if stem.isalnum():
            return [stem, mark] if mark else [stem]
        tokens: list[str] = self._tokenise(word).split()
        return tokens


@dataclass(frozen=True)
class Grams:
    """The n-grams of m texts, for n of 1 to 4.

    Attributes:
        lengths: (m,) tokens of each text.
        owners: by order, the text of each n-gram. ranks: its number among the different ones.
    """

    lengths: Ints
    owners: tuple[Ints, ...]
    ranks: tuple[Ints, ...]

    @property
    def totals(self) -> Ints:
        """(4, m) n-grams of each text by order."""
        return np.maximum(self.lengths - np.arange(MAX_ORDER)[:, None], 0)


def grams(texts: Sequence[Sequence[int]]) -> Grams:
    """Return the n-grams of texts given as token numbers; no n-gram crosses texts."""
    lengths = np.array([len(text) for text in texts])
    ids = np.fromiter(chain.from_iterable(texts), dtype=np.int64, count=int(lengths.sum()))
    owner = np.repeat(np.arange(len(texts)), lengths)
    end = np.repeat(np.cumsum(lengths), lengths)
    starts = np.arange(len(ids))
    ids = rank = np.unique(ids, return_inverse=True)[1]
    base = len(ids) + 1
    owners, ranks = [owner], [rank]
    for n in range(2, MAX_ORDER + 1):
        kept = starts + n <= end[starts]
        starts = starts[kept]
        # A run of n words is a run of n - 1, by its rank, and one word more.
        rank = np.unique(rank[kept] * base + ids[starts + n - 1], return_inverse=True)[1]
        owners.append(owner[starts])
        ranks.append(rank)
    return Grams(lengths, tuple(owners), tuple(ranks))


def _matches(found: Grams) -> Floats:
    """Return (4, m, m) how many n-grams two texts share, each as often as both have it."""
    texts = len(found.lengths)
    sizes = [int(rank.max(initial=-1)) + 1 for rank in found.ranks]
    starts = np.cumsum([0, *sizes])
    columns = np.concatenate(
        [rank + start for rank, start in zip(found.ranks, starts[:-1], strict=True)]
    )
    cells = np.concatenate(found.owners) * starts[-1] + columns
    counts = np.bincount(cells, minlength=texts * starts[-1]).reshape(texts, starts[-1])
    matches = np.zeros((MAX_ORDER, texts, texts))
    orders = np.count_nonzero(sizes)
    for text, row in enumerate(counts if orders else ()):
        shared = np.add.reduceat(np.minimum(row, counts), starts[:orders], axis=1)
        matches[:orders, text] = shared.T
    return matches


def bleu_scores(matches: Floats, totals: Ints, lengths: Ints, references: Ints) -> Floats:
    """Return sentence BLEU, 0 to 100, of h hypotheses against each of r references.

    Exponential smoothing and effective order, sacrebleu's defaults for sentences: an order
    without a match counts 100 / (2^k total), k the orders without one so far; orders that the
    hypothesis is too short for do not count.

    Args:
        matches: (4, h, r) clipped matches. totals: (4, h) n-grams of the hypotheses.
        lengths: (h,) tokens of the hypotheses. references: (r,) those of the references.

    Source: Post (2018), "A Call for Clarity in Reporting BLEU Scores", arXiv 1804.08771; Chen and
    Cherry (2014), WMT, smoothing method 3.
    """
    counted = totals > 0
    absent = matches == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        halved = 0.5 ** absent.cumsum(axis=0)
        precisions = 100 * np.where(absent, halved, matches) / totals[:, :, None]
        logs = np.where(counted[:, :, None], np.log(precisions), 0).sum(axis=0)
        brevity = np.minimum(0, 1 - references / lengths[:, None])
        found = np.exp(brevity + logs / counted.sum(axis=0)[:, None])
    return np.asarray(np.where(absent.all(axis=0), 0, found), dtype=np.float64)


def pairwise_bleu(texts: Sequence[str], words: Words | None = None) -> Floats:
    """Return (m, m) sentence BLEU of each text, the row, against each, the column.

    Each has the value of ``sacrebleu.sentence_bleu(hypothesis, [reference])`` with its defaults
    (13a tokens), but a text is tokenised and its n-grams are found once, not in every pair. An
    empty text scores 0 with every other.

    Args:
        words: token numbers to go on with, where texts of one kind are scored in turn.
    """
    number = words or Words()
    found = grams([number(text) for text in texts])
    return bleu_scores(_matches(found), found.totals, found.lengths, found.lengths)


def self_bleu(texts: Sequence[str], words: Words | None = None) -> float:
    """Return the mean of `pairwise_bleu`, 0 to 100, over all ordered pairs of two or more texts.

    Raises:
        ValueError: fewer than two texts.

    Source: Zhu et al. (2018), "Texygen", arXiv 1802.01886; the TokenRatio paper's protocol (arXiv
    2605.12288) for the average over ordered pairs.
    """
    if len(texts) < 2:
        raise ValueError(f"self-BLEU needs two texts or more, given {len(texts)}")
    scores = pairwise_bleu(texts, words)
    return float(scores[~np.eye(len(texts), dtype=bool)].mean())


def _score(answers: Sequence[Generation], words: Words) -> Score:
    texts = [answer.text for answer in answers]
    written = sum(bool(text.strip()) for text in texts)
    if written < 2:
        reason = f"self-BLEU needs two samples with text, the prompt has {written}"
        return prompt_score(answers[0], "self_bleu", None, reason=reason, undefined=True)
    return prompt_score(answers[0], "self_bleu", self_bleu(texts, words))


class SelfBleu:
    """``self_bleu`` of every prompt, on sacrebleu's own scale of 0 to 100."""

    info = SELF_BLEU_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return one score for each prompt; None with fewer than two samples that have text."""
        words = Words()
        return [_score(answers, words) for _, answers in by_prompt(examples, generations)]
