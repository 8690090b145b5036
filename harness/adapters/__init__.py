"""Any checkpoint to something that an engine can ask: a folder, a server, or answers on file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from harness import plugins
from harness.errors import CheckpointError
from harness.files import packaged
from harness.types import CheckpointSpec, Loadable

EMBEDDED = "embedded:"
RECORDED = "recorded:"

FORMS = (
    "a folder written by save_pretrained, a PEFT LoRA folder, a hub id (org/name or "
    "org/name@revision), embedded:NAME, a state dict of torch.save (.pt, .pth, .bin; with base=), "
    "a GGUF file, the address of an endpoint (http://HOST:PORT/v1), or a file of recorded outputs "
    "(.json, .jsonl, .jsonl.gz, .csv, .parquet, or recorded:FILE)"
)
"""What a checkpoint's source can be, for messages."""

BY_SUFFIX = {
    ".gguf": "gguf",
    ".pt": "policy_archive",
    ".pth": "policy_archive",
    ".bin": "policy_archive",
    ".json": "recorded",
    ".jsonl": "recorded",
    ".jsonl.gz": "recorded",
    ".csv": "recorded",
    ".parquet": "recorded",
}


ALWAYS = frozenset({"name", "source", "method", "adapter", "training_logs", "training_data"})
"""Fields of a checkpoint's spec that mean something for every form."""

USED = {
    "hf_folder": frozenset({"dtype", "chat_template"}),
    "gguf": frozenset({"dtype", "chat_template"}),
    "policy_archive": frozenset({"dtype", "chat_template", "base"}),
    "peft_lora": frozenset({"dtype", "chat_template", "base", "merge", "allow_unchanged"}),
    "endpoint": frozenset({"model", "api_key_env"}),
    "recorded": frozenset({"model"}),
}
"""The other fields that each adapter of this package has a use for."""


class Adapter(Protocol):
    """Turns a named checkpoint into something an engine can ask."""

    def prepare(self, spec: CheckpointSpec) -> Loadable:
        """Return the engine-ready checkpoint; raise CheckpointError where it cannot be had."""
        ...


class Located(NamedTuple):
    """Where a source is on this machine, or the address of a server.

    Attributes:
        source: a path, or a URL.
        commit: the commit of the hub repository it was fetched from; None for any other source.
        notes: where it came from, in words.
    """

    source: str
    commit: str | None = None
    notes: tuple[str, ...] = ()


def embedded_adapters() -> dict[str, Path]:
    """Return the LoRA checkpoints that travel with the package, by name."""
    return {p.parent.name: p.parent for p in packaged("checkpoints").glob("*/adapter_config.json")}


def locate(source: str) -> Located:
    """Return where a source is; what is embedded or on a hub is fetched if it is not here yet.

    Raises:
        CheckpointError: nothing is embedded under that name, or it cannot be fetched.
    """
    from harness.adapters import hub
    from harness.adapters.identity import reading

    if source.startswith(EMBEDDED):
        return Located(str(_embedded(source.removeprefix(EMBEDDED))))
    if source.startswith(RECORDED):
        return Located(source.removeprefix(RECORDED))
    with reading(source):
        if hub.is_hub_id(source):
            snapshot = hub.fetch(source)
            return Located(str(snapshot.folder), snapshot.commit, (snapshot.note,))
    return Located(source)


def _embedded(name: str) -> Path:
    from harness.adapters.embedded import MODELS, embedded_folder

    loras = embedded_adapters()
    if name in loras:
        return loras[name]
    if name in MODELS:
        return embedded_folder(name)
    known = ", ".join(sorted([*MODELS, *loras]))
    raise CheckpointError(f"nothing is embedded as '{name}'. Known: {known}.")


def resolve(spec: CheckpointSpec) -> CheckpointSpec:
    """Return ``spec`` with its source replaced by the place where that is.

    Raises:
        CheckpointError: it cannot be found or fetched.
    """
    return spec.model_copy(update={"source": locate(spec.source).source})


def recognise(source: str) -> str:
    """Return the name of the adapter that fits a source, by its files or the form of its name.

    Raises:
        CheckpointError: it does not exist or has no known form; the message lists the forms.
    """
    from harness.adapters.identity import reading

    if source.startswith(RECORDED):
        return "recorded"
    if source.startswith(("http://", "https://")):
        return "endpoint"
    place = Path(locate(source).source).expanduser()
    with reading(place):
        if place.is_dir():
            return _folders_form(place)
        if place.is_file():
            return _files_form(place)
        what = "is a link that leads nowhere" if place.is_symlink() else "does not exist"
    raise CheckpointError(f"checkpoint {place} {what}. Give {FORMS}.")


def _folders_form(folder: Path) -> str:
    from harness.adapters.gguf import holds_only_gguf

    if (folder / "adapter_config.json").is_file():
        return "peft_lora"
    if holds_only_gguf(folder):
        return "gguf"
    if (folder / "config.json").is_file():
        return "hf_folder"
    if (folder / "policy.pt").is_file():
        return "policy_archive"
    raise CheckpointError(
        f"{folder} holds neither config.json nor adapter_config.json, GGUF or policy.pt. "
        f"Give {FORMS}."
    )


def _files_form(file: Path) -> str:
    for suffix, adapter in BY_SUFFIX.items():
        if file.name.lower().endswith(suffix):
            return adapter
    raise CheckpointError(f"{file} is a file of no known form. Give {FORMS}.")


def adapter_name(spec: CheckpointSpec, located: Located) -> str:
    """Return the name of the adapter for a checkpoint whose source was located.

    Raises:
        CheckpointError: the user named no adapter and none fits.
    """
    if spec.adapter != "auto":
        return spec.adapter
    return "recorded" if spec.source.startswith(RECORDED) else recognise(located.source)


def check_used(spec: CheckpointSpec, adapter: str) -> None:
    """Check that a checkpoint's form can keep all that the user asked of it.

    An adapter of another package knows its own fields and is not looked at.

    Raises:
        CheckpointError: names the first field that would be ignored, and the forms that it is for.
    """
    kept = ALWAYS | USED.get(adapter, CheckpointSpec.model_fields.keys())
    for name, field in CheckpointSpec.model_fields.items():
        asked = name in spec.model_fields_set and getattr(spec, name) != field.default
        if asked and name not in kept:
            forms = ", ".join(form for form, fields in USED.items() if name in fields)
            raise CheckpointError(
                f"'{spec.name}': {name}= cannot be kept: the checkpoint is of the form "
                f"'{adapter}', and {name}= is for {forms}. Leave it out."
            )


def prepare(spec: CheckpointSpec) -> Loadable:
    """Return the checkpoint ready to be asked; the record keeps ``spec`` as the user wrote it.

    Raises:
        CheckpointError: the checkpoint cannot be used; the message says why.
    """
    located = locate(spec.source)
    name = adapter_name(spec, located)
    check_used(spec, name)
    adapter: Adapter = plugins.load("adapters", name)()  # type: ignore[operator]
    loadable = adapter.prepare(spec.model_copy(update={"source": located.source}))
    notes = (*located.notes, *loadable.notes)
    return loadable.model_copy(update={"spec": spec, "notes": notes})
