"""Files written by ``torch.save``, read so that no code in them can run."""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

from harness.errors import CheckpointError

REFUSED = re.compile(r"GLOBAL (?P<name>[\w.]+)")
"""Where PyTorch's message names the function or class that it did not load."""


def load_torch(file: Path) -> Any:
    """Return the tensors, containers and numbers in a file, tensors mapped from disk if possible.

    Raises:
        CheckpointError: the file is missing, cut off or damaged, or it asks for code to be run,
            which is refused.
    """
    import torch

    if not file.is_file():
        raise CheckpointError(f"{file} does not exist, or is not a file.")
    try:
        # Only the zip form that PyTorch writes since 1.6 can be mapped.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except UnpicklingError as error:
        raise CheckpointError(_problem(file, str(error))) from error
    except Exception as error:  # damaged bytes surface as whatever the unpickler trips over
        raise CheckpointError(_problem(file, "")) from error


def _problem(file: Path, message: str) -> str:
    if refused := REFUSED.search(message):
        return (
            f"{file} holds more than tensors: reading it would call {refused['name']}. Nothing of "
            "it was run. If you trust its maker, save the state dict alone: "
            "torch.save(model.state_dict(), FILE)."
        )
    return f"{file} is cut off, damaged, or not written by torch.save; copy it again."
