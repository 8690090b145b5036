"""LoRA adapters beyond the plain merge: patterns, pickled tensors, tokenizers, left unmerged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import (
    TEMPLATE,
    edit_json,
    read_tensors,
    save_llama,
    save_lora,
    save_sentencepiece,
    save_tokenizer,
    write_tensors,
)
from tiny_gguf import save_gguf

from harness.adapters import prepare
from harness.adapters.identity import verify_unchanged, weights_sha256
from harness.errors import CheckpointError
from harness.files import cache_root
from harness.types import BaseWeights, CheckpointSpec, Loadable

LORA = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    return save_llama(folder, tokenizer_folder, intermediate_size=64)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return save_lora(tmp_path_factory.mktemp("loras") / "lora", base)


@pytest.fixture
def lora(tmp_path: Path, pristine: Path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "lora"))


def prepared(source: Path, **fields: Any) -> Loadable:
    return prepare(CheckpointSpec(name="x", source=str(source), **fields))


def refuse(source: Path, match: str, **fields: Any) -> None:
    with pytest.raises(CheckpointError, match=match):
        prepared(source, **fields)
    for name in ("merged", "adapters"):
        folder = cache_root() / name
        assert not folder.is_dir() or list(folder.iterdir()) == []


def as_pickle(folder: Path, extra: Any = None) -> Path:
    """Turn an adapter's safetensors into adapter_model.bin."""
    import torch

    tensors = read_tensors(folder / LORA)
    content = tensors if extra is None else tensors | {"extra": extra}
    torch.save(content, folder / "adapter_model.bin")
    (folder / LORA).unlink()
    return folder


def logits(folder: str, lora: str | None = None) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = model if lora is None else PeftModel.from_pretrained(model, lora)
    with torch.inference_mode():
        return model.eval()(torch.arange(6, 40).reshape(1, -1)).logits


# Merged.


@pytest.mark.parametrize(
    "changes",
    [
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"layers.1.self_attn.q_proj": 40}},
        {"rank_pattern": {"down_proj": 7}, "alpha_pattern": {"0.*proj": 5}, "use_rslora": True},
        {"rank_pattern": {"proj": 3, "q_proj": 5}},
    ],
)
def test_merge_with_patterns_is_pefts_own(
    base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    source = save_lora(tmp_path / "lora", base, **changes)
    found = prepared(source)
    difference = (logits(found.folder) - logits(str(base), str(source))).abs().max()
    assert difference < 1e-4
    assert "pattern merged into base" in found.notes[0]


def test_patterns_are_in_the_caches_key(base: Path, tmp_path: Path) -> None:
    source = save_lora(tmp_path / "lora", base)
    first = prepared(source)
    edit_json(source / CONFIG, alpha_pattern={"q_proj": 40})
    assert prepared(source).folder != first.folder


def test_pattern_that_is_none_and_rank_zero_are_refused(lora: Path) -> None:
    edit_json(lora / CONFIG, alpha_pattern={"(": 4})
    refuse(lora, r"'\(' is not a pattern")
    edit_json(lora / CONFIG, alpha_pattern={}, r=0)
    refuse(lora, "is not a PEFT LoRA configuration")


def test_base_is_recorded(lora: Path, base: Path) -> None:
    expected = BaseWeights(folder=str(base), weights_sha256=weights_sha256(base))
    for merge in (True, False):
        assert prepared(lora, merge=merge).base == expected


def test_pickled_adapter_is_the_same_adapter(lora: Path) -> None:
    expected = prepared(lora).weights_sha256
    assert prepared(as_pickle(lora)).weights_sha256 == expected


class Trap:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.witness}'",)


def test_pickled_adapter_runs_no_code_and_a_damaged_one_is_refused(
    lora: Path, tmp_path: Path
) -> None:
    as_pickle(lora, Trap(tmp_path / "ran"))
    refuse(lora, r"adapter_model\.bin holds more than tensors: .*posix\.system")
    assert not (tmp_path / "ran").exists()
    (lora / "adapter_model.bin").write_bytes((lora / "adapter_model.bin").read_bytes()[:2000])
    refuse(lora, r"adapter_model\.bin is cut off, damaged")
    (lora / "adapter_model.bin").unlink()
    refuse(lora, r"has no adapter_model\.safetensors or adapter_model\.bin")


def test_pickle_of_something_else_is_refused(lora: Path) -> None:
    as_pickle(lora, 3)
    refuse(lora, r"adapter_model\.bin does not hold tensors by name")


def test_lora_on_a_tied_head_is_refused(lora: Path) -> None:
    import torch

    values = read_tensors(lora / LORA)
    stem = "base_model.model.lm_head.lora_"
    values |= {f"{stem}A.weight": torch.ones(4, 32), f"{stem}B.weight": torch.ones(264, 4)}
    write_tensors(values, lora / LORA)
    refuse(lora, r"LoRA on lm_head\.weight, which in .* is the embedding itself")


def test_options_that_change_more_than_the_product_are_named(lora: Path) -> None:
    edit_json(lora / CONFIG, alora_invocation_tokens=[1, 2], target_parameters=["experts.w"])
    refuse(lora, "alora_invocation_tokens, target_parameters is not supported")


def test_base_may_be_a_gguf_file(lora: Path, base: Path, tmp_path: Path) -> None:
    quantised = save_gguf(tmp_path / "base.gguf", base, "F32")
    found = prepared(lora, base=str(quantised))
    assert "base: GGUF F32 written out in float32" in found.notes
    assert (logits(found.folder) - logits(prepared(lora).folder)).abs().max() < 1e-5


def test_base_with_a_training_head_is_freed_of_it(lora: Path, base: Path, tmp_path: Path) -> None:
    headed = Path(shutil.copytree(base, tmp_path / "headed"))
    values = read_tensors(base / "model.safetensors")
    head = {"baseline_head.w": values["model.norm.weight"].clone()}
    write_tensors(values | head, headed / "model.safetensors")
    found = prepared(lora, base=str(headed))
    assert "base: dropped training-only tensors: baseline_head.w" in found.notes
    assert found.weights_sha256 == prepared(lora).weights_sha256


# A tokenizer of its own.


def add_token(folder: Path, token: str, token_id: int) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"].append({"id": token_id, "content": token, "special": True, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_tokenizer_that_adds_tokens_with_embedding_rows_is_kept(lora: Path) -> None:
    save_tokenizer(lora)
    add_token(lora, "<|tool|>", 262)
    found = prepared(lora)
    assert "<|tool|>" in (Path(found.folder) / "tokenizer.json").read_text()


def test_tokenizer_with_more_tokens_than_rows_is_refused(lora: Path) -> None:
    save_tokenizer(lora)
    for token_id in (262, 263, 264):
        add_token(lora, f"<|tool{token_id}|>", token_id)
    refuse(lora, r"1 tokens for which the base .* no embedding row \(it has 264\).*'<\|tool264\|>'")


def test_tokenizer_of_another_vocabulary_is_refused_with_an_example(lora: Path) -> None:
    save_sentencepiece(lora, TEMPLATE)
    refuse(lora, r"another tokenizer than its base .* tokens differ, the first '.+', id \d+")


# Left to the engine.


def test_unmerged_adapter_stays_beside_its_base(lora: Path, base: Path) -> None:
    found = prepared(lora, merge=False)
    assert (found.folder, found.lora) == (str(base), str(lora))
    assert found.notes == ("LoRA r=4, alpha=12 left to the engine, unmerged, on base",)
    assert not (cache_root() / "merged").exists()
    merged = prepared(lora)
    assert found.architecture == merged.architecture
    assert len({found.weights_sha256, merged.weights_sha256, weights_sha256(base)}) == 3
    assert (logits(found.folder, found.lora) - logits(merged.folder)).abs().max() < 1e-4


def test_change_of_an_unmerged_adapter_is_seen(lora: Path) -> None:
    found = prepared(lora, merge=False)
    verify_unchanged(found)
    edit_json(lora / CONFIG, lora_alpha=13)
    assert prepared(lora, merge=False).weights_sha256 != found.weights_sha256
    with pytest.raises(CheckpointError, match="changed since the run began"):
        verify_unchanged(found)


@pytest.mark.parametrize("pickled", [True, False])
def test_unmerged_adapter_is_cleaned_where_an_engine_would_stumble(
    lora: Path, pickled: bool
) -> None:
    values = read_tensors(lora / LORA)
    head = {"base_model.model.baseline_head.w": next(iter(values.values())).clone()}
    write_tensors(values | head, lora / LORA)
    save_tokenizer(lora, "{{ messages[0]['content'] }}")
    found = prepared(as_pickle(lora) if pickled else lora, merge=False)
    assert found.lora is not None
    cleaned = Path(found.lora)
    assert cleaned.is_relative_to(cache_root())
    kept = read_tensors(cleaned / LORA)
    assert kept.keys() == values.keys()
    assert all(kept[name].equal(values[name]) for name in kept)
    assert (cleaned / CONFIG).read_bytes() == (lora / CONFIG).read_bytes()
    assert found.chat_template == "{{ messages[0]['content'] }}"
    assert "dropped training-only tensors: base_model.model.baseline_head.w" in found.notes
    assert prepared(lora, merge=False) == found


def test_what_an_engine_would_leave_out_is_refused(
    lora: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    untied = save_llama(tmp_path / "untied", tokenizer_folder, tie_word_embeddings=False)
    source = save_lora(tmp_path / "head", untied, target_modules=["q_proj", "lm_head"])
    refuse(source, r"lm_head\.base_layer\.weight' is not part of a plain LoRA\. Merge .* PEFT")
    values = read_tensors(source / LORA)
    plain = {name: value for name, value in values.items() if "base_layer" not in name}
    write_tensors(plain, source / LORA)
    refuse(source, r"a LoRA on lm_head\.weight, which no engine .*merge=false", merge=False)
    assert prepared(source).lora is None
    save_tokenizer(lora)
    add_token(lora, "<|tool|>", 262)
    with pytest.raises(CheckpointError, match=r"tokens of its own \(<\|tool\|>\)"):
        prepared(lora, merge=False)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ],
)
def test_variants_are_refused_unmerged_too(lora: Path, changes: Any, named: str) -> None:
    edit_json(lora / CONFIG, **changes)
    refuse(lora, rf"{named} is not supported", merge=False)


def test_unmerged_adapter_of_another_base_is_refused(
    lora: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    shallow = save_llama(tmp_path / "shallow", tokenizer_folder, num_hidden_layers=1)
    refuse(lora, r"has no model\.layers\.1\..*another base", base=str(shallow), merge=False)
    wide = save_llama(tmp_path / "wide", tokenizer_folder, hidden_size=40, head_dim=10)
    refuse(lora, r"LoRA for .* has shape .*another base", base=str(wide), merge=False)


def test_unmerged_truncated_and_broken_adapters_are_refused(lora: Path) -> None:
    values = read_tensors(lora / LORA)
    next(iter(values.values()))[0, 0] = float("nan")
    write_tensors(values, lora / LORA)
    refuse(lora, r"adapter_model\.safetensors: tensor .* holds NaN", merge=False)
    (lora / LORA).write_bytes((lora / LORA).read_bytes()[:-1])
    refuse(lora, r"adapter_model\.safetensors is not a readable", merge=False)


def test_unmerged_adapter_that_ends_texts_otherwise_is_refused(lora: Path) -> None:
    save_tokenizer(lora)
    assert prepared(lora, merge=False).lora
    edit_json(lora / "tokenizer_config.json", eos_token="<|user|>")
    with pytest.raises(CheckpointError, match=r"end of text of its own \(<\|user\|>.*merge=false"):
        prepared(lora, merge=False)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_merge_into_quantised_weights_is_refused(
    lora: Path, base: Path, tmp_path: Path, dtype: str
) -> None:
    import torch

    coded = Path(shutil.copytree(base, tmp_path / "coded"))
    values = read_tensors(coded / "model.safetensors")
    name = next(n for n in values if n.endswith("q_proj.weight"))
    values[name] = values[name].to(getattr(torch, dtype))
    write_tensors(values, coded / "model.safetensors")
    refuse(lora, rf"holds {name} as .*quantised weights.*merge=false", base=str(coded))
    assert prepared(lora, base=str(coded), merge=False).lora


def test_full_disk_is_named_as_the_caches(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from safetensors import SafetensorError

    from harness.adapters import peft_lora

    full = OSError(errno.ENOSPC, "No space left on device")
    for error in (full, SafetensorError("I/O error: No space left on device")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(peft_lora, "_merge_file", fail)
        refuse(lora, r"merged/\w+ cannot be written: .*No space left.*set TBPO_CACHE")
