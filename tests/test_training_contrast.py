"""Token weights of TIS-DPO: two contrastive readings of every answer."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_checkpoints import save_sentencepiece
from training_records import make_recipe, pair_row, save_base, write_rows

from harness.errors import CheckpointError, InputError
from harness.prompts import render
from harness.training.contrast import token_weights
from harness.training.objectives import build_objective
from harness.training.run import Workshop
from harness.types import Message, Role

LOW, HIGH = -0.05, 0.1


def weights_of(shop: Workshop, recipe: Any) -> dict[int, tuple[list[float], list[float]]]:
    return token_weights(recipe, shop.base, shop.corpus, range(len(shop.corpus.training)))


def logprobs(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> list[float]:
    ids = torch.tensor([[*prompt, *answer]])
    at = (range(len(prompt) - 1, ids.shape[1] - 1), answer)
    with torch.no_grad():
        return model(input_ids=ids).logits[0].log_softmax(-1)[at].tolist()


def plain(source: Path) -> Any:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    return loaded.eval()


def check_bounds(shop: Workshop, found: dict[int, Any], k: float, mu: float) -> None:
    """Lengths, limits, and a clamp that holds from both sides."""
    seen: dict[int, set[float]] = {1: set(), -1: set()}
    for number, (chosen, rejected) in found.items():
        pair = shop.corpus.training[number]
        assert (len(chosen), len(rejected)) == (len(pair.chosen), len(pair.rejected))
        for sign, side in ((1, chosen), (-1, rejected)):
            seen[sign] |= {round(math.log(w / k) / (mu * sign), 5) for w in side}
    for values in seen.values():
        assert min(values) == pytest.approx(LOW, abs=1e-4)
        assert max(values) == pytest.approx(HIGH, abs=1e-4)
        assert len(values) > 2


def expected_weight(plus: float, minus: float, k: float, mu: float) -> float:
    return k * math.exp(mu * min(max(plus - minus, LOW), HIGH))


KEYS: dict[str, Any] = {
    "objective": "tis-dpo",
    "weight_low": LOW,
    "weight_high": HIGH,
    "weight_k": 2.0,
    "weight_mu": 3.0,
    "micro_batch": 2,
}


def test_two_models_weight_the_tokens(
    base: Path, pairs: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    sources = [save_base(tmp_path / n, tokenizer_folder, seed=s) for n, s in (("p", 7), ("m", 8))]
    recipe = make_recipe(base, pairs, contrastive_models=[str(s) for s in sources], **KEYS)
    shop = Workshop(recipe)
    found = weights_of(shop, recipe)
    better, worse = map(plain, sources)
    for number in (0, 5, 11):
        pair = shop.corpus.training[number]
        for sign, answer, side in zip(
            (1, -1), (pair.chosen, pair.rejected), found[number], strict=True
        ):
            both = [logprobs(model, pair.prompt, answer) for model in (better, worse)]
            expected = [expected_weight(p, m, 2.0, 3.0 * sign) for p, m in zip(*both, strict=True)]
            assert side == pytest.approx(expected, rel=1e-3)
    check_bounds(shop, found, 2.0, 3.0)


def test_two_system_texts_weight_the_tokens(base: Path, pairs: Path) -> None:
    texts = ["You are kind.", "You are not kind at all, and you are longer."]
    recipe = make_recipe(base, pairs, contrastive_prompts=texts, **KEYS)
    shop = Workshop(recipe)
    found = weights_of(shop, recipe)
    model, tokenizer = plain(base), shop.corpus.tokenizer
    for number in (0, 5, 11):
        pair, source = shop.corpus.training[number], shop.corpus.sources[number]
        told = [
            tuple(render(tokenizer, (Message(role=Role.SYSTEM, content=t), *source.messages)))
            for t in texts
        ]
        for sign, answer, side in zip(
            (1, -1), (pair.chosen, pair.rejected), found[number], strict=True
        ):
            both = [logprobs(model, prompt, answer) for prompt in told]
            expected = [expected_weight(p, m, 2.0, 3.0 * sign) for p, m in zip(*both, strict=True)]
            assert side == pytest.approx(expected, rel=1e-3)
    check_bounds(shop, found, 2.0, 3.0)


def test_a_system_turn_of_the_pair_stays_after_the_text(base: Path, tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [pair_row(i) for i in range(12)]
    file = write_rows(
        tmp_path / "own.jsonl", [{k: [system, *v] for k, v in r.items()} for r in rows]
    )
    recipe = make_recipe(base, file, contrastive_prompts=["One.", "Another."], **KEYS)
    shop = Workshop(recipe)
    found = weights_of(shop, recipe)
    pair, source = shop.corpus.training[0], shop.corpus.sources[0]
    model = plain(base)
    both = []
    for text in ("One.", "Another."):
        first = Message(role=Role.SYSTEM, content=f"{text}\n\nBe brief.")
        prompt = render(shop.corpus.tokenizer, (first, *source.messages[1:]))
        both.append(logprobs(model, tuple(prompt), pair.chosen))
    expected = [expected_weight(p, m, 2.0, 3.0) for p, m in zip(*both, strict=True)]
    assert found[0][0] == pytest.approx(expected, rel=1e-3)


def test_weights_are_k_where_both_readings_agree(base: Path, pairs: Path) -> None:
    for keys in (
        {"contrastive_models": [str(base), str(base)]},
        {"contrastive_prompts": ["Be good.", "Be good."]},
    ):
        recipe = make_recipe(base, pairs, objective="tis-dpo", **keys)
        shop = Workshop(recipe)
        for sides in weights_of(shop, recipe).values():
            assert all(weight == 1.0 for side in sides for weight in side)


def test_only_the_pairs_of_the_run_are_read_once_and_only_where_needed(
    base: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []

    def taken(recipe: Any, folder: Path, corpus: Any, wanted: list[int]) -> dict[int, Any]:
        read.append(list(wanted))
        return {
            i: ([2.0] * len(corpus.training[i].chosen), [3.0] * len(corpus.training[i].rejected))
            for i in wanted
        }

    monkeypatch.setattr("harness.training.run.token_weights", taken)
    recipe = make_recipe(base, pairs, objective="tis-dpo", steps=2)
    shop = Workshop(recipe)
    needs = build_objective("tis-dpo", {}).requires
    items = shop.items(recipe, needs)
    assert read == [sorted(item["index"] for item in items)]
    assert all(item["weights"] is not None for item in items)
    shop.items(recipe, needs)
    shop.items(recipe.model_copy(update={"seed": 1}), needs)
    assert len(read) == 2
    assert not set(read[0]) & set(read[1])
    assert all(i["weights"] is None for i in Workshop(recipe).items(recipe, frozenset()))
    assert len(read) == 2


def refuse_to_load(*_: Any) -> None:
    pytest.fail("a model was loaded")


def test_models_come_before_texts(base: Path, pairs: Path) -> None:
    texts = {"contrastive_prompts": ["You are kind.", "You are not kind at all."]}
    recipe = make_recipe(base, pairs, contrastive_models=[str(base)] * 2, **KEYS, **texts)
    for sides in weights_of(Workshop(recipe), recipe).values():
        assert all(weight == 2.0 for side in sides for weight in side)


def test_recipe_without_any_contrast_is_refused_before_a_model_is_loaded(
    base: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(base, pairs, contrastive_prompts=[], objective="tis-dpo")
    monkeypatch.setattr("harness.training.contrast.load_base", refuse_to_load)
    with pytest.raises(InputError, match=r"^tis-dpo weights tokens .* names none; give two contr"):
        weights_of(Workshop(recipe), recipe)


def test_contrastive_model_of_another_vocabulary_is_refused_before_one_is_loaded(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sentencepiece(tmp_path / "pieces")
    other = save_base(tmp_path / "other", tmp_path / "pieces")
    recipe = make_recipe(base, pairs, contrastive_models=[str(base), str(other)], **KEYS)
    monkeypatch.setattr("harness.training.contrast.load_base", refuse_to_load)
    with pytest.raises(CheckpointError, match="other has another vocabulary than the base"):
        weights_of(Workshop(recipe), recipe)


def test_contrastive_models_are_read_on_the_device_of_the_process(
    base: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of several has a GPU of its own, which is not the first for all."""
    shop = Workshop(make_recipe(base, pairs, **KEYS))
    own = SimpleNamespace(device=torch.device("meta"))
    monkeypatch.setattr("harness.training.contrast.processes", lambda: own)
    with pytest.raises(RuntimeError, match="meta"):
        weights_of(shop, make_recipe(base, pairs, **KEYS))
