"""Log-probabilities of a suite's better and worse answers: the raw facts of preference accuracy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from harness.engines.reference import Continuation, ReferenceModel, answer_sums
from harness.errors import InputError
from harness.metrics.likelihood import LogProbs
from harness.progress import bar
from harness.prompts import end_of_turn, load_tokenizer
from harness.suites import Suite
from harness.types import Loadable, Score

RAW_KEYS = ("logprob_chosen", "logprob_rejected")
"""Metric keys of the raw sums behind preference accuracy, nats."""


def raw_scores(
    checkpoint: Loadable,
    suite: Suite,
    prompts: Mapping[str, tuple[int, ...]],
    model: ReferenceModel,
) -> list[Score]:
    """Score chosen and rejected answers of a suite, each with its end-of-turn token."""
    tokenizer = load_tokenizer(checkpoint.folder)
    end = end_of_turn(tokenizer)
    items = []
    for example in suite.examples:
        for metric, text in zip(RAW_KEYS, (example.reference, example.rejected), strict=True):
            if text is None:
                raise InputError(f"'{example.id}' lacks an answer that preference_accuracy needs")
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            answer = (*ids, end)
            key = f"{metric}\n{example.id}"
            items.append(Continuation(key=key, prompt=prompts[example.id], answer=answer))
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
