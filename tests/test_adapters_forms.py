"""The form of a source: from its files, its ending or its address; the unknown lists the known."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoints import save_checkpoint

from harness.adapters import Located, adapter_name, locate, recognise
from harness.errors import CheckpointError
from harness.types import CheckpointSpec


@pytest.mark.parametrize(
    ("source", "adapter"),
    [
        ("http://localhost:8000/v1", "endpoint"),
        ("https://api.example.org/v1", "endpoint"),
        ("recorded:answers.txt", "recorded"),
    ],
)
def test_address_and_prefix_decide_without_a_file(source: str, adapter: str) -> None:
    assert recognise(source) == adapter


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("policy.pt", "policy_archive"),
        ("policy.PTH", "policy_archive"),
        ("pytorch_model.bin", "policy_archive"),
        ("model.Q4_K_M.gguf", "gguf"),
        ("model_outputs.json", "recorded"),
        ("samples.jsonl", "recorded"),
        ("samples.jsonl.gz", "recorded"),
        ("answers.csv", "recorded"),
        ("answers.parquet", "recorded"),
    ],
)
def test_ending_of_a_file_decides(tmp_path: Path, name: str, adapter: str) -> None:
    (tmp_path / name).touch()
    assert recognise(str(tmp_path / name)) == adapter


def test_files_of_a_folder_decide(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", tokenizer_folder)
    assert recognise(str(folder)) == "hf_folder"
    (folder / "adapter_config.json").touch()
    assert recognise(str(folder)) == "peft_lora"
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "model.gguf")
    assert recognise(str(folder)) == "gguf"
    (tmp_path / "LATEST").mkdir()
    (tmp_path / "LATEST" / "policy.pt").touch()
    assert recognise(str(tmp_path / "LATEST")) == "policy_archive"


@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt", "archive.gz"])
def test_other_files_are_refused_with_the_known_forms(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"no known form\. Give .*hub id.*GGUF.*recorded:"):
        recognise(str(tmp_path / name))


def test_what_is_not_there_is_refused_with_the_known_forms(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone does not exist\. Give .*PEFT"):
        recognise(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"neither config\.json nor .*policy\.pt\. Give"):
        recognise(str(tmp_path / "empty"))
    for name in ("loop", "dangling.pt"):
        (tmp_path / name).symlink_to(tmp_path / ("loop" if name == "loop" else "gone.pt"))
        with pytest.raises(CheckpointError, match=rf"{name} is a link that leads nowhere"):
            recognise(str(tmp_path / name))


def test_users_word_and_prefix_go_before_the_files(tmp_path: Path) -> None:
    (tmp_path / "answers.txt").touch()
    source = str(tmp_path / "answers.txt")
    located = locate(f"recorded:{source}")
    assert located == Located(source)
    assert (
        adapter_name(CheckpointSpec(name="x", source=f"recorded:{source}"), located) == "recorded"
    )
    chosen = CheckpointSpec(name="x", source=source, adapter="own")
    assert adapter_name(chosen, Located(source)) == "own"
