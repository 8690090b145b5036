"""Tokens/s of a run's generation phase against a bare ``LLM.generate`` on the same requests.

    python benchmarks/throughput.py [--rounds 2] [--limit N]

All sides get the same prompts, sampling parameters and seeds, in the same order, and the same
engine settings and environment, each in a process of its own, in turn:

run     the run's generation phase: exact entropy of each token, every record on disk
bare    ``LLM.generate`` as vLLM comes, with its own top-p, which sorts the whole vocabulary
filter  ``LLM.generate`` with this package's top-p filter, which shows the cost of all the rest

Engine start and checkpoint loading are left out. Prints one line a side and the median ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measuring import (
    SEED,
    Rate,
    bare_rate,
    base_plan,
    engine_settings,
    finish,
    side_command,
    tuned_environment,
)


def run_rate(limit: int | None) -> Rate:
    """Measure the generation phase on one checkpoint, from the first request to the last record."""
    with tempfile.TemporaryDirectory() as scratch:
        plan = base_plan(limit, Path(scratch) / "run")
        from harness.generation import Queue, Sampler
        from harness.prompts import render_all
        from harness.store import open_run

        group = plan.groups[0]
        prompts = render_all(plan.checkpoints, plan.suites, engine_settings(plan).max_model_len)
        with open_run(plan.config.output, plan.manifest, []) as folder:
            sampler = Sampler(plan, folder, prompts, {}, {}, lambda *_, **__: None)
            queue = Queue(sampler, group, plan.base)
            engine = group.make(SEED)
            engine.load(plan.base)
            started = time.perf_counter()
            queue.work(engine)
            seconds = time.perf_counter() - started
            engine.close()
            tokens = sum(answer.tokens or 0 for answer in sampler.generated.values())
    return Rate(tokens, seconds)


SIDES: dict[str, Callable[[int | None], Rate]] = {
    "run": run_rate,
    "bare": lambda limit: bare_rate(limit, own_top_p=False),
    "filter": lambda limit: bare_rate(limit, own_top_p=True),
}


def measure(side: str, limit: int | None) -> float:
    """Measure one side in a process of its own; return tokens/s."""
    # The run's worker is given the environment by the run; a bare LLM must be started with it.
    environment = dict(os.environ) if side == "run" else tuned_environment()
    rate = Rate(*finish(side_command(__file__, side, limit), environment).found)
    print(f"  {side:6} {rate}", flush=True)
    return rate.per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit", type=int, help="examples of each suite (default: all)")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(SIDES[given.side](given.limit)))
        return
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(given.rounds):
        print(f"round {number + 1}", flush=True)
        for side in list(SIDES) if number % 2 == 0 else list(reversed(SIDES)):
            rates[side].append(measure(side, given.limit))
    for other, note in (("bare", " (wanted: at least 0.95)"), ("filter", "")):
        ratios = [a / b for a, b in zip(rates["run"], rates[other], strict=True)]
        print(f"median ratio run/{other} {statistics.median(ratios):.3f}{note}")


if __name__ == "__main__":
    main()
