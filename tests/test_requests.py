"""Requests and pairs: seeds, order, completeness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from run_records import make_examples
from suite_records import make_loadable, make_suite

from harness.engines import Completion, TokenStatistics, split_key
from harness.judges import AnswerPair
from harness.judges.reference import Reference
from harness.judges.verifiable import Verifiable
from harness.requests import (
    as_generation,
    make_pairs,
    make_requests,
    request_seed,
    request_sha256,
)
from harness.suites import Suite
from harness.types import REFERENCE, Dtype, FinishReason, Form


def named(name: str, examples: int, max_tokens: int, samples: int = 1) -> Suite:
    made = make_examples(examples, reference="r", prefix=name)
    return make_suite(name, made, max_tokens=max_tokens, samples=samples)


SHORT, LONG = named("short", 3, 8, samples=2), named("long", 2, 64)
PROMPTS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    s.spec.name: {e.id: (1, i) for i, e in enumerate(s.examples)} for s in (SHORT, LONG)
}


def test_seed_is_pinned() -> None:
    # first 4 bytes of SHA-256 of "0\nhh\nhh-001\n0", halved
    assert request_seed(0, "hh", "hh-001", 0) == 1807325030


def test_seeds_differ_and_fit_31_bits() -> None:
    seeds = [
        request_seed(seed, name, f"e{i}", sample)
        for seed in (0, 1)
        for name in ("a", "b")
        for i in range(50)
        for sample in range(5)
    ]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) < max(seeds) < 2**31


def test_longest_answers_are_asked_first_and_each_once() -> None:
    requests = make_requests([SHORT, LONG], PROMPTS, seed=3)
    limits = [r.sampling.max_tokens for r in requests]
    assert limits == [64] * 2 + [8] * 6
    assert requests == make_requests([SHORT, LONG], PROMPTS, seed=3)
    keys = [split_key(r.key) for r in requests]
    assert Counter(k[0] for k in keys) == {"long": 2, "short": 6}
    assert len(set(keys)) == 8
    for request, (name, example, sample) in zip(requests, keys, strict=True):
        assert request.prompt == PROMPTS[name][example]
        assert request.seed == request_seed(3, name, example, sample)


def test_order_does_not_depend_on_the_order_of_the_prompts() -> None:
    turned = {name: dict(reversed(rows.items())) for name, rows in reversed(PROMPTS.items())}
    assert make_requests([SHORT, LONG], turned, 0) == make_requests([SHORT, LONG], PROMPTS, 0)


def test_completion_becomes_a_record() -> None:
    (request,) = make_requests([named("s", 1, 4)], {"s": {"s00": (1, 2)}}, 0)
    seen = TokenStatistics(logprobs=(-1.0, -3.0), entropies=(1.0, 2.0), entropies_top20=(0.5, 0.5))
    completion = Completion(
        key=request.key,
        text="x",
        finish_reason=FinishReason.LENGTH,
        tokens=2,
        prompt_tokens=2,
        token_ids=(5, 6),
        statistics=seen,
    )
    record = as_generation(make_loadable("dpo"), completion, "identity")
    assert (record.suite, record.example_id, record.sample) == ("s", "s00", 0)
    assert (record.checkpoint, record.weights_sha256) == ("dpo", "weights of dpo")
    assert record.request_sha256 == "identity"
    assert (record.prompt_tokens, record.tokens, record.token_ids) == (2, 2, (5, 6))
    assert (record.logprob, record.entropy, record.entropy_top20) == (-2.0, 1.5, 0.5)


def test_what_the_engine_cannot_tell_is_missing() -> None:
    record = as_generation(make_loadable("far"), Completion(key="s\ne\n0", text="x"), "i")
    assert (record.finish_reason, record.tokens, record.token_ids) == (None, None, None)
    assert (record.logprob, record.entropy, record.entropy_top20) == (None, None, None)


def test_identity_of_a_request_follows_everything_that_decides_the_answer() -> None:
    (request,) = make_requests([named("s", 1, 4)], {"s": {"s00": (1, 2)}}, 0)
    dpo = make_loadable("dpo")
    warmer = request.sampling.model_copy(update={"temperature": 0.5})
    chat = request.model_copy(update={"prompt": ()})
    variants = [
        (dpo, request, "e"),
        (dpo.model_copy(update={"weights_sha256": "other"}), request, "e"),
        (dpo.model_copy(update={"template_sha256": "other"}), request, "e"),
        (dpo.model_copy(update={"architecture": "longer rope"}), request, "e"),
        (make_loadable("dpo", dtype=Dtype.FLOAT32), request, "e"),
        (dpo, request.model_copy(update={"prompt": (1, 3)}), "e"),
        (dpo, chat, "e"),
        (dpo, chat.model_copy(update={"messages": request.messages * 3}), "e"),
        (dpo, request.model_copy(update={"sampling": warmer}), "e"),
        (dpo, request.model_copy(update={"seed": 9}), "e"),
        (dpo, request, "another version of the engine"),
    ]
    assert len({request_sha256(*v) for v in variants}) == len(variants)
    far = [
        dpo.model_copy(update={"form": Form.ENDPOINT}),
        make_loadable("dpo", dtype=Dtype.FLOAT32).model_copy(update={"form": Form.ENDPOINT}),
    ]
    assert len({request_sha256(endpoint, request, "e") for endpoint in far}) == 1
    renamed = dpo.model_copy(update={"spec": dpo.spec.model_copy(update={"name": "x"})})
    assert request_sha256(renamed, request, "e") == request_sha256(*variants[0])


def test_pair_without_an_answer_is_left_out() -> None:
    asked = named("s", 2, 4)
    texts = {("s", "sft", "s00"): "a", ("s", "dpo", "s00"): "b", ("s", "dpo", "s01"): "c"}
    found = make_pairs(asked, [make_loadable(n) for n in ("sft", "dpo")], texts, Verifiable())
    assert {(p.candidate, p.baseline, p.example.id) for p in found} == {
        ("dpo", "sft", "s00"),
        ("sft", REFERENCE, "s00"),
        ("dpo", REFERENCE, "s00"),
        ("dpo", REFERENCE, "s01"),
    }


def pairs(judge: Verifiable | Reference, *, reference: bool = True) -> list[AnswerPair]:
    asked = named("s", 2, 4)
    if not reference:
        bare = tuple(e.model_copy(update={"reference": None}) for e in asked.examples)
        asked = asked.model_copy(update={"examples": bare})
    names = ("sft", "dpo", "tbpo")
    texts = {("s", n, e.id): f"{n} {e.id}" for n in names for e in asked.examples}
    return make_pairs(asked, [make_loadable(n) for n in names], texts, judge)


def test_every_pair_is_judged_once_later_against_earlier() -> None:
    found = Counter((p.candidate, p.baseline) for p in pairs(Verifiable()))
    between = {("dpo", "sft"), ("tbpo", "sft"), ("tbpo", "dpo")}
    assert found == dict.fromkeys(between | {(n, REFERENCE) for n in ("sft", "dpo", "tbpo")}, 2)


@pytest.mark.parametrize(
    ("judge", "reference"), [(Reference(), True), (Verifiable(), False)], ids=["blind", "none"]
)
def test_reference_is_left_out_where_it_cannot_be_judged(
    judge: Verifiable | Reference, reference: bool
) -> None:
    found = pairs(judge, reference=reference)
    assert len(found) == 6
    assert all(not p.against_reference for p in found)


def test_pairs_carry_their_own_texts() -> None:
    for pair in pairs(Verifiable()):
        assert pair.candidate_text == f"{pair.candidate} {pair.example.id}"
        expected = "r" if pair.against_reference else f"{pair.baseline} {pair.example.id}"
        assert pair.baseline_text == expected
