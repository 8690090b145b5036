"""What a folder holds, as hashes, and whether its parts belong together."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import CheckpointError
from harness.files import cache_root, read_json, sha256_file, sha256_json, write_atomic
from harness.types import Form, Loadable

IDLE_KEYS = {
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
}
"""Entries of a configuration that change nothing of what a model computes when it is asked. Dtype
and end tokens do: they are looked at elsewhere."""

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"

TOKENIZER_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "decoder")
"""Parts of a tokenizer.json that, beside its model, decide token ids and text."""

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

TEMPLATE = "chat_template.jinja"

TOKENIZER = (
    "added_tokens.json",
    TEMPLATE,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""Files of a tokenizer that an adapter may be saved with."""

DECISIVE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files that the architecture key is taken from."""


@contextmanager
def reading(place: Path | str) -> Iterator[None]:
    """Turn an operating system's refusal inside the block into a CheckpointError.

    Raises:
        CheckpointError: names ``place`` and what the system said (no permission, a loop of links).
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{place} cannot be read: {error}") from error


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in ``file``.

    Raises:
        DataError: not valid JSON; file and line are named.
        CheckpointError: valid JSON, but no object.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        found = type(value).__name__
        raise CheckpointError(f"{file} holds a JSON {found}, not an object; save it again.")
    return value


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a Hugging Face folder, sorted by name.

    Where it has an index, those that the index names, and ``model.safetensors``, which
    transformers prefers: another copy beside them (Mistral's ``consolidated.safetensors``) is not
    loaded.

    Raises:
        CheckpointError: there is none, or one is a folder or a link that leads nowhere.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} has no *.safetensors file. Give a folder written by save_pretrained."
        )
    if (folder / INDEX).is_file():
        named = set(weight_map(folder).values())
        files = [f for f in files if f.name in named or f.name == WHOLE] or files
    return [_regular(file) for file in files]


def weight_map(folder: Path) -> dict[str, str]:
    """Return tensor name -> shard of a folder's index; empty where it has no index.

    Raises:
        CheckpointError: the index is broken.
    """
    file = folder / INDEX
    if not file.exists() and not file.is_symlink():
        return {}
    found = read_object(file).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(s, str) for s in found.values()):
        raise CheckpointError(f"{file} has no weight_map from tensor names to shards.")
    return found


def _regular(file: Path) -> Path:
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "a link that leads nowhere"
        raise CheckpointError(f"{file} is not a file but {kind}; put the weight file there.")
    return file


def loaded_files(folder: Path, lora: Path | None = None) -> list[Path]:
    """Return the files that an engine loads weights from: the folder's, then the adapter's.

    Raises:
        CheckpointError: one is missing.
    """
    files = weight_files(folder)
    return files if lora is None else [*files, lora / ADAPTER_CONFIG, adapter_weights(lora)]


def adapter_weights(lora: Path) -> Path:
    """Return the file of an adapter folder's tensors; CheckpointError where it has none."""
    for name in ADAPTER_WEIGHTS:
        if (lora / name).is_file():
            return lora / name
    raise CheckpointError(f"{lora} has no {' or '.join(ADAPTER_WEIGHTS)}; save the adapter.")


def own_tokenizer(folder: Path) -> dict[str, Path]:
    """Return the tokenizer files of an adapter folder, if it was saved with a whole tokenizer."""
    found = {name: folder / name for name in TOKENIZER if (folder / name).is_file()}
    return found if {"tokenizer.json", "tokenizer_config.json"} <= found.keys() else {}


def _stat_key(files: Sequence[Path]) -> str:
    facts = [(os.path.realpath(f), f.stat()) for f in files]
    return sha256_json([(p, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p, s in facts])


def _hash_bytes(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.name.encode())
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def weights_sha256(folder: Path, lora: Path | None = None) -> str:
    """Return a hash over the names and bytes of the weight files that are loaded.

    Those are the folder's safetensors files and, where an engine applies an adapter, the
    adapter's weights and configuration. The result is remembered in the cache under each file's
    path, size and times, so that an unchanged folder of many gigabytes is read once.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    with reading(folder):
        return files_sha256(loaded_files(folder, lora))


def files_sha256(files: Sequence[Path]) -> str:
    """Return a hash over names and bytes of ``files``, remembered as ``weights_sha256`` says."""
    memo = cache_root() / "hashes" / f"{_stat_key(files)}.json"
    if memo.is_file():
        return str(read_json(memo)["sha256"])
    value = _hash_bytes(files)
    write_atomic(memo, json.dumps({"sha256": value, "files": [str(f) for f in files]}))
    return value


def verify_unchanged(checkpoint: Loadable) -> None:
    """Check that a checkpoint's weights and configuration are still those of its record.

    Cheap where nothing was touched: an unchanged file is recognised by its size and times.

    Raises:
        CheckpointError: files were changed, replaced or removed since the checkpoint was prepared.
    """
    if checkpoint.form is not Form.WEIGHTS:
        return
    lora = None if checkpoint.lora is None else Path(checkpoint.lora)
    found = weights_sha256(Path(checkpoint.folder), lora)
    if found != checkpoint.weights_sha256:
        place = checkpoint.folder if lora is None else f"{checkpoint.folder} or {lora}"
        raise CheckpointError(
            f"'{checkpoint.spec.name}': the weights in {place} changed since the run began: their "
            f"hash was {checkpoint.weights_sha256[:12]} and is {found[:12]}. Answers of both would "
            "be mixed; put the weights back, or start a new run once nothing writes there."
        )
    if architecture_key(Path(checkpoint.folder)) != checkpoint.architecture:
        raise CheckpointError(
            f"'{checkpoint.spec.name}': the configuration or the tokenizer in {checkpoint.folder} "
            "changed since the run began. Put it back, or start a new run."
        )


def model_config(folder: Path) -> Any:
    """Return a folder's configuration as transformers reads it.

    It fills in defaults and brings the forms of its earlier versions to one.

    Raises:
        CheckpointError: the model type is unknown or a setting is wrong.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each model type's own checks raise what they like
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def end_tokens(folder: Path) -> Any:
    """Return the end-of-sequence id or ids that an engine stops at, as it reads them."""
    generation = folder / "generation_config.json"
    found = read_object(generation).get("eos_token_id") if generation.is_file() else None
    return found if found is not None else getattr(model_config(folder), "eos_token_id", None)


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a checkpoint folder; code that travels with it is never run.

    Raises:
        CheckpointError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read: {_line(error)}"
        ) from error


def embedding_rows(folder: Path) -> int | None:
    """Return how many tokens a model has embeddings for; None where its config does not say."""
    return getattr(model_config(folder).get_text_config(), "vocab_size", None)


def check_vocabulary(folder: Path) -> None:
    """Check that every token of the tokenizer has a row in the model's embedding.

    Special tokens that its chat template does not name may lie beyond (Gemma 3's placeholder for
    images); a prompt that holds one all the same is refused when it is rendered.

    Raises:
        CheckpointError: names a token beyond the model's vocabulary and counts them.
    """
    rows = embedding_rows(folder)
    tokenizer = read_tokenizer(folder)
    vocabulary = tokenizer.get_vocab()
    beyond = {i: token for token, i in vocabulary.items() if rows is not None and i >= rows}
    if beyond and not _idle(beyond, tokenizer, template_text(folder) or ""):
        raise CheckpointError(
            f"{folder}: vocabulary mismatch: the model has vocab_size {rows} (config.json), but "
            f"{len(beyond)} tokens of its tokenizer lie beyond, the first '{beyond[min(beyond)]}' "
            f"with id {min(beyond)}. Save the tokenizer that the checkpoint was trained with."
        )


def _idle(tokens: dict[int, str], tokenizer: Any, template: str) -> bool:
    """Whether all of some tokens are special ones that neither template nor end of text uses."""
    used = {tokenizer.bos_token, tokenizer.eos_token}
    added = tokenizer.added_tokens_decoder
    return all(
        i in added and added[i].special and token not in used and token not in template
        for i, token in tokens.items()
    )


def tokenizer_sha256(folder: Path) -> str:
    """Return a hash over what a tokenizer does, whatever the layout of its file.

    Raises:
        CheckpointError: the folder has no tokenizer file.
    """
    fast = folder / "tokenizer.json"
    if fast.is_file():
        content = read_object(fast)
        parts = {key: content.get(key) for key in TOKENIZER_PARTS}
        return sha256_json(parts | {"model": _one_layout(content.get("model"))})
    for name in ("tokenizer.model", "vocab.json"):
        if (folder / name).is_file():
            return sha256_file(folder / name)
    raise CheckpointError(f"{folder} has no tokenizer; save the tokenizer into it.")


def _one_layout(model: Any) -> Any:
    """Return a tokenizer's model with each merge as a pair; older writers joined it by a space."""
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        return model
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    return model | {"merges": pairs}


def architecture_key(folder: Path) -> str:
    """Return a hash over what must agree for two checkpoints to share one engine.

    The configuration, but for what is known to be idle, and the tokenizer and the end tokens of
    both: an engine takes all of these from the checkpoint it starts on.
    """
    files = [file for name in DECISIVE if (file := folder / name).is_file()]
    return _architecture(folder, _stat_key(files))


@cache
def _architecture(folder: Path, _: str) -> str:
    """Return the architecture key of a folder whose files have the given sizes and times."""
    facts = {
        "config": _without_idle(json.loads(model_config(folder).to_json_string(use_diff=False))),
        "tokenizer": tokenizer_sha256(folder),
        "tokenizer_end": read_tokenizer(folder).eos_token_id,
        "end_tokens": end_tokens(folder),
    }
    return sha256_json(facts)


def _without_idle(value: Any) -> Any:
    """Return a configuration without the entries, at any depth, that decide nothing."""
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if k not in IDLE_KEYS and not k.startswith("_")}
    return {key: _without_idle(held) for key, held in kept.items()}


def template_text(folder: Path) -> str | None:
    """Return the chat template stored in a folder, or None where it has none.

    Of several named templates it is the one called ``default``, which transformers takes.
    """
    file = folder / TEMPLATE
    if file.is_file():
        return read_text(file)
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return None
    template = read_object(settings).get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def read_text(file: Path) -> str:
    """Return the text of a UTF-8 file; CheckpointError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def own_template(folder: Path) -> str:
    """Return the chat template stored in a folder.

    Raises:
        CheckpointError: the folder has no chat template, so prompts cannot be rendered.
    """
    template = template_text(folder)
    if template is None:
        raise CheckpointError(
            f"{folder} has no chat template (chat_template.jinja or tokenizer_config.json). Save "
            "the tokenizer that the checkpoint was trained with into the folder, or name a "
            "template: chat_template=FILE, or chat_template=FOLDER for that of another checkpoint."
        )
    return template


def template_sha256(folder: Path) -> str:
    """Return the hash of a folder's own chat template; CheckpointError where it has none."""
    return text_sha256(own_template(folder))


def text_sha256(text: str) -> str:
    """Return the hexadecimal SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
