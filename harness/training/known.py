"""Training data of a checkpoint that can be read here: named by the user, or by its manifest.

A folder that ``tbpo train`` made names its data by file name and SHA-256. Such a file is used
where its hash agrees: at the recorded path, beside the checkpoint, or in the folder that
``$TBPO_TRAINING_DATA`` names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.files import read_json, sha256_file
from harness.training.sources import FileSource, Source, resolve_source
from harness.types import CheckpointSpec

FOLDER = "TBPO_TRAINING_DATA"
"""Environment variable with a folder of training files."""

MANIFEST = "manifest.json"
GIVE = "give training_data="
NOT_KNOWN = f"nothing names its training data: {GIVE}"
HASH_SHOWN = 12


@dataclass(frozen=True)
class KnownData:
    """Where a checkpoint's training data are; without ``sources``, why they are not known."""

    sources: tuple[Source, ...] = ()
    reason: str | None = None


def known_data(spec: CheckpointSpec, folder: Path | None) -> KnownData:
    """Return a checkpoint's training data.

    Args:
        spec: ``training_data`` counts before what a manifest says.
        folder: where its weights are; None where they are not here.

    Raises:
        InputError: ``training_data`` names neither a file nor a hub data set.
    """
    if spec.training_data is not None:
        try:
            return KnownData(named_sources(spec.training_data))
        except InputError as error:
            raise InputError(f"'{spec.name}': training_data: {error}") from error
    entries = [] if folder is None else _recorded(folder)
    if folder is None or not entries:
        return KnownData(reason=NOT_KNOWN)
    found = [_found(entry, folder) for entry in entries]
    if absent := [source for source in found if isinstance(source, str)]:
        return KnownData(reason=f"the manifest names {' and '.join(absent)}: {GIVE}")
    return KnownData(tuple(source for source in found if not isinstance(source, str)))


def named_sources(text: str) -> tuple[Source, ...]:
    """Return the sources that ``text`` names, several with ``+`` between them.

    Raises:
        InputError: one is neither an existing file nor a hub id.
    """
    parts = [text] if Path(text).expanduser().is_file() else text.split("+")
    if not all(parts):
        raise InputError(f"'{text}' has an empty part; expected FILE or FILE+FILE")
    homes = (str(Path(part).expanduser()) if part.startswith("~") else part for part in parts)
    return tuple(resolve_source(part) for part in homes)


def _recorded(folder: Path) -> list[Mapping[str, Any]]:
    """Return what a training manifest in ``folder`` records of its data; none without one."""
    try:
        manifest = read_json(folder / MANIFEST)
    except InputError:
        return []
    data = manifest.get("data") if isinstance(manifest, dict) else None
    return [e for e in data if isinstance(e, dict)] if isinstance(data, list) else []


def _found(entry: Mapping[str, Any], folder: Path) -> Source | str:
    """Return the source that an entry of a manifest names, or what is not here in words."""
    name, sha256 = entry.get("file"), entry.get("sha256")
    if not isinstance(name, str) or not isinstance(sha256, str):
        split = f":{entry['split']}" if "split" in entry else ""
        return f"{entry.get('dataset', 'data without a name')}{split}, which is no file here"
    there = [path for path in _places(Path(name), folder) if path.is_file()]
    for path in there:
        if sha256_file(path) == sha256:
            return FileSource(path)
    what = "which is here with other content" if there else "which is not here"
    return f"{name} (sha256 {sha256[:HASH_SHOWN]}), {what}"


def _places(recorded: Path, folder: Path) -> Iterator[Path]:
    yield recorded
    yield folder / recorded.name
    if chosen := os.environ.get(FOLDER):
        yield Path(chosen).expanduser() / recorded.name
