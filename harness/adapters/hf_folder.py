"""Adapter for a complete Hugging Face folder."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from harness.adapters.finite import check_finite
from harness.adapters.identity import (
    INDEX,
    architecture_key,
    check_vocabulary,
    loaded_files,
    read_object,
    reading,
    tokenizer_sha256,
    weight_files,
    weight_map,
    weights_sha256,
)
from harness.adapters.templates import choose_template
from harness.adapters.tensors import load_tensors, tensor_names
from harness.errors import CheckpointError
from harness.files import atomic_folder, cache_root, sha256_file, sha256_json
from harness.types import BaseWeights, CheckpointSpec, Loadable

HEAD_PREFIX = "baseline_head."
"""Prefix of TBPO-Q's training-only tensors, which no engine loads."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")

SHARD = re.compile(r"(?P<start>.*-)\d{5}-of-(?P<total>\d{5})\.safetensors")
"""How save_pretrained names the parts of a model."""
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
    check_index(folder)


def check_index(folder: Path) -> None:
    """Check that a folder's index, where it has one, names tensors that are in its shards.

    Raises:
        CheckpointError: there is no weight file, a shard or a tensor of the index is missing, or
            without an index a shard of those that the others count.
    """
    files = weight_files(folder)
    held = {file.name: set(tensor_names(file)) for file in files}
    if not (folder / INDEX).exists():
        _check_numbers(folder, files)
    for tensor, shard in weight_map(folder).items():
        if shard not in held:
            raise CheckpointError(
                f"{folder / INDEX} names the shard {shard}, which is not there. Copy it again."
            )
        if tensor not in held[shard]:
            raise CheckpointError(
                f"{folder / shard} lacks tensor '{tensor}', which {INDEX} places there. Index and "
                "shards are of different saves: copy the checkpoint again."
            )


def _check_numbers(folder: Path, files: Iterable[Path]) -> None:
    """Check that of shards numbered 1 to n none is missing.

    Raises:
        CheckpointError: names the first that is.
    """
    there = {file.name for file in files}
    for name in sorted(there):
        if found := SHARD.fullmatch(name):
            start, total = found["start"], int(found["total"])
            names = [f"{start}{i:05}-of-{total:05}.safetensors" for i in range(1, total + 1)]
            if missing := [n for n in names if n not in there]:
                raise CheckpointError(
                    f"{folder} has {name} and lacks {missing[0]} ({len(missing)} of {total} "
                    "shards are missing). Copy it again."
                )


def head_tensors(files: Iterable[Path]) -> list[str]:
    """Return the names of TBPO-Q's baseline-head tensors in ``files``."""
    names = [name for file in files for name in tensor_names(file)]
    return sorted(name for name in names if name.startswith(HEAD_PREFIX))


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


def cached_folder(
    kind: str,
    companions: Mapping[str, Path],
    facts: Iterable[object],
    write: Callable[[Path], None],
) -> Path:
    """Return a prepared folder from the cache; made the first time, whole or not at all.

    Args:
        kind: folder of the cache for such folders.
        companions: files that belong in it, by the name they have there.
        facts: what else decides its content.
        write: writes the rest into the folder it is given; companions that it writes itself are
            not copied.

    Raises:
        CheckpointError: there is no room for it.
    """
    target = cache_root() / kind / cache_key(companions, *facts)
    if target.is_dir():
        return target
    with _writing(target), atomic_folder(target) as scratch:
        write(scratch)
        for name, file in companions.items():
            if not (scratch / name).exists():
                shutil.copy2(file, scratch / name)
    return target


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turn a full disk under the block into a CheckpointError that says whose disk it is."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        full = isinstance(error, SafetensorError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full:
            raise
        raise CheckpointError(
            f"{target} cannot be written: {error}. Make room there, or set TBPO_CACHE to a folder "
            "on a larger disk."
        ) from error


def _save_without_head(file: Path, target: Path) -> None:
    from safetensors.torch import save_file

    kept = {k: v for k, v in load_tensors(file).items() if not k.startswith(HEAD_PREFIX)}
    if kept:
        save_file(kept, target, metadata={"format": "pt"})


def _index_without_head(file: Path, target: Path) -> None:
    index = read_object(file)
    places = weight_map(file.parent).items()
    kept = {name: shard for name, shard in places if not name.startswith(HEAD_PREFIX)}
    target.write_text(json.dumps(index | {"weight_map": kept}), encoding="utf-8")


def _without_head(folder: Path) -> Path:
    files = companions(folder)

    def write(target: Path) -> None:
        for file in weight_files(folder):
            _save_without_head(file, target / file.name)
        if INDEX in files:
            _index_without_head(files[INDEX], target / INDEX)

    return cached_folder("stripped", files, [weights_sha256(folder)], write)


def describe(
    spec: CheckpointSpec,
    folder: Path,
    notes: tuple[str, ...] = (),
    *,
    base: BaseWeights | None = None,
    lora: Path | None = None,
) -> Loadable:
    """Return the record of a checkpoint made ready for an engine, after every check of it.

    The one place that makes such a record, whatever form the checkpoint came in.

    Args:
        spec: what the user asked for.
        folder: a folder with config, safetensors and tokenizer.
        notes: what was done to get there, in words.
        base: what an adapter was put on, if the checkpoint is one.
        lora: folder of an adapter that the engine is to apply to ``folder``.

    Raises:
        CheckpointError: a part is missing or broken, weights are not finite, the tokenizer does
            not fit the model, or there is no usable chat template.
    """
    check_folder(folder)
    check_vocabulary(folder)
    template = choose_template(spec, folder, lora)
    weights = weights_sha256(folder, lora)
    check_finite(loaded_files(folder, lora), weights)
    return Loadable(
        spec=spec,
        folder=str(folder),
        weights_sha256=weights,
        architecture=architecture_key(folder),
        template_sha256=template.sha256,
        tokenizer_sha256=tokenizer_sha256(folder),
        chat_template=template.override,
        base=base,
        lora=None if lora is None else str(lora),
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
        with reading(folder):
            ready, dropped = ready_folder(folder)
            return describe(spec, ready, dropped_note(dropped))


def ready_folder(folder: Path) -> tuple[Path, list[str]]:
    """Return a complete folder that an engine can load, and the tensors that were left out of it.

    Raises:
        CheckpointError: a part of the folder is missing or unreadable.
    """
    check_folder(folder)
    dropped = head_tensors(weight_files(folder))
    return (_without_head(folder) if dropped else folder), dropped
