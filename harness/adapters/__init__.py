"""Any checkpoint to a complete Hugging Face folder that an engine can load."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from harness import plugins
from harness.errors import CheckpointError
from harness.files import packaged
from harness.types import CheckpointSpec, Loadable

EMBEDDED = "embedded:"


class Adapter(Protocol):
    """Turns a named checkpoint into something an engine can load."""

    def prepare(self, spec: CheckpointSpec) -> Loadable:
        """Return the engine-ready checkpoint; raise CheckpointError where it cannot be had."""
        ...


def embedded_adapters() -> dict[str, Path]:
    """Return the LoRA checkpoints that travel with the package, by name."""
    return {p.parent.name: p.parent for p in packaged("checkpoints").glob("*/adapter_config.json")}


def resolve(spec: CheckpointSpec) -> CheckpointSpec:
    """Return ``spec`` with an ``embedded:`` source replaced by its folder.

    Raises:
        CheckpointError: nothing is embedded under that name (the known names are listed).
    """
    from harness.adapters.embedded import MODELS, embedded_folder

    if not spec.source.startswith(EMBEDDED):
        return spec
    name = spec.source.removeprefix(EMBEDDED)
    loras = embedded_adapters()
    if name in loras:
        return spec.model_copy(update={"source": str(loras[name])})
    if name in MODELS:
        return spec.model_copy(update={"source": str(embedded_folder(name))})
    known = ", ".join(sorted([*MODELS, *loras]))
    raise CheckpointError(f"'{spec.name}': nothing is embedded as '{name}'. Known: {known}.")


def recognise(source: Path) -> str:
    """Return the name of the adapter that fits a folder's files.

    Raises:
        CheckpointError: the folder does not exist or holds neither form.
    """
    if (source / "adapter_config.json").is_file():
        return "peft_lora"
    if (source / "config.json").is_file():
        return "hf_folder"
    if not source.is_dir():
        raise CheckpointError(f"checkpoint folder {source} does not exist.")
    raise CheckpointError(
        f"{source} holds neither config.json nor adapter_config.json: not a Hugging Face "
        "checkpoint and not a PEFT adapter."
    )


def prepare(spec: CheckpointSpec) -> Loadable:
    """Return the checkpoint ready for an engine; the record keeps ``spec`` as the user wrote it.

    Raises:
        CheckpointError: the checkpoint cannot be loaded; the message says why.
    """
    resolved = resolve(spec)
    kind = recognise(Path(resolved.source).expanduser()) if spec.adapter == "auto" else spec.adapter
    adapter: Adapter = plugins.load("adapters", kind)()  # type: ignore[operator]
    return adapter.prepare(resolved).model_copy(update={"spec": spec})
