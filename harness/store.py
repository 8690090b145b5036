"""Run folders: append while running, resume after a kill, seal in a canonical order, read.

A folder holds ``manifest.json`` and one JSONL file a kind of record. While a run is under way the
files only grow, one record a line. A process killed in the middle of a line leaves a torn last
line, which the next writer cuts off; every other line is a whole record. When the run is complete
each file is rewritten once, atomically, in an order that depends on the records alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from harness.errors import DataError, RunFolderError
from harness.files import read_json, write_atomic
from harness.types import (
    Generation,
    Judgment,
    Loadable,
    Record,
    RunManifest,
    Score,
    Status,
    SuiteExample,
    TrainingRow,
)

R = TypeVar("R", bound=Record)

MANIFEST = "manifest.json"
LOCK = ".lock"


@dataclass(frozen=True)
class Kind(Generic[R]):
    """A kind of record: its file, its type and its identity, which no two records share."""

    name: str
    record: type[R]
    identity: Callable[[R], tuple[Any, ...]]

    @property
    def file(self) -> str:
        """Name of the file in a run folder."""
        return f"{self.name}.jsonl"


GENERATIONS = Kind(
    "generations", Generation, lambda g: (g.suite, g.checkpoint, g.example_id, g.sample)
)
SCORES = Kind(
    "scores",
    Score,
    lambda s: (s.suite, s.metric, s.checkpoint, s.example_id, -1 if s.sample is None else s.sample),
)
EXAMPLES = Kind("examples", SuiteExample, lambda e: (e.suite, e.example.id))
JUDGMENTS = Kind(
    "judgments", Judgment, lambda j: (j.suite, j.judge, j.candidate, j.baseline, j.example_id)
)
TRAINING = Kind(
    "training", TrainingRow, lambda r: (r.checkpoint, -1 if r.seed is None else r.seed, r.step)
)

GROWING: tuple[Kind[Any], ...] = (GENERATIONS, SCORES, JUDGMENTS)
"""Kinds whose files grow while a run is under way."""


def _parse(kind: Kind[R], path: Path, number: int, line: bytes) -> R:
    try:
        return kind.record.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(p) for p in problem["loc"]) or "line"
        raise DataError(
            path, number, f"not a {kind.name} record: {where}: {problem['msg']}"
        ) from error


def read_records(kind: Kind[R], path: Path) -> Iterator[R]:
    """Yield the records of a file; a torn last line (no newline) is left out.

    Raises:
        DataError: a whole line is not a record, or two records share an identity.
    """
    if not path.is_file():
        return
    seen: set[tuple[Any, ...]] = set()
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            record = _parse(kind, path, number, line)
            identity = kind.identity(record)
            if identity in seen:
                raise DataError(path, number, f"record {identity} occurs twice")
            seen.add(identity)
            yield record


def _cut_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("r+b") as stream:
        content = stream.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            stream.truncate(end)


class RunFolder:
    """A run's folder; create one with :func:`open_run` (to write) or :func:`read_run`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def manifest(self) -> RunManifest:
        """The manifest as it is on disk."""
        value = read_json(self.path / MANIFEST)
        try:
            return RunManifest.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RunFolderError(
                f"{self.path / MANIFEST} is not a manifest of this version: {where}: {first['msg']}"
            ) from error

    def write_manifest(self, manifest: RunManifest) -> None:
        """Replace the manifest atomically."""
        write_atomic(self.path / MANIFEST, manifest.model_dump_json(indent=2) + "\n")

    def records(self, kind: Kind[R]) -> list[R]:
        """Return all whole records of a kind."""
        return list(read_records(kind, self.path / kind.file))

    def append(self, kind: Kind[R], records: Iterable[R]) -> int:
        """Append records, one a line, and flush them to the operating system; return how many."""
        lines = [record.model_dump_json().encode() + b"\n" for record in records]
        with (self.path / kind.file).open("ab") as stream:
            stream.write(b"".join(lines))
            stream.flush()
            os.fsync(stream.fileno())
        return len(lines)

    def repair(self) -> None:
        """Cut the torn last line that a killed writer may have left in any file."""
        for kind in GROWING:
            _cut_torn_line(self.path / kind.file)

    def seal(self) -> None:
        """Rewrite every file in canonical order and mark the run complete."""
        for kind in GROWING:
            self._sort(kind)
        self.write_manifest(self.manifest.model_copy(update={"status": Status.COMPLETE}))

    def _sort(self, kind: Kind[R]) -> None:
        self.write_all(kind, sorted(self.records(kind), key=kind.identity))

    def write_all(self, kind: Kind[R], records: Iterable[R]) -> None:
        """Replace a kind's file atomically by ``records``, in the order given."""
        text = "".join(record.model_dump_json() + "\n" for record in records)
        write_atomic(self.path / kind.file, text)


@contextmanager
def _opening(path: Path, what: str = "written") -> Iterator[None]:
    """Turn what the system refuses while the run folder ``path`` is opened into a user's error."""
    try:
        yield
    except OSError as error:
        problem = error.strerror or error
        raise RunFolderError(
            f"{path} cannot be {what}: {problem}; give another --output"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system
        yield
        return
    with _opening(path):
        handle = (path / LOCK).open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunFolderError(
                f"{path} is being written by another process; wait for it or give another --output"
            ) from error
        yield


def _check_same_run(folder: RunFolder, manifest: RunManifest) -> RunManifest:
    found = folder.manifest
    if found.run_key == manifest.run_key:
        return found
    raise RunFolderError(
        f"{folder.path} belongs to another run ({found.run_key[:12]}, started {found.created}; "
        f"this one is {manifest.run_key[:12]}). {_what_differs(found, manifest)} "
        "Give another --output, or remove the folder to start afresh."
    )


def _keep_contamination(folder: RunFolder, found: RunManifest, new: RunManifest) -> None:
    """Record what is now known of the training data, which decides no result of the run."""
    if new.contamination and new.contamination != found.contamination:
        changes = {"contamination": new.contamination}
        folder.write_manifest(found.model_copy(update=changes))


def _what_differs(found: RunManifest, wanted: RunManifest) -> str:
    parts = {
        "checkpoints": (
            [_key(c) for c in found.checkpoints],
            [_key(c) for c in wanted.checkpoints],
        ),
        "suites": (
            [(s.name, s.content_sha256) for s in found.suites],
            [(s.name, s.content_sha256) for s in wanted.suites],
        ),
        "metrics": (_metrics(found), _metrics(wanted)),
        "judges": ([j.identity for j in found.judges], [j.identity for j in wanted.judges]),
        "training logs": (_training(found), _training(wanted)),
        "seed": (found.seed, wanted.seed),
        "engine": (_engines(found), _engines(wanted)),
        "package versions": (found.packages, wanted.packages),
    }
    different = [name for name, (a, b) in parts.items() if json.dumps(a) != json.dumps(b)]
    return f"They differ in: {', '.join(different)}."


def _key(checkpoint: Loadable) -> tuple[str | None, ...]:
    hashes = (checkpoint.weights_sha256, checkpoint.template_sha256, checkpoint.architecture)
    return (checkpoint.spec.name, *hashes, checkpoint.arithmetic)


def _engines(manifest: RunManifest) -> list[dict[str, Any]]:
    return [card.model_dump(mode="json") for card in manifest.engines]


def _training(manifest: RunManifest) -> Any:
    card = manifest.training
    return None if card is None else card.model_dump(mode="json")


def _metrics(manifest: RunManifest) -> list[dict[str, Any]]:
    return [m.model_dump(mode="json") for s in manifest.suites for m in s.metrics]


def _foreign(path: Path) -> list[str]:
    """Return the files that no start of a run, killed before its manifest, can have left."""
    left = (LOCK, f".{MANIFEST}.", EXAMPLES.file, f".{EXAMPLES.file}.")
    return [name for name in os.listdir(path) if not name.startswith(left)]


@contextmanager
def open_run(
    path: Path, manifest: RunManifest, examples: Sequence[SuiteExample]
) -> Iterator[RunFolder]:
    """Create or resume the run folder ``path`` for writing, under a lock.

    ``examples`` are written once, before the manifest, so that a folder with a manifest can be
    read alone.

    Raises:
        RunFolderError: the folder belongs to another run, holds something else, is in use, or
            cannot be read and written.
    """
    folder = RunFolder(path)
    with _opening(path, "read"):
        _check_ours(path)
    with _opening(path, "created"):
        path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        with _opening(path):
            if (path / MANIFEST).exists():
                _keep_contamination(folder, _check_same_run(folder, manifest), manifest)
            else:
                folder.write_all(EXAMPLES, examples)
                folder.write_manifest(manifest)
            folder.repair()
        yield folder


def _check_ours(path: Path) -> None:
    """Refuse what is neither a run folder nor the place of a new one."""
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file; give a folder as --output")
    if path.is_dir() and not (path / MANIFEST).exists() and _foreign(path):
        raise RunFolderError(f"{path} is not empty and holds no run; give another --output")


def is_complete(path: Path) -> bool:
    """Whether ``path`` holds a run whose every record is there and sealed."""
    return (path / MANIFEST).is_file() and RunFolder(path).manifest.status == Status.COMPLETE


def read_run(path: Path) -> RunFolder:
    """Return an existing run folder for reading.

    Raises:
        RunFolderError: there is no run at ``path``.
    """
    if not (path / MANIFEST).is_file():
        raise RunFolderError(f"{path} holds no run ({MANIFEST} is missing)")
    return RunFolder(path)
