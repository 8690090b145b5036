"""Tokens/s of a run's generation phase against a bare ``LLM.generate`` on the same requests.

    python benchmarks/throughput.py [--rounds 2] [--limit N]

Both sides get the same prompts, sampling parameters, seeds and engine settings, each in a process
of its own, in turn. The run's side is the pipeline's own generation phase: exact entropy for each
token and every record written to disk. Engine start and checkpoint loading are left out on both
sides. Prints one line a round and the median ratio.
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


def measure_bare(limit: int | None) -> dict[str, float]:
    """``LLM.generate`` on the same requests, in the suites' order."""
    from vllm import LLM, SamplingParams

    from harness.engines.vllm import engine_arguments
    from harness.plan import make_plan
    from harness.prompts import render_suite

    with tempfile.TemporaryDirectory() as scratch:
        plan = make_plan(config(limit, Path(scratch) / "run"))
    checkpoint = plan.checkpoints[0]
    arguments = engine_arguments(checkpoint, plan.settings, 0)
    for ours in ("logits_processors", "worker_extension_cls"):
        del arguments[ours]
    llm = LLM(**arguments)
    prompts, params = [], []
    for suite in plan.suites:
        sampling = suite.spec.sampling
        for ids in render_suite(checkpoint, suite).values():
            for sample in range(sampling.samples):
                prompts.append({"prompt_token_ids": list(ids)})
                seed = len(prompts) + sample if sampling.temperature > 0 else None
                params.append(
                    SamplingParams(
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        max_tokens=sampling.max_tokens,
                        seed=seed,
                    )
                )
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return {"tokens": sum(len(o.outputs[0].token_ids) for o in outputs), "seconds": seconds}


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
    print(f"  {side:5} {found['tokens']:7d} tokens {found['seconds']:7.1f} s {rate:7.1f} tokens/s")
    return float(rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--side", choices=["run", "bare"])
    given = parser.parse_args()
    if given.side:
        restart_with_engine_environment()
        hide_mismatched_builds()
        side = measure_run if given.side == "run" else measure_bare
        print(json.dumps(side(given.limit)))
        return
    ratios = []
    for number in range(1, given.rounds + 1):
        print(f"round {number}")
        order = ["run", "bare"] if number % 2 else ["bare", "run"]
        rates = {side: measure(side, given.limit) for side in order}
        ratios.append(rates["run"] / rates["bare"])
        print(f"  ratio run/bare {ratios[-1]:.3f}", flush=True)
    print(f"median ratio run/bare {statistics.median(ratios):.3f} (wanted: at least 0.90)")


if __name__ == "__main__":
    main()
