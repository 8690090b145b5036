from __future__ import annotations

from itertools import permutations
from statistics import fmean

import numpy as np
import pytest
import sacrebleu
from metric_records import answer, example

from harness.metrics.diversity import (
    Distinct,
    SelfBleu,
    distinct,
    distinct_contributions,
    self_bleu,
    tokens,
)
from harness.stats.jackknife import contributions

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "fast", "slowly", ",", ".", "Don't"]


def random_texts(rng: np.random.Generator, count: int, longest: int = 20) -> list[str]:
    return [
        " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(0, longest)))
        for _ in range(count)
    ]


def test_tokens_are_lower_case_words_and_single_marks() -> None:
    assert tokens("Don't STOP... 2 café_x!") == [
        *("don", "'", "t", "stop", ".", ".", ".", "2", "café_x", "!")
    ]


def test_distinct_pools_texts_and_never_crosses_from_one_to_the_next() -> None:
    assert distinct(["a b a", "b c"], 1) == pytest.approx(3 / 5)
    # pairs: ab, ba | bc; "ab" would occur again across the border
    assert distinct(["a b a", "b c"], 2) == 1.0
    assert distinct(["a b", "a b"], 2) == 0.5
    assert distinct(["", " "], 1) is None
    assert distinct(["word", ""], 2) is None


@pytest.mark.parametrize("n", [1, 2])
def test_contributions_equal_the_jackknife_by_recomputation(n: int) -> None:
    texts = [*random_texts(np.random.default_rng(3), 12), ""]
    total = distinct(texts, n)
    left_out = [distinct(texts[:i] + texts[i + 1 :], n) for i in range(len(texts))]
    found = distinct_contributions(texts, n)

    assert total is not None
    assert found is not None
    assert found == pytest.approx(contributions(total, [v for v in left_out if v is not None]))
    assert fmean(found) == pytest.approx(total, abs=1e-12)


def test_contributions_of_one_text_and_of_texts_without_n_grams() -> None:
    assert distinct_contributions(["a b a"], 1) == pytest.approx([2 / 3])
    assert distinct_contributions(["a b a", ""], 1) is None
    assert distinct_contributions([""], 1) is None
    assert distinct_contributions([], 1) is None


def test_distinct_reads_the_first_sample_and_each_answer() -> None:
    examples = [example("a"), example("b")]
    given = [
        answer("x y", "a", 0),
        answer("z z z z", "a", 1),
        answer("x w", "b", 0),
        answer("", "b", 1),
    ]
    scores = Distinct().score(examples, given)

    assert [(s.example_id, s.sample, s.metric) for s in scores] == [
        ("a", 0, "distinct_1"),
        ("a", 0, "distinct_2"),
        ("a", 0, "distinct_1_answer"),
        ("a", 1, "distinct_1_answer"),
        ("b", 0, "distinct_1"),
        ("b", 0, "distinct_2"),
        ("b", 0, "distinct_1_answer"),
        ("b", 1, "distinct_1_answer"),
    ]
    values = [s.value for s in scores if s.metric == "distinct_1" and s.value is not None]
    assert fmean(values) == pytest.approx(3 / 4)
    assert [s.value for s in scores if s.metric == "distinct_1_answer"] == [1, 0.25, 1, None]
    assert scores[-1].reason == "the answer has no word"


def test_a_corpus_without_spread_is_missing_with_a_reason() -> None:
    scores = Distinct().score([example("a"), example("b")], [answer("x y"), answer("x", "b")])
    pairs = [s for s in scores if s.metric == "distinct_2"]

    assert [s.value for s in pairs] == [None, None]
    assert pairs[0].reason == "fewer than two of 2 first samples are long enough"


@pytest.mark.parametrize("seed", range(6))
def test_self_bleu_is_sacrebleu_s_sentence_bleu_for_every_ordered_pair(seed: int) -> None:
    texts = random_texts(np.random.default_rng(seed), 5)
    texts[0] += " it's 3,000.5 & <b>more</b>\n - «dash» "
    texts[1] += " half-\n"
    texts[2] += " half"
    expected = [sacrebleu.sentence_bleu(h, [r]).score for h, r in permutations(texts, 2)]

    assert self_bleu(texts) == pytest.approx(fmean(expected), abs=1e-9)
    for one, other in permutations(texts, 2):
        both = [sacrebleu.sentence_bleu(h, [r]).score for h, r in ((one, other), (other, one))]
        assert self_bleu([one, other]) == pytest.approx(fmean(both), abs=1e-9)


def test_self_bleu_at_its_ends() -> None:
    assert self_bleu(["the cat sat on the mat"] * 3) == pytest.approx(100)
    assert self_bleu(["the cat sat", "dogs ran away"]) == 0
    with pytest.raises(ValueError, match="given 1"):
        self_bleu(["alone"])


def test_self_bleu_is_per_prompt_and_missing_below_two_samples_with_text() -> None:
    examples = [example("a"), example("b"), example("c")]
    same = [answer("the cat sat on the mat", "a", sample) for sample in range(3)]
    mute = [answer("one", "c", 0), answer(" ", "c", 1)]
    scores = SelfBleu().score(examples, [*same, answer("one", "b"), *mute])

    assert [(s.example_id, s.sample) for s in scores] == [("a", None), ("b", None), ("c", None)]
    assert scores[0].value == pytest.approx(100)
    assert [s.value for s in scores[1:]] == [None, None]
    assert scores[2].reason == "self-BLEU needs two samples with text, the prompt has 1"
