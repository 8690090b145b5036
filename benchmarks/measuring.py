"""What the benchmarks of the engine share: processes, a stopwatch, requests, a bare ``LLM``.

Importing this, or a benchmark, loads no model library: every measured side is a process of its own.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.engines.environment import engine_environment

if TYPE_CHECKING:
    from harness.engines import Request
    from harness.engines.settings import EngineSettings
    from harness.plan import Plan
    from harness.types import Loadable

SUITES = ("instruction_following", "hh", "summarization", "diversity")
BASE = "smollm2-135m-instruct"
SEED = 0
WARM_UP = 8
"""Requests that an engine answers before it is timed, where it is timed more than once."""

SHOWN = 3000
"""Characters of a failed process's last words that are shown."""


class Rate(NamedTuple):
    """Generated tokens, end tokens included, and the seconds that took."""

    tokens: float
    seconds: float

    @property
    def per_second(self) -> float:
        return self.tokens / self.seconds

    def __str__(self) -> str:
        return f"{self.tokens:7.0f} tokens {self.seconds:7.1f} s {self.per_second:7.1f} tokens/s"


class Finished(NamedTuple):
    """What a process printed, and its seconds from start to end."""

    output: str
    seconds: float

    @property
    def found(self) -> Any:
        """The JSON value of its last line."""
        return json.loads(self.output.splitlines()[-1])


def finish(command: Sequence[str], environment: Mapping[str, str]) -> Finished:
    """Run a process to its end; where it fails, end with its last words."""
    started = time.perf_counter()
    done = subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-SHOWN:]}")
    return Finished(done.stdout, seconds)


def side_command(file: str, side: str, limit: int | None, *more: str) -> list[str]:
    """Return the command that measures one side of a benchmark in a process of its own."""
    cut = [] if limit is None else ["--limit", str(limit)]
    return [sys.executable, file, "--side", side, *cut, *more]


def tuned_environment() -> dict[str, str]:
    """Return this process's environment with what the engine's own worker is given."""
    return dict(os.environ) | engine_environment()


class Stopwatch:
    """Seconds by part; a part's time is its own, without that of the parts timed inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._inside.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            whole = time.perf_counter() - started
            self.seconds[name] += whole - self._inside.pop()
            self._inside[-1] += whole

    def calls(self, owner: Any, function: str, *parts: str) -> None:
        """Time a function: its calls count for one part after the other, then for the last."""
        original = getattr(owner, function)
        names = itertools.chain(parts, itertools.repeat(parts[-1]))

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(next(names)):
                return original(*args, **kwargs)

        setattr(owner, function, timed)

    def iterations(self, owner: Any, function: str, part: str) -> None:
        """Time the waiting for a function's items, without what is done with them in between."""
        original = getattr(owner, function)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            yield from self._waited(original(*args, **kwargs), part)

        setattr(owner, function, timed)

    def _waited(self, items: Iterable[Any], part: str) -> Iterator[Any]:
        end = object()
        iterator = iter(items)
        while True:
            with self.part(part):
                item = next(iterator, end)
            if item is end:
                return
            yield item


def base_plan(limit: int | None, output: Path) -> Plan:
    """Return the plan of a run of the base checkpoint alone on all suites."""
    from harness.engines.environment import prepare_process

    prepare_process()
    from harness.plan import RunConfig, make_plan
    from harness.types import CheckpointSpec

    spec = CheckpointSpec(name="base", source=f"embedded:{BASE}")
    return make_plan(
        RunConfig(checkpoints=(spec,), suites=SUITES, output=output, limit=limit, seed=SEED)
    )


def engine_settings(plan: Plan) -> EngineSettings:
    """Return the settings of the one engine that a plan of weights starts."""
    from harness.engines.settings import EngineSettings

    settings = plan.groups[0].settings
    assert isinstance(settings, EngineSettings)
    return settings


class Given(NamedTuple):
    """The base checkpoint, the engine's settings, and the requests in the order of a run."""

    checkpoint: Loadable
    settings: EngineSettings
    requests: list[Request]


def base_requests(limit: int | None) -> Given:
    """Return what a run of the base checkpoint asks of the engine."""
    plan = base_plan(limit, Path("never-opened"))
    from harness.prompts import render_all
    from harness.requests import make_requests

    settings = engine_settings(plan)
    prompts = render_all(plan.checkpoints, plan.suites, settings.max_model_len)
    requests = make_requests(plan.suites, prompts[plan.base.spec.name], SEED)
    return Given(plan.base, settings, requests)


def bare_rate(limit: int | None, *, own_top_p: bool) -> Rate:
    """Measure one call of ``LLM.generate`` on all requests, with the engine's own settings.

    Token statistics are off. Top-p is vLLM's own, which sorts the whole vocabulary, or with
    ``own_top_p`` this package's filter.
    """
    given = base_requests(limit)
    from vllm import LLM, TokensPrompt

    from harness.engines.vllm import engine_arguments, sampling_params

    settings = given.settings.model_copy(update={"own_top_p": own_top_p, "entropy": False})
    arguments = engine_arguments(given.checkpoint, settings, SEED)
    del arguments["worker_extension_cls"]
    llm = LLM(**arguments)
    prompts = [TokensPrompt(prompt_token_ids=list(r.prompt)) for r in given.requests]
    params = [sampling_params(r, own_top_p=own_top_p) for r in given.requests]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return Rate(sum(len(out.outputs[0].token_ids) for out in outputs), seconds)
