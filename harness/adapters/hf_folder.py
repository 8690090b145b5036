"""Adapter for a complete Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.adapters.identity import (
    architecture_key,
    template_sha256,
    weight_files,
    weights_sha256,
)
from harness.errors import CheckpointError
from harness.files import atomic_folder, cache_root, read_json, sha256_file, sha256_json
from harness.types import CheckpointSpec, Loadable

HEAD_PREFIX = "baseline_head."
"""Prefix of TBPO-Q's training-only tensors, which no engine loads."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")

INDEX = "model.safetensors.index.json"
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".msgpack", ".h5"}


def check_folder(folder: Path) -> None:
    """Check that ``folder`` is a Hugging Face checkpoint with weights, config and tokenizer.

    Raises:
        CheckpointError: the folder or one of its parts is missing.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint folder {folder} does not exist. Give a folder written by "
            "save_pretrained, a PEFT adapter folder, or embedded:NAME."
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; it is not a Hugging Face checkpoint.")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(f"{folder} has no tokenizer; save the tokenizer into it.")
    weight_files(folder)


def _tensor_names(file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error


def load_tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file by name; CheckpointError where it is broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error


def head_tensors(files: Iterable[Path], prefix: str = "") -> list[str]:
    """Return the names of TBPO-Q's baseline-head tensors, each behind ``prefix``, in ``files``."""
    names = [name for file in files for name in _tensor_names(file)]
    return sorted(name for name in names if name.removeprefix(prefix).startswith(HEAD_PREFIX))


def dropped_note(names: list[str]) -> tuple[str, ...]:
    """Return what to say in a checkpoint's notes about tensors that were left out."""
    return (f"dropped training-only tensors: {', '.join(names)}",) if names else ()


def companions(folder: Path) -> dict[str, Path]:
    """Return the files beside the weights by name: configuration, tokenizer, template, index."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file())
    return {path.name: path for path in files if path.suffix not in WEIGHT_SUFFIXES}


def cache_key(companions: Mapping[str, Path], *facts: object) -> str:
    """Return the name of a prepared folder in the cache: every byte that goes into it counts."""
    return sha256_json([{name: sha256_file(file) for name, file in companions.items()}, *facts])


def _save_without_head(file: Path, target: Path) -> None:
    from safetensors.torch import save_file

    kept = {k: v for k, v in load_tensors(file).items() if not k.startswith(HEAD_PREFIX)}
    if kept:
        save_file(kept, target, metadata={"format": "pt"})


def _index_without_head(file: Path, target: Path) -> None:
    index = read_json(file)
    places = index["weight_map"].items()
    kept = {name: shard for name, shard in places if not name.startswith(HEAD_PREFIX)}
    target.write_text(json.dumps(index | {"weight_map": kept}), encoding="utf-8")


def _without_head(folder: Path) -> Path:
    files = companions(folder)
    target = cache_root() / "stripped" / cache_key(files, weights_sha256(folder))
    if target.is_dir():
        return target
    with atomic_folder(target) as scratch:
        for file in weight_files(folder):
            _save_without_head(file, scratch / file.name)
        for name, file in files.items():
            copy = _index_without_head if name == INDEX else shutil.copy2
            copy(file, scratch / name)
    return target


def describe(spec: CheckpointSpec, folder: Path, notes: tuple[str, ...]) -> Loadable:
    """Return the loadable record of an engine-ready folder."""
    return Loadable(
        spec=spec,
        folder=str(folder),
        weights_sha256=weights_sha256(folder),
        architecture=architecture_key(folder),
        template_sha256=template_sha256(folder),
        notes=notes,
    )


class HfFolder:
    """A folder written by ``save_pretrained``; TBPO-Q's ``baseline_head.*`` tensors are dropped."""

    def prepare(self, spec: CheckpointSpec) -> Loadable:
        """Return the checkpoint ready for an engine.

        Raises:
            CheckpointError: a part of the folder is missing or unreadable.
        """
        folder = Path(spec.source).expanduser()
        check_folder(folder)
        dropped = head_tensors(weight_files(folder))
        ready = _without_head(folder) if dropped else folder
        return describe(spec, ready, dropped_note(dropped))
