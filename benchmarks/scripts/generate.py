"""One checkpoint's answers to one suite, as evaluation scripts have them: MODEL PROMPTS ANSWERS.

vLLM stands as it comes, one setting apart, without which it does not start on a CPU. PROMPTS is a
JSON list of token ids and sampling parameters. ANSWERS becomes a JSON object: the answers, their
tokens, and the seconds that ``LLM.generate`` took.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams, TokensPrompt

MEMORY = 0.5
"""Share of the memory that vLLM may take: it wants 0.92 free, and by then its own processes hold
more than the rest. This is what its message proposes."""


def main() -> None:
    model, prompts, answers = sys.argv[1:]
    rows = json.loads(Path(prompts).read_text(encoding="utf-8"))
    llm = LLM(model=model, gpu_memory_utilization=MEMORY)
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
