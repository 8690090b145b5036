"""Adapter for a PEFT LoRA folder: merged once into its base in float32, or left to the engine."""

from __future__ import annotations

from pathlib import Path

from harness.adapters.bases import Base, find_base
from harness.adapters.finite import CHECKED
from harness.adapters.hf_folder import cached_folder, companions, describe, dropped_note
from harness.adapters.hub import is_hub_id
from harness.adapters.identity import (
    ADAPTER_CONFIG,
    TEMPLATE,
    adapter_weights,
    model_config,
    own_tokenizer,
    read_tokenizer,
    reading,
    template_text,
    weight_files,
    weights_sha256,
)
from harness.adapters.lora_folder import (
    MERGE_WITH_PEFT,
    LoraConfig,
    Pairs,
    added_tokens,
    head_names,
    is_head,
    low_rank_pairs,
    read_config,
    read_tensors,
)
from harness.adapters.tensors import load_tensors, open_tensors
from harness.errors import CheckpointError
from harness.files import read_json, sha256_file
from harness.training_logs import LAST_GOOD, RECIPE
from harness.types import CheckpointSpec, Loadable

MERGE_VERSION = 1
"""Raised whenever the merge's arithmetic changes, so that no old merge is reused."""

SAFE_WEIGHTS = "adapter_model.safetensors"

HEADS = ("lm_head.weight", "embed_out.weight")

NOT_SERVED = ("embed_tokens.weight", "embed_in.weight", "wte.weight", *HEADS)
"""Modules on which an engine does not apply an unmerged LoRA: embedding and output head."""


def base_of(spec: CheckpointSpec, folder: Path, config: LoraConfig) -> Base:
    """Return the base of the LoRA in ``folder``: the user's word, else what its config names.

    Raises:
        CheckpointError: neither names a model that can be had.
    """
    wanted = spec.base or config.base_model_name_or_path
    if wanted is None:
        raise CheckpointError(f"'{spec.name}': the adapter names no base model; give base=FOLDER.")
    if spec.base is None and config.revision and is_hub_id(f"{wanted}@{config.revision}"):
        wanted = f"{wanted}@{config.revision}"
    recorded = None if spec.base else _recorded_base(folder)
    return find_base(wanted, spec.name, spec.source, recorded)


def _recorded_base(folder: Path) -> str | None:
    """Return the weight hash of the base that an adapter of ``tbpo train`` was trained on.

    It is in the manifest of a whole training, and in the recipe of one run of a search; what a
    run that diverged leaves has its recipe one folder above.
    """
    above = [folder.parent / RECIPE] if folder.name == LAST_GOOD else []
    for file in (folder / "manifest.json", folder / RECIPE, *above):
        content = read_json(file) if file.is_file() else None
        recorded = content.get("base") if isinstance(content, dict) else None
        if isinstance(recorded, dict) and "weights_sha256" in recorded:
            return str(recorded["weights_sha256"])
    return None


def _check_recorded_base(folder: Path, base: Path, name: str) -> None:
    expected = _recorded_base(folder)
    if expected is not None and expected != weights_sha256(base):
        raise CheckpointError(
            f"'{name}': the adapter was trained on base weights {expected[:12]}, but {base} holds "
            f"{weights_sha256(base)[:12]}. Give the base it was trained on as base=FOLDER."
        )


def check_targets(pairs: Pairs, folder: Path, base: Path) -> None:
    """Check that every pair of an adapter has a weight of its shape in the base.

    Raises:
        CheckpointError: names a module that the base lacks, or whose shape is another.
    """
    shapes = _shapes(base)
    if heads := [n for n in pairs if n.endswith(HEADS) and model_config(base).tie_word_embeddings]:
        raise CheckpointError(
            f"{folder} has a LoRA on {heads[0]}, which in {base} is the embedding itself. "
            f"{MERGE_WITH_PEFT}"
        )
    if missing := sorted(set(pairs) - shapes.keys()):
        raise CheckpointError(
            f"{folder}: the base {base} has no {missing[0]} ({len(missing)} such modules): "
            "the adapter belongs to another base."
        )
    for name, (a, b) in pairs.items():
        if (b.shape[0], a.shape[1]) != shapes[name]:
            raise CheckpointError(
                f"LoRA for {name} has shape {b.shape[0]}x{a.shape[1]}, the base's weight "
                f"{'x'.join(map(str, shapes[name]))}: the adapter belongs to another base."
            )


def _check_plain(pairs: Pairs, base: Path) -> None:
    """Check that the weights to merge into are plain numbers: codes of a quantised model are not.

    Raises:
        CheckpointError: names the first that is none, with its format.
    """
    for file in weight_files(base):
        with open_tensors(file) as tensors:
            for name in sorted(pairs.keys() & set(tensors.keys())):
                if (stored := tensors.get_slice(name).get_dtype()) not in CHECKED:
                    raise CheckpointError(
                        f"the base {base} holds {name} as {stored}: a LoRA cannot be merged into "
                        "quantised weights. Give the base in full precision, or merge=false."
                    )


def _shapes(base: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(base):
        with open_tensors(file) as tensors:
            found |= {n: tuple(tensors.get_slice(n).get_shape()) for n in tensors.keys()}  # noqa: SIM118
    return found


def _merge_file(file: Path, target: Path, pairs: Pairs, config: LoraConfig) -> None:
    """Write one safetensors file of the base with the pairs that belong to it merged in."""
    import torch
    from safetensors.torch import save_file

    tensors = load_tensors(file)
    for name in sorted(set(tensors) & set(pairs)):
        weight, (a, b) = tensors[name], pairs[name]
        scale = config.scale(name.removesuffix(".weight"))
        merged = (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)
        if not torch.isfinite(merged).all():
            raise CheckpointError(f"merging {name} gives NaN or infinite weights.")
        tensors[name] = merged
    save_file(tensors, target, metadata={"format": "pt"})


def merge(folder: Path, base: Path, config: LoraConfig) -> Path:
    """Return the cached folder of ``base`` with the LoRA in ``folder`` merged in.

    W + (alpha/r) B A (Hu et al., 2021, arXiv 2106.09685, section 4.1), computed in float32 and
    rounded to the base's dtype. The cache key covers everything that goes into the folder. An
    adapter saved with a tokenizer keeps it, and with it its chat template.

    Raises:
        CheckpointError: shapes do not fit, a module is not in the base, or weights are not finite.
    """
    own = own_tokenizer(folder)
    files = companions(base) | own
    weights = adapter_weights(folder)
    # Of two templates the one in a file of its own counts, and that may be the base's.
    template = (template_text(folder) or template_text(base)) if own else None
    facts = [
        MERGE_VERSION,
        sha256_file(weights),
        config.model_dump(mode="json"),
        weights_sha256(base),
        *([] if template is None else [template]),
    ]

    def write(target: Path) -> None:
        if template is not None:
            (target / TEMPLATE).write_text(template, encoding="utf-8")
        pairs = low_rank_pairs(weights, config)
        check_targets(pairs, folder, base)
        _check_plain(pairs, base)
        for file in weight_files(base):
            _merge_file(file, target / file.name, pairs, config)

    return cached_folder("merged", files, facts, write)


def servable(folder: Path, base: Path, config: LoraConfig) -> Path:
    """Return a LoRA folder that an engine applies to ``base`` exactly as a merge would.

    It is ``folder`` itself where that is safetensors without a baseline head, else a cleaned copy
    in the cache.

    Raises:
        CheckpointError: the adapter does not fit the base, or holds something that an engine
            would leave out.
    """
    weights = adapter_weights(folder)
    pairs = low_rank_pairs(weights, config)
    check_targets(pairs, folder, base)
    _check_served(pairs, folder, base)
    if weights.name == SAFE_WEIGHTS and not head_names(weights):
        return folder
    return _cleaned(folder, weights)


def _check_served(pairs: Pairs, folder: Path, base: Path) -> None:
    unserved = sorted(n for n in pairs if n.endswith(NOT_SERVED))
    added = sorted(added_tokens(folder, base))
    problem = f"a LoRA on {', '.join(unserved)}" if unserved else ""
    problem = problem or (f"tokens of its own ({', '.join(added)})" if added else "")
    problem = problem or _other_end(folder, base)
    if problem:
        raise CheckpointError(
            f"{folder} has {problem}, which no engine applies to an unmerged adapter. Leave "
            "merge=false out."
        )


def _other_end(folder: Path, base: Path) -> str:
    """Return in words that an adapter's own tokenizer ends texts otherwise than its base's."""
    if not own_tokenizer(folder):
        return ""
    own, other = (read_tokenizer(place).eos_token for place in (folder, base))
    return "" if own == other else f"an end of text of its own ({own}; its base's is {other})"


def _cleaned(folder: Path, weights: Path) -> Path:
    from safetensors.torch import save_file

    files = {ADAPTER_CONFIG: folder / ADAPTER_CONFIG} | own_tokenizer(folder)

    def write(target: Path) -> None:
        kept = {k: v.contiguous() for k, v in read_tensors(weights).items() if not is_head(k)}
        save_file(kept, target / SAFE_WEIGHTS, metadata={"format": "pt"})

    return cached_folder("adapters", files, [MERGE_VERSION, sha256_file(weights)], write)


def check_adapter(spec: CheckpointSpec, folder: Path, base: Path, config: LoraConfig) -> None:
    """Check that an adapter belongs to ``base`` and can be applied as ``spec`` says; apply nothing.

    Raises:
        CheckpointError: it was trained on other weights, or does not fit them.
    """
    _check_recorded_base(folder, base, spec.name)
    added_tokens(folder, base)
    pairs = low_rank_pairs(adapter_weights(folder), config)
    check_targets(pairs, folder, base)
    if spec.merge:
        _check_plain(pairs, base)
    else:
        _check_served(pairs, folder, base)


class PeftLora:
    """A folder written by PEFT's ``save_pretrained`` for a LoRA."""

    def prepare(self, spec: CheckpointSpec) -> Loadable:
        """Return the adapter merged into its base, or with ``merge`` off beside it.

        Raises:
            CheckpointError: the base is missing or another one, or the adapter cannot be applied.
        """
        folder = Path(spec.source).expanduser()
        with reading(folder):
            if not folder.is_dir():
                raise CheckpointError(f"adapter folder {folder} does not exist.")
            config, weights = read_config(folder), adapter_weights(folder)
            base = base_of(spec, folder, config)
            _check_recorded_base(folder, base.folder, spec.name)
            added_tokens(folder, base.folder)
            if spec.merge:
                ready, lora = merge(folder, base.folder, config), None
                note = f"{config} merged into {base.folder.name} in float32"
            else:
                ready, lora = base.folder, servable(folder, base.folder, config)
                note = f"{config} left to the engine, unmerged, on {base.folder.name}"
            notes = (note, *dropped_note(head_names(weights)), *base.notes)
            return describe(spec, ready, notes, base=base.weights, lora=lora)
