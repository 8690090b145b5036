"""What a setting of the engine costs: the same requests with it and without, in one run.

    python benchmarks/setting_cost.py [--setting entropy] [--limit 8] [--rounds 1]
    python benchmarks/setting_cost.py --setting deterministic --limit 2

entropy        entropy and log-probability of every generated token, over the whole vocabulary
deterministic  answers that do not depend on the batch: on a CPU each is computed alone

Two engines that differ in the setting alone are held side by side and answer the base checkpoint's
requests of four suites in turn: with, without, without, with. Prints how much more time a token
takes with the setting.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from measuring import SEED, WARM_UP, Rate, base_requests, finish, side_command

if TYPE_CHECKING:
    from harness.engines import Request
    from harness.engines.workers import VllmWorkers

WANTED = {"entropy": 10.0, "deterministic": None}
"""Setting -> per cent more time a token that it should stay below, if anything is asked of it."""

ABBA = (True, False, False, True)


def measure_here(setting: str, limit: int | None, rounds: int) -> list[tuple[bool, Rate]]:
    """Measure an engine with and one without the setting in turn, both started before."""
    given = base_requests(limit)
    from harness.engines.workers import VllmWorkers

    settings = {on: given.settings.model_copy(update={setting: on}) for on in (True, False)}
    with (
        closing(VllmWorkers(settings[True], SEED)) as on,
        closing(VllmWorkers(settings[False], SEED)) as off,
    ):
        for engine in (on, off):
            engine.load(given.checkpoint)
            answer_rate(engine, given.requests[:WARM_UP])
        return [
            (with_it, answer_rate(on if with_it else off, given.requests))
            for with_it in ABBA * rounds
        ]


def answer_rate(engine: VllmWorkers, requests: Sequence[Request]) -> Rate:
    started = time.perf_counter()
    tokens = sum(completion.tokens or 0 for completion in engine.generate(requests))
    return Rate(tokens, time.perf_counter() - started)


def show_cost(setting: str, limit: int | None, rounds: int) -> None:
    """Print what the setting costs: the time of a token with it over that without, less 1."""
    command = side_command(__file__, setting, limit, "--rounds", str(rounds))
    sums = {True: Rate(0, 0), False: Rate(0, 0)}
    for with_it, (tokens, seconds) in finish(command, os.environ).found:
        name = setting if with_it else "without"
        print(f"  {name:14} {Rate(tokens, seconds)}", flush=True)
        before = sums[with_it]
        sums[with_it] = Rate(before.tokens + tokens, before.seconds + seconds)
    overhead = 100 * (sums[False].per_second / sums[True].per_second - 1)
    verdict = ""
    if (wanted := WANTED[setting]) is not None:
        verdict = f" (wanted less than {wanted:g}: {'met' if overhead < wanted else 'MISSED'})"
    print(f"\n{setting} costs {overhead:.1f} % more time a token{verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", choices=WANTED, default="entropy")
    parser.add_argument("--limit", type=int, help="examples of each suite (default: all)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    given = parser.parse_args()
    from harness.engines.environment import prepare_process

    prepare_process()
    if given.side:
        print(json.dumps(measure_here(given.side, given.limit, given.rounds)))
    else:
        show_cost(given.setting, given.limit, given.rounds)


if __name__ == "__main__":
    main()
