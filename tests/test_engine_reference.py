"""Readings in float32 against one full softmax over each whole sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from suite_records import make_loadable
from tiny_checkpoints import VOCABULARY, save_llama

from harness.engines import reference
from harness.engines.reference import Continuation, ReferenceModel, answer_sums
from harness.errors import EngineError

ITEMS = [
    Continuation(key="one", prompt=(1,), answer=(9, 8, 7, 6, 5)),
    Continuation(key="long", prompt=(1, 70, 71, 72), answer=tuple(range(80, 120))),
    Continuation(key="short", prompt=(1, 5, 9, 33, 12, 13), answer=(200,)),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> tuple[Path, Path]:
    """A policy and its base: two random Llamas with peaked distributions."""
    place = tmp_path_factory.mktemp("reference")
    wide = {"initializer_range": 0.3, "tie_word_embeddings": False}
    own = save_llama(place / "own", tokenizer_folder, 1, **wide)
    return own, save_llama(place / "base", tokenizer_folder, 2, **wide)


def exact(folder: Path, item: Continuation) -> torch.Tensor:
    """Return (T, V) float64 log-probabilities before each of the answer's tokens."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([item.tokens])).logits[0].double()
    return logits.log_softmax(-1)[len(item.prompt) - 1 : -1]


def taken(p: torch.Tensor, item: Continuation) -> torch.Tensor:
    return p[range(len(p)), list(item.answer)]


def model(folder: Path) -> ReferenceModel:
    return ReferenceModel(make_loadable("m", folder))


@pytest.mark.parametrize(("positions", "tokens"), [(256, 4096), (7, 10), (1, 90)])
def test_log_probabilities_do_not_depend_on_batch_or_chunk(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, positions: int, tokens: int
) -> None:
    monkeypatch.setattr(reference, "POSITIONS", positions)
    monkeypatch.setattr(reference, "TOKENS_A_BATCH", tokens)
    found = dict(model(folders[0]).token_logprobs(ITEMS))
    for item in ITEMS:
        assert found[item.key] == pytest.approx(
            taken(exact(folders[0], item), item).tolist(), abs=2e-5
        )


@pytest.mark.parametrize("positions", [256, 7])
def test_divergence_is_that_of_the_full_distributions(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    monkeypatch.setattr(reference, "POSITIONS", positions)
    own, base = map(model, folders)
    widths = []
    plain = ReferenceModel.log_probabilities

    def watched(self: ReferenceModel, states: Any) -> Any:
        widths.append(tuple(plain(self, states).shape))
        return plain(self, states)

    monkeypatch.setattr(ReferenceModel, "log_probabilities", watched)
    found = dict(own.divergences(base, ITEMS))
    assert max(rows for rows, _ in widths) <= positions
    assert {width for _, width in widths} == {VOCABULARY} == {own.vocabulary}
    for item in ITEMS:
        p, q = (exact(folder, item) for folder in folders)
        kl = (p.exp() * (p - q)).sum(-1)
        assert kl.min() > 0.1
        assert [d.kl for d in found[item.key]] == pytest.approx(kl.tolist(), rel=1e-4)
        ratios = taken(p, item) - taken(q, item)
        assert [d.log_ratio for d in found[item.key]] == pytest.approx(ratios.tolist(), abs=5e-5)


def test_divergence_has_a_direction_and_is_zero_from_itself(folders: tuple[Path, Path]) -> None:
    own, base = map(model, folders)
    forth, back = dict(own.divergences(base, ITEMS)), dict(base.divergences(own, ITEMS))
    assert forth["one"][0].kl != pytest.approx(back["one"][0].kl, rel=1e-2)
    assert forth["one"][0].log_ratio == pytest.approx(-back["one"][0].log_ratio)
    same = [d for _, row in own.divergences(own, ITEMS) for d in row]
    assert {(d.kl, d.log_ratio) for d in same} == {(0.0, 0.0)}


def test_tokens_that_are_ruled_out_add_nothing() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    q = torch.tensor([[0.25, 0.75, 0.0]]).log()
    found = reference._divergences(p, q, torch.tensor([[0]]))[0]
    assert found.kl == pytest.approx(0.5 * torch.tensor(4 / 3).log().item())
    assert found.log_ratio == pytest.approx(torch.tensor(2.0).log().item())


@pytest.mark.parametrize("kind", ["gemma2", "cohere"])
def test_capped_and_scaled_logits_are_the_model_s_own(
    kind: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    import shutil

    from tiny_checkpoints import CONFIG
    from transformers import AutoConfig, AutoModelForCausalLM

    own = {"gemma2": {"final_logit_softcapping": 2.0}, "cohere": {"logit_scale": 0.3}}[kind]
    shared = {k: v for k, v in CONFIG.items() if k not in ("architectures", "model_type")}
    config = AutoConfig.for_model(kind, **shared | own | {"initializer_range": 0.5})
    torch.manual_seed(0)
    shutil.copytree(tokenizer_folder, tmp_path / "m")
    made: Any = AutoModelForCausalLM.from_config(config)
    made.save_pretrained(tmp_path / "m")
    read = model(tmp_path / "m")
    assert not read._factored
    found = dict(read.token_logprobs(ITEMS))
    for item in ITEMS:
        wanted = taken(exact(tmp_path / "m", item), item).tolist()
        assert found[item.key] == pytest.approx(wanted, abs=2e-5)


def test_sums_are_over_the_answer_and_progress_counts_items(folders: tuple[Path, Path]) -> None:
    done: list[int] = []
    sums = answer_sums(model(folders[0]), ITEMS, done.append)
    assert done == [1, 1, 1]
    for item in ITEMS:
        wanted = taken(exact(folders[0], item), item).sum().item()
        assert sums[item.key] == pytest.approx(wanted, abs=5e-4)


def test_a_closed_model_is_gone(folders: tuple[Path, Path]) -> None:
    import weakref

    held = model(folders[0])
    inner = weakref.ref(held._model)
    held.close()
    assert inner() is None


def test_failure_of_the_float32_model_is_an_engine_error(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = model(folders[0])

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for part in ("get_decoder", "get_output_embeddings"):
        with monkeypatch.context() as patch:
            patch.setattr(held._model, part, fail)
            with pytest.raises(EngineError, match=r"reading '.*' in float32 .* out of memory"):
                list(held.token_logprobs(ITEMS))
