"""The canary: an engine is believed only where its reading is its checkpoint's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from suite_records import make_loadable
from tiny_checkpoints import TEMPLATE, save_checkpoint, save_llama, save_tokenizer

from harness.adapters import prepare
from harness.canary import (
    CANARIES,
    TOLERANCE,
    Canary,
    Readings,
    canary_sequences,
    remembered_reading,
    take_reading,
)
from harness.engines.readings import rms
from harness.errors import EngineError
from harness.suites import load_suites
from harness.types import CheckpointSpec, Dtype, Loadable

LIMIT = TOLERANCE[Dtype.BFLOAT16]
NOISE = 0.04


@pytest.fixture
def lengths(tokenizer_folder: Path) -> list[int]:
    return [len(row) - 1 for row in canary_sequences(make_loadable("x", tokenizer_folder))]


def reading(lengths: Sequence[int], seed: int, scale: float = 3.0) -> Readings:
    rng = np.random.default_rng(seed)
    return tuple(tuple((scale * rng.standard_normal(n)).tolist()) for n in lengths)


def shifted(first: Readings, second: Readings, share: float = 1.0) -> Readings:
    return tuple(
        tuple(a + share * b for a, b in zip(x, y, strict=True))
        for x, y in zip(first, second, strict=True)
    )


class FakeEngine:
    """Answers every canary with the reading it is given."""

    def __init__(self) -> None:
        self.answer: Readings = ()

    def load(self, checkpoint: Loadable) -> None: ...

    def generate(self, requests: object) -> Any:
        raise AssertionError("the canary generates nothing")

    def prompt_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        assert len(sequences) == len(CANARIES)
        return [list(row) for row in self.answer]


class Bench:
    """A canary over checkpoints with given readings, and an engine to be held against it."""

    def __init__(self, folder: Path, **readings: Readings) -> None:
        self.folder = folder
        self.engine = FakeEngine()
        self.canary = Canary(canary_sequences(make_loadable("x", folder)), readings)

    def verify(self, name: str, answer: Readings, dtype: Dtype = Dtype.BFLOAT16) -> Any:
        self.engine.answer = answer
        return self.canary.verify(self.engine, make_loadable(name, self.folder, dtype=dtype))


def test_right_reading_passes_and_is_measured(lengths: list[int], tokenizer_folder: Path) -> None:
    a, b = reading(lengths, 0), reading(lengths, 1)
    noise = reading(lengths, 2, NOISE)
    proof = Bench(tokenizer_folder, a=a, b=b).verify("a", shifted(a, noise))
    assert proof.own == pytest.approx(NOISE, rel=0.2)
    assert proof.nearest_other == pytest.approx(3 * math.sqrt(2), rel=0.1)
    assert (proof.checkpoint, proof.tokens) == ("a", sum(lengths))


def test_single_checkpoint_has_no_other(lengths: list[int], tokenizer_folder: Path) -> None:
    a = reading(lengths, 0)
    proof = Bench(tokenizer_folder, a=a).verify("a", a)
    assert (proof.own, proof.nearest_other) == (0.0, None)


def test_reading_beyond_the_tolerance_is_refused(
    lengths: list[int], tokenizer_folder: Path
) -> None:
    a = reading(lengths, 0)
    ones: Readings = tuple((1.0,) * n for n in lengths)
    bench = Bench(tokenizer_folder, a=a)
    assert bench.verify("a", shifted(a, ones, 0.99 * LIMIT)).own < LIMIT
    with pytest.raises(EngineError, match=r"'a' is 0\.25. nats a token from .*limit 0\.25"):
        bench.verify("a", shifted(a, ones, 1.01 * LIMIT))
    with pytest.raises(EngineError, match=r"limit 0\.005"):
        bench.verify("a", shifted(a, ones, 0.006), Dtype.FLOAT32)


def test_reading_of_nan_is_refused(lengths: list[int], tokenizer_folder: Path) -> None:
    a = reading(lengths, 0)
    broken = ((math.nan, *a[0][1:]), *a[1:])
    with pytest.raises(EngineError, match="nan nats a token"):
        Bench(tokenizer_folder, a=a).verify("a", broken)


def test_stale_weights_are_refused(lengths: list[int], tokenizer_folder: Path) -> None:
    a = reading(lengths, 0)
    b = shifted(a, reading(lengths, 1, 0.001))
    bench = Bench(tokenizer_folder, a=a, b=b)
    answer = shifted(a, reading(lengths, 2, NOISE))
    bench.verify("a", answer)
    with pytest.raises(EngineError, match="still answers exactly as with 'a'"):
        bench.verify("b", answer)


def test_repeated_load_of_one_checkpoint_is_not_stale(
    lengths: list[int], tokenizer_folder: Path
) -> None:
    a, b = reading(lengths, 0), reading(lengths, 1)
    bench = Bench(tokenizer_folder, a=a, b=b)
    for name, answer in (("a", a), ("b", b), ("a", a)):
        assert bench.verify(name, answer).own == 0


def test_reading_nearer_to_another_is_refused(lengths: list[int], tokenizer_folder: Path) -> None:
    a = reading(lengths, 0)
    b = shifted(a, reading(lengths, 1, 0.2))
    answer = shifted(b, reading(lengths, 2, NOISE))
    assert rms(answer, a) < LIMIT
    with pytest.raises(EngineError, match="'a' is nearer to that of 'b'"):
        Bench(tokenizer_folder, a=a, b=b).verify("a", answer)


def test_twin_does_not_hide_a_wrong_third(lengths: list[int], tokenizer_folder: Path) -> None:
    a = reading(lengths, 0)
    twin = shifted(a, reading(lengths, 1, 0.001))
    third = shifted(a, reading(lengths, 2, 0.2))
    answer = shifted(third, reading(lengths, 3, NOISE))
    with pytest.raises(EngineError, match="'a' is nearer to that of 'third'"):
        Bench(tokenizer_folder, a=a, twin=twin, third=third).verify("a", answer)


@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3])
def test_nearly_equal_checkpoints_raise_no_false_alarm(
    lengths: list[int], tokenizer_folder: Path, distance: float
) -> None:
    a = reading(lengths, 0)
    b = shifted(a, reading(lengths, 1, distance))
    for seed in range(2, 42):
        bench = Bench(tokenizer_folder, a=a, b=b)
        bench.verify("a", shifted(a, reading(lengths, seed, NOISE)))
        bench.verify("b", shifted(b, reading(lengths, 100 + seed, NOISE)))


def test_checkpoints_of_equal_effect_may_answer_alike(
    lengths: list[int], tokenizer_folder: Path
) -> None:
    a = reading(lengths, 0)
    bench = Bench(tokenizer_folder, a=a, b=shifted(a, reading(lengths, 1, 1e-6)))
    answer = shifted(a, reading(lengths, 2, NOISE))
    bench.verify("a", answer)
    assert bench.verify("b", answer).own == pytest.approx(NOISE, rel=0.2)


def test_independent_reading_is_the_models_own(tmp_path: Path, tokenizer_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from harness.engines.reference import ReferenceModel

    folder = save_llama(tmp_path / "llama", tokenizer_folder)
    checkpoint = prepare(CheckpointSpec(name="a", source=str(folder)))
    sequences = canary_sequences(checkpoint)
    assert remembered_reading(checkpoint, sequences) is None
    found = take_reading(checkpoint, sequences, ReferenceModel(checkpoint))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for row, ids in zip(found, sequences, strict=True):
        with torch.inference_mode():
            table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = table[range(len(ids) - 1), ids[1:]]
        assert torch.allclose(torch.tensor(row), expected, rtol=0, atol=1e-4)
    assert remembered_reading(checkpoint, sequences) == found


def test_remembered_reading_belongs_to_weights_configuration_and_tokens(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    class Model:
        def token_logprobs(self, items: Sequence[Any]) -> Any:
            return ((item.key, [-1.0] * len(item.answer)) for item in items)

    def held(name: str, **config: Any) -> Loadable:
        folder = save_checkpoint(tmp_path / name, tokenizer_folder, seed=len(name), **config)
        return prepare(CheckpointSpec(name=name, source=str(folder)))

    first = held("a")
    sequences = canary_sequences(first)
    take_reading(first, sequences, Model())  # type: ignore[arg-type]
    assert remembered_reading(first, sequences) is not None
    assert remembered_reading(held("bb"), sequences) is None
    stretched = held("c", rope_theta=5e5)
    assert stretched.weights_sha256 == first.weights_sha256
    assert remembered_reading(stretched, sequences) is None
    save_tokenizer(tmp_path / "other", TEMPLATE.replace("eos_token", "bos_token"))
    others = canary_sequences(make_loadable("a", tmp_path / "other"))
    assert remembered_reading(first, others) is None


def test_canaries_are_part_of_no_suite() -> None:
    asked = {e.messages[-1].content for s in load_suites(["mini"]) for e in s.examples}
    assert not asked & {question for question, _ in CANARIES}
