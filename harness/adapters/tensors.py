"""Safetensors files, read so that a broken one is a CheckpointError that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import CheckpointError


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """Yield a safetensors file, opened lazily: its header is read and checked, its tensors not.

    Raises:
        CheckpointError: the file is broken, cut off, or no file; also where a tensor is read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error


def tensor_names(file: Path) -> list[str]:
    """Return the names of the tensors of a safetensors file; CheckpointError where it is broken."""
    with open_tensors(file) as tensors:
        return list(tensors.keys())


def load_tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file by name; CheckpointError where it is broken."""
    with open_tensors(file) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
