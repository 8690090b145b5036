"""Where a run's models come from: embedded, a folder, or a hub id."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from harness.adapters import EMBEDDED, prepare
from harness.adapters.embedded import MODELS
from harness.adapters.identity import model_config, template_sha256, weights_sha256
from harness.errors import CheckpointError
from harness.files import cache_root
from harness.prompts import load_tokenizer
from harness.types import CheckpointSpec, Form

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files of which a folder has at least one where it holds a whole tokenizer."""

log = logging.getLogger(__name__)


def model_folder(source: str) -> Path:
    """Return the folder of a model named in a recipe; a LoRA folder is merged into its base.

    Raises:
        CheckpointError: it does not exist, cannot be fetched or loaded, or is no model at all.
    """
    found = prepare(CheckpointSpec(name="base", source=source))
    if found.form is not Form.WEIGHTS:
        raise CheckpointError(
            f"{source} cannot be trained from: of the form '{found.form}', it has no weights here. "
            "Give a folder, a hub id or embedded:NAME."
        )
    return Path(found.folder)


def check_tokenizer(base: Path, other: Path) -> None:
    """Check that a model reads the ids of the base's tokenizer as the same tokens.

    Where one of the folders holds no vocabulary, equal sizes of the two models' vocabularies must
    do; the log says so.

    Raises:
        CheckpointError: the vocabularies differ, or a folder cannot be read.
    """
    if all(any((folder / n).is_file() for n in VOCABULARY_FILES) for folder in (base, other)):
        same = _vocabulary(base) == _vocabulary(other)
    else:
        log.warning("%s or %s has no tokenizer: only vocabulary sizes are compared", base, other)
        same = _vocabulary_size(base) == _vocabulary_size(other)
    if not same:
        raise CheckpointError(
            f"{other} has another vocabulary than the base {base}; both must read the same token "
            "ids. Give a model that was trained from the same base."
        )


def _vocabulary(folder: Path) -> dict[str, int]:
    found: dict[str, int] = load_tokenizer(str(folder)).get_vocab()
    return found


def _vocabulary_size(folder: Path) -> int:
    return int(model_config(folder).get_text_config().vocab_size)


def public_name(folder: Path, source: str) -> str:
    """Return the name that an adapter's configuration gives its base: a hub id where known."""
    if folder.parent == cache_root() / "models":
        for model in MODELS.values():
            if folder.name.startswith(f"{model.name}-{model.version}-"):
                return model.hub_id
    known_here = source.startswith(EMBEDDED) or Path(source).expanduser().exists()
    return str(folder.resolve()) if known_here else source


def identity(folder: Path, source: str) -> dict[str, Any]:
    """Return name and hashes of a model for a manifest."""
    return {
        "name": public_name(folder, source),
        "weights_sha256": weights_sha256(folder),
        "template_sha256": template_sha256(folder),
    }
