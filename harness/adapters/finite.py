"""Weights are numbers: no NaN and no infinity in any tensor of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.adapters.tensors import open_tensors
from harness.errors import CheckpointError
from harness.files import cache_root, write_atomic

CHECKED = {"F64", "F32", "F16", "BF16"}
"""Floating formats of safetensors; integers are finite, and float8 comes with scales of its own."""


def check_finite(files: Iterable[Path], weights_sha256: str) -> None:
    """Check every floating tensor of the safetensors files among ``files``, one at a time.

    A pass is remembered in the cache under ``weights_sha256``, the hash over these files.

    Raises:
        CheckpointError: names the first tensor that holds NaN or infinity, and its file.
    """
    memo = cache_root() / "finite" / weights_sha256
    if memo.is_file():
        return
    for file in files:
        if file.suffix == ".safetensors":
            _check_file(file)
    write_atomic(memo, "")


def _check_file(file: Path) -> None:
    with open_tensors(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a mapping)
            checked = tensors.get_slice(name).get_dtype() in CHECKED
            if checked and (found := _not_finite(tensors.get_tensor(name))):
                raise CheckpointError(
                    f"{file}: tensor '{name}' holds {found}. Training diverged or the file was "
                    "damaged: give an earlier checkpoint, or save this one again."
                )


def _not_finite(tensor: Any) -> str | None:
    """Return "NaN" or "infinity" where the tensor holds one, from its extremes: no copy is made."""
    import torch

    if tensor.numel() == 0:
        return None
    extremes = torch.stack(torch.aminmax(tensor))
    if extremes.isnan().any():
        return "NaN"
    return "infinity" if extremes.isinf().any() else None
