"""Which tokens are read after which prompt, and what is missing where they cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from metric_records import answer
from run_records import make_examples
from suite_records import make_loadable, make_suite
from tiny_checkpoints import CONFIG, save_llama, save_sentencepiece

from harness.engines.reference import Continuation, Divergence, ReferenceModel
from harness.errors import InputError
from harness.likelihoods import (
    KL_KEYS,
    RAW_KEYS,
    kl_scores,
    missing_scores,
    no_weights,
    pair_sums,
    preference_table,
    raw_scores,
    unlike_base,
)
from harness.prompts import load_tokenizer, render_suite
from harness.training.data import Pair, Skips, tokenize_pair
from harness.types import Example, Form, Generation, Loadable, Score


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
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
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
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    checkpoint, suite = make_loadable("dpo", tmp_path), make_suite("own", make_examples(1))
    model: Any = CountingModel()
    with pytest.raises(InputError, match="'e00' lacks an answer"):
        raw_scores(checkpoint, suite, render_suite(checkpoint, suite), model)
    assert not model.asked


SUITE = make_suite("own", with_answers())
BASE = make_loadable("base").model_copy(update={"tokenizer_sha256": "t"})
DPO = make_loadable("dpo").model_copy(update={"tokenizer_sha256": "t"})
RETOKENISED = DPO.model_copy(update={"tokenizer_sha256": "other"})
SERVED = DPO.model_copy(update={"form": Form.ENDPOINT, "tokenizer_sha256": None})
RECORDED = DPO.model_copy(update={"form": Form.RECORDED, "tokenizer_sha256": None})
SUMS = {("own", "base"): {"e00": (-3.0, -4.0)}, ("own", "dpo"): {"e00": (-2.0, -4.0)}}


def test_only_weights_with_the_base_s_tokenizer_are_held_against_it() -> None:
    assert no_weights(DPO) is None
    assert no_weights(SERVED) == "'dpo' is an endpoint: its weights are not here"
    assert unlike_base(DPO, BASE) is None
    assert unlike_base(RETOKENISED, BASE) == "its tokenizer differs from that of the base 'base'"
    assert unlike_base(RECORDED, BASE) == no_weights(RECORDED)
    served = BASE.model_copy(update={"form": Form.ENDPOINT})
    assert unlike_base(DPO, served) == "'base' is an endpoint: its weights are not here"


def table(scores: list[Score]) -> dict[str, tuple[float | None, str | None]]:
    return {s.metric: (s.value, s.reason) for s in scores if s.example_id == "e00"}


def test_preference_scores_or_why_they_are_missing() -> None:
    assert table(preference_table(DPO, BASE, SUITE, SUMS)) == {
        "preference_accuracy": (1.0, None),
        "preference_margin": (1.0, None),
        "likelihood_accuracy": (1.0, None),
    }
    retold = DPO.model_copy(update={"template_sha256": "other"})
    other = "its chat template differs from that of the base 'base'"
    assert table(preference_table(retold, BASE, SUITE, SUMS)) == {
        "preference_accuracy": (None, other),
        "preference_margin": (None, other),
        "likelihood_accuracy": (1.0, None),
    }
    other = "its tokenizer differs from that of the base 'base'"
    assert table(preference_table(RETOKENISED, BASE, SUITE, SUMS)) == {
        "preference_accuracy": (None, other),
        "preference_margin": (None, other),
        "likelihood_accuracy": (1.0, None),
    }
    served = preference_table(SERVED, BASE, SUITE, SUMS)
    assert {(s.example_id, s.value) for s in served} == {("e00", None), ("e01", None)}
    assert {s.reason for s in served} == {no_weights(SERVED)}
    assert len(served) == 6


def test_raw_scores_that_are_missing_make_no_pair() -> None:
    scores = missing_scores(SERVED, SUITE, RAW_KEYS, "not here")
    assert {(s.metric, s.value, s.reason) for s in scores} == {
        (key, None, "not here") for key in RAW_KEYS
    }
    assert pair_sums(scores) == {}


PROMPTS = {"e00": (1, 40), "e01": (1, 50, 51), "e02": (1, 60)}


def first_samples(**changes: Any) -> list[Generation]:
    return [
        answer("x", "e00", token_ids=(30, 31, 2), **changes),
        answer("x", "e00", sample=1, token_ids=(99,), **changes),
        answer("x", "e01", token_ids=(90, 91, 92, 93), **changes),
    ]


def refused(checkpoint: Loadable) -> ReferenceModel:
    raise AssertionError(f"{checkpoint.spec.name} must not be loaded")


@pytest.mark.parametrize("checkpoint", [RETOKENISED, SERVED, RECORDED])
def test_no_divergence_from_a_base_that_is_unlike(checkpoint: Loadable) -> None:
    scores = kl_scores(checkpoint, BASE, PROMPTS, first_samples(), refused)
    assert [(s.example_id, s.metric, s.sample) for s in scores] == [
        (example, key, 0) for example in ("e00", "e01") for key in KL_KEYS
    ]
    assert {s.value for s in scores} == {None}
    assert {s.reason for s in scores} == {unlike_base(checkpoint, BASE)}


def test_the_base_has_no_divergence_from_itself_and_needs_no_model() -> None:
    scores = kl_scores(BASE, BASE, PROMPTS, first_samples(checkpoint="base"), refused)
    assert [(s.value, s.reason) for s in scores] == [(0.0, None)] * 4
    stretched = BASE.model_copy(update={"architecture": "longer rope"})
    with pytest.raises(AssertionError, match="must not be loaded"):
        kl_scores(stretched, BASE, PROMPTS, first_samples(checkpoint="base"), refused)


def test_answers_without_token_ids_are_missing_alone() -> None:
    given = [answer("x", "e00", token_ids=None), answer("", "e01", tokens=0, token_ids=())]
    scores = kl_scores(DPO, BASE, PROMPTS, given, refused)
    assert [(s.value, s.reason) for s in scores[::2]] == [
        (None, "nobody kept the answer's token ids"),
        (None, "the answer has no token"),
    ]
    assert scores[0].reason == scores[1].reason


class Diverging:
    """A model whose divergence at a token is a tenth of the token's id, of one width."""

    def __init__(self, width: int) -> None:
        self.vocabulary = width

    def divergences(
        self, base: object, items: Sequence[Continuation]
    ) -> Iterator[tuple[str, list[Divergence]]]:
        for item in reversed(items):
            assert item.prompt == PROMPTS[item.key]
            yield item.key, [Divergence(kl=t / 10, log_ratio=-t) for t in item.answer]


def test_divergences_are_averaged_over_an_answer_s_tokens() -> None:
    models: Any = lambda checkpoint: Diverging(264)  # noqa: E731
    missing = answer("x", "e02", token_ids=None)
    scores = kl_scores(DPO, BASE, PROMPTS, [*first_samples(), missing], models)
    assert [(s.example_id, s.metric) for s in scores] == [
        (example, key) for example in PROMPTS for key in KL_KEYS
    ]
    assert [s.value for s in scores] == pytest.approx([2.1, -21, 9.15, -91.5, None, None])


def test_vocabularies_of_two_widths_have_no_divergence() -> None:
    models: Any = lambda checkpoint: Diverging({"base": 264, "dpo": 272}[checkpoint.spec.name])  # noqa: E731
    scores = kl_scores(DPO, BASE, PROMPTS, first_samples(), models)
    assert {(s.value, s.reason) for s in scores} == {
        (None, "its vocabulary is wider or narrower than the base's")
    }


def test_one_sample_s_ratio_estimates_the_divergence_that_is_computed(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    """With tokens drawn from the checkpoint, the mean log-ratio tends to the exact divergence."""
    import numpy as np
    import torch

    wide = {"initializer_range": 0.1, "tie_word_embeddings": False}
    pair = [
        make_loadable(name, save_llama(tmp_path / name, tokenizer_folder, seed, **wide))
        for seed, name in enumerate(("base", "dpo"))
    ]
    models = {c.spec.name: ReferenceModel(c) for c in pair}
    with torch.inference_mode():
        logits = models["dpo"]._model(input_ids=torch.tensor([PROMPTS["e00"]])).logits[0, -1]
    drawn = torch.multinomial(
        logits.softmax(-1), 4000, replacement=True, generator=torch.Generator().manual_seed(1)
    )
    answers = [answer("x", str(i), token_ids=(int(t),)) for i, t in enumerate(drawn)]
    prompts = {a.example_id: PROMPTS["e00"] for a in answers}
    scores = kl_scores(pair[1], pair[0], prompts, answers, lambda c: models[c.spec.name])
    exact = np.array([s.value for s in scores[::2]])
    sampled = np.array([s.value for s in scores[1::2]])
    assert np.ptp(exact) < 1e-5
    assert exact[0] > 0.05
    error = sampled.std() / np.sqrt(len(sampled))
    assert abs(sampled.mean() - exact[0]) < 4 * error < exact[0] / 2
