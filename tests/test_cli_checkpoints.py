"""``tbpo checkpoints``: what is shown is what the files hold; what is written is what loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_records import Tbpo, refused
from tiny_checkpoints import (
    TEMPLATE,
    VOCABULARY,
    change_tensor,
    read_tensors,
    save_llama,
    save_shards,
    save_tokenizer,
    write_tensors,
)

from harness.adapters import inspection, peft_lora, prepare
from harness.adapters.identity import tokenizer_sha256, weights_sha256
from harness.adapters.inspection import Inspection
from harness.files import cache_root
from harness.types import CheckpointSpec, Form

MODEL = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
OTHER = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"


def shown(tbpo: Tbpo, *arguments: str | Path, code: int = 0) -> Inspection:
    found, out, _ = tbpo("checkpoints", "inspect", *arguments, "--json")
    assert found == code
    return Inspection.model_validate_json(out)


def checkpoint(source: Path, **fields: Any) -> CheckpointSpec:
    return CheckpointSpec(name="x", source=str(source), **fields)


# inspect


def test_folder_is_shown_as_it_lies(tbpo: Tbpo, pristine: Path) -> None:
    from transformers import AutoModelForCausalLM

    found = shown(tbpo, pristine)
    model = AutoModelForCausalLM.from_pretrained(pristine)
    assert found.parameters == {"F32": model.num_parameters()}
    assert (found.form, found.adapter, found.folder) == (Form.WEIGHTS, "hf_folder", str(pristine))
    assert found.weights_sha256 == prepare(checkpoint(pristine)).weights_sha256
    assert found.size_bytes == (pristine / MODEL).stat().st_size
    assert (found.vocabulary, found.context_length) == (VOCABULARY, 2048)
    assert found.model_type == "llama"
    assert found.chat_template == TEMPLATE
    assert found.tokenizer_sha256 == tokenizer_sha256(pristine)
    assert (found.base, found.notes, found.problems) == (None, (), ())


def test_counts_do_not_depend_on_shards_dtype_or_a_tied_head_saved_twice(
    tbpo: Tbpo, pristine: Path, folder: Path, tmp_path: Path
) -> None:
    count = shown(tbpo, pristine).parameters["F32"]
    assert shown(tbpo, save_shards(tmp_path / "shards", pristine)).parameters == {"F32": count}
    values = {name: v.bfloat16() for name, v in read_tensors(folder / MODEL).items()}
    values["model.norm.weight"] = values["model.norm.weight"].float()
    values["lm_head.weight"] = values["model.embed_tokens.weight"].clone()
    write_tensors(values, folder / MODEL)
    norm = values["model.norm.weight"].numel()
    assert shown(tbpo, folder).parameters == {"BF16": count - norm, "F32": norm}


def test_training_head_is_not_counted_and_said_to_be_dropped(
    tbpo: Tbpo, pristine: Path, folder: Path
) -> None:
    values = read_tensors(folder / MODEL)
    head = {"baseline_head.0.weight": values["model.norm.weight"].clone()}
    write_tensors(values | head, folder / MODEL)
    found = shown(tbpo, folder)
    assert found.parameters == shown(tbpo, pristine).parameters
    assert found.notes == ("would drop training-only tensors: baseline_head.0.weight",)
    assert found.reworked
    assert not (cache_root() / "stripped").exists()


def test_lora_is_shown_without_a_merge(
    tbpo: Tbpo, pristine: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peft_lora, "merge", None)
    found = shown(tbpo, lora)
    assert found.adapter == "peft_lora"
    assert found.base is not None
    assert found.base.folder == str(pristine)
    assert found.base.weights_sha256 == weights_sha256(pristine)
    assert found.weights_sha256 == weights_sha256(pristine, lora)
    own = sum(tensor.numel() for tensor in read_tensors(lora / ADAPTER).values())
    assert found.adapter_parameters == own
    assert found.parameters == shown(tbpo, pristine).parameters
    assert any(f"would be merged into {pristine}" in note for note in found.notes)
    assert not (cache_root() / "merged").exists()
    assert found.reworked


def test_hash_that_a_run_would_not_record_is_said_to_be_of_the_files(
    tbpo: Tbpo, pristine: Path, folder: Path, lora: Path
) -> None:
    values = read_tensors(folder / MODEL)
    head = {"baseline_head.0.weight": values["model.norm.weight"].clone()}
    write_tensors(values | head, folder / MODEL)
    for source, reworked in ((pristine, False), (folder, True), (lora, True)):
        found, ready = shown(tbpo, source), prepare(checkpoint(source))
        assert found.reworked == reworked == (found.weights_sha256 != ready.weights_sha256)
        assert ("(files as they lie" in tbpo("checkpoints", "inspect", source)[1]) == reworked


def test_unmerged_lora_has_the_hash_that_a_run_records(lora: Path) -> None:
    spec = checkpoint(lora, merge=False)
    found = inspection.inspect(spec)
    assert not found.reworked
    assert found.weights_sha256 == prepare(spec).weights_sha256


@pytest.mark.parametrize("option", ["--base", "--model"])
def test_option_that_a_folder_cannot_keep_is_refused(
    tbpo: Tbpo, pristine: Path, option: str
) -> None:
    found = tbpo("checkpoints", "inspect", pristine, option, pristine)
    refused(found, f"{option[2:]}= cannot be kept: the checkpoint is of the form 'hf_folder'")


def test_loras_own_template_and_tokenizer_are_shown(
    tbpo: Tbpo, pristine: Path, lora: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(lora, tmp_path / "own"))
    save_tokenizer(own, OTHER)
    found, ready = shown(tbpo, own), prepare(checkpoint(own))
    assert found.chat_template == OTHER
    assert found.template_sha256 == ready.template_sha256
    assert found.tokenizer_sha256 == ready.tokenizer_sha256


def test_named_base_and_template_are_used(
    tbpo: Tbpo, folder: Path, lora: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.jinja").write_text(OTHER)
    found = shown(tbpo, lora, "--base", folder, "--chat-template", tmp_path / "t.jinja")
    assert found.base is not None
    assert found.base.folder == str(folder)
    assert found.chat_template == OTHER


def test_every_reason_for_a_refusal_is_shown(tbpo: Tbpo, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<{i}>" for i in range(9)])
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    change_tensor(folder / MODEL, "model.norm.weight", float("nan"))
    found = shown(tbpo, folder, code=2)
    for problem, said in zip(found.problems, ("vocab_size", "template", "NaN"), strict=True):
        assert said in problem
    assert (found.chat_template, found.template_sha256) == (None, None)
    code, out, _ = tbpo("checkpoints", "inspect", folder)
    assert code == 2
    assert out.count("REFUSED") == 3


def test_lora_of_another_base_is_shown_as_refused(
    tbpo: Tbpo, lora: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    other = save_llama(tmp_path / "other", tokenizer_folder, num_hidden_layers=1)
    found = shown(tbpo, lora, "--base", other, code=2)
    assert "belongs to another base" in found.problems[0]


def test_text_shows_counts_hashes_and_the_templates_first_lines(
    tbpo: Tbpo, folder: Path, lora: Path
) -> None:
    (folder / "chat_template.jinja").write_text("\n".join(f"line {i}" for i in range(20)))
    code, out, _ = tbpo("checkpoints", "inspect", lora, "--base", folder)
    assert code == 0
    assert weights_sha256(folder, lora) in out
    assert weights_sha256(folder) in out
    assert "(F32)" in out
    assert "2,048 tokens" in out
    assert "line 5" in out
    assert "line 6" not in out


def test_endpoint_and_recorded_answers_are_shown_as_such(
    tbpo: Tbpo, monkeypatch: pytest.MonkeyPatch, pristine: Path
) -> None:
    ready = prepare(checkpoint(pristine)).model_copy(
        update={"form": Form.ENDPOINT, "notes": ("weights cannot be seen",)}
    )
    monkeypatch.setattr(inspection, "prepare", lambda spec: ready)
    found = shown(tbpo, "http://127.0.0.1:1/v1")
    assert (found.form, found.adapter) == (Form.ENDPOINT, "endpoint")
    assert (found.folder, found.parameters, found.size_bytes) == (None, {}, None)
    assert found.notes == ("weights cannot be seen",)
    code, out, _ = tbpo("checkpoints", "inspect", "http://127.0.0.1:1/v1")
    assert code == 0
    assert "parameters" not in out


@pytest.mark.parametrize("verb", ["inspect", "convert"])
def test_source_that_is_not_there_is_refused(tbpo: Tbpo, tmp_path: Path, verb: str) -> None:
    more = ["--output", tmp_path / "out"] if verb == "convert" else []
    refused(tbpo("checkpoints", verb, tmp_path / "gone", *more), "gone does not exist")
    refused(tbpo("checkpoints", verb, "", *more), "source")
    assert not (tmp_path / "out").exists()


# convert


def test_merged_lora_is_written_as_a_run_would_load_it(
    tbpo: Tbpo, lora: Path, tmp_path: Path
) -> None:
    output = tmp_path / "sub" / "out"
    code, out, _ = tbpo("checkpoints", "convert", lora, "--output", output)
    ready = prepare(checkpoint(lora))
    assert code == 0
    assert ready.weights_sha256 in out
    assert "merged into base" in out
    again = prepare(checkpoint(output))
    assert again.weights_sha256 == ready.weights_sha256
    assert again.template_sha256 == ready.template_sha256
    assert again.architecture == ready.architecture


def test_named_template_is_written_into_the_folder(
    tbpo: Tbpo, pristine: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "t.jinja").write_text(OTHER)
    output = tmp_path / "out"
    output.mkdir()
    given = ("--output", output, "--chat-template", tmp_path / "t.jinja")
    assert tbpo("checkpoints", "convert", pristine, *given)[0] == 0
    chat = [{"role": "user", "content": "hi"}]
    loaded = AutoTokenizer.from_pretrained(output)
    assert loaded.apply_chat_template(chat, tokenize=False) == "[hi]"


def test_head_is_left_out_and_shards_are_kept(tbpo: Tbpo, pristine: Path, tmp_path: Path) -> None:
    source = save_shards(tmp_path / "shards", pristine)
    first = sorted(source.glob("*.safetensors"))[0]
    values = read_tensors(first)
    write_tensors(values | {"baseline_head.w": next(iter(values.values())).clone()}, first)
    assert tbpo("checkpoints", "convert", source, "--output", tmp_path / "out")[0] == 0
    assert shown(tbpo, tmp_path / "out").notes == ()
    names = {f.name for f in source.glob("*.safetensors")}
    assert {f.name for f in (tmp_path / "out").glob("*.safetensors")} == names


def test_what_is_there_is_not_overwritten(tbpo: Tbpo, pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for output in (tmp_path / "full", tmp_path / "full" / "kept", tmp_path / "link"):
        found = tbpo("checkpoints", "convert", pristine, "--output", output)
        refused(found, f"{output} is not an empty folder")
    assert [f.name for f in (tmp_path / "full").iterdir()] == ["kept"]


def test_output_that_cannot_be_written_is_said(tbpo: Tbpo, pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "out"
    refused(tbpo("checkpoints", "convert", pristine, "--output", output), "cannot be written")


def test_refused_checkpoint_leaves_nothing(tbpo: Tbpo, folder: Path, tmp_path: Path) -> None:
    change_tensor(folder / MODEL, "model.norm.weight", float("inf"))
    refused(tbpo("checkpoints", "convert", folder, "--output", tmp_path / "out"), "infinity")
    assert not (tmp_path / "out").exists()


def test_json_is_nothing_but_json(tbpo: Tbpo, pristine: Path) -> None:
    _, out, _ = tbpo("checkpoints", "inspect", pristine, "--json")
    assert json.loads(out)["adapter"] == "hf_folder"
