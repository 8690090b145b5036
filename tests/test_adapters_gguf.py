"""GGUF files: dequantised to what they hold, once; a damaged one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import TEMPLATE, read_tensors, save_llama
from tiny_gguf import save_gguf

from harness.adapters import gguf as gguf_adapter
from harness.adapters import prepare, recognise
from harness.errors import CheckpointError
from harness.files import cache_root
from harness.types import CheckpointSpec, Loadable

MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    return save_llama(folder, tokenizer_folder, intermediate_size=64)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    return save_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama)


def prepared(source: Path | str, **fields: Any) -> Loadable:
    return prepare(CheckpointSpec(name="x", source=str(source), **fields))


def converted_folders() -> list[Path]:
    folder = cache_root() / "converted"
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [("F32", "float32", 0.0), ("F16", "float16", 1e-3), ("Q8_0", "bfloat16", 1e-2)],
)
def test_weights_are_those_of_the_file(
    llama: Path, tmp_path: Path, kind: str, dtype: str, tolerance: float
) -> None:
    found = prepared(save_gguf(tmp_path / "tiny.gguf", llama, kind))
    assert found.notes == (f"GGUF {kind} written out in {dtype}",)
    original, values = read_tensors(llama / MODEL), read_tensors(Path(found.folder) / MODEL)
    assert values.keys() == original.keys()
    for name, value in values.items():
        assert str(value.dtype) == f"torch.{dtype}", name
        largest = float(original[name].abs().max())
        assert (value.float() - original[name]).abs().max() <= tolerance * largest, name


def test_answers_are_the_models_and_the_template_travels(whole: Path, llama: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = prepared(whole)
    ids = AutoTokenizer.from_pretrained(llama)("the same bytes")["input_ids"]
    own = AutoTokenizer.from_pretrained(found.folder)
    assert own("the same bytes")["input_ids"] == ids
    assert own.chat_template == TEMPLATE
    logits = [
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32)(torch.tensor([ids])).logits
        for f in (llama, found.folder)
    ]
    assert (logits[0] - logits[1]).abs().max() < 0.02 * logits[0].abs().max()


def test_second_time_nothing_is_converted(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(whole)
    monkeypatch.setattr(gguf_adapter, "dequantise", None)
    assert prepared(whole) == first


def test_folder_with_one_file_is_taken_and_with_two_refused(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quantised"
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(whole.read_bytes())
    assert recognise(str(folder)) == "gguf"
    assert prepared(folder).weights_sha256 == prepared(whole).weights_sha256
    (folder / "more.gguf").touch()
    with pytest.raises(CheckpointError, match=r"2 GGUF files \(more\.gguf, tiny\.gguf\)"):
        prepared(folder)


def test_safetensors_beside_a_gguf_are_preferred(llama: Path) -> None:
    (llama / "extra.gguf").touch()
    try:
        assert recognise(str(llama)) == "hf_folder"
    finally:
        (llama / "extra.gguf").unlink()


@pytest.mark.parametrize("kept", [0, 3, 4, 20, 1000, -1])
def test_damaged_file_is_refused(whole: Path, tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut\.gguf is not a whole GGUF file"):
        prepared(cut)
    assert converted_folders() == []


def test_other_bytes_and_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello " * 100)
    with pytest.raises(CheckpointError, match=r"text\.gguf is not a whole GGUF file .*magic"):
        prepared(tmp_path / "text.gguf")
    with pytest.raises(CheckpointError, match="does not exist, or has no GGUF file"):
        prepared(tmp_path / "gone", adapter="gguf")


def test_part_of_several_is_refused(llama: Path, tmp_path: Path) -> None:
    part = save_gguf(tmp_path / "part.gguf", llama, split__count=3)
    with pytest.raises(CheckpointError, match=r"part\.gguf is one of 3 parts.*merge"):
        prepared(part)


def test_file_without_matrices_and_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    for name, shape, message in [
        ("flat", (8,), "holds no weight matrices"),
        ("strange", (8, 8), r"strange\.gguf \(F32\) cannot be converted: .*no-such"),
    ]:
        writer = gguf.GGUFWriter(str(tmp_path / f"{name}.gguf"), "no-such")
        writer.add_tensor("w", np.ones(shape, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(CheckpointError, match=message):
            prepared(tmp_path / f"{name}.gguf")
    assert converted_folders() == []
