"""What looking for evaluation prompts in training rows costs, against comparing all pairs.

    python benchmarks/contamination.py [--rows 100000] [--pairs 1000]

Made-up texts: words by a Zipf law, training rows of 300 words (a prompt of 100, two answers of
100), 1,000 evaluation prompts of 60 words, every tenth of which is planted in the training rows,
half of them with one word changed. Processor seconds of one process:

all rows   the time that is promised: the index reads --rows rows
all pairs  --pairs rows, each held against each prompt by the sets of their n-grams; the index on
           the same rows must find the same, and the ratio of the two is printed

Ends with exit code 1 where the two differ, a planted prompt is missed, or a row costs so much that
100,000 of them take a minute.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from harness.contamination import STANDARD, grams, prompt_words, suite_overlaps, words
from harness.training.texts import TrainingText
from harness.types import Example, Message, OverlapKind, Role

PROMPTS, PROMPT_WORDS, PART = 1000, 60, 100
VOCABULARY, EXPONENT = 20_000, 1.3
POOL = 5000
"""Distinct made-up rows; more rows repeat them, which the index does not notice."""

MOST_SECONDS = 60.0

Rows = Sequence[tuple[TrainingText, str]]


def made_texts(rng: np.random.Generator, count: int, length: int) -> list[str]:
    ranks = np.minimum(rng.zipf(EXPONENT, (count, length)), VOCABULARY)
    return [" ".join(f"w{rank}" for rank in row) for row in ranks.tolist()]


def made_examples(rng: np.random.Generator) -> list[Example]:
    return [
        Example(id=f"e{i}", messages=(Message(role=Role.USER, content=text),))
        for i, text in enumerate(made_texts(rng, PROMPTS, PROMPT_WORDS))
    ]


def made_rows(rng: np.random.Generator, examples: Sequence[Example], count: int) -> Rows:
    """Return rows; the first ones hold every tenth prompt, of which every second is changed."""
    parts = [made_texts(rng, count, PART) for _ in range(3)]
    for place, example in enumerate(examples[::10]):
        prompt = example.messages[0].content.split()
        if place % 2:
            prompt[PROMPT_WORDS // 2] = "changed"
        parts[0][place] = " ".join(prompt)
    return [
        (TrainingText(prompts=((prompt,),), answers=(one, other)), f"row:{i}")
        for i, (prompt, one, other) in enumerate(zip(*parts, strict=True), start=1)
    ]


def repeated(rows: Rows, count: int) -> Iterator[tuple[TrainingText, str]]:
    for number in range(count):
        yield rows[number % len(rows)]


def all_pairs(examples: Sequence[Example], rows: Rows) -> dict[str, str]:
    """Return what is found of each example by comparing it with every row."""
    n = STANDARD.words
    prompts = [prompt_words(example) for example in examples]
    sets = [set(grams(prompt, n)) for prompt in prompts]
    found: dict[str, str] = {}
    for text, _ in rows:
        asked = words(text.prompts[0][0])
        held = {g for part in (asked, *map(words, text.answers)) for g in grams(part, n)}
        for example, prompt, wanted in zip(examples, prompts, sets, strict=True):
            if prompt == asked:
                found[example.id] = OverlapKind.EXACT
            elif len(wanted & held) >= STANDARD.share * len(wanted):
                found.setdefault(example.id, OverlapKind.NEAR)
    return found


def indexed(examples: Sequence[Example], rows: Any) -> dict[str, str]:
    _, (suite,) = suite_overlaps({"made": examples}, rows)
    return {overlap.example_id: overlap.kind for overlap in suite.overlaps}


def timed(find: Callable[[], dict[str, str]]) -> tuple[dict[str, str], float]:
    started = time.process_time()
    return find(), time.process_time() - started


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=1000)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    examples = made_examples(rng)
    rows = made_rows(rng, examples, POOL)
    found, seconds = timed(lambda: indexed(examples, repeated(rows, given.rows)))
    kinds = list(found.values())
    planted = PROMPTS // 20
    complete = all(kinds.count(kind) >= planted for kind in (OverlapKind.EXACT, OverlapKind.NEAR))
    print(
        f"all rows   {given.rows:,} rows of {3 * PART} words, {PROMPTS:,} prompts: {seconds:.1f} s"
    )
    print(f"           found {kinds.count('exact')} exact, {kinds.count('near')} near")
    few = rows[: given.pairs]
    slow, slowly = timed(lambda: all_pairs(examples, few))
    fast, quickly = timed(lambda: indexed(examples, few))
    print(f"all pairs  {len(few):,} rows: {slowly:.2f} s; the index {quickly:.2f} s")
    print(
        f"           ratio {slowly / quickly:.0f}, findings {'equal' if slow == fast else 'DIFFER'}"
    )
    quick = seconds * 100_000 / given.rows < MOST_SECONDS
    return 0 if complete and quick and slow == fast else 1


if __name__ == "__main__":
    sys.exit(main())
