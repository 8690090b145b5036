"""Adapter for a GGUF file: dequantised once into a Hugging Face folder, and kept in the cache."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from harness.adapters.hf_folder import describe
from harness.adapters.identity import files_sha256, read_object, reading
from harness.errors import CheckpointError
from harness.files import atomic_folder, cache_root
from harness.types import CheckpointSpec, Loadable

CONVERSION_VERSION = 1
"""Raised whenever the conversion's result changes, so that no old one is reused."""

UNQUANTISED = {"F32": "float32", "F16": "float16"}
"""Types of matrices that are kept as they are; all others become bfloat16."""


def holds_only_gguf(folder: Path) -> bool:
    """Return whether a folder's weights are GGUF and not safetensors."""
    return any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors"))


def gguf_file(source: Path) -> Path:
    """Return the GGUF file that ``source`` is, or the only one in that folder.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    if source.is_file():
        return source
    files = sorted(source.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if not files:
        raise CheckpointError(f"{source} does not exist, or has no GGUF file.")
    names = ", ".join(file.name for file in files)
    raise CheckpointError(f"{source} has {len(files)} GGUF files ({names}); give the path of one.")


def quantisation(file: Path) -> str:
    """Return the type of most of a file's matrices in GGUF's terms, such as ``Q4_1`` or ``F16``.

    Raises:
        CheckpointError: the file is cut off or damaged, one part of several, or without matrices.
    """
    reader = _read(file)
    parts = reader.get_field("split.count")
    if parts is not None and int(parts.contents()) > 1:
        raise CheckpointError(
            f"{file} is one of {parts.contents()} parts. Join them first: "
            "llama-gguf-split --merge FIRST_PART OUTPUT."
        )
    types = Counter(str(t.tensor_type.name) for t in reader.tensors if len(t.shape) > 1)
    if not types:
        raise CheckpointError(f"{file} holds no weight matrices; is it a model?")
    return types.most_common(1)[0][0]


def _read(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except Exception as error:  # damaged bytes surface as whatever the reader trips over
        raise CheckpointError(
            f"{file} is not a whole GGUF file ({' '.join(str(error).split())[:200]}); copy it "
            "again."
        ) from error


def stored_dtype(kind: str) -> str:
    """Return the dtype that matrices of a GGUF type are written in."""
    return UNQUANTISED.get(kind, "bfloat16")


def dequantise(file: Path, target: Path, dtype: str = "bfloat16") -> None:
    """Write a GGUF file's model and tokenizer into the folder ``target``, in ``dtype``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place = str(file.parent)
    loaded = AutoModelForCausalLM.from_pretrained(
        place,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, dtype),
    )
    loaded.save_pretrained(target, safe_serialization=True)
    AutoTokenizer.from_pretrained(place, gguf_file=file.name).save_pretrained(target)
    _keep_tokens(target / "tokenizer.json", _token_count(file))


def _token_count(file: Path) -> int | None:
    tokens = _read(file).get_field("tokenizer.ggml.tokens")
    return None if tokens is None else len(tokens.data)


def _keep_tokens(file: Path, count: int | None) -> None:
    """Take out of a tokenizer.json the added tokens whose ids are not below ``count``.

    transformers' converter gives every byte-level vocabulary an ``<|endoftext|>``. Where the GGUF
    file has none, as in Llama 3, its id lies beyond the model's embedding.
    """
    content = read_object(file)
    kept = [t for t in content["added_tokens"] if count is None or t["id"] < count]
    if kept != content["added_tokens"]:
        text = json.dumps(content | {"added_tokens": kept}, ensure_ascii=False, indent=2)
        file.write_text(text, encoding="utf-8")


def converted(file: Path, kind: str) -> Path:
    """Return the cached Hugging Face folder of a GGUF file whose matrices are of type ``kind``.

    Raises:
        CheckpointError: transformers does not know the architecture or the quantisation.
    """
    name = f"gguf-{files_sha256([file])}-{CONVERSION_VERSION}"
    target = cache_root() / "converted" / name
    if target.is_dir():
        return target
    with atomic_folder(target) as folder:
        try:
            dequantise(file, folder, stored_dtype(kind))
        except Exception as error:  # each architecture's own checks raise what they like
            raise CheckpointError(
                f"{file} ({kind}) cannot be converted: {' '.join(str(error).split())[:300]}"
            ) from error
    return target


def gguf_folder(source: Path) -> tuple[Path, str]:
    """Return the converted folder of a GGUF file or of a folder with one, and what to say of it."""
    with reading(source):
        file = gguf_file(source)
        kind = quantisation(file)
        note = f"GGUF {kind} written out in {stored_dtype(kind)}"
        return converted(file, kind), note


class Gguf:
    """A GGUF file, or a folder with exactly one."""

    def prepare(self, spec: CheckpointSpec) -> Loadable:
        """Return the checkpoint ready for an engine.

        Raises:
            CheckpointError: the file is missing, damaged, or cannot be converted.
        """
        folder, note = gguf_folder(Path(spec.source).expanduser())
        return describe(spec, folder, (note,))
