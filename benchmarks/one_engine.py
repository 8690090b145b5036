"""What one engine start for all checkpoints saves: ratios of five sides, measured in one run.

    python benchmarks/one_engine.py [--limit 8] [--rounds 1] [--sides harness scripts ...]

The work: eight checkpoints, the embedded model and the seven LoRA trained from it, on four suites
of ``--limit`` examples each.

harness       ``tbpo run`` with nothing in its cache but the unpacked embedded model: LoRA merged,
              weights hashed and checked, canaries read in float32, one engine start.
scripts       As published evaluation scripts do it: a process a LoRA that merges it with PEFT, then
              a process for each checkpoint and suite that starts ``vllm.LLM(model=FOLDER)`` on
              its defaults, generates and writes the answers (benchmarks/scripts/). They are
              given the prompts as token ids, and on a CPU, where vLLM's default refuses to start, a
              key-value cache of the size that the harness takes. vLLM's default compiles the
              model at every start; ``--eager-scripts`` spares them that.
raw           One call of ``LLM.generate`` on the base checkpoint's requests of all suites, with the
              engine settings and the environment of the harness, vLLM's own top-p, no statistics.
filter        The same with this package's top-p filter.
transformers  ``model.generate`` on the base checkpoint's requests, padded on the left,
              grouped by their sampling: one full batch of every group (requests are repeated where
              a group is smaller), extrapolated to all requests. The best of three batch sizes.

All sides compute in the dtype that a run takes on this machine by default.

Every process is started in turn. All share a cache of vLLM's own, filled by one start of vLLM that
is not counted. Everything is written to a temporary folder.

Time outside generation is a side's wall time less its time in ``LLM.generate``; for the harness,
less the time it waits for the engine's answers. The headline compares the same work: what the
harness does beyond it (preference accuracy, scores, judgments, the report) is left out, and what
only the harness does to be sure of the same work (hashes, checks, canaries) is not. Tokens/s of the
harness are those of the base checkpoint from the first request to the last record on disk, exact
entropy of each token included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from measuring import (
    BASE,
    SEED,
    SUITES,
    WARM_UP,
    Rate,
    Stopwatch,
    bare_rate,
    base_requests,
    finish,
    side_command,
    tuned_environment,
)

from harness.cli import DEMO_CHECKPOINTS
from harness.files import json_lines
from harness.types.records import native_dtype

if TYPE_CHECKING:
    from harness.engines import Request

SIDES = ("harness", "scripts", "raw", "filter", "transformers")
BATCH_SIZES = (8, 16, 32)
START = "Python, imports, and what is not below"
GENERATION = "generation"
EXTRAS = ("preference accuracy", "divergences", "scores", "judgments", "report")
"""Parts of a run that no other side has."""


class Cost(NamedTuple):
    """What a side took: processes of its own, seconds, tokens generated."""

    processes: int
    wall: float
    generation: float
    tokens: float

    @property
    def outside(self) -> float:
        return self.wall - self.generation


class HarnessRun(NamedTuple):
    """A whole run: wall time, its parts, and of each checkpoint the answering."""

    wall: float
    parts: dict[str, float]
    answering: dict[str, Rate]

    def cost(self, *, extras: bool) -> Cost:
        """Return the cost of the run, with or without what no other side does."""
        beyond = 0.0 if extras else sum(self.parts.get(name, 0.0) for name in EXTRAS)
        tokens = sum(rate.tokens for rate in self.answering.values())
        # The run's process and its engine's.
        return Cost(2, self.wall - beyond, self.parts[GENERATION], tokens)


@dataclass
class Round:
    """What one round measured; None and empty for sides that were not asked for."""

    harness: HarnessRun | None = None
    scripts: Cost | None = None
    rates: dict[str, Rate] = field(default_factory=dict)


class Ratio(NamedTuple):
    text: str
    value: float
    wanted: float | None = None

    def __str__(self) -> str:
        verdict = ""
        if self.wanted is not None:
            met = "met" if self.value >= self.wanted else "MISSED"
            verdict = f"wanted at least {self.wanted:g}: {met}"
        return f"{self.value:7.2f}  {self.text:62} {verdict}".rstrip()


# -- in the process of a side --------------------------------------------------------------------


def run_arguments(checkpoints: int, limit: int | None, output: Path) -> list[str]:
    """Return the command line of the run, as a user would write it."""
    arguments = ["tbpo", "run", "--output", str(output), "--seed", str(SEED)]
    for name, source, _ in DEMO_CHECKPOINTS[:checkpoints]:
        arguments += ["--checkpoint", f"{name}={source}"]
    for suite in SUITES:
        arguments += ["--suite", suite]
    return arguments + ([] if limit is None else ["--limit", str(limit)])


def watched_run(arguments: list[str]) -> dict[str, Any]:
    """Carry out ``tbpo run`` in this process; return the seconds of its parts."""
    watch = Stopwatch()
    answering: dict[str, float] = {}
    with watch.part(START):
        from harness import cli
        from harness.engines.environment import prepare_process

        prepare_process()
        watch_run(watch)
        time_answering(answering)
        sys.argv = arguments
        cli.main()
    return {"parts": watch.seconds, "answering": answering}


def watch_run(watch: Stopwatch) -> None:
    """Time the parts of a run from outside: the package itself carries no stopwatch."""
    from harness import cli, pipeline, plan
    from harness.engines.workers import VllmWorkers
    from harness.pipeline import Work

    watch.calls(pipeline, "make_plan", "suites, metrics, judges")
    watch.calls(plan, "prepare", "checkpoints merged, hashed, checked")
    watch.calls(plan, "render_all", "prompts rendered")
    watch.calls(Work, "likelihoods", "canaries read in float32")
    watch.calls(pipeline, "raw_scores", "preference accuracy")
    watch.calls(Work, "generations", "records, proofs, bookkeeping")
    watch.calls(VllmWorkers, "load", "engine start", "loads")
    watch.calls(VllmWorkers, "prompt_logprobs", "first canary reading", "later canary readings")
    watch.iterations(VllmWorkers, "generate", GENERATION)
    watch.calls(VllmWorkers, "close", "engine end")
    for stage in ("divergences", "scores", "judgments"):
        watch.calls(Work, stage, stage)
    watch.calls(cli, "_render", "report")


def time_answering(seconds: dict[str, float]) -> None:
    """Time each checkpoint's answering as a whole, its records and checks included."""
    from harness.generation import Queue

    work = Queue.work

    def timed(queue: Queue, engine: Any) -> None:
        started = time.perf_counter()
        work(queue, engine)
        seconds[queue.checkpoint.spec.name] = time.perf_counter() - started

    Queue.work = timed  # type: ignore[assignment,method-assign]


def write_prompts(limit: int | None, folder: Path) -> None:
    """Write each suite's prompts and sampling parameters for the scripts."""
    rows: dict[str, list[dict[str, Any]]] = {suite: [] for suite in SUITES}
    for request in base_requests(limit).requests:
        asked = request.sampling
        sampling = {
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "max_tokens": asked.max_tokens,
            "seed": request.seed if asked.temperature > 0 else None,
        }
        suite = request.key.split("\n")[0]
        rows[suite].append({"prompt": request.prompt, "sampling": sampling})
    for suite, found in rows.items():
        (folder / f"{suite}.json").write_text(json.dumps(found), encoding="utf-8")


def transformers_rates(limit: int | None) -> dict[int, Rate]:
    """Measure ``model.generate`` at every batch size."""
    given = base_requests(limit)
    from harness.engines.loading import load_model

    model = load_model(given.checkpoint, given.checkpoint.spec.dtype)
    groups: dict[Any, list[Request]] = {}
    for request in given.requests:
        groups.setdefault(request.sampling, []).append(request)
    batch_rate(model, given.requests[:WARM_UP], most=WARM_UP)
    return {size: grouped_rate(model, list(groups.values()), size) for size in BATCH_SIZES}


def grouped_rate(model: Any, groups: Sequence[Sequence[Request]], size: int) -> Rate:
    """Return tokens and seconds of all requests, reckoned from one full batch of each group."""
    tokens = seconds = 0.0
    for group in groups:
        found = batch_rate(model, list(itertools.islice(itertools.cycle(group), size)))
        batches = len(group) / size
        tokens += batches * found.tokens
        seconds += batches * found.seconds
    return Rate(tokens, seconds)


def batch_rate(model: Any, requests: Sequence[Request], most: int | None = None) -> Rate:
    """Measure one call of ``model.generate`` on requests of one sampling, at ``most`` tokens."""
    import torch

    sampling = requests[0].sampling
    width = max(len(r.prompt) for r in requests)
    tokens = torch.zeros((len(requests), width), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, request in enumerate(requests):
        tokens[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
        mask[row, width - len(request.prompt) :] = 1
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    started = time.perf_counter()
    found = model.generate(
        input_ids=tokens.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=most or sampling.max_tokens,
        do_sample=sampling.temperature > 0,
        **(drawn if sampling.temperature > 0 else {}),
    )
    seconds = time.perf_counter() - started
    return Rate(answered_tokens(found[:, width:], model.generation_config.eos_token_id), seconds)


def answered_tokens(answers: Any, end: int | list[int]) -> int:
    """Return the number of tokens up to each row's first end token, it included."""
    import torch

    ends = torch.isin(answers, torch.tensor(end, device=answers.device))
    before = ends.cumsum(dim=1) - ends.long()
    return int((before == 0).sum())


def measure_here(given: argparse.Namespace) -> Any:
    """Measure the side that this process was started for; return what is to be printed as JSON."""
    match given.side:
        case "harness":
            return watched_run(run_arguments(given.checkpoints, given.limit, given.folder))
        case "prompts":
            return write_prompts(given.limit, given.folder)
        case "transformers":
            return transformers_rates(given.limit)
        case side:
            return bare_rate(given.limit, own_top_p=side == "filter")


# -- in the process that compares ----------------------------------------------------------------


def model_cache(folder: Path) -> Path:
    """Return a new cache of the harness that holds the unpacked embedded model and nothing else."""
    from harness.adapters.embedded import embedded_folder

    models = folder / "models"
    models.mkdir(parents=True)
    source = embedded_folder(BASE).resolve()
    (models / source.name).symlink_to(source)
    return folder


def harness_run(limit: int | None, checkpoints: int, scratch: Path) -> HarnessRun:
    output = scratch / "run"
    more = ["--checkpoints", str(checkpoints), "--folder", str(output)]
    environment = dict(os.environ) | {"TBPO_CACHE": str(model_cache(scratch / "cache"))}
    done = finish(side_command(__file__, "harness", limit, *more), environment)
    tokens: Counter[str] = Counter()
    for _, row in json_lines(output / "generations.jsonl"):
        tokens[row["checkpoint"]] += row["tokens"]
    seconds = done.found["answering"]
    return HarnessRun(
        done.seconds,
        done.found["parts"],
        {name: Rate(tokens[name], seconds[name]) for name in seconds},
    )


def script(name: str, *arguments: Path | str) -> float:
    """Run one of the scripts to its end in an environment without help; return its seconds."""
    helped = ("LD_PRELOAD", "OMP_NUM_THREADS")
    environment = {k: v for k, v in os.environ.items() if k not in helped}
    file = Path(__file__).with_name("scripts") / name
    return finish([sys.executable, str(file), *map(str, arguments)], environment).seconds


def generate_script(model: Path, prompts: Path, scratch: Path, eager: bool) -> Cost:
    answers = scratch / "answers.json"
    options = [native_dtype().value, *(["--eager"] if eager else [])]
    wall = script("generate.py", model, prompts, answers, *options)
    found = json.loads(answers.read_text(encoding="utf-8"))
    return Cost(1, wall, found["seconds"], found["tokens"])


def scripts_cost(given: argparse.Namespace, scratch: Path) -> Cost:
    """Merge and generate, checkpoint by checkpoint and suite by suite; return the sums."""
    prompts = prompts_folder(given.limit, scratch)
    costs = []
    for name, source, _ in DEMO_CHECKPOINTS[: given.checkpoints]:
        model, seconds = merged(source, scratch)
        if seconds:
            say(f"scripts: merge {name}", f"{seconds:.1f} s")
            costs.append(Cost(1, seconds, 0.0, 0))
        for suite in SUITES:
            cost = generate_script(model, prompts / f"{suite}.json", scratch, given.eager_scripts)
            say(f"scripts: {name}, {suite}", f"{cost.wall:.1f} s, {cost.generation:.1f} generating")
            costs.append(cost)
    return Cost(*(sum(column) for column in zip(*costs, strict=True)))


def prompts_folder(limit: int | None, scratch: Path) -> Path:
    folder = scratch / "prompts"
    folder.mkdir()
    finish(side_command(__file__, "prompts", limit, "--folder", str(folder)), os.environ)
    return folder


def merged(source: str, scratch: Path) -> tuple[Path, float]:
    """Return a checkpoint's folder of whole weights, and the seconds that making it took."""
    from harness.adapters import locate
    from harness.adapters.embedded import embedded_folder

    folder, base = Path(locate(source).source), embedded_folder(BASE)
    if folder == base:
        return base, 0.0
    target = scratch / "merged" / folder.name
    return target, script("merge.py", base, folder, target)


def rates(side: str, limit: int | None) -> Iterator[tuple[str, Rate]]:
    """Yield the named rates that a side gives."""
    found = finish(side_command(__file__, side, limit), tuned_environment()).found
    if side == "transformers":
        yield from ((f"{side}, batches of {size}", Rate(*rate)) for size, rate in found.items())
    else:
        yield side, Rate(*found)


def fill_engine_cache(scratch: Path) -> None:
    """Start vLLM once, uncounted, so that its own cache is what a machine that knows it has."""
    from harness.adapters.embedded import embedded_folder

    prompts = scratch / "one.json"
    one = {"prompt": [1, 2, 3], "sampling": {"max_tokens": 2}}
    prompts.write_text(json.dumps([one]), encoding="utf-8")
    generate_script(embedded_folder(BASE), prompts, scratch, eager=True)


def measure_round(given: argparse.Namespace, sides: Sequence[str]) -> Round:
    found = Round()
    for side in sides:
        with tempfile.TemporaryDirectory(prefix=f"{side}-") as folder:
            scratch = Path(folder)
            if side == "harness":
                found.harness = harness_run(given.limit, given.checkpoints, scratch)
                say("harness", f"{found.harness.wall:.1f} s")
            elif side == "scripts":
                found.scripts = scripts_cost(given, scratch)
            else:
                for name, rate in rates(side, given.limit):
                    found.rates[name] = rate
                    say(name, f"{rate.per_second:.1f} tokens/s")
    return found


def ratios(found: Round) -> Iterator[Ratio]:
    """Yield the ratios that a round's sides allow."""
    run, scripts = found.harness, found.scripts
    if run is None:
        return
    if scripts is not None:
        same, whole = run.cost(extras=False), run.cost(extras=True)
        text = "scripts / harness, time outside generation"
        yield Ratio(f"{text}, the same work (headline)", scripts.outside / same.outside, 10)
        yield Ratio(f"{text}, the whole run", scripts.outside / whole.outside)
        text = "scripts / harness, wall time"
        yield Ratio(f"{text}, the same work (headline)", scripts.wall / same.wall, 2.5)
        yield Ratio(f"{text}, the whole run", scripts.wall / whole.wall)
    own = run.answering["base"].per_second
    if raw := found.rates.get("raw"):
        yield Ratio("harness / raw, tokens/s", own / raw.per_second, 0.95)
    if filtered := found.rates.get("filter"):
        yield Ratio("harness / filter, tokens/s (for information)", own / filtered.per_second)
    others = [r.per_second for n, r in found.rates.items() if n.startswith("transformers")]
    if others:
        yield Ratio(
            "harness / transformers at its best batch size, tokens/s", own / max(others), 2.5
        )


def say(what: str, result: str) -> None:
    print(f"  {what:44} {result}", flush=True)


def show_costs(found: Round) -> None:
    rows = {}
    if found.harness is not None:
        rows["harness, the same work"] = found.harness.cost(extras=False)
        rows["harness, the whole run"] = found.harness.cost(extras=True)
    if found.scripts is not None:
        rows["scripts"] = found.scripts
    print(f"\n{'side':26} processes   wall s  generation s  outside s   tokens")
    for name, cost in rows.items():
        print(
            f"{name:26} {cost.processes:9} {cost.wall:8.1f} {cost.generation:13.1f} "
            f"{cost.outside:10.1f} {cost.tokens:8.0f}"
        )


def show_parts(run: HarnessRun) -> None:
    print("\nwhere the run's time went (* on no other side)")
    parts = run.parts | {START: run.wall - sum(run.parts.values()) + run.parts[START]}
    for name, seconds in parts.items():
        print(f"  {name + (' *' if name in EXTRAS else ''):44} {seconds:7.1f} s")


def show_rates(found: Round) -> None:
    named = dict(found.rates)
    if found.harness is not None:
        named = {f"harness, {n}": r for n, r in found.harness.answering.items()} | named
    print("\ngeneration alone")
    for name, rate in named.items():
        say(name, str(rate))


def show(found: Round) -> None:
    if found.harness is not None or found.scripts is not None:
        show_costs(found)
    if found.harness is not None:
        show_parts(found.harness)
    if found.harness is not None or found.rates:
        show_rates(found)


def show_ratios(rounds: Sequence[Round]) -> None:
    """Print the ratios; of several rounds, the medians."""
    found = list(zip(*map(ratios, rounds), strict=True))
    if not found:
        print("\nno ratios: they need the harness and another side")
        return
    print(f"\nratios{', medians of the rounds' if len(rounds) > 1 else ''}")
    for same in found:
        print(same[0]._replace(value=statistics.median(ratio.value for ratio in same)))


def compare(given: argparse.Namespace, scratch: Path) -> None:
    if {"harness", "scripts"} & set(given.sides):
        fill_engine_cache(scratch)
    rounds = []
    for number in range(given.rounds):
        print(f"round {number + 1}", flush=True)
        sides = given.sides if number % 2 == 0 else given.sides[::-1]
        rounds.append(measure_round(given, sides))
        show(rounds[-1])
    show_ratios(rounds)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    hidden = partial(parser.add_argument, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, help="examples of each suite (default: all)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument(
        "--eager-scripts", action="store_true", help="spare the scripts vLLM's compilation"
    )
    hidden("--checkpoints", type=int, default=len(DEMO_CHECKPOINTS))
    hidden("--side")
    hidden("--folder", type=Path)
    return parser.parse_args()


def main() -> None:
    given = parse()
    if given.side:
        print(json.dumps(measure_here(given)))
        return
    from harness.engines.environment import hide_mismatched_builds

    hide_mismatched_builds()
    with tempfile.TemporaryDirectory(prefix="tbpo-") as scratch:
        folder = Path(scratch)
        os.environ |= {
            "TBPO_CACHE": str(model_cache(folder / "cache")),
            "VLLM_CACHE_ROOT": str(folder / "vllm"),
            "VLLM_NO_USAGE_STATS": "1",
            "TMPDIR": scratch,
        }
        tempfile.tempdir = scratch
        compare(given, folder)


if __name__ == "__main__":
    main()
