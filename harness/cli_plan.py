"""``tbpo plan``: what a run will take, and what it can find, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from harness.cli_config import json_option, run_config, run_options

if TYPE_CHECKING:
    from harness.planning import EngineForecast, JudgeForecast, RunForecast, SuiteForecast
    from harness.stats.power import Planned

NOWHERE = "results/planned"
"""Output of a plan that names none; nothing is written there."""


@click.command()
@run_options
@json_option
def plan(as_json: bool, **given: Any) -> None:
    """Say how many requests and tokens a run needs, how long, at what cost, and what it can find.

    The options are those of 'tbpo run'. Nothing is generated, and no judge is asked for a verdict.
    """
    from pathlib import Path

    from harness.engines.environment import prepare_process

    given["output"] = given["output"] or (None if given["config"] else Path(NOWHERE))
    config = run_config(given)
    prepare_process()
    from harness.planning import forecast

    found = forecast(config)
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(_lines(found)))


def _lines(found: RunForecast) -> Iterator[str]:
    yield "suites"
    yield from map(_suite, found.suites)
    yield "generation"
    yield from map(_engine, found.engines)
    if found.judges:
        yield f"judges (prices in {found.prices})"
        yield from map(_judge, found.judges)
    if found.usd is not None:
        yield _cost(found.usd, found.unpriced)


def _suite(found: SuiteForecast) -> str:
    given = "?" if found.prompt_tokens is None else f"{found.prompt_tokens:,}"
    return (
        f"  {found.suite}: {found.prompts} prompts x {found.samples}, {found.requests:,} answers; "
        f"{given} prompt tokens, at most {found.answer_tokens:,} answer tokens\n"
        f"    {_found(_points(found.win_rate), _points(found.difference))}"
    )


def _found(rate: str | None, shares: str | None) -> str:
    """Say what a suite finds with the power asked for."""
    distance, apart = f"a win rate {rate} from 50 %", f"two shares {shares} apart"
    if rate and shares:
        return f"finds {distance}, or {apart}, four times in five"
    if rate:
        return f"finds {distance} four times in five; too few prompts to tell two shares apart"
    if shares:
        return f"finds {apart} four times in five; too few prompts to tell a win rate from 50 %"
    return "too few prompts to tell a win rate from 50 %, or two shares apart, four times in five"


def _engine(found: EngineForecast) -> str:
    if found.tokens_per_second is None:
        time = "time not known, nothing like it was sampled on this machine yet"
    else:
        speed = f"{found.tokens_per_second:.0f} tokens/s, as measured here"
        time = f"at most {_time(found.seconds)} at {speed}"
    count = len(found.checkpoints)
    return (
        f"  {count} checkpoint{'s' if count > 1 else ''} on {found.engine}: at most "
        f"{found.answer_tokens:,} tokens; {time}"
    )


def _points(found: Planned | None) -> str | None:
    if found is None or found.difference is None:
        return None
    return f"{100 * found.difference:.1f} points"


def _judge(found: JudgeForecast) -> str:
    if found.usd is not None:
        cost = f"at most about {found.usd:.2f} USD"
    else:
        cost = "no price known" if found.paid else "no API, no price"
    time = "time not known" if found.seconds is None else f"about {_time(found.seconds)}"
    return (
        f"  {found.judge} ({found.model}): {found.pairs:,} pairs in both orders, "
        f"{found.requests:,} requests, at most {found.input_tokens:,} + {found.output_tokens:,} "
        f"tokens; {cost}; {time}"
    )


def _cost(usd: float, unpriced: Sequence[str]) -> str:
    most = f"at most about {usd:.2f} USD, retries aside"
    if not unpriced:
        return f"cost: {most}"
    return f"cost: {most}, and on top what {', '.join(unpriced)} costs: no price known"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
