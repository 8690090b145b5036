"""What a checkpoint is, read from its files without starting an engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.adapters import Located, adapter_name, check_used, locate, prepare
from harness.adapters.finite import check_finite
from harness.adapters.hf_folder import HEAD_PREFIX, check_folder, head_tensors
from harness.adapters.identity import (
    adapter_weights,
    check_vocabulary,
    loaded_files,
    model_config,
    own_template,
    own_tokenizer,
    reading,
    tokenizer_sha256,
    weight_files,
    weights_sha256,
)
from harness.adapters.templates import choose_template
from harness.adapters.tensors import open_tensors
from harness.errors import InputError
from harness.types import BaseWeights, CheckpointSpec, Form, Record

TIED_HEAD = "lm_head.weight"


class Inspection(Record):
    """What a checkpoint is and what a run would make of it.

    What cannot be seen is None: an endpoint has no weights here, recorded answers have none.

    Attributes:
        adapter: name of the adapter that takes this form of source.
        revision: commit of the hub repository that it was fetched from.
        folder: the folder whose weights were read; of an adapter, its base's.
        base: what an adapter was put on.
        weights_sha256: hash of the weight files as they lie; of an adapter, over base and adapter.
        reworked: a run merges or drops something first and records the hash of what it then
            loads, not ``weights_sha256``.
        parameters: number of parameters by stored format (``BF16``, ``F32``...), exact: a tied
            output layer that was saved again counts once, a training-only head not at all. Of an
            adapter, the base's.
        adapter_parameters: number of an adapter's own parameters.
        size_bytes: size of the weight files, an adapter's included.
        vocabulary: rows of the embedding.
        context_length: longest sequence the configuration allows, in tokens.
        chat_template: text of the template in use.
        notes: what was or would be converted, merged or dropped.
        problems: why a run would refuse the checkpoint; empty where it would not.
    """

    source: str
    adapter: str
    form: Form
    revision: str | None = None
    folder: str | None = None
    base: BaseWeights | None = None
    weights_sha256: str | None = None
    reworked: bool = False
    parameters: dict[str, int] = Field(default_factory=dict)
    adapter_parameters: int | None = None
    size_bytes: int | None = None
    model_type: str | None = None
    vocabulary: int | None = None
    context_length: int | None = None
    chat_template: str | None = None
    template_sha256: str | None = None
    tokenizer_sha256: str | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def inspect(spec: CheckpointSpec) -> Inspection:
    """Return what a checkpoint is.

    A folder and a LoRA are read where they lie and nothing is merged; any other source of weights
    is first converted into the cache, where a later run finds it.

    Raises:
        CheckpointError: there is nothing to inspect: the source is missing, broken or unknown.
    """
    located = locate(spec.source)
    kind = adapter_name(spec, located)
    check_used(spec, kind)
    with reading(located.source):
        if kind == "peft_lora":
            return _lora(spec, located)
        if kind == "hf_folder":
            return _folder(spec, located)
        return _prepared(spec, kind, located)


def _folder(spec: CheckpointSpec, located: Located) -> Inspection:
    folder = Path(located.source).expanduser()
    check_folder(folder)
    heads = head_tensors(weight_files(folder))
    return _weights(
        spec,
        "hf_folder",
        folder,
        revision=located.commit,
        reworked=bool(heads),
        notes=(*located.notes, *_would_drop(heads)),
    )


def _lora(spec: CheckpointSpec, located: Located) -> Inspection:
    from harness.adapters.lora_folder import (
        head_names,
        low_rank_pairs,
        read_config,
    )
    from harness.adapters.peft_lora import SAFE_WEIGHTS, base_of, check_adapter

    folder = Path(located.source).expanduser()
    config, file = read_config(folder), adapter_weights(folder)
    base = base_of(spec.model_copy(update={"source": located.source}), folder, config)
    done = "would be merged into" if spec.merge else "would be left to the engine, unmerged, on"
    note = f"{config} {done} {base.folder}"
    pairs, heads = low_rank_pairs(file, config), head_names(file)
    return _weights(
        spec,
        "peft_lora",
        base.folder,
        lora=folder,
        tokenizer=folder if spec.merge and own_tokenizer(folder) else None,
        checks=(lambda: check_adapter(spec, folder, base.folder, config),),
        revision=located.commit,
        base=base.weights,
        reworked=spec.merge or bool(heads) or file.name != SAFE_WEIGHTS,
        adapter_parameters=sum(a.numel() + b.numel() for a, b in pairs.values()),
        notes=(*located.notes, note, *_would_drop(heads), *base.notes),
    )


def _would_drop(names: list[str]) -> tuple[str, ...]:
    return (f"would drop training-only tensors: {', '.join(names)}",) if names else ()


def _prepared(spec: CheckpointSpec, kind: str, located: Located) -> Inspection:
    ready = prepare(spec)
    if ready.form is Form.WEIGHTS:
        return _weights(
            spec,
            kind,
            Path(ready.folder),
            revision=located.commit,
            base=ready.base,
            notes=ready.notes,
        )
    return Inspection(
        source=spec.source,
        adapter=kind,
        form=ready.form,
        weights_sha256=ready.weights_sha256,
        notes=ready.notes,
    )


def _weights(
    spec: CheckpointSpec,
    kind: str,
    folder: Path,
    lora: Path | None = None,
    tokenizer: Path | None = None,
    checks: tuple[Callable[[], object], ...] = (),
    **more: Any,
) -> Inspection:
    config = model_config(folder).get_text_config()
    files = loaded_files(folder, lora)
    sha256 = weights_sha256(folder, lora)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    return Inspection(
        source=spec.source,
        adapter=kind,
        form=Form.WEIGHTS,
        folder=str(folder),
        weights_sha256=sha256,
        parameters=_parameters(weight_files(folder), (TIED_HEAD,) if tied else ()),
        size_bytes=sum(file.stat().st_size for file in files),
        model_type=config.model_type,
        vocabulary=getattr(config, "vocab_size", None),
        context_length=getattr(config, "max_position_embeddings", None),
        tokenizer_sha256=tokenizer_sha256(tokenizer or folder),
        **_template(spec, folder, lora),
        problems=_problems(
            *checks,
            lambda: check_vocabulary(folder),
            lambda: choose_template(spec, folder, lora),
            lambda: check_finite(files, sha256),
        ),
        **more,
    )


def _parameters(files: Iterable[Path], left_out: tuple[str, ...] = ()) -> dict[str, int]:
    """Return the number of values in safetensors files by stored format, from their headers."""
    found: Counter[str] = Counter()
    for file in files:
        with open_tensors(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                if HEAD_PREFIX not in name and name not in left_out:
                    tensor = tensors.get_slice(name)
                    found[tensor.get_dtype()] += math.prod(tensor.get_shape())
    return dict(sorted(found.items()))


def _template(spec: CheckpointSpec, folder: Path, lora: Path | None) -> dict[str, str]:
    try:
        chosen = choose_template(spec, folder, lora)
    except InputError:
        return {}
    text = chosen.override if chosen.override is not None else own_template(folder)
    return {"chat_template": text, "template_sha256": chosen.sha256}


def _problems(*checks: Callable[[], object]) -> tuple[str, ...]:
    """Return what each failing check says, in the user's words."""
    found = []
    for check in checks:
        try:
            check()
        except InputError as error:
            found.append(str(error))
    return tuple(found)
