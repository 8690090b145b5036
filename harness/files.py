"""Places and small file operations shared by every layer: cache, packaged data, atomic writes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import DataError, InputError

GZIP = b"\x1f\x8b"
"""First bytes of a gzip file."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""First bytes of a UTF-8 file as some spreadsheets write it."""


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
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply to be read") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def read_bytes(path: Path) -> bytes:
    """Return a file's content, unpacked where it is gzip by its first bytes.

    Raises:
        InputError: the file cannot be read, or is damaged.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP) else content
    except (OSError, EOFError, zlib.error) as error:
        problem = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {problem}") from error


def json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of a JSONL file, plain or gzip, each with its line's number from 1.

    Raises:
        InputError: the file cannot be read.
        DataError: a line is not UTF-8, not JSON or not an object; blank lines are passed over.
    """
    lines = read_bytes(path).removeprefix(BYTE_ORDER_MARK).splitlines()
    numbered = enumerate(lines, start=1)
    return [(number, _json_object(path, number, raw)) for number, raw in numbered if raw.strip()]


def _json_object(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(path, number, f"not valid UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        problem = f"not valid JSON: {error.msg} at column {error.colno}"
        raise DataError(path, number, problem) from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, number, f"not usable JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(path, number, f"expected an object, found {type(row).__name__}")
    return row


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hexadecimal SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
