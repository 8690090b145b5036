"""Adapter for a complete Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.adapters.identity import (
    architecture_key,
    template_sha256,
    weight_files,
    weights_sha256,
)
from harness.errors import CheckpointError
from harness.files import atomic_folder, cache_root
from harness.types import CheckpointSpec, Loadable

HEAD_PREFIX = "baseline_head."
"""Prefix of TBPO-Q's training-only tensors, which no engine loads."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


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


def head_tensors(folder: Path) -> list[str]:
    """Return the names of TBPO-Q baseline-head tensors in a folder's weights."""
    names = [name for file in weight_files(folder) for name in _tensor_names(file)]
    return sorted(name for name in names if name.startswith(HEAD_PREFIX))


def _without_head(folder: Path, digest: str) -> Path:
    from safetensors.torch import load_file, save_file

    target = cache_root() / "stripped" / digest
    if target.is_dir():
        return target
    with atomic_folder(target) as scratch:
        for file in folder.iterdir():
            if file.is_file() and not file.name.startswith("model.safetensors.index"):
                if file.suffix != ".safetensors":
                    shutil.copy2(file, scratch / file.name)
                    continue
                kept = {k: v for k, v in load_file(file).items() if not k.startswith(HEAD_PREFIX)}
                if kept:
                    save_file(kept, scratch / file.name, metadata={"format": "pt"})
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
        dropped = head_tensors(folder)
        if not dropped:
            return describe(spec, folder, ())
        ready = _without_head(folder, weights_sha256(folder))
        return describe(spec, ready, (f"dropped training-only tensors: {', '.join(dropped)}",))
