"""Broken checkpoints: each is refused by a message that names the file, never by a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import (
    edit_json,
    read_tensors,
    save_shards,
    write_tensors,
)

from harness.adapters import prepare
from harness.errors import CheckpointError, InputError
from harness.types import CheckpointSpec, Loadable

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-"


@pytest.fixture(scope="module")
def pristine_shards(tmp_path_factory: pytest.TempPathFactory, pristine: Path) -> Path:
    return save_shards(tmp_path_factory.mktemp("models") / "shards", pristine)


@pytest.fixture
def shards(tmp_path: Path, pristine_shards: Path) -> Path:
    return Path(shutil.copytree(pristine_shards, tmp_path / "shards"))


def prepared(source: Path | str, **fields: Any) -> Loadable:
    return prepare(CheckpointSpec(name="x", source=str(source), **fields))


def refuse(source: Path, match: str, **fields: Any) -> None:
    with pytest.raises(InputError, match=match):
        prepared(source, **fields)


def first_shard(folder: Path) -> Path:
    return next(folder.glob(f"{FIRST}*"))


# Shards.


def test_sharded_folder_is_taken(shards: Path) -> None:
    assert prepared(shards).folder == str(shards)


def test_corrupted_shard_is_named(shards: Path) -> None:
    shard = first_shard(shards)
    content = bytearray(shard.read_bytes())
    content[8:40] = b"\xff" * 32  # inside the header
    shard.write_bytes(content)
    refuse(shards, rf"{shard} is not a readable safetensors file")


def test_empty_shard_is_named(shards: Path) -> None:
    shard = first_shard(shards)
    shard.write_bytes(b"")
    refuse(shards, rf"{shard} is not a readable safetensors file")


def test_shard_of_the_index_that_is_missing_is_named(shards: Path) -> None:
    shard = first_shard(shards)
    shard.unlink()
    refuse(shards, rf"{INDEX} names the shard {shard.name}, which is not there")


def test_tensor_of_the_index_that_its_shard_lacks_is_named(shards: Path) -> None:
    shard = first_shard(shards)
    values = read_tensors(shard)
    gone = sorted(values)[0]
    write_tensors({k: v for k, v in values.items() if k != gone}, shard)
    refuse(shards, rf"{shard} lacks tensor '{gone}'")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"index\.json:1: not valid JSON"),
        ("", r"index\.json:1: not valid JSON"),
        ("[1]", r"index\.json holds a JSON list, not an object"),
        ("{}", r"index\.json has no weight_map"),
        ('{"weight_map": {"w": 1}}', r"index\.json has no weight_map"),
    ],
)
def test_broken_index_is_named(shards: Path, content: str, message: str) -> None:
    (shards / INDEX).write_text(content)
    refuse(shards, message)


def test_index_that_is_a_loop_of_links_is_not_taken_for_none(folder: Path) -> None:
    (folder / INDEX).symlink_to(INDEX)
    refuse(folder, rf"{INDEX} cannot be read")


# JSON and text.


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b"3", b"\xff\xfe"])
def test_broken_json_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refuse(folder, str(folder))


@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b"\xff\xfe", b'{"peft_type": "LORA"}'])
def test_broken_adapter_config_is_named(lora: Path, content: bytes) -> None:
    (lora / "adapter_config.json").write_bytes(content)
    refuse(lora, r"adapter_config\.json")


def test_tokenizer_that_is_no_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "X"}}))
    refuse(folder, rf"the tokenizer in {folder} cannot be read")


def test_setting_that_the_model_type_refuses_is_named(folder: Path) -> None:
    edit_json(folder / "config.json", num_attention_heads=5)
    refuse(folder, r"config\.json cannot be used")


def test_template_that_is_not_text_is_named(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    refuse(folder, str(folder))


# Files in the wrong place.


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def make_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def make_dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("gone")


@pytest.mark.parametrize("spoil", [make_folder, make_loop, make_dangling])
@pytest.mark.parametrize("name", [MODEL, "config.json", "tokenizer.json", "chat_template.jinja"])
def test_folder_or_link_in_place_of_a_file_is_refused(
    folder: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    spoil(folder / name)
    refuse(folder, str(folder))


def test_folder_named_like_a_weight_file_is_said_to_be_one(folder: Path) -> None:
    (folder / "x.safetensors").mkdir()
    refuse(folder, r"x\.safetensors is not a file but a folder")


@pytest.mark.parametrize("spoil", [make_folder, make_loop])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapter_with_a_folder_or_loop_for_a_file_is_refused(
    lora: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    spoil(lora / name)
    refuse(lora, str(lora))


def test_loop_of_folders_is_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(tmp_path / "pool")
    (tmp_path / "pool").symlink_to(loop)
    for adapter in ("auto", "hf_folder", "peft_lora"):
        refuse(loop, str(loop), adapter=adapter)


def test_loop_inside_a_folder_does_no_harm(folder: Path) -> None:
    (folder / "checkpoint-1").symlink_to(folder)
    assert prepared(folder).folder == str(folder)


def test_path_through_a_file_is_refused(folder: Path) -> None:
    below = folder / "config.json" / "model"
    for adapter in ("auto", "hf_folder", "peft_lora"):
        refuse(below, str(below), adapter=adapter)


def test_base_and_template_in_a_loop_are_refused(lora: Path, folder: Path, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop.name)
    refuse(lora, str(loop), base=str(loop))
    refuse(folder, str(loop), chat_template=str(loop))


# Permissions: tests may run as root, whom no file mode stops, so the system's refusal is planted.


@pytest.mark.parametrize("call", ["stat", "open", "scandir"])
def test_folder_without_permission_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    prepared(folder)  # imports first, while the system still answers
    real = {"stat": os.stat, "open": Path.open, "scandir": os.scandir}[call]

    def refused(path: Any, *arguments: Any, **fields: Any) -> Any:
        if str(folder) in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **fields)

    monkeypatch.setattr(Path if call == "open" else os, call, refused)
    refuse(folder, str(folder))


# Paths that must work.


@pytest.mark.parametrize("name", ["with space", "größe-模型", "a,b=c", "-dash", "100%s{x}"])
def test_unusual_names_work(pristine: Path, pristine_lora: Path, tmp_path: Path, name: str) -> None:
    model = Path(shutil.copytree(pristine, tmp_path / name / "model"))
    adapter = Path(shutil.copytree(pristine_lora, tmp_path / name / "lora"))
    assert prepared(model).weights_sha256 == prepared(pristine).weights_sha256
    assert prepared(adapter, base=str(model)).weights_sha256
    template = shutil.copy(model / "chat_template.jinja", tmp_path / name / "t.jinja")
    assert prepared(model, chat_template=str(template)).chat_template


def test_linked_folder_works(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert prepared(link).weights_sha256 == prepared(folder).weights_sha256


def test_errors_are_of_the_users_kind() -> None:
    assert issubclass(CheckpointError, InputError)
    assert InputError.exit_code == 2


def test_shard_that_is_missing_without_an_index_is_named(shards: Path) -> None:
    (shards / "model.safetensors.index.json").unlink()
    assert prepared(shards).folder == str(shards)
    sorted(shards.glob("*.safetensors"))[1].unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-0.*\(1 of \d+ shards"):
        prepared(shards)
