"""Identity of a checkpoint: hashes that follow what matters, parts that fit, files that stay."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_records import make_examples
from suite_records import make_suite
from tiny_checkpoints import (
    VOCABULARY,
    change_tensor,
    edit_json,
    read_tensors,
    save_checkpoint,
    save_shards,
    save_tokenizer,
    write_tensors,
)

from harness.adapters import finite, identity
from harness.adapters.hf_folder import HfFolder, describe
from harness.adapters.identity import (
    architecture_key,
    tokenizer_sha256,
    verify_unchanged,
    weights_sha256,
)
from harness.errors import CheckpointError
from harness.prompts import render_suite
from harness.types import BaseWeights, CheckpointSpec, Form, Loadable, Message, Role

MODEL = "model.safetensors"
NORM = "model.norm.weight"


def spec(source: Path, **fields: Any) -> CheckpointSpec:
    return CheckpointSpec(name="x", source=str(source), **fields)


def prepared(folder: Path) -> Loadable:
    return HfFolder().prepare(spec(folder))


# The record.


def test_record_of_a_folder_names_weights_tokenizer_and_template(folder: Path) -> None:
    found = prepared(folder)
    assert found.form is Form.WEIGHTS
    assert found.weights_sha256 == weights_sha256(folder)
    assert found.tokenizer_sha256 == tokenizer_sha256(folder)
    assert (found.base, found.lora, found.chat_template) == (None, None, None)


def test_record_of_an_unmerged_adapter_covers_base_and_adapter(
    pristine: Path, lora: Path, tmp_path: Path
) -> None:
    base = BaseWeights(folder=str(pristine), weights_sha256=weights_sha256(pristine))
    found = describe(spec(lora), pristine, base=base, lora=lora)
    assert (found.lora, found.base) == (str(lora), base)
    assert found.weights_sha256 == weights_sha256(pristine, lora) != weights_sha256(pristine)
    for change in ("weights", "config"):
        other = Path(shutil.copytree(lora, tmp_path / change))
        if change == "weights":
            file = other / "adapter_model.safetensors"
            change_tensor(file, next(iter(read_tensors(file))), 7.0)
        else:
            edit_json(other / "adapter_config.json", lora_alpha=99)
        assert weights_sha256(pristine, other) != found.weights_sha256


def test_unmerged_adapter_saved_with_a_tokenizer_brings_its_template(
    pristine: Path, lora: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(lora, tmp_path / "own"))
    save_tokenizer(own, "{{ messages[0]['content'] }}")
    found = describe(spec(own), pristine, lora=own)
    assert found.chat_template == "{{ messages[0]['content'] }}"
    assert found.template_sha256 != describe(spec(lora), pristine, lora=lora).template_sha256


# The tokenizer.


def test_tokenizer_hash_does_not_depend_on_the_layout_of_merges(tmp_path: Path) -> None:
    hashes = set()
    for layout in (["a b", "ab c"], [["a", "b"], ["ab", "c"]]):
        content = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": layout}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        hashes.add(tokenizer_sha256(tmp_path))
    assert len(hashes) == 1
    content["model"]["merges"] = [["ab", "c"], ["a", "b"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer_sha256(tmp_path) not in hashes


def test_tokenizer_with_more_tokens_than_the_model_is_refused(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<new{i}>" for i in range(VOCABULARY - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    assert prepared(folder).folder == str(folder)  # one token for each row
    tokenizer.add_tokens(["<beyond>", "<beyond2>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"vocab_size 264 .*2 tokens.*'<beyond>' with id 264"):
        prepared(folder)


@pytest.mark.parametrize("where", [None, "template", "end"])
def test_special_token_beyond_the_model_is_borne_where_nothing_uses_it(
    folder: Path, where: str | None
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    fillers = [f"<new{i}>" for i in range(VOCABULARY - len(tokenizer))]
    tokenizer.add_tokens([*fillers, "<image>"], special_tokens=True)
    if where == "template":
        tokenizer.chat_template = f"<image>{tokenizer.chat_template}"
    if where == "end":
        tokenizer.eos_token = "<image>"
    tokenizer.save_pretrained(folder)
    if where is None:
        checkpoint = prepared(folder)
        plain = make_suite("own", make_examples(1))
        assert render_suite(checkpoint, plain)
        asked = [
            make_examples(1)[0].model_copy(
                update={"messages": (Message(role=Role.USER, content="<image>?"),)}
            )
        ]
        with pytest.raises(CheckpointError, match=r"own/e00: the prompt holds '<image>' \(id 264"):
            render_suite(checkpoint, make_suite("own", asked))
    else:
        with pytest.raises(CheckpointError, match=r"vocab_size 264 .*1 tokens.*'<image>'"):
            prepared(folder)


def test_tokenizers_that_end_texts_otherwise_need_engines_of_their_own(
    folder: Path, pristine: Path
) -> None:
    assert architecture_key(folder) == architecture_key(pristine)
    edit_json(folder / "tokenizer_config.json", eos_token="<|user|>")
    assert tokenizer_sha256(folder) == tokenizer_sha256(pristine)
    assert architecture_key(folder) != architecture_key(pristine)


def test_code_that_travels_with_a_checkpoint_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    edit_json(folder / "config.json", auto_map=auto, model_type="evil")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be used"):
        prepared(folder)
    assert not (folder / "ran").exists()


# Unchanged files.


def test_untouched_weights_pass_and_are_not_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared(folder)
    monkeypatch.setattr(identity, "_hash_bytes", None)
    monkeypatch.setattr(finite, "_check_file", None)
    verify_unchanged(found)
    assert prepared(folder) == found


def test_changed_weights_are_noticed(folder: Path) -> None:
    found = prepared(folder)
    before = (folder / MODEL).stat()
    change_tensor(folder / MODEL, NORM, 0.5)
    os.utime(folder / MODEL, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (folder / MODEL).stat().st_size == before.st_size
    with pytest.raises(CheckpointError, match=rf"'x': the weights in {folder} changed"):
        verify_unchanged(found)


def test_added_and_removed_weight_files_are_noticed(folder: Path) -> None:
    found = prepared(folder)
    shutil.copy(folder / MODEL, folder / "more.safetensors")
    with pytest.raises(CheckpointError, match="changed"):
        verify_unchanged(found)
    (folder / "more.safetensors").unlink()
    verify_unchanged(found)
    (folder / MODEL).unlink()
    with pytest.raises(CheckpointError, match=r"has no \*\.safetensors"):
        verify_unchanged(found)


def test_changed_adapter_is_noticed(pristine: Path, lora: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(lora, tmp_path / "own"))
    found = describe(spec(own), pristine, lora=own)
    verify_unchanged(found)
    edit_json(own / "adapter_config.json", lora_alpha=99)
    with pytest.raises(CheckpointError, match=rf"{pristine} or {own} changed"):
        verify_unchanged(found)


def test_endpoints_and_recorded_answers_have_no_files_to_verify(folder: Path) -> None:
    gone = {"folder": "http://127.0.0.1:1/v1", "weights_sha256": "0"}
    for form in (Form.ENDPOINT, Form.RECORDED):
        verify_unchanged(prepared(folder).model_copy(update={**gone, "form": form}))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_changed_configuration_is_noticed(folder: Path, file: str) -> None:
    found = prepared(folder)
    edit_json(folder / file, transformers_version="1", use_cache=False)
    verify_unchanged(found)
    edit_json(folder / file, rms_norm_eps=1e-5, eos_token="<|user|>")
    with pytest.raises(CheckpointError, match=rf"'x': the configuration .* in {folder} changed"):
        verify_unchanged(found)


def test_second_copy_of_the_weights_beside_an_index_is_not_loaded(
    tmp_path: Path, pristine: Path
) -> None:
    shards = save_shards(tmp_path / "shards", pristine)
    found = prepared(shards)
    shutil.copy(pristine / MODEL, shards / "consolidated.safetensors")
    verify_unchanged(found)
    assert prepared(shards).weights_sha256 == found.weights_sha256
    shutil.copy(pristine / MODEL, shards / MODEL)  # transformers would load this one
    with pytest.raises(CheckpointError, match="changed"):
        verify_unchanged(found)


# Engines that can be shared.


def test_architecture_of_a_model_of_several_parts_is_that_of_its_text_too(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    def key(name: str, **text: Any) -> str:
        changes = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
        held = {"model_type": "gemma3_text", "vocab_size": VOCABULARY} | text
        parts = {"text_config": held, "vision_config": {"hidden_size": 32}}
        folder = save_checkpoint(tmp_path / name, tokenizer_folder, **changes, **parts)
        return architecture_key(folder)

    small = key("small", hidden_size=32)
    assert small == key("again", hidden_size=32, use_cache=False)
    assert small != key("wide", hidden_size=64)
    assert small != key("stretched", hidden_size=32, rms_norm_eps=1e-3)


# Finite weights.


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN"), (float("-inf"), "infinity")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_not_numbers_are_refused(
    folder: Path, value: float, said: str, dtype: str
) -> None:
    import torch

    values = {k: v.to(getattr(torch, dtype)) for k, v in read_tensors(folder / MODEL).items()}
    write_tensors(values, folder / MODEL)
    assert prepared(folder).folder
    change_tensor(folder / MODEL, NORM, value)
    for _ in range(2):  # a refusal is not remembered as a pass
        with pytest.raises(CheckpointError, match=rf"{MODEL}: tensor '{NORM}' holds {said}"):
            prepared(folder)


def test_integers_float8_and_empty_tensors_are_not_looked_into(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    import torch

    folder = save_checkpoint(tmp_path / "quantised", tokenizer_folder)
    nan8 = torch.tensor([float("nan")]).to(torch.float8_e4m3fn)
    values = {"a": torch.arange(3), "b": nan8, "c": torch.empty(0), "d": torch.tensor(1.0)}
    write_tensors(values, folder / MODEL)
    assert prepared(folder).folder == str(folder)


def test_adapter_that_is_not_finite_is_refused(pristine: Path, lora: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(lora, tmp_path / "own"))
    file = own / "adapter_model.safetensors"
    name = next(iter(read_tensors(file)))
    change_tensor(file, name, float("nan"))
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: tensor .* holds NaN"):
        describe(spec(own), pristine, lora=own)
