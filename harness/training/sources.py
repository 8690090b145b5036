"""Where rows of preference data come from: files, and splits of data sets on the Hugging Face hub.

Rows come lazily, each with its place, so that an error and a skipped pair can say where to look.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from harness.errors import DataError, InputError
from harness.files import sha256_file

_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<split>[^\s:/]+))?")
_FILE_SUFFIXES = (".jsonl", ".json", ".gz", ".parquet")
_COMMIT = re.compile(r"[0-9a-f]{40}")

Row = tuple[str, Any]
"""(place, value): ':118' is a line of the source, ', row 3' the third entry of a list or table."""


class Source(Protocol):
    """A sequence of rows with a name for origins; ``str`` gives what the user wrote."""

    @property
    def name(self) -> str:
        """Return the short name that origins and manifests use."""
        ...

    def rows(self) -> Iterator[Row]:
        """Yield the rows in order, each with its place."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what a manifest records, enough to tell another version from this one."""
        ...


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as {what}: {error}") from error


def _parse(path: Path, number: int, raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(path, number, f"not valid UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        line = number + error.lineno - 1
        problem = f"not valid JSON: {error.msg} at column {error.colno}"
        raise DataError(path, line, f"{problem}. Expected one JSON object a line.") from error


def _lines(path: Path, packed: bool) -> Iterator[Row]:
    with _readable(path, "JSONL"), (gzip.open if packed else open)(path, "rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if raw.strip():
                yield f":{number}", _parse(path, number, raw)


def _entries(path: Path, packed: bool) -> Iterator[Row]:
    """Yield the entries of a JSON list; a file that holds no list is read line by line."""
    with _readable(path, "JSON"):
        raw = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    if not raw.lstrip().startswith(b"["):
        yield from _lines(path, packed)
        return
    for number, value in enumerate(_parse(path, 1, raw), start=1):
        yield f", row {number}", value


def _table(path: Path) -> Iterator[Row]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{path}: Parquet needs pyarrow. Run 'pip install datasets'.") from error
    try:
        with _readable(path, "Parquet"), parquet.ParquetFile(path) as table:
            batches = table.iter_batches()
            values = (value for batch in batches for value in batch.to_pylist())
            for number, value in enumerate(values, start=1):
                yield f", row {number}", value
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


@dataclass(frozen=True)
class FileSource:
    """A .jsonl, .json (a list) or .parquet file; the first two also packed as .gz."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Return the file's name without its folder."""
        return self.path.name

    def rows(self) -> Iterator[Row]:
        """Yield the rows in file order.

        Raises:
            DataError: a row is not JSON in UTF-8 (file and line are named).
            InputError: the file cannot be read.
        """
        packed = self.path.suffix == ".gz"
        suffix = Path(self.path.stem).suffix if packed else self.path.suffix
        if suffix == ".parquet":
            return _table(self.path)
        return (_entries if suffix == ".json" else _lines)(self.path, packed)

    def identity(self) -> dict[str, Any]:
        """Return the file's name and SHA-256.

        Raises:
            InputError: the file cannot be read.
        """
        with _readable(self.path, "a file"):
            return {"file": self.name, "sha256": sha256_file(self.path)}


# Remembered so that a manifest describes the version that was read, not one pushed since.
@lru_cache(maxsize=8)
def _load(dataset: str, split: str) -> Any:
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            f"{dataset}: reading from the hub needs the package datasets. Run "
            "'pip install datasets', or give a file."
        ) from error
    try:
        return datasets.load_dataset(dataset, split=split)
    except Exception as error:  # the hub's clients raise many kinds
        raise InputError(
            f"{dataset}, split '{split}', cannot be loaded from the Hugging Face hub: {error} "
            "Check the name, the split (owner/name:split) and the network; a private data set "
            "needs 'hf auth login'. Without a network, give a .jsonl or .parquet file instead."
        ) from error


@dataclass(frozen=True)
class HubSource:
    """A split of a data set on the Hugging Face hub; no code of the data set is run."""

    dataset: str
    split: str = "train"

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """Return 'owner/name:split'."""
        return f"{self.dataset}:{self.split}"

    def rows(self) -> Iterator[Row]:
        """Yield the rows in order.

        Raises:
            InputError: the data set cannot be loaded.
        """
        for number, value in enumerate(_load(self.dataset, self.split), start=1):
            yield f", row {number}", value

    def identity(self) -> dict[str, Any]:
        """Return id, split, the commit (None where it is unknown) and datasets' fingerprint.

        The fingerprint is a hash over name, configuration, commit and split.

        Raises:
            InputError: the data set cannot be loaded.
        """
        loaded = _load(self.dataset, self.split)
        # datasets keeps its tables under NAME/CONFIGURATION/VERSION/COMMIT.
        folders = {Path(file["filename"]).parent.name for file in loaded.cache_files}
        commits = [folder for folder in sorted(folders) if _COMMIT.fullmatch(folder)]
        return {
            "dataset": self.dataset,
            "split": self.split,
            "revision": commits[0] if commits else None,
            "fingerprint": loaded._fingerprint,
        }


def resolve_source(source: str | Path) -> Source:
    """Return the file or hub data set that ``source`` names.

    A Path is a file. A text is a file where one exists, otherwise ``owner/name`` or
    ``owner/name:split`` on the hub (default split ``train``).

    Raises:
        InputError: neither an existing file nor a hub id.
    """
    path = Path(source)
    if path.is_dir():
        raise InputError(f"{source} is a folder. Give its .jsonl, .json or .parquet files.")
    if isinstance(source, Path) or path.is_file():
        return FileSource(path)
    hub = _HUB_ID.fullmatch(source)
    # A mistyped path looks like a hub id; its suffix tells.
    if hub is None or source.endswith(_FILE_SUFFIXES):
        raise InputError(
            f"'{source}' is neither an existing file nor a hub id. Expected a .jsonl, .json, .gz "
            "or .parquet file, or owner/name[:split]."
        )
    return HubSource(hub["name"], hub["split"] or "train")


def source_identity(source: str | Path) -> dict[str, Any]:
    """Return what a manifest records of a source; see ``FileSource`` and ``HubSource``.

    Raises:
        InputError: the source cannot be read.
    """
    return resolve_source(source).identity()
