"""Step time and peak memory of an objective's statistics: in chunks against whole logits.

    python benchmarks/objectives.py [--rounds 5] [--threads N]

A step is forward and backward of what follows the backbone: final hidden states of policy and
reference at the response positions of 8 pairs (2 x 8 responses of 96 tokens) to log-probabilities,
KL both ways and entropy, the objective's loss, and the gradient of the policy's hidden states. The
head is shared and frozen, as under LoRA; backbone and optimiser are left out. tbpo-q takes its
gradient through log-probabilities alone (the divergences are only logged), tdpo2 also through
KL(ref || policy).

naive    both models' logits in float32, their log-softmax, and every statistic as it is defined;
         what is only logged is computed without gradient, and the logits are dropped once read
chunked  harness.training.token_statistics

Each side of each row runs in a process of its own with the same inputs and the same threads,
PyTorch's default unless given. Both processes live side by side and take one step in turn, after
one that is not timed. Memory on a CPU is the high-water mark of the resident set over all steps,
the first one included, less the resident set once the inputs exist (Linux only); on a GPU, the same
of torch.cuda.max_memory_allocated.

Seconds are wall-clock, the least of the rounds, and the time ratio is theirs. Beside it stands the
same ratio of the processes' processor time. Other work on the machine stretches the first, and
where threads wait for each other also the second; with --threads 1 it hardly touches the second.
Wanted in every row: memory ratio at most 0.5, time ratio at most 1.1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from harness.training.objectives import Objective
    from harness.training.token_statistics import TokenReadings

PAIRS, LENGTH = 8, 96
SIDES = ("naive", "chunked")
OPTIONS: dict[str, dict[str, Any]] = {"tbpo-q": {}, "tdpo2": {"alpha": 0.5}}


class Row(NamedTuple):
    objective: str
    vocabulary: int
    hidden: int
    dtype: str


SHAPES = [
    (49_152, 576, "bfloat16"),
    (49_152, 576, "float32"),
    (128_256, 576, "bfloat16"),
    (128_256, 2048, "bfloat16"),
]
ROWS = [Row(objective, *shape) for shape in SHAPES for objective in OPTIONS]


class Memory:
    """Peak of the process's memory in bytes above what it holds when this is made."""

    def __init__(self, cuda: bool) -> None:
        import torch

        self._cuda = cuda
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        else:
            # 5 sets the high-water mark back to what is resident now: proc(5), clear_refs.
            Path("/proc/self/clear_refs").write_text("5")
            self._start = self._resident("VmRSS")

    @staticmethod
    def _resident(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

    def peak(self) -> int:
        import torch

        now = torch.cuda.max_memory_allocated() if self._cuda else self._resident("VmHWM")
        return now - self._start


class Inputs(NamedTuple):
    states: Tensor
    reference_states: Tensor
    weight: Tensor
    targets: Tensor
    baseline: Tensor


def make_inputs(row: Row) -> Inputs:
    """States and head of which the policy is near the reference, its targets, the head's b_phi."""
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    count, dtype = 2 * PAIRS * LENGTH, getattr(torch, row.dtype)
    weight = torch.randn(row.vocabulary, row.hidden, device=device).mul_(2 * row.hidden**-0.5)
    reference = torch.randn(count, row.hidden, device=device)
    states = reference + 0.1 * torch.randn_like(reference)
    targets = torch.randint(row.vocabulary, (count,), device=device)
    baseline = torch.randn(count, device=device)
    states, reference, weight = (x.to(dtype) for x in (states, reference, weight))
    return Inputs(states.requires_grad_(), reference, weight, targets, baseline)


def naive(given: Inputs, kl_gradient: bool) -> TokenReadings:
    """The statistics as a plain implementation has them."""
    import torch
    from torch.nn import functional as F

    from harness.training.token_statistics import TokenReadings

    policy = F.linear(given.states, given.weight).float().log_softmax(-1)
    with torch.no_grad():
        reference = F.linear(given.reference_states, given.weight).float().log_softmax(-1)
        probabilities = policy.exp()
        reverse_kl = (probabilities * (policy - reference)).sum(-1)
        entropy = -(probabilities * policy).sum(-1)
        del probabilities
    with torch.set_grad_enabled(kl_gradient):
        kl = (reference.exp() * (reference - policy)).sum(-1)
    at = given.targets.unsqueeze(-1)
    return TokenReadings(
        policy.gather(-1, at).squeeze(-1),
        reference.gather(-1, at).squeeze(-1),
        kl,
        reverse_kl,
        entropy,
    )


def chunked(given: Inputs, kl_gradient: bool) -> TokenReadings:
    from harness.training.token_statistics import token_readings

    return token_readings(
        given.states,
        given.weight,
        given.reference_states,
        given.weight,
        given.targets,
        kl_gradient=kl_gradient,
    )


def loss_of(objective: Objective, readings: TokenReadings, baseline: Tensor) -> Tensor:
    """The mean loss of the pairs; the first half of the positions is the chosen responses'."""
    from harness.training.objectives import TokenStatistics

    names = ("policy", "reference", "kl", "reverse_kl")
    values = {name: getattr(readings, name).view(2, PAIRS, LENGTH) for name in names}
    values |= {"baseline": baseline.view(2, PAIRS, LENGTH)}
    mask = baseline.new_ones(PAIRS, LENGTH).bool()
    chosen, rejected = (
        TokenStatistics(mask=mask, **{name: value[i] for name, value in values.items()})
        for i in range(2)
    )
    return objective.losses(chosen, rejected).mean()


def serve(side: str, row: Row, threads: int | None) -> None:
    """Take a step for each line of standard input; print seconds, peak bytes and loss."""
    import torch

    from harness.training.objectives import Statistic, build_objective

    if threads is not None:
        torch.set_num_threads(threads)
    objective = build_objective(row.objective, OPTIONS[row.objective])
    kl_gradient = Statistic.KL in objective.requires
    read = {"naive": naive, "chunked": chunked}[side]
    given = make_inputs(row)
    cuda = given.states.is_cuda
    memory = Memory(cuda)
    for _ in sys.stdin:
        given.states.grad = None
        started, used = time.perf_counter(), time.process_time()
        readings = read(given, kl_gradient)
        logged = [getattr(readings, field.name).mean() for field in dataclasses.fields(readings)]
        loss = loss_of(objective, readings, given.baseline)
        torch.autograd.backward(loss)
        if cuda:
            torch.cuda.synchronize()
        found = {
            "seconds": time.perf_counter() - started,
            "processor": time.process_time() - used,
            "peak": memory.peak(),
            "loss": loss.item(),
            "norm": norm(given.states),
            "entropy": logged[-1].item(),
        }
        del readings, logged, loss
        print(json.dumps(found), flush=True)


def norm(states: Tensor) -> float:
    assert states.grad is not None
    return float(states.grad.float().norm())


class Worker:
    """One side of a row in a process of its own."""

    def __init__(self, side: str, row: Row, threads: int | None) -> None:
        command = [sys.executable, __file__, "--side", side, "--row", json.dumps(row)]
        command += [] if threads is None else ["--threads", str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def step(self) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a side failed; its error stands above")
        return dict(json.loads(line))

    def stop(self) -> None:
        self._process.communicate()


def measure(row: Row, rounds: int, threads: int | None) -> dict[str, list[dict[str, float]]]:
    """Return the steps of both sides, taken in turn; the first of each is a warm-up."""
    workers = {side: Worker(side, row, threads) for side in SIDES}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(rounds + 1):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            found[side].append(workers[side].step())
    for worker in workers.values():
        worker.stop()
    check(row, found)
    return found


def check(row: Row, found: dict[str, list[dict[str, float]]]) -> None:
    """Refuse to compare two sides that did not compute the same."""
    for key in ("loss", "norm", "entropy"):
        one, other = (found[side][-1][key] for side in SIDES)
        if abs(one - other) > (1e-4 if row.dtype == "float32" else 1e-2) * abs(one):
            raise SystemExit(f"{row}: the sides differ in {key}: {one} and {other}")


def table_row(row: Row, found: dict[str, list[dict[str, float]]]) -> str:
    naive_peak, peak = (max(step["peak"] for step in found[side]) / 2**20 for side in SIDES)
    naive_time, seconds = (min(step["seconds"] for step in found[side][1:]) for side in SIDES)
    naive_used, used = (min(step["processor"] for step in found[side][1:]) for side in SIDES)
    return (
        f"| {row.objective} | {row.vocabulary:,} | {row.hidden} | {row.dtype} "
        f"| {naive_peak:,.0f} | {peak:,.0f} | {peak / naive_peak:.2f} "
        f"| {naive_time:.2f} | {seconds:.2f} | {seconds / naive_time:.2f} "
        f"| {used / naive_used:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        serve(given.side, Row(*json.loads(given.row)), given.threads)
        return
    print(
        "| objective | vocabulary | hidden | dtype | naive MiB | chunked MiB | memory ratio "
        "| naive s | chunked s | time ratio | processor ratio |"
    )
    print("|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in ROWS:
        print(table_row(row, measure(row, given.rounds, given.threads)), flush=True)


if __name__ == "__main__":
    main()
