"""Whether the engine can be trusted: vLLM against transformers, and reloads against fresh engines.

    python benchmarks/agreement.py [--parts transformers reloads] [--checkpoints N]

transformers  float32, greedy, 32 prompts of the packaged suites x 64 tokens, on the base model and
              every demo adapter: share of tokens before the first one on which transformers would
              have gone another way, and the largest difference of the log-probabilities of prompt
              and answer tokens and of the entropies, nats
reloads       one engine through which all checkpoints go twice in a shuffled order, with a failed
              reload in the middle; after each reload tokens, log-probabilities and entropies must
              be, to the bit, those of an engine started on that checkpoint; in bfloat16 and float32

Ends with exit code 1 where a limit is not kept. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from harness.engines.environment import prepare_process

PROMPTS, TOKENS = 32, 64
WANTED_AGREEMENT, WANTED_NATS = 0.99, 1e-3


def prepared(dtype: str, count: int | None) -> list[Any]:
    """Return the demo's checkpoints in a dtype."""
    from harness.adapters import prepare
    from harness.cli import DEMO_CHECKPOINTS
    from harness.types import CheckpointSpec, Dtype

    specs = [
        CheckpointSpec(name=n, source=s, dtype=Dtype(dtype)) for n, s, _ in DEMO_CHECKPOINTS[:count]
    ]
    return [prepare(spec) for spec in specs]


def prompts_of(checkpoint: Any, count: int) -> list[tuple[int, ...]]:
    """Return prompts of all four suites in turn, of at most 400 tokens."""
    from harness.prompts import render_suite
    from harness.suites import load_suites

    rendered = [list(render_suite(checkpoint, s).values()) for s in load_suites(["mini"])]
    dealt = [ids for row in zip(*rendered, strict=False) for ids in row if len(ids) <= 400]
    return dealt[:count]


def made_requests(prompts: Sequence[tuple[int, ...]], tokens: int, *, greedy: bool) -> list[Any]:
    from harness.engines import Request
    from harness.types import Sampling

    plain = Sampling(temperature=0.0, max_tokens=tokens)
    warm = Sampling(temperature=0.8, top_p=0.9, max_tokens=tokens)
    return [
        Request(key=f"p\n{i}\n0", prompt=ids, sampling=plain if greedy or i % 2 else warm, seed=i)
        for i, ids in enumerate(prompts)
    ]


# -- against transformers --------------------------------------------------------------------------


def against_transformers(count: int | None) -> bool:
    """Compare every checkpoint's greedy answers with transformers in float32."""
    from harness.engines.settings import EngineSettings
    from harness.engines.workers import VllmWorkers

    checkpoints = prepared("float32", count)
    prompts = prompts_of(checkpoints[0], PROMPTS)
    print(f"vLLM against transformers: float32, greedy, {len(prompts)} prompts x {TOKENS} tokens")
    print(f"  {'checkpoint':12} {'agreement':>10} {'diverged':>9}  largest difference, nats:")
    print(f"  {'':12} {'':10} {'':9}  {'prompt':>9} {'answer':>9} {'entropy':>9}")
    good = True
    with closing(VllmWorkers(EngineSettings(max_num_seqs=PROMPTS), 0)) as engine:
        for checkpoint in checkpoints:
            engine.load(checkpoint)
            found = compared(engine, checkpoint, prompts)
            good &= found["agreement"] >= WANTED_AGREEMENT
            good &= max(found["prompt"], found["answer"], found["entropy"]) <= WANTED_NATS
            print(
                f"  {checkpoint.spec.name:12} {found['agreement']:10.4%} "
                f"{found['diverged']:6.0f}/{len(prompts)}  {found['prompt']:9.1e} "
                f"{found['answer']:9.1e} {found['entropy']:9.1e}",
                flush=True,
            )
    print(f"  wanted: at least {WANTED_AGREEMENT:.0%}, at most {WANTED_NATS:g} nats")
    return good


def compared(engine: Any, checkpoint: Any, prompts: Sequence[tuple[int, ...]]) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    requests = made_requests(prompts, TOKENS, greedy=True)
    answers = {c.key: c for c in engine.generate(requests)}
    read = engine.prompt_logprobs(prompts)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    rows = [one_row(model, r, answers[r.key], p) for r, p in zip(requests, read, strict=True)]
    agreed, total = sum(r["agreed"] for r in rows), sum(r["total"] for r in rows)
    largest = {name: max(r[name] for r in rows) for name in ("prompt", "answer", "entropy")}
    diverged = sum(r["agreed"] < r["total"] for r in rows)
    return {"agreement": agreed / total, "diverged": diverged, **largest}


def one_row(
    model: Any, request: Any, answer: Any, prompt_logprobs: list[float]
) -> dict[str, float]:
    """Compare one prompt and its answer; past a first divergence the answers are no longer one."""
    import torch

    start = len(request.prompt)
    ids = torch.tensor([[*request.prompt, *answer.token_ids]])
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1].double()
    log_p = logits.log_softmax(-1)
    taken = log_p.gather(-1, ids[0, 1:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)[start - 1 :]
    same = (logits[start - 1 :].argmax(-1) == ids[0, start:]).tolist()
    seen = answer.statistics
    return {
        "agreed": same.index(False) if False in same else len(same),
        "total": len(same),
        "prompt": largest(taken[: start - 1], prompt_logprobs),
        "answer": largest(taken[start - 1 :], seen.logprobs),
        "entropy": largest(entropy, seen.entropies),
    }


def largest(expected: Any, found: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(expected.tolist(), found, strict=True))


# -- reloads ---------------------------------------------------------------------------------------


def reloads(count: int | None) -> bool:
    """Compare an engine after each reload with fresh engines, to the bit."""
    kept = [reloads_in(dtype, count) for dtype in ("bfloat16", "float32")]
    return all(kept)


def reloads_in(dtype: str, count: int | None) -> bool:
    from harness.engines.settings import EngineSettings
    from harness.engines.workers import VllmWorkers

    checkpoints = prepared(dtype, count)
    requests = made_requests(prompts_of(checkpoints[0], 8), 32, greedy=False)
    settings = EngineSettings(max_num_seqs=8, kv_cache_gib=0.5)
    fresh = {}
    for checkpoint in checkpoints:
        with closing(VllmWorkers(settings, 0)) as engine:
            engine.load(checkpoint)
            fresh[checkpoint.spec.name] = reading(engine, requests)
    order = checkpoints * 2
    random.Random(4).shuffle(order)
    wrong = 0
    with closing(VllmWorkers(settings, 0)) as engine, broken_copy(checkpoints[-1]) as broken:
        for place, checkpoint in enumerate(order):
            if place == len(order) // 2:
                fail_to_load(engine, broken)
            engine.load(checkpoint)
            wrong += reading(engine, requests) != fresh[checkpoint.spec.name]
    told = len({repr(found) for found in fresh.values()})
    print(
        f"reloads, {dtype}: {len(order)} loads in a shuffled order, one failed in the middle: "
        f"{wrong} differ from a fresh engine; {told} of {len(fresh)} checkpoints tell apart",
        flush=True,
    )
    return wrong == 0 and told == len(fresh)


def reading(engine: Any, requests: Sequence[Any]) -> Any:
    """Return all there is to see of a checkpoint: answers with statistics, and given tokens."""
    answers = sorted(engine.generate(requests), key=lambda c: c.key)
    return answers, engine.prompt_logprobs([r.prompt for r in requests])


@contextmanager
def broken_copy(checkpoint: Any) -> Iterator[Any]:
    """Yield a checkpoint whose weights were cut off after it was prepared."""
    with tempfile.TemporaryDirectory(prefix="tbpo-") as root:
        folder = Path(root) / "broken"
        shutil.copytree(checkpoint.folder, folder)
        for file in folder.glob("*.safetensors"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        yield checkpoint.model_copy(update={"folder": str(folder)})


def fail_to_load(engine: Any, broken: Any) -> None:
    from harness.errors import EngineError

    try:
        engine.load(broken)
    except EngineError:
        return
    raise SystemExit("the engine took a checkpoint whose weights were cut off")


PARTS = {"transformers": against_transformers, "reloads": reloads}


def outcomes(parts: Sequence[str], count: int | None) -> Iterator[bool]:
    for part in parts:
        yield PARTS[part](count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--checkpoints", type=int, help="only the first so many")
    given = parser.parse_args()
    prepare_process()
    sys.exit(0 if all(list(outcomes(given.parts, given.checkpoints))) else 1)


if __name__ == "__main__":
    main()
