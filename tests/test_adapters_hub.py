"""Hub ids: what is fetched from a stand-in hub, and what is said where nothing can be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import Hub, point_client, serve
from tiny_checkpoints import edit_json, save_llama, save_lora

from harness.adapters import hub as hub_adapter
from harness.adapters import locate, prepare, recognise, resolve
from harness.adapters.identity import weights_sha256
from harness.errors import CheckpointError
from harness.training.base import model_folder
from harness.types import CheckpointSpec, Loadable

BASE = "org/tiny-llama"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "llama", tokenizer_folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama: Path) -> Iterator[Hub]:
    """A hub with one model, to which the client is pointed."""
    hub = Hub()
    hub.add(BASE, llama)
    with serve(hub):
        point_client(hub, monkeypatch, tmp_path)
        monkeypatch.chdir(tmp_path)
        yield hub


def prepared(source: Path | str, **fields: Any) -> Loadable:
    return prepare(CheckpointSpec(name="x", source=str(source), **fields))


def test_repository_is_fetched_and_its_commit_noted(hub: Hub, llama: Path) -> None:
    found = prepared(BASE)
    assert found.weights_sha256 == weights_sha256(llama)
    assert found.spec.source == BASE
    commit = hub.commit(BASE, "main")
    assert f"hub repository {BASE} at commit {commit}" in found.notes
    assert locate(BASE).commit == commit
    assert recognise(BASE) == "hf_folder"
    assert Path(resolve(found.spec).source).name == commit


def test_second_time_nothing_is_fetched(hub: Hub) -> None:
    first = prepared(BASE)
    asked = len(hub.asked)
    assert asked > 0
    assert prepared(BASE) == first
    assert len(hub.asked) == asked


def test_revision_is_taken(hub: Hub, tokenizer_folder: Path, tmp_path: Path) -> None:
    other = save_llama(tmp_path / "other", tokenizer_folder, seed=1)
    commit = hub.add(BASE, other, "step-100")
    for revision in ("step-100", commit):
        found = prepared(f"{BASE}@{revision}")
        assert found.weights_sha256 == weights_sha256(other)
        assert commit in found.notes[0]
    assert prepared(BASE).weights_sha256 != weights_sha256(other)


def test_moved_revision_is_seen(hub: Hub, tokenizer_folder: Path, tmp_path: Path) -> None:
    first = prepared(BASE)
    hub.add(BASE, save_llama(tmp_path / "other", tokenizer_folder, seed=1))
    second = prepared(BASE)
    assert first.weights_sha256 != second.weights_sha256
    assert first.notes != second.notes


def test_neither_code_nor_copies_of_the_weights_are_fetched(
    hub: Hub, llama: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "full"))
    unwanted = ["pytorch_model.bin", "modeling_own.py", "model.onnx", "consolidated.safetensors"]
    (folder / "original").mkdir()
    for name in [*unwanted, "original/model.safetensors"]:
        (folder / name).write_text("not to be fetched")
    hub.add("org/full", folder)
    prepared("org/full")
    names = set(hub.fetched())
    assert "model.safetensors" in names
    assert "tokenizer.json" in names
    assert not names & {*unwanted, "original/model.safetensors"}


def test_path_that_exists_is_not_asked_of_a_hub(hub: Hub, llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "org" / "tiny-llama")
    assert prepared(BASE).folder == BASE
    assert hub.asked == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", True),
        ("org/name@main", True),
        ("org-1/na.me_2@refs/pr/3", True),
        ("org/name@", False),
        ("/org/name", False),
        ("./org/name", False),
        ("~/org/name", False),
        ("org/name/more", False),
        ("name", False),
        ("runs/policy.pt", False),
        ("runs/answers.jsonl.gz", False),
        ("http://host/v1", False),
    ],
)
def test_what_is_meant_as_a_hub_id(source: str, expected: bool) -> None:
    assert hub_adapter.is_hub_id(source) is expected


def test_unknown_repository_and_revision_are_said(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=rf"'org/gone' is no path.*{hub.url} shows no such"):
        prepared("org/gone")
    with pytest.raises(CheckpointError, match=rf"'{BASE}@v9'.*has no revision 'v9'"):
        prepared(f"{BASE}@v9")


def test_gated_repository_says_how_to_get_in(hub: Hub) -> None:
    hub.gated.add("org/closed")
    with pytest.raises(CheckpointError, match=r"'org/closed' is gated .*hf auth login"):
        prepared("org/closed")


def test_without_a_hub_the_cache_must_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    first = prepared(BASE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert prepared(BASE) == first
    with pytest.raises(CheckpointError, match=r"'org/other' is no path.*cannot be reached"):
        prepared("org/other")


def test_adapter_and_its_base_may_both_be_hub_ids(hub: Hub, llama: Path, tmp_path: Path) -> None:
    lora = save_lora(tmp_path / "lora", llama)
    expected = prepared(lora).weights_sha256
    edit_json(lora / "adapter_config.json", base_model_name_or_path=BASE)
    hub.add("org/lora", lora)
    found = prepared("org/lora")
    assert found.weights_sha256 == expected
    assert found.base is not None
    assert found.base.weights_sha256 == weights_sha256(llama)
    assert any(f"base: hub repository {BASE} at commit" in note for note in found.notes)


def test_adapters_recorded_revision_of_its_base_is_taken(
    hub: Hub, llama: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    lora = save_lora(tmp_path / "lora", llama)
    edit_json(lora / "adapter_config.json", base_model_name_or_path=BASE, revision="old")
    other = save_llama(tmp_path / "other", tokenizer_folder, seed=1)
    hub.add(BASE, other, "old")
    for fields, expected in [({}, other), ({"base": BASE}, llama)]:
        found = prepared(lora, **fields)
        assert found.base is not None
        assert found.base.weights_sha256 == weights_sha256(expected)


def test_repository_with_an_adapter_as_bin_is_taken(hub: Hub, llama: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    lora = save_lora(tmp_path / "lora", llama)
    expected = prepared(lora).weights_sha256
    torch.save(load_file(lora / "adapter_model.safetensors"), lora / "adapter_model.bin")
    (lora / "adapter_model.safetensors").unlink()
    hub.add("org/lora", lora)
    assert prepared("org/lora").weights_sha256 == expected


def test_only_gguf_of_a_repository_is_fetched_and_of_several_none(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "quantised"
    folder.mkdir()
    (folder / "a.Q4_0.gguf").write_bytes(b"no model")
    hub.add("org/quantised", folder)
    assert recognise("org/quantised") == "gguf"
    with pytest.raises(CheckpointError, match=r"a\.Q4_0\.gguf is not a whole GGUF file"):
        prepared("org/quantised")
    (folder / "b.Q8_0.gguf").write_bytes(b"no model")
    hub.add("org/several", folder)
    with pytest.raises(CheckpointError, match=r"2 GGUF files \(a\.Q4_0\.gguf, b\.Q8_0\.gguf\)"):
        prepared("org/several")
    assert hub.fetched() == ["a.Q4_0.gguf"]


def test_repository_without_weights_lists_what_it_has(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"pickle")
    hub.add("org/old", tmp_path / "old")
    with pytest.raises(CheckpointError, match=r"no weights as safetensors.*pytorch_model\.bin"):
        prepared("org/old")


def test_training_starts_from_a_hub_id_but_not_from_answers(
    hub: Hub, llama: Path, tmp_path: Path
) -> None:
    assert weights_sha256(model_folder(BASE)) == weights_sha256(llama)
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([{"instruction": "a", "output": "b", "generator": "m"}]))
    with pytest.raises(CheckpointError, match="it has no weights here"):
        model_folder(str(answers))


def test_endpoint_of_the_environment_is_asked(hub: Hub, tmp_path: Path) -> None:
    code = "import sys; from harness.adapters import locate; print(locate(sys.argv[1]).commit)"
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code, BASE],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == hub.commit(BASE, "main")
    assert list((tmp_path / "home").rglob("model.safetensors"))
