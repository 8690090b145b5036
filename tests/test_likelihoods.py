"""Raw log-probabilities: which tokens are scored after which prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from run_records import make_examples
from suite_records import make_loadable, make_suite
from tiny_checkpoints import save_sentencepiece

from harness.engines.reference import Continuation
from harness.errors import InputError
from harness.likelihoods import raw_scores
from harness.prompts import load_tokenizer, render_suite
from harness.training.data import Pair, Skips, tokenize_pair
from harness.types import Example


class CountingModel:
    """A model whose log-probability of every token is minus one; it keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, Continuation] = {}

    def token_logprobs(
        self, items: Sequence[Continuation]
    ) -> Iterator[tuple[str, tuple[float, ...]]]:
        for item in items:
            self.asked[item.key] = item
            yield item.key, (-1.0,) * len(item.answer)


def with_answers() -> list[Example]:
    answers = {"reference": "good", "rejected": "a bad one"}
    return [example.model_copy(update=answers) for example in make_examples(2)]


def test_what_is_scored_is_what_training_reads(tmp_path: Path) -> None:
    save_sentencepiece(tmp_path)
    checkpoint, suite = make_loadable("dpo", tmp_path), make_suite("own", with_answers())
    model: Any = CountingModel()
    scores = raw_scores(checkpoint, suite, render_suite(checkpoint, suite), model)
    tokenizer = load_tokenizer(str(tmp_path))
    for example in suite.examples:
        pair = Pair(tuple(example.messages), "good", "a bad one")
        tokens = tokenize_pair(tokenizer, pair, skips=Skips())
        assert tokens is not None
        sides = {"logprob_chosen": tokens.chosen, "logprob_rejected": tokens.rejected}
        for metric, ids in sides.items():
            item = model.asked[f"{metric}\n{example.id}"]
            assert (item.prompt, item.answer) == (tokens.prompt, ids)
    found = {(s.example_id, s.metric): s.value for s in scores}
    assert found == {
        (example.id, metric): value
        for example in suite.examples
        for metric, value in (("logprob_chosen", -5.0), ("logprob_rejected", -10.0))
    }


def test_example_without_an_answer_is_named(tmp_path: Path) -> None:
    save_sentencepiece(tmp_path)
    checkpoint, suite = make_loadable("dpo", tmp_path), make_suite("own", make_examples(1))
    model: Any = CountingModel()
    with pytest.raises(InputError, match="'e00' lacks an answer"):
        raw_scores(checkpoint, suite, render_suite(checkpoint, suite), model)
    assert not model.asked
