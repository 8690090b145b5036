"""Adapter for outputs that were recorded earlier."""

from __future__ import annotations

from pathlib import Path

from harness.adapters import RECORDED
from harness.adapters.recorded.reading import Recording, read_recording
from harness.errors import CheckpointError
from harness.files import sha256_file, sha256_json
from harness.types import CheckpointSpec, Form, Loadable

ARCHITECTURE = "recorded"


class Recorded:
    """A file of answers in one of the forms of :data:`reading.FORMS`; nothing is generated."""

    def prepare(self, spec: CheckpointSpec) -> Loadable:
        """Return the checkpoint whose answers are on file.

        Raises:
            CheckpointError: there is no such file.
            InputError: the file is of no known form, or a model must be chosen.
            DataError: a row is broken.
        """
        path = Path(spec.source.removeprefix(RECORDED)).expanduser()
        if not path.is_file():
            raise CheckpointError(f"'{spec.name}': {path} is not a file of recorded outputs.")
        recording = read_recording(path, spec.model)
        return Loadable(
            spec=spec,
            form=Form.RECORDED,
            folder=str(path),
            weights_sha256=identity(path, recording, spec.model),
            architecture=ARCHITECTURE,
            template_sha256=None,
            notes=_notes(recording, spec.model),
        )


def identity(path: Path, recording: Recording, model: str | None) -> str:
    """Return the hash that stands for the weights behind recorded outputs.

    It is the file's; where the file holds several models, the chosen one's name goes in, so that
    their answers are never taken for one another's.
    """
    content = sha256_file(path)
    return content if len(recording.models) < 2 else sha256_json([content, model])


def _notes(recording: Recording, model: str | None) -> tuple[str, ...]:
    answers = recording.answers
    name = model or next(iter(recording.models), None)
    notes = [
        f"{len(answers)} recorded answers ({recording.form.name})" + (f" of {name}" if name else "")
    ]
    if unknown := sum(not answer.chat for answer in answers):
        notes.append(f"{unknown} answers are recorded without their prompt and matched by id alone")
    if missing := sum(answer.text is None for answer in answers):
        notes.append(f"{missing} answers are null in the file")
    return tuple(notes)
