"""One checkpoint's answers to one suite, as evaluation scripts have them.

    generate.py MODEL PROMPTS ANSWERS DTYPE [--eager]

vLLM stands as it comes, but for its dtype (so that all sides compute the same) and a setting
without which it does not start on a CPU. PROMPTS is a JSON list of token ids and sampling
parameters. ANSWERS becomes a JSON object: the answers, their tokens, and the seconds that
``LLM.generate`` took. With ``--eager`` vLLM is told not to compile the model.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt
from vllm.platforms import current_platform

CPU_CACHE: dict[str, Any] = {"kv_cache_memory_bytes": 3 * 2**29}
"""On a CPU vLLM wants 0.92 of the memory, more than its own processes leave free, and does not
start. 1.5 GiB is what the harness takes; a larger cache takes longer to be made."""


def main() -> None:
    model, prompts, answers, dtype, *eager = sys.argv[1:]
    rows = json.loads(Path(prompts).read_text(encoding="utf-8"))
    settings = CPU_CACHE if current_platform.is_cpu() else {}
    llm = LLM(model=model, dtype=dtype, enforce_eager=bool(eager), **settings)
    params = [SamplingParams(**row["sampling"]) for row in rows]
    started = time.perf_counter()
    outputs = llm.generate([TokensPrompt(prompt_token_ids=row["prompt"]) for row in rows], params)
    found = {
        "seconds": time.perf_counter() - started,
        "tokens": sum(len(out.outputs[0].token_ids) for out in outputs),
        "answers": [out.outputs[0].text for out in outputs],
    }
    Path(answers).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
