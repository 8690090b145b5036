"""Places and small file operations shared by every layer: cache, packaged data, atomic writes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import DataError, InputError


def cache_root() -> Path:
    """Return the cache: ``$TBPO_CACHE``, else ``$XDG_CACHE_HOME/tbpo``, else ~/.cache/tbpo."""
    if chosen := os.environ.get("TBPO_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "tbpo"


def portable(path: Path | str) -> str:
    """Return ``path`` as it may stand in a report: the cache and the home folder by name."""
    whole = Path(path).absolute()
    for root, name in ((cache_root().absolute(), "$TBPO_CACHE"), (Path.home(), "~")):
        if whole.is_relative_to(root):
            return str(Path(name) / whole.relative_to(root))
    return str(path)


def packaged(*parts: str) -> Path:
    """Return a path below ``suites/``: inside the installed wheel, or beside a checkout."""
    here = Path(__file__).resolve().parent
    wheel = here / "_data" / "suites"
    return (wheel if wheel.is_dir() else here.parent / "suites").joinpath(*parts)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` when the block ends without an error.

    A reader sees the whole folder or none. Where another process was faster, its folder stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(scratch).chmod(0o644)
        Path(scratch).replace(path)
    finally:
        Path(scratch).unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Return the parsed JSON of ``path``; a DataError says where it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(path, error.lineno, f"not valid JSON: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hexadecimal SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
