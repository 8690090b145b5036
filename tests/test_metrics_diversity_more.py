"""Adjusted distinct, Self-BLEU in parts and across prompts, repetition, compression."""

from __future__ import annotations

import gzip
from fractions import Fraction
from itertools import permutations
from statistics import fmean

import numpy as np
import pytest
import sacrebleu
from metric_records import answer, example

from harness.metrics import Metric
from harness.metrics.diversity import (
    VOCABULARY,
    Compression,
    DistinctN,
    Repetition,
    SelfBleuAcross,
    across_contributions,
    adjusted_distinct,
    bleu_across,
    compression_ratio,
    distinct,
    expected_distinct,
    pairwise_bleu,
    repetition,
)
from harness.metrics.diversity.bleu import Words
from harness.stats.jackknife import contributions
from harness.types import Score

PIECES = (
    *("a", "bc", "Don't", "x_1", "3", "3.5", "1,000", "-5", "2-3", ".5", "5.", "é", "²", "٣"),
    *("a.b", "a.1", "1.a", ",", ".", "..", ",.", ".,.", "...", "!", "?!", "(so)", "«q»", "-", "--"),
    *("&amp;", "&lt;b>", "&quot;", "&amp;lt;", "<skipped>", "<skip", "pped>", "-\n", "\n"),
    *("\t", "\u00a0", "\x1c", "@", "#", "~", "`", "^", "[", "]", "{"),
)


def values(metric: Metric, texts: list[str], key: str) -> list[Score]:
    examples = [example(f"e{i}") for i in range(len(texts))]
    found = metric.score(examples, [answer(text, f"e{i}") for i, text in enumerate(texts)])
    return [score for score in found if score.metric == key]


# Expectation-adjusted distinct.


def test_expected_distinct_is_the_formula_and_its_limits() -> None:
    exact = 10 * (1 - Fraction(9, 10) ** 7)
    assert expected_distinct(7, 10) == pytest.approx(float(exact), rel=1e-12)
    assert expected_distinct(1) == pytest.approx(1)
    assert expected_distinct(10**9) == pytest.approx(VOCABULARY)
    drawn = np.random.default_rng(1).integers(0, 50, (4000, 30))
    seen = np.mean([len(set(row)) for row in drawn.tolist()])
    assert expected_distinct(30, 50) == pytest.approx(seen, abs=0.1)


def test_adjusted_distinct_by_hand() -> None:
    # Three different of four words, from two symbols: 2 (1 - 1/16) expected.
    assert adjusted_distinct(["a b a", "c"], 1, vocabulary=2) == pytest.approx(3 / 1.875)
    # Pairs ab and ba, none across texts: 4 (1 - (3/4)^2) expected.
    assert adjusted_distinct(["a b a", "c"], 2, vocabulary=4) == pytest.approx(2 / 1.75)
    assert adjusted_distinct(["", " "], 1) is None


def test_adjusted_distinct_does_not_fall_with_length_on_uniform_words() -> None:
    rng = np.random.default_rng(2)

    def both(length: int) -> tuple[float, float]:
        texts = [" ".join(f"w{i}" for i in rng.integers(0, 500, length)) for _ in range(20)]
        plain, adjusted = distinct(texts, 1), adjusted_distinct(texts, 1, vocabulary=500)
        assert plain is not None
        assert adjusted is not None
        return plain, adjusted

    short, long = both(10), both(100)
    assert long[0] < 0.5 * short[0]
    assert long[1] == pytest.approx(short[1], abs=0.05)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_scores_are_the_jackknife_of_the_adjusted_ratio(n: int) -> None:
    rng = np.random.default_rng(n)
    texts = [" ".join(rng.choice(list("abcdef"), rng.integers(4, 20))) for _ in range(9)]
    total = adjusted_distinct(texts, n)
    left_out = [adjusted_distinct(texts[:i] + texts[i + 1 :], n) for i in range(len(texts))]
    assert total is not None
    expected = contributions(total, [v for v in left_out if v is not None])
    found = [s.value for s in values(DistinctN(), texts, f"distinct_{n}_adjusted")]
    assert found == pytest.approx(expected)
    assert np.mean(np.array(found, dtype=float)) == pytest.approx(total)


def test_distinct_3_and_4_and_what_is_too_short() -> None:
    texts = ["a b c d e", "a b c x", "y"]
    three = [s.value for s in values(DistinctN(), texts, "distinct_3")]
    assert np.mean(np.array(three, dtype=float)) == pytest.approx(4 / 5)
    four = values(DistinctN(), ["a b c d", "a b", "c"], "distinct_4")
    assert {(s.value, s.reason) for s in four} == {
        (None, "fewer than two of 3 first samples are long enough")
    }
    assert [info.key for info in DistinctN.info] == [
        *("distinct_3", "distinct_4"),
        *(f"distinct_{n}_adjusted" for n in (1, 2, 3, 4)),
    ]


# Self-BLEU.


def test_tokens_of_a_text_are_sacrebleu_s() -> None:
    """Texts of awkward pieces, with and without spaces between them."""
    from sacrebleu.metrics.bleu import BLEU

    tokenise = BLEU().tokenizer
    rng = np.random.default_rng(3)
    words, seen = Words(), {}
    for _ in range(3000):
        pieces = rng.choice(np.array(PIECES, dtype=object), rng.integers(0, 12))
        text = "".join(piece + rng.choice(["", " ", "  "]) for piece in pieces)
        found, expected = words(text), tokenise(text.rstrip()).split()
        assert len(found) == len(expected), text
        for number, token in zip(found, expected, strict=True):
            assert seen.setdefault(number, token) == token, text
    assert len(set(seen.values())) == len(seen) > 50


def test_each_pair_is_sacrebleu_s_sentence_bleu() -> None:
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice(list("abc,."), rng.integers(0, 9))) for _ in range(24)]
    texts += ["", " ", "a", "a a a a a a", texts[3]]
    expected = [[sacrebleu.sentence_bleu(h, [r]).score for r in texts] for h in texts]
    np.testing.assert_allclose(pairwise_bleu(texts), expected, atol=1e-9, rtol=0)


def test_self_bleu_across_prompts_is_the_mean_over_all_ordered_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(6)
    texts = [" ".join(rng.choice(list("abcde"), rng.integers(1, 15))) for _ in range(11)]

    def mean(some: list[str]) -> float:
        return fmean(sacrebleu.sentence_bleu(a, [b]).score for a, b in permutations(some, 2))

    left_out = [mean(texts[:i] + texts[i + 1 :]) for i in range(len(texts))]
    expected = contributions(mean(texts), left_out)
    assert across_contributions(texts) == pytest.approx(expected, abs=1e-9)
    monkeypatch.setattr(bleu_across, "ROWS", 4)
    assert across_contributions(texts) == pytest.approx(expected, abs=1e-9)


def test_self_bleu_across_prompts_leaves_empty_answers_out() -> None:
    same = "the cat sat on the mat"
    found = values(SelfBleuAcross(), [same, "", same, same], "self_bleu_across")
    assert [s.value for s in found] == [pytest.approx(100), None] + [pytest.approx(100)] * 2
    assert found[1].reason == "the answer has no text"
    few = values(SelfBleuAcross(), [same, "", same], "self_bleu_across")
    assert {s.reason for s in few} == {"it needs three first samples with text, there are 2"}


# Repetition and compression.


def test_repetition_by_hand() -> None:
    # Pairs: ab ba ab bc -> 3 different of 4; triples: aba bab abc; "A" is "a".
    assert repetition("a b A b c", 2) == pytest.approx(1 / 4)
    assert repetition("a b a b c", 3) == 0
    assert repetition("go go go go go", 4) == pytest.approx(1 / 2)
    assert repetition("one two", 3) is None
    assert repetition("", 2) is None


def test_repetition_is_of_each_answer() -> None:
    given = [answer("go go go", "a", 0), answer("", "a", 1)]
    found = Repetition().score([example("a")], given)
    assert [(s.sample, s.metric, s.value) for s in found] == [
        (0, "repetition_2", 0.5),
        (0, "repetition_3", 0.0),
        (0, "repetition_4", None),
        (1, "repetition_2", None),
        (1, "repetition_3", None),
        (1, "repetition_4", None),
    ]
    assert found[2].reason == "the answer has fewer than 4 words"


def test_compression_ratio_is_bytes_over_gzipped_bytes() -> None:
    texts = ["naïve cat", "sat on the mat"]
    whole = b"na\xc3\xafve cat\nsat on the mat"
    packed = gzip.compress(whole, 9)
    assert compression_ratio(texts) == len(whole) / len(packed)
    assert gzip.decompress(packed) == whole
    assert compression_ratio(["", " \n"]) is None
    assert compression_ratio(["a"]) == 1 / len(gzip.compress(b"a", 9))


def test_compression_sees_samples_that_say_the_same() -> None:
    rng = np.random.default_rng(8)
    different = [" ".join(map(str, rng.integers(0, 10**6, 40))) for _ in range(5)]
    same, varied = compression_ratio(different[:1] * 5), compression_ratio(different)
    assert same is not None
    assert varied is not None
    assert same > 3 * varied
    given = [answer(text, "a", i) for i, text in enumerate(different)]
    found = Compression().score([example("a"), example("b")], [*given, answer("", "b")])
    assert [(s.example_id, s.sample, s.value) for s in found] == [
        ("a", None, varied),
        ("b", None, None),
    ]
    assert found[1].reason == "no sample of the prompt has text"
