"""Tokens/s of a run's generation phase against a bare ``LLM.generate`` on the same requests.

    python benchmarks/throughput.py [--rounds 2] [--limit N]

All sides get the same prompts, sampling parameters and seeds, in the same order, and the same
engine settings, each in a process of its own, in turn:

run     the pipeline's generation phase: exact entropy of each token, every record on disk
bare    ``LLM.generate`` as vLLM comes, with its own top-p, which sorts the whole vocabulary
filter  ``LLM.generate`` with this package's top-p filter, which shows the cost of all the rest

Engine start and checkpoint loading are left out. Prints one line a side and the median ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.engines.environment import hide_mismatched_builds, restart_with_engine_environment


def config(limit: int | None, output: Path):  # type: ignore[no-untyped-def]
    from harness.plan import RunConfig
    from harness.types import CheckpointSpec

    base = CheckpointSpec(name="base", source="embedded:smollm2-135m-instruct")
    return RunConfig(checkpoints=(base,), suites=("mini",), output=output, limit=limit)


def measure_run(limit: int | None) -> dict[str, float]:
    """The pipeline's generation phase on one checkpoint."""
    from harness.engines.vllm import VllmEngine
    from harness.pipeline import Work
    from harness.plan import make_plan
    from harness.prompts import render_all
    from harness.store import GENERATIONS, open_run

    with tempfile.TemporaryDirectory() as scratch:
        plan = make_plan(config(limit, Path(scratch) / "run"))
        prompts = render_all(plan.checkpoints, plan.suites, plan.settings.max_model_len)
        with open_run(plan.config.output, plan.manifest, []) as folder:
            work = Work(plan, folder, prompts)
            engine = VllmEngine(plan.settings, 0)
            checkpoint = plan.checkpoints[0]
            engine.load(checkpoint)
            started = time.perf_counter()
            work.generate(engine, checkpoint)
            seconds = time.perf_counter() - started
            tokens = sum(g.tokens for g in folder.records(GENERATIONS))
    return {"tokens": tokens, "seconds": seconds}


def measure_bare(limit: int | None, *, own_top_p: bool) -> dict[str, float]:
    """``LLM.generate`` on the same requests, with or without this package's top-p filter."""
    from vllm import LLM

    from harness.engines.vllm import engine_arguments, sampling_params
    from harness.plan import make_plan
    from harness.prompts import render_all
    from harness.requests import make_requests

    with tempfile.TemporaryDirectory() as scratch:
        plan = make_plan(config(limit, Path(scratch) / "run"))
    settings = plan.settings.model_copy(update={"own_top_p": own_top_p})
    arguments = engine_arguments(plan.checkpoints[0], settings, 0)
    arguments["logits_processors"] = [p for p in arguments["logits_processors"] if "Nucleus" in p]
    del arguments["worker_extension_cls"]
    llm = LLM(**arguments)
    rendered = render_all(plan.checkpoints, plan.suites, plan.settings.max_model_len)
    requests = make_requests(plan.suites, rendered["base"], plan.config.seed)
    prompts = [{"prompt_token_ids": list(r.prompt)} for r in requests]
    params = [sampling_params(r, own_top_p=own_top_p) for r in requests]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return {"tokens": sum(len(o.outputs[0].token_ids) for o in outputs), "seconds": seconds}


SIDES = {
    "run": measure_run,
    "bare": lambda limit: measure_bare(limit, own_top_p=False),
    "filter": lambda limit: measure_bare(limit, own_top_p=True),
}


def measure(side: str, limit: int | None) -> float:
    """Measure one side in a process of its own; return tokens/s."""
    command = [sys.executable, __file__, "--side", side]
    if limit is not None:
        command += ["--limit", str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    rate = found["tokens"] / found["seconds"]
    print(
        f"  {side:6} {found['tokens']:7d} tokens {found['seconds']:7.1f} s {rate:7.1f} tokens/s",
        flush=True,
    )
    return float(rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--side", choices=list(SIDES))
    given = parser.parse_args()
    if given.side:
        restart_with_engine_environment()
        hide_mismatched_builds()
        print(json.dumps(SIDES[given.side](given.limit)))
        return
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(given.rounds):
        print(f"round {number + 1}", flush=True)
        for side in list(SIDES) if number % 2 == 0 else list(reversed(SIDES)):
            rates[side].append(measure(side, given.limit))
    for other in ("bare", "filter"):
        ratios = [a / b for a, b in zip(rates["run"], rates[other], strict=True)]
        print(f"median ratio run/{other} {statistics.median(ratios):.3f} (wanted: at least 0.90)")


if __name__ == "__main__":
    main()
