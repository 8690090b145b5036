"""Self-BLEU: this package against ``sacrebleu.sentence_bleu`` called for each ordered pair.

    python benchmarks/diversity.py [--prompts 100] [--samples 5 10 20] [--words 100]

Texts are drawn from a small vocabulary with the frequencies of words in English; the samples of a
prompt share phrases. One side after the other scores all prompts, in one process; time is the
process's own, so that other work on the machine counts little. Prints seconds, how many times
faster, and the largest difference between the two sides' values.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import permutations
from statistics import fmean

import numpy as np

WANTED = 10.0
"""Times faster that it should at least be."""

VOCABULARY = 2_000
KEPT = 0.6
"""Share of a sample's words that are those of its prompt's common text."""


def make_texts(prompts: int, samples: int, words: int, seed: int = 0) -> list[list[str]]:
    """Return the samples of each prompt."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    vocabulary = np.array(
        ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(VOCABULARY)]
    )
    weights = 1 / np.arange(1, VOCABULARY + 1)
    shares = weights / weights.sum()

    def sample(common: np.ndarray) -> str:
        own = rng.choice(vocabulary, words, p=shares)
        chosen = np.where(rng.random(words) < KEPT, common, own)
        marks = rng.choice(["", ",", "."], words, p=[0.86, 0.08, 0.06])
        cut = rng.integers(words // 2, words + 1)
        return " ".join(np.char.add(chosen, marks)[:cut])

    return [
        [sample(common) for _ in range(samples)]
        for common in (rng.choice(vocabulary, words, p=shares) for _ in range(prompts))
    ]


def by_pairs(texts: Sequence[str]) -> float:
    from sacrebleu import sentence_bleu

    return fmean(sentence_bleu(one, [other]).score for one, other in permutations(texts, 2))


def timed(
    score: Callable[[Sequence[str]], float], prompts: Sequence[Sequence[str]]
) -> tuple[list[float], float]:
    """Return the value of each prompt, and the process's seconds for all of them."""
    started = time.process_time()
    values = [score(texts) for texts in prompts]
    return values, time.process_time() - started


def compare(prompts: int, samples: int, words: int) -> float:
    """Print one line; return how many times faster the package is."""
    from harness.metrics.diversity.bleu import Words, self_bleu

    given, numbers = make_texts(prompts, samples, words), Words()
    ours, package = timed(lambda texts: self_bleu(texts, numbers), given)
    theirs, pairs = timed(by_pairs, given)
    apart = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    print(
        f"{prompts:6} x {samples:3} {pairs:10.2f} s {package:10.3f} s "
        f"{pairs / package:8.1f} {apart:10.1e}",
        flush=True,
    )
    return pairs / package


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--samples", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--words", type=int, default=100, help="longest sample")
    given = parser.parse_args()
    from harness.metrics.diversity.bleu import self_bleu

    for score in (by_pairs, self_bleu):
        score(["a b c d e", "a b c d f"])  # imports are not timed
    print("prompts x samples  by pairs      package   faster difference")
    ratios = [compare(given.prompts, count, given.words) for count in given.samples]
    met = "met" if min(ratios) >= WANTED else "MISSED"
    print(f"\nat least {min(ratios):.1f} times faster (wanted {WANTED:g}: {met})")


if __name__ == "__main__":
    main()
