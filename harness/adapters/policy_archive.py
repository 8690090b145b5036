"""Adapter for a state dict saved with ``torch.save``, such as the ``policy.pt`` of DPO trainers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.adapters.bases import Base, find_base
from harness.adapters.hf_folder import (
    HEAD_PREFIX,
    cached_folder,
    companions,
    describe,
    dropped_note,
)
from harness.adapters.identity import (
    files_sha256,
    model_config,
    reading,
    weight_files,
    weights_sha256,
)
from harness.adapters.tensors import load_tensors, open_tensors
from harness.adapters.torch_files import load_torch
from harness.errors import CheckpointError
from harness.types import CheckpointSpec, Loadable

CONVERSION_VERSION = 1
"""Raised whenever the conversion's result changes, so that no old one is reused."""

FILE = "policy.pt"
"""The archive that is looked for in a folder."""

STATES = ("state", "state_dict")
"""Keys under which a trainer's archive keeps the state dict."""

WRAPPERS = {"module", "_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}
"""Parts of names that data parallelism, FSDP, torch.compile and recomputation put in."""

DERIVED = ("rotary_emb.inv_freq", "attention.masked_bias", "attention.bias")
"""Ends of names of what older versions of transformers saved beside the weights: constants that
follow from the configuration. ``attention.bias`` is one where it has four axes: a causal mask."""

FORMATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Names of safetensors' floating formats in torch."""

EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight")
HEADS = ("lm_head.weight", "embed_out.weight")


class Archive(NamedTuple):
    """A state dict under the base's names, the training step, and what was left out of it."""

    state: dict[str, Any]
    step: int | None
    dropped: list[str]


def read_archive(file: Path) -> Archive:
    """Return the state dict in a file, its names freed of what wraps a model in training.

    Raises:
        CheckpointError: the file is damaged, asks for code to be run, or holds no state dict; two
            names are the same without their wrappers.
    """
    content = load_torch(file)
    held = content if isinstance(content, dict) else {}
    state = next((held[key] for key in STATES if isinstance(held.get(key), dict)), held)
    named: dict[str, Any] = {}
    for name, value in _tensors(state, file).items():
        bare = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if bare in named:
            raise CheckpointError(f"{file} holds tensor '{bare}' twice, once as '{name}'.")
        named[bare] = value
    dropped = sorted(name for name in named if name.startswith(HEAD_PREFIX))
    kept = {n: v for n, v in named.items() if n not in dropped and not _derived(n, v)}
    step = held.get("step_idx")
    return Archive(kept, step if isinstance(step, int) else None, dropped)


def _tensors(state: Mapping[Any, Any], file: Path) -> dict[str, Any]:
    import torch

    strange = [k for k, v in state.items() if not isinstance(k, str) or not torch.is_tensor(v)]
    if strange or not state:
        what = f"'{strange[0]}' is no tensor" if strange else "it is empty, or no dict"
        raise CheckpointError(
            f"{file} holds no state dict ({what}). Expected are tensors by name, alone or under "
            f"{' or '.join(repr(key) for key in STATES)}."
        )
    return dict(state)


def _derived(name: str, tensor: Any) -> bool:
    return name.endswith(DERIVED) and (not name.endswith("attention.bias") or tensor.ndim == 4)


def tie(state: dict[str, Any], expected: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return ``state`` with the output head where ``expected`` has it, for a base that ties it.

    Raises:
        CheckpointError: the head of ``state`` is not its embedding.
    """
    import torch

    embedding = next((n for n in state if n.endswith(EMBEDDINGS)), None)
    head = next((n for n in (*state, *expected) if n.endswith(HEADS)), None)
    if embedding is None or head is None:
        return state
    if not torch.equal(state.get(head, state[embedding]), state[embedding]):
        raise CheckpointError(
            f"{source}: {head} differs from {embedding}, but the base's configuration ties them "
            "(tie_word_embeddings). Give the base that was trained."
        )
    others = {name: value for name, value in state.items() if name != head}
    return others | ({head: state[embedding]} if head in expected else {})


def check_fits(state: Mapping[str, Any], expected: Mapping[str, Any], source: Path) -> None:
    """Check that two state dicts have the same names and shapes.

    Raises:
        CheckpointError: names and counts what is missing, unexpected or of another shape.
    """
    shapes = {
        f"{n} {tuple(state[n].shape)} for {tuple(expected[n].shape)}"
        for n in state.keys() & expected.keys()
        if state[n].shape != expected[n].shape
    }
    problems = {
        "missing": expected.keys() - state.keys(),
        "unexpected": state.keys() - expected.keys(),
        "of another shape": shapes,
    }
    if said := [f"{len(n)} {kind} ({_first(n)})" for kind, n in problems.items() if n]:
        raise CheckpointError(
            f"{source} does not fit its base: tensors {', '.join(said)}. Give the base that the "
            "training started from as base=FOLDER."
        )


def _first(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")


def cast(state: Mapping[str, Any], expected: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return the tensors of ``state`` that ``expected`` names, in its dtypes.

    Raises:
        CheckpointError: a value is NaN or infinite, or becomes so; the base is quantised.
    """
    import torch

    tensors: dict[str, Any] = {}
    for name, like in expected.items():
        if not like.is_floating_point() or like.itemsize < 2:
            raise CheckpointError(
                f"the base of {source} holds {name} as {like.dtype}: weights cannot be put in "
                "place of quantised ones. Give the base that the training started from."
            )
        tensors[name] = state[name].to(like.dtype, copy=True).contiguous()
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(
                f"{source}: tensor '{name}' holds NaN or infinity as {like.dtype}. Training "
                "diverged or the file was damaged: give an earlier checkpoint."
            )
    return tensors


def convert(file: Path, archive: Archive, base: Path) -> Path:
    """Return the cached folder of ``base`` with its weights replaced by an archive's.

    Raises:
        CheckpointError: names, shapes or values do not fit the base.
    """
    files = companions(base)
    facts = [CONVERSION_VERSION, files_sha256([file]), weights_sha256(base)]

    def write(target: Path) -> None:
        expected = _weights(base)
        tied = bool(getattr(model_config(base).get_text_config(), "tie_word_embeddings", False))
        state = tie(archive.state, expected, file) if tied else archive.state
        check_fits(state, expected, file)
        for shard in weight_files(base):
            _write(shard, target / shard.name, state, file)

    return cached_folder("converted", files, facts, write)


def _weights(base: Path) -> dict[str, Any]:
    loaded = (load_tensors(shard) for shard in weight_files(base))
    return {n: v for tensors in loaded for n, v in tensors.items() if not _derived(n, v)}


def _write(shard: Path, target: Path, state: Mapping[str, Any], source: Path) -> None:
    from safetensors.torch import save_file

    tensors = load_tensors(shard)
    weights = {name: v for name, v in tensors.items() if not _derived(name, v)}
    save_file(tensors | cast(state, weights, source), target, metadata={"format": "pt"})


def _dtypes(tensors: Mapping[str, Any]) -> str:
    found = {str(v.dtype).removeprefix("torch.") for v in tensors.values()}
    return " and ".join(sorted(found))


def _stored_dtypes(folder: Path) -> str:
    """Return the same of the weights in a folder, from the headers of their files."""
    found = set()
    for file in weight_files(folder):
        with open_tensors(file) as tensors:
            names = [name for name in tensors.keys() if not name.endswith(DERIVED)]  # noqa: SIM118
            found |= {tensors.get_slice(name).get_dtype() for name in names}
    return " and ".join(sorted(FORMATS.get(name, name) for name in found))


def _notes(file: Path, archive: Archive, base: Base, ready: Path) -> tuple[str, ...]:
    at = "" if archive.step is None else f" at step {archive.step}"
    note = f"state dict {file.name}{at} put into {base.folder.name}"
    before, after = _dtypes(archive.state), _stored_dtypes(ready)
    rounded = () if before == after else (f"cast from {before} to the base's {after}",)
    return (note, *rounded, *dropped_note(archive.dropped), *base.notes)


class PolicyArchive:
    """A file of ``torch.save`` that holds a state dict, or a folder with ``policy.pt``."""

    def prepare(self, spec: CheckpointSpec) -> Loadable:
        """Return the checkpoint ready for an engine; the base gives configuration and tokenizer.

        Raises:
            CheckpointError: no base was given, or the archive is damaged or does not fit it.
        """
        place = Path(spec.source).expanduser()
        with reading(place):
            file = place / FILE if place.is_dir() else place
            if spec.base is None:
                raise CheckpointError(
                    f"'{spec.name}': {file} holds weights alone. Say whose configuration and "
                    f"tokenizer they need: --checkpoint {spec.name}={spec.source},base=FOLDER (a "
                    "folder, a hub id or embedded:NAME)."
                )
            archive = read_archive(file)
            base = find_base(spec.base, spec.name, spec.source)
            ready = convert(file, archive, base.folder)
            return describe(spec, ready, _notes(file, archive, base, ready))
