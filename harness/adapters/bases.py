"""The base model that an adapter or a bare state dict belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from harness.adapters import hub
from harness.adapters.embedded import MODELS, embedded_folder
from harness.adapters.gguf import gguf_folder, holds_only_gguf
from harness.adapters.hf_folder import dropped_note, ready_folder
from harness.adapters.identity import reading, weights_sha256
from harness.errors import CheckpointError
from harness.types import BaseWeights


class Base(NamedTuple):
    """A base model's complete folder, and what was done to get it, in words."""

    folder: Path
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> BaseWeights:
        """Its identity, as a checkpoint's record holds it."""
        return BaseWeights(folder=str(self.folder), weights_sha256=weights_sha256(self.folder))


def find_base(wanted: str, name: str, source: str, recorded: str | None = None) -> Base:
    """Return the base that ``wanted`` names: embedded, a folder, a GGUF file or a hub id.

    The hub id of an embedded model stands for the embedded copy, whose weights were rounded to
    four bits, only for an adapter that was trained on that copy: so it needs no hub.

    Args:
        wanted: what the user or the adapter's configuration says.
        name, source: of the checkpoint that needs the base, for messages.
        recorded: weight hash of the base that an adapter says it was trained on.

    Raises:
        CheckpointError: it cannot be had, is incomplete, or is an adapter itself.
    """
    for model in MODELS.values():
        if wanted == f"embedded:{model.name}":
            return Base(embedded_folder(model.name))
        if wanted == model.hub_id and recorded is not None:
            folder = embedded_folder(model.name)
            if weights_sha256(folder) == recorded:
                note = f"base {wanted}: embedded:{model.name}, which the adapter was trained on"
                return Base(folder, (note,))
    with reading(wanted):
        if hub.is_hub_id(wanted):
            snapshot = hub.fetch(wanted)
            return _ready(snapshot.folder, (f"base: {snapshot.note}",))
        place = Path(wanted).expanduser()
        if not place.is_dir() and not (place.is_file() and place.suffix.lower() == ".gguf"):
            raise CheckpointError(
                f"'{name}': base model '{wanted}' is not a folder on this machine. Give it as "
                f"base=FOLDER: --checkpoint {name}={source},base=FOLDER (or a hub id)."
            )
        return _ready(place, ())


def _ready(place: Path, notes: tuple[str, ...]) -> Base:
    if (place / "adapter_config.json").is_file():
        raise CheckpointError(
            f"the base {place} is an adapter itself. Merge it into its own base "
            "(tbpo checkpoints convert) and give that folder."
        )
    if place.is_file() or holds_only_gguf(place):
        folder, note = gguf_folder(place)
        return Base(folder, (*notes, f"base: {note}"))
    folder, dropped = ready_folder(place)
    return Base(folder, (*notes, *(f"base: {note}" for note in dropped_note(dropped))))
