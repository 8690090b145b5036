"""The transformers engine against plain forward passes over whole sequences."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from suite_records import make_loadable
from tiny_checkpoints import save_llama, save_lora, save_sentencepiece

from harness.engines import Completion, Failure, ReadableEngine, Request
from harness.engines.distribution import draw, row_step, truncate
from harness.engines.loading import load_model
from harness.engines.settings import EngineSettings, cache_bytes
from harness.engines.transformers import (
    TransformersEngine,
    cache_tokens,
    group_rows,
)
from harness.errors import EngineDiedError, EngineError, InputError
from harness.types import Dtype, FinishReason, Loadable, Sampling

PROMPTS = {"short": (1, 40, 41), "long": (1, *range(60, 90)), "middle": (1, *range(100, 110))}
SETTINGS = EngineSettings(max_model_len=256, max_num_seqs=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A random Llama whose weights are large enough for its distributions to be peaked."""
    wide = {"initializer_range": 0.4, "tie_word_embeddings": False}
    return save_llama(tmp_path_factory.mktemp("llama") / "model", tokenizer_folder, 3, **wide)


def loadable(folder: Path, **changes: Any) -> Loadable:
    return make_loadable("tiny", folder, dtype=Dtype.FLOAT32).model_copy(update=changes)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersEngine]:
    held = TransformersEngine(SETTINGS, seed=0)
    held.load(loadable(folder))
    yield held
    held.close()


def request(name: str, *, seed: int = 7, limit: int = 12, **sampling: Any) -> Request:
    given = {"temperature": 0.0, "max_tokens": limit} | sampling
    return Request(
        key=f"{name} {seed} {limit}", prompt=PROMPTS[name], sampling=Sampling(**given), seed=seed
    )


def answers(engine: TransformersEngine, *requests: Request) -> dict[str, Completion]:
    found = list(engine.generate(requests))
    assert [type(reply) for reply in found] == [Completion] * len(requests)
    return {reply.key: reply for reply in found if isinstance(reply, Completion)}


def whole_pass(folder: Path, ids: Sequence[int]) -> torch.Tensor:
    """Return (T, V) float64 log-probabilities of a forward pass without cache or padding."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def test_greedy_answers_and_statistics_are_those_of_whole_forward_passes(
    engine: TransformersEngine, folder: Path
) -> None:
    found = answers(engine, *map(request, PROMPTS))
    assert len({reply.token_ids for reply in found.values()}) == 3
    for name, prompt in PROMPTS.items():
        reply = found[request(name).key]
        assert reply.token_ids
        p = whole_pass(folder, (*prompt, *reply.token_ids))[len(prompt) - 1 : -1]
        assert p.argmax(-1).tolist() == list(reply.token_ids)
        top = p.topk(20).values.log_softmax(-1)
        taken = p[range(len(p)), list(reply.token_ids)]
        kept = reply.statistics
        assert kept.logprobs == pytest.approx(taken.tolist(), abs=1e-4)
        assert kept.entropies == pytest.approx((-(p.exp() * p).sum(-1)).tolist(), abs=1e-4)
        assert kept.entropies_top20 == pytest.approx(
            (-(top.exp() * top).sum(-1)).tolist(), abs=1e-4
        )
        assert (reply.tokens, reply.prompt_tokens) == (len(reply.token_ids), len(prompt))


def test_an_answer_depends_on_its_seed_and_not_on_its_batch(engine: TransformersEngine) -> None:
    hot = {"temperature": 1.3, "top_p": 0.9}
    wanted = request("middle", seed=1, **hot)
    others = [request(n, seed=s, **hot) for n in PROMPTS for s in range(2, 5)]
    alone = answers(engine, wanted)[wanted.key]
    among = answers(engine, *others, wanted)
    assert among[wanted.key].token_ids == alone.token_ids
    assert len({a.token_ids for a in among.values()}) == len(among)


def test_draws_follow_the_tempered_nucleus() -> None:
    rng = np.random.default_rng(5)
    logits = (rng.normal(size=40) * 2).astype(np.float32)
    sampling = Sampling(temperature=0.7, top_p=0.8, max_tokens=1)
    kept = (logits / np.float32(0.7)).astype(np.float32)
    truncate(kept, 0.8)
    share = np.exp(kept - kept.max(), dtype=np.float64)
    share /= share.sum()
    draws = np.bincount([draw(logits, sampling, rng) for _ in range(20_000)], minlength=40)
    assert draws[share == 0].sum() == 0
    assert 1 < (share > 0).sum() < 40
    limit = 4.5 * np.sqrt(20_000 * share * (1 - share))
    assert (np.abs(draws - 20_000 * share) <= limit).all()


def test_a_draw_at_temperature_zero_takes_no_random_number() -> None:
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert draw(np.array([0, 3, 1], np.float32), Sampling(temperature=0, max_tokens=1), rng) == 1
    assert rng.bit_generator.state == before


def test_masked_tokens_count_nothing_in_either_entropy() -> None:
    row = np.array([0.0, 0.0, -np.inf, -np.inf], dtype=np.float32)
    step = row_step(row, np.empty_like(row))
    assert (step.entropy, step.entropy_top) == pytest.approx((math.log(2), math.log(2)))


def copy_with_ends(folder: Path, target: Path, **changes: Any) -> Path:
    import shutil

    shutil.copytree(folder, target)
    file = target / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return target


def test_answers_end_at_the_end_tokens_of_config_and_tokenizer_or_at_the_limit(
    engine: TransformersEngine, folder: Path, tmp_path: Path
) -> None:
    free = answers(engine, request("long"))[request("long").key].token_ids
    assert free is not None
    assert len(set(free[:4])) == 4, "the model repeats itself: choose another seed"
    stopping = TransformersEngine(SETTINGS, seed=0)
    own = {"repetition_penalty": 50.0, "do_sample": True, "temperature": 9.0, "max_new_tokens": 1}
    stopping.load(loadable(copy_with_ends(folder, tmp_path / "m", eos_token_id=[free[3]], **own)))
    found = answers(stopping, *(request("long", limit=n) for n in (2, 4, 12)))
    by_limit = {len(a.token_ids or ()): a for a in found.values()}
    assert sorted(len(a.token_ids or ()) for a in found.values()) == [2, 4, 4]
    assert by_limit[2].finish_reason is FinishReason.LENGTH
    for limit in (4, 12):
        stopped = found[request("long", limit=limit).key]
        assert stopped.finish_reason is FinishReason.STOP
        assert stopped.token_ids == free[:4]
        assert len(stopped.statistics.entropies) == stopped.tokens == 4
        assert stopped.text == engine._decoded(free[:3]).rstrip("\ufffd")
    assert stopping._ends == {free[3], 2}


def test_text_follows_its_prompt_and_leaves_cut_characters_out(
    engine: TransformersEngine, folder: Path, tmp_path: Path
) -> None:
    from harness.engines.row_sampler import Row
    from harness.prompts import load_tokenizer

    def text(tokens: list[int], prompt: tuple[int, ...], tokenizer: Any) -> str:
        held = TransformersEngine(SETTINGS, seed=0)
        held._tokenizer = tokenizer
        given = request("short").model_copy(update={"prompt": prompt})
        return held._text(Row(given, 9, frozenset({2}), True, tokens))

    by_bytes = load_tokenizer(str(folder))
    ids = by_bytes("né", add_special_tokens=False)["input_ids"]
    assert text([*ids, 2], (1, 40), by_bytes) == "né"
    assert text(ids[:-1], (1, 40), by_bytes) == "n"
    save_sentencepiece(tmp_path)
    pieces = load_tokenizer(str(tmp_path))
    word = pieces("go", add_special_tokens=False)["input_ids"]
    prompt = tuple(pieces("a", add_special_tokens=False)["input_ids"])
    assert pieces.decode(word) == "go"
    assert text([*word, 2], prompt, pieces) == " go"


def test_an_unmerged_lora_reads_as_the_merged_one(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = save_lora(tmp_path / "lora", folder)
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    merged: Any = PeftModel.from_pretrained(base, lora)
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    ids = [*PROMPTS["long"], 44, 45]
    exact = whole_pass(tmp_path / "merged", ids)[range(len(ids) - 1), ids[1:]].tolist()
    held = TransformersEngine(SETTINGS, seed=0)
    assert isinstance(held, ReadableEngine)
    assert held.load(loadable(folder)) is True
    plain = held.prompt_logprobs([ids])[0]
    assert held.load(loadable(folder, lora=str(lora))) is False
    assert held.prompt_logprobs([ids])[0] == pytest.approx(exact, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(plain, exact, strict=True)) > 0.05
    reply = answers(held, request("long"))[request("long").key]
    both = (*PROMPTS["long"], *(reply.token_ids or ()))
    p = whole_pass(tmp_path / "merged", both)[len(PROMPTS["long"]) - 1 : -1]
    assert p.argmax(-1).tolist() == list(reply.token_ids or ())


def test_the_checkpoint_before_is_freed_before_the_next_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = TransformersEngine(SETTINGS, seed=0)
    held.load(loadable(folder))
    answers(held, request("short"))
    first = weakref.ref(held._model)

    def load_next(*given: Any) -> Any:
        assert first() is None
        return load_model(*given)

    monkeypatch.setattr("harness.engines.transformers.load_model", load_next)
    held.load(loadable(folder))
    second = weakref.ref(held._model)
    held.close()
    assert second() is None
    held.close()
    with pytest.raises(EngineError, match="no checkpoint is loaded"):
        list(held.generate([request("short")]))


def test_requests_without_room_or_prompt_fail_alone(engine: TransformersEngine) -> None:
    empty = request("short").model_copy(update={"key": "empty", "prompt": ()})
    long = request("short").model_copy(update={"key": "long", "prompt": (1,) * 256})
    tight = request("short").model_copy(update={"key": "tight", "prompt": (1,) * 251})
    found = {reply.key: reply for reply in engine.generate([empty, tight, long])}
    assert isinstance(found["empty"], Failure)
    assert isinstance(found["long"], Failure)
    assert "max_model_len 256" in found["long"].reason
    cut = found["tight"]
    assert isinstance(cut, Completion)
    assert (cut.tokens, cut.finish_reason) == (5, FinishReason.LENGTH)


def test_a_model_without_a_distribution_is_an_error(folder: Path) -> None:
    held = TransformersEngine(SETTINGS, seed=0)
    held.load(loadable(folder))
    with torch.no_grad():
        held._model.get_input_embeddings().weight.fill_(math.nan)
    with pytest.raises(EngineDiedError, match=r"no distribution \(NaN\) after 0 tokens"):
        list(held.generate([request("short")]))


def test_weights_that_are_not_there_are_not_made_up(
    tokenizer_folder: Path, folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = save_llama(tmp_path / "broken", tokenizer_folder)
    weights = load_file(broken / "model.safetensors")
    name = next(n for n in weights if n.endswith("0.mlp.up_proj.weight"))
    rest = {n: w for n, w in weights.items() if n != name}
    save_file(rest, broken / "model.safetensors", metadata={"format": "pt"})
    held = TransformersEngine(SETTINGS, seed=0)
    held.load(loadable(folder))
    with pytest.raises(EngineError, match=rf"lacks 1 weights of 'tiny' \({name}\)"):
        held.load(loadable(broken))
    assert held._model is None
    (broken / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(EngineError, match="transformers cannot load 'tiny'"):
        held.load(loadable(broken))


@pytest.mark.parametrize(
    "changes", [{"quantization": "fp8"}, {"tensor_parallel_size": 2}, {"data_parallel_size": 2}]
)
def test_settings_that_only_vllm_can_keep_are_refused(changes: dict[str, Any]) -> None:
    name = next(iter(changes))
    with pytest.raises(InputError, match=name):
        TransformersEngine(EngineSettings(**changes), seed=0)


def test_deterministic_answers_are_computed_alone_and_statistics_can_be_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"deterministic": True, "entropy": False})
    held = TransformersEngine(settings, seed=0)
    held.load(loadable(folder))
    sizes = []
    decode = held._decode
    monkeypatch.setattr(held, "_decode", lambda rows: (sizes.append(len(rows)), decode(rows)))
    found = answers(held, *map(request, PROMPTS))
    assert sizes == [1, 1, 1]
    assert all(not reply.statistics.entropies and reply.tokens for reply in found.values())


def test_batches_keep_to_their_bounds_and_lose_no_row() -> None:
    from harness.engines.row_sampler import Row

    rng = np.random.default_rng(2)
    rows = []
    for place in range(200):
        limit, length = int(rng.integers(1, 200)), int(rng.integers(1, 300))
        sampling = Sampling(temperature=0, max_tokens=limit)
        given = Request(key=str(place), prompt=(1,) * length, sampling=sampling, seed=0)
        rows.append(Row(given, limit, frozenset(), True))
    groups = group_rows(rows, most=16, budget=3000)
    assert sorted(r.request.key for g in groups for r in g) == sorted(str(i) for i in range(200))
    for group in groups:
        limits = [row.limit for row in group]
        padded = max(len(row.request.prompt) for row in group) + max(limits)
        assert len(group) <= 16
        assert len(group) == 1 or len(group) * padded <= 3000
        assert 2 * min(limits) >= max(limits)
    assert max(map(len, groups)) > 4
    assert [len(g) for g in group_rows(rows[:3], most=8, budget=1)] == [1, 1, 1]


def test_cache_bytes_count_keys_and_values_of_all_layers(engine: TransformersEngine) -> None:
    each = 2 * 2 * 2 * 8 * 4
    assert cache_bytes(engine._model.config, 4) == each
    if engine._model.device.type == "cpu":
        assert cache_tokens(engine._model, EngineSettings(kv_cache_gib=0.5)) == 2**29 // each


def test_identity_names_what_decides_answers(engine: TransformersEngine) -> None:
    found = engine.identity
    assert found["name"] == "transformers"
    assert {"transformers", "torch", "device", "max_num_seqs"} <= set(found)
    json.dumps(found)
