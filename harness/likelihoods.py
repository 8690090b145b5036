"""Log-probabilities of a suite's better and worse answers: the raw facts of preference accuracy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from harness.engines.reference import Continuation, ReferenceModel, answer_sums
from harness.errors import InputError
from harness.metrics.likelihood import LogProbs
from harness.progress import bar
from harness.prompts import answer_ids, end_of_turn, load_tokenizer
from harness.suites import Suite
from harness.types import Example, Loadable, Score

RAW_KEYS = ("logprob_chosen", "logprob_rejected")
"""Metric keys of the raw sums behind preference accuracy, nats."""


def raw_scores(
    checkpoint: Loadable,
    suite: Suite,
    prompts: Mapping[str, tuple[int, ...]],
    model: ReferenceModel,
) -> list[Score]:
    """Score chosen and rejected answers of a suite, each with its end-of-turn token.

    Raises:
        InputError: an example lacks one of the two.
    """
    tokenizer = load_tokenizer(checkpoint.folder)
    end = end_of_turn(tokenizer)
    items = [
        Continuation(key=f"{metric}\n{example.id}", prompt=prompts[example.id], answer=(*ids, end))
        for example in suite.examples
        for metric, ids in zip(
            RAW_KEYS, answer_ids(tokenizer, example.messages, _both(example)), strict=True
        )
    ]
    with bar(len(items), f"likelihood {checkpoint.spec.name}", "answer") as shown:
        sums = answer_sums(model, items, shown.update)
    return [
        Score(
            checkpoint=checkpoint.spec.name,
            suite=suite.spec.name,
            metric=key.split("\n")[0],
            example_id=key.split("\n")[1],
            value=value,
        )
        for key, value in sums.items()
    ]


def _both(example: Example) -> tuple[str, str]:
    """Return the better and the worse answer of an example."""
    if example.reference is None or example.rejected is None:
        raise InputError(f"'{example.id}' lacks an answer that preference_accuracy needs")
    return example.reference, example.rejected


def pair_sums(scores: Iterable[Score]) -> dict[tuple[str, str], dict[str, LogProbs]]:
    """Return (suite, checkpoint) -> example id -> sums, nats, of better and worse answer."""
    halves: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for score in scores:
        if score.metric in RAW_KEYS and score.value is not None:
            halves[score.suite, score.checkpoint][score.example_id][score.metric] = score.value
    return {
        key: {i: (v[RAW_KEYS[0]], v[RAW_KEYS[1]]) for i, v in sorted(rows.items()) if len(v) == 2}
        for key, rows in halves.items()
    }
