"""Hashes that say which checkpoint a folder holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.errors import CheckpointError
from harness.files import cache_root, read_json, sha256_file, sha256_json, write_atomic

SHAPE_KEYS = (
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "rope_parameters",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "sliding_window",
    "quantization_config",
)
"""Configuration entries that decide whether two checkpoints can share one engine."""


TOKENIZER_PARTS = ("model", "added_tokens", "normalizer", "pre_tokenizer", "decoder")
"""Parts of a tokenizer.json that decide token ids and text."""


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a Hugging Face folder, sorted by name."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} has no *.safetensors file. Give a folder written by save_pretrained."
        )
    return files


def _stat_key(files: list[Path]) -> str:
    facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return sha256_json(facts)


def _hash_bytes(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.name.encode())
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def weights_sha256(folder: Path) -> str:
    """Return a hash over the names and bytes of a folder's safetensors files.

    The result is remembered in the cache under each file's path, size and modification time, so
    that an unchanged folder of many gigabytes is read once.
    """
    files = weight_files(folder)
    memo = cache_root() / "hashes" / f"{_stat_key(files)}.json"
    if memo.is_file():
        return str(read_json(memo)["sha256"])
    value = _hash_bytes(files)
    write_atomic(memo, json.dumps({"sha256": value, "files": [str(f) for f in files]}))
    return value


def model_config(folder: Path) -> Any:
    """Return a folder's configuration as transformers reads it.

    It fills in defaults and brings the forms of its earlier versions to one.

    Raises:
        CheckpointError: the model type is unknown or a setting is wrong.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # each model type's own checks raise what they like
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {error}") from error


def end_tokens(folder: Path) -> Any:
    """Return the end-of-sequence id or ids that an engine stops at, as it reads them."""
    generation = folder / "generation_config.json"
    found = read_json(generation).get("eos_token_id") if generation.is_file() else None
    return found if found is not None else getattr(model_config(folder), "eos_token_id", None)


def tokenizer_sha256(folder: Path) -> str:
    """Return a hash over what a tokenizer does, whatever the layout of its file.

    Raises:
        CheckpointError: the folder has no tokenizer file.
    """
    fast = folder / "tokenizer.json"
    if fast.is_file():
        content = read_json(fast)
        return sha256_json({key: content.get(key) for key in TOKENIZER_PARTS})
    for name in ("tokenizer.model", "vocab.json"):
        if (folder / name).is_file():
            return sha256_file(folder / name)
    raise CheckpointError(f"{folder} has no tokenizer; save the tokenizer into it.")


def architecture_key(folder: Path) -> str:
    """Return a hash over what must agree for two checkpoints to share one engine.

    Shapes and arithmetic of the model, and the tokenizer and end tokens, which an engine takes
    from the checkpoint it starts on.
    """
    config = model_config(folder)
    facts = {key: _plain(getattr(config, key, None)) for key in SHAPE_KEYS}
    facts |= {"tokenizer": tokenizer_sha256(folder), "end_tokens": end_tokens(folder)}
    return sha256_json(facts)


def _plain(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else value


def template_text(folder: Path) -> str | None:
    """Return the chat template stored in a folder, or None where it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        template = read_json(settings).get("chat_template")
        return template if isinstance(template, str) else None
    return None


def template_sha256(folder: Path) -> str:
    """Return the hash of a folder's chat template.

    Raises:
        CheckpointError: the folder has no chat template, so prompts cannot be rendered.
    """
    template = template_text(folder)
    if template is None:
        raise CheckpointError(
            f"{folder} has no chat template (chat_template.jinja or tokenizer_config.json). "
            "Save the tokenizer that the checkpoint was trained with into the folder."
        )
    return hashlib.sha256(template.encode()).hexdigest()
