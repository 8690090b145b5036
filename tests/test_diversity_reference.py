"""Distinct-1, Self-BLEU and top-20 entropy against straightforward computations, 100 x 5 texts."""

from __future__ import annotations

import re
from itertools import permutations
from statistics import fmean

import numpy as np
import pytest
import sacrebleu
from metric_records import answer, example

from harness.engines.distribution import TOP, row_step, top_entropy
from harness.metrics.diversity import Distinct, SelfBleu
from harness.types import Score

PROMPTS, SAMPLES = 100, 5
VOCABULARY = 49_152
WORDS = (
    *("the", "a", "cat", "dog", "sat", "ran", "on", "mat", "fast", "slowly", "Don't", "half-way"),
    *("U.S.", "3,000", "e.g.", "naïve", "&", "«so»", "x_1"),
)


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    rng = np.random.default_rng(20)
    marks = ["", "", "", ",", ".", "!", "\n", " -\n", "?!"]

    def text() -> str:
        chosen = rng.choice(WORDS, rng.integers(0, 40))
        return " ".join(word + rng.choice(marks) for word in chosen)

    return [[text() for _ in range(SAMPLES)] for _ in range(PROMPTS)]


def scores(metric: Distinct | SelfBleu, texts: list[list[str]]) -> list[Score]:
    examples = [example(f"e{p}") for p in range(PROMPTS)]
    given = [answer(t, f"e{p}", s) for p, row in enumerate(texts) for s, t in enumerate(row)]
    return metric.score(examples, given)


def test_distinct_1(texts: list[list[str]]) -> None:
    words = [w for row in texts for w in re.findall(r"\w+|[^\w\s]", row[0].lower())]
    found = [s.value for s in scores(Distinct(), texts) if s.metric == "distinct_1"]
    assert len(found) == PROMPTS
    assert np.mean(np.array(found, dtype=float)) == pytest.approx(
        len(set(words)) / len(words), abs=1e-9
    )


def test_self_bleu(texts: list[list[str]]) -> None:
    found = scores(SelfBleu(), texts)
    assert len(found) == PROMPTS
    for score, row in zip(found, texts, strict=True):
        pairs = [sacrebleu.sentence_bleu(a, [b]).score for a, b in permutations(row, 2)]
        assert score.value == pytest.approx(fmean(pairs), abs=1e-9)


def test_entropy_of_the_20_likeliest_tokens() -> None:
    """On logits as a model in bfloat16 has them, whose differences float32 holds exactly."""
    rng = np.random.default_rng(7)
    out = np.empty(VOCABULARY, dtype=np.float32)
    for row in range(PROMPTS * SAMPLES):
        scale = rng.choice([0.3, 2.0, 6.0])
        drawn = rng.normal(scale=scale, size=VOCABULARY).astype(np.float32)
        logits = (drawn.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        if row % 5 == 0:
            logits[VOCABULARY // 2 :] = -np.inf
        top = np.sort(logits.astype(np.float64))[::-1][:20]
        p = np.exp(top) / np.exp(top).sum()
        expected = -(p * np.log(p)).sum()
        assert row_step(logits, out).entropy_top == pytest.approx(expected, abs=1e-9)
        assert top_entropy(out) == pytest.approx(expected, abs=1e-9)
    assert TOP == 20
