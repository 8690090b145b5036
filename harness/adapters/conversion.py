"""Any checkpoint with weights, written out as a Hugging Face folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.adapters import prepare
from harness.adapters.hf_folder import companions
from harness.adapters.identity import weight_files, weights_sha256
from harness.errors import CheckpointError
from harness.files import atomic_folder
from harness.types import CheckpointSpec, Form, Loadable


def convert(spec: CheckpointSpec, output: Path) -> Loadable:
    """Write the folder that an engine would load to ``output``; return the checkpoint's record.

    A LoRA is merged; a template that the user named replaces the folder's own. ``output`` appears
    whole or not at all.

    Raises:
        CheckpointError: ``output`` holds something, it cannot be written, or the checkpoint has no
            weights here or cannot be loaded.
    """
    _check_empty(output)
    ready = prepare(spec.model_copy(update={"merge": True}))
    if ready.form is not Form.WEIGHTS:
        raise CheckpointError(
            f"{spec.source} is of the form '{ready.form}': it has no weights here to convert."
        )
    try:
        with atomic_folder(output) as scratch:
            _copy(ready, scratch)
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written: {error}") from error
    return ready.model_copy(update={"folder": str(output)})


def _check_empty(output: Path) -> None:
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        raise CheckpointError(f"--output {output} is not an empty folder; give a new one.")


def _copy(ready: Loadable, target: Path) -> None:
    folder = Path(ready.folder)
    for file in [*weight_files(folder), *companions(folder).values()]:
        shutil.copy2(file, target / file.name)
    if ready.chat_template is not None:
        (target / "chat_template.jinja").write_text(ready.chat_template, encoding="utf-8")
    if weights_sha256(target) != ready.weights_sha256:
        raise CheckpointError(f"{folder} changed while it was copied; nothing was kept.")
