"""vLLM in processes of its own: whole engines side by side, started again when one dies.

A crash, or the kernel's out-of-memory killer, ends a worker and not the run. Every worker gets the
environment that vLLM wants, which has to be set before Python starts.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from harness.engines import Completion, Request, TokenReading
from harness.engines.environment import engine_environment, usable_cores
from harness.engines.readings import rms
from harness.engines.settings import EngineSettings
from harness.engines.worker import KINDS
from harness.errors import EngineDiedError, EngineError
from harness.processor import is_cpu_build
from harness.types import Loadable

PATIENCE_S = 20.0
"""Seconds that a worker gets to shut its engine down before it is killed."""

SAME_WEIGHTS = 0.02
"""Root-mean-square difference, nats a token, of two workers' readings of the same weights: one
may round otherwise on its part of the machine, but gross differences are other weights."""


def device_environment(settings: EngineSettings, place: int) -> dict[str, str]:
    """Return the variables that give worker ``place`` its share of the machine.

    Raises:
        EngineError: there are not enough GPUs for all workers.
    """
    workers = settings.data_parallel_size
    if is_cpu_build():
        threads = max(1, usable_cores() // workers)
        return {"OMP_NUM_THREADS": str(threads)} if workers > 1 else {}
    extra = {"VLLM_BATCH_INVARIANT": "1"} if settings.deterministic else {}
    if workers == 1:
        return extra
    size = settings.tensor_parallel_size * settings.pipeline_parallel_size
    devices = _visible_gpus()
    if len(devices) < workers * size:
        raise EngineError(
            f"data_parallel_size={workers} with {size} GPUs each needs {workers * size} GPUs; "
            f"{len(devices)} are visible."
        )
    mine = devices[place * size : (place + 1) * size]
    return extra | {"CUDA_VISIBLE_DEVICES": ",".join(mine)}


def _visible_gpus() -> list[str]:
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in listed.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


class Worker:
    """One process with an engine in it, seen from outside."""

    def __init__(self, settings: EngineSettings, seed: int, place: int = 0) -> None:
        own, theirs = socket.socketpair()
        command = [sys.executable, "-m", "harness.engines.worker", str(theirs.fileno())]
        wanted = engine_environment(eager=settings.enforce_eager)
        environment = os.environ | wanted | device_environment(settings, place)
        with theirs:
            self.process = subprocess.Popen(
                [*command, settings.model_dump_json(), str(seed)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                # Control-C in a terminal is for the run, which then ends its workers.
                start_new_session=True,
            )
        self._socket = own
        self._stream = own.makefile("rw", encoding="utf-8")

    def ask(self, do: str, **facts: Any) -> Any:
        """Return the answer to a command that has one reply."""
        replies = list(self.replies(do, **facts))
        return replies[-1]

    def replies(self, do: str, **facts: Any) -> Iterator[Any]:
        """Yield the replies to a command, then its final answer.

        Raises:
            EngineDiedError: the process ended, or its engine failed.
            EngineError: the engine refused.
        """
        try:
            self._stream.write(json.dumps({"do": do, **facts}) + "\n")
            self._stream.flush()
            for line in self._stream:
                reply = json.loads(line)
                if "error" in reply:
                    raise KINDS[reply["error"]](reply["message"])
                if "done" in reply:
                    yield reply["done"]
                    return
                yield reply["reply"]
        except (OSError, json.JSONDecodeError) as error:
            raise EngineDiedError(self._obituary()) from error
        raise EngineDiedError(self._obituary())

    def _obituary(self) -> str:
        if not _ends(self.process):
            return "the engine's process closed its line and did not end"
        end_group(self.process)
        code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (often the kernel, out of memory)" if name == "SIGKILL" else ""
            return f"the engine's process was ended by {name}{hint}"
        return f"the engine's process ended with exit code {code}; its last words are above"

    def close(self) -> None:
        """End the process, gently at first."""
        # A thread that still reads holds the stream's lock; the shutdown ends its wait.
        self._hang_up()
        try:
            self.process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            end_group(self.process)
            self.process.wait()

    def _hang_up(self) -> None:
        steps = (partial(self._socket.shutdown, socket.SHUT_RDWR), self._stream.close)
        for step in (*steps, self._socket.close):
            with suppress(OSError):  # the other end is gone already
                step()

    def kill(self) -> None:
        """End the process, and those that it started, at once."""
        end_group(self.process)
        self.close()


def _ends(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process ends in time; it is not reaped, so that its number stays its group's."""
    until = time.monotonic() + PATIENCE_S
    asked = os.WEXITED | os.WNOWAIT | os.WNOHANG
    while process.returncode is None and os.waitid(os.P_PID, process.pid, asked) is None:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the leader of a process group with all of it: vLLM's own workers, one a GPU."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class VllmWorkers:
    """``data_parallel_size`` vLLM engines, each in a process of its own, that act as one.

    Requests are dealt to the workers in turn, so that which worker computes an answer, and in
    which batch, depends on the requests and the settings alone.
    """

    def __init__(self, settings: EngineSettings, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self.workers: list[Worker] = []
        self._read: list[Any] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name, versions and settings."""
        return self.settings.identity("vllm")

    def load(self, checkpoint: Loadable) -> bool:
        """Hold ``checkpoint`` in every worker; return whether they had to be started.

        Raises:
            EngineError: a worker does not start, or refuses the weights.
        """
        fresh = not self.workers
        if fresh:
            self._read = []
            places = range(self.settings.data_parallel_size)
            self.workers = [Worker(self.settings, self.seed, place) for place in places]
        given = checkpoint.model_dump(mode="json")
        with self._killing_on_error():
            started = self._all(lambda worker: worker.ask("load", checkpoint=given))
        return fresh or any(started)

    def prompt_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log-probabilities, nats, of each sequence's tokens but the first.

        Raises:
            EngineError: workers read differently: one of them holds other weights.
        """
        given = [list(s) for s in sequences]
        with self._killing_on_error():
            readings = self._all(lambda worker: worker.ask("prompt_logprobs", sequences=given))
        found: list[list[float]] = readings[0]
        # Not `rms > limit`: a reading of NaN must be refused too.
        if not all(rms(other, found) <= SAME_WEIGHTS for other in readings[1:]):
            self.close()
            raise EngineError("the workers of a data-parallel engine give different readings")
        self._refuse_stale(readings)
        return found

    def token_readings(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[TokenReading]:
        """Return the readings of each sequence's tokens from its place in ``starts`` on.

        Each worker reads a part of the sequences that stand side by side.

        Raises:
            InputError: an unmerged LoRA is held: vLLM gives no ranks beside one.
            EngineDiedError: a worker ended or its engine failed; all are ended.
        """
        size = -(-len(sequences) // max(1, len(self.workers)))
        shares = [slice(i * size, (i + 1) * size) for i in range(len(self.workers))]

        def read(worker: Worker) -> Any:
            share = shares[self.workers.index(worker)]
            given = [list(s) for s in sequences[share]]
            return worker.ask("token_readings", sequences=given, starts=list(starts[share]))

        with self._killing_on_error():
            parts = self._all(read)
        return [TokenReading.model_validate(one) for part in parts for one in part]

    def _refuse_stale(self, readings: list[Any]) -> None:
        """Refuse a worker that reads to the bit what it read before, where another does not."""
        repeats = [now == before for now, before in zip(readings, self._read, strict=False)]
        if any(repeats) and not all(repeats):
            self.close()
            raise EngineError(
                "a worker of a data-parallel engine answers as before a reload that others carried "
                "out"
            )
        self._read = readings

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield completions as they finish, whichever worker they come from.

        Raises:
            EngineDiedError: a worker ended or its engine failed; all are ended.
        """
        with self._killing_on_error():
            yield from self._generate(requests)

    def _generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        shares = [list(requests[i :: len(self.workers)]) for i in range(len(self.workers))]
        arrived: queue.Queue[Completion | Exception | None] = queue.Queue()
        for worker, share in zip(self.workers, shares, strict=True):
            threading.Thread(target=_listen, args=(worker, share, arrived), daemon=True).start()
        left = len(self.workers)
        while left:
            match arrived.get():
                case None:
                    left -= 1
                case Exception() as error:
                    raise error
                case Completion() as completion:
                    yield completion

    def _all(self, act: Callable[[Worker], Any]) -> list[Any]:
        """Return what every worker answers; they work at the same time."""
        if len(self.workers) == 1:
            return [act(self.workers[0])]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(self.workers)) as pool:
            try:
                return list(pool.map(act, self.workers))
            except BaseException:
                # The pool waits for its threads, and they for answers that nobody wants any more.
                for worker in self.workers:
                    worker.kill()
                raise

    @contextmanager
    def _killing_on_error(self) -> Iterator[None]:
        """Kill the workers where a block fails or is left early: the next load starts afresh."""
        try:
            yield
        except BaseException:
            workers, self.workers = self.workers, []
            for worker in workers:
                worker.kill()
            raise

    def close(self) -> None:
        """End all workers."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.close()


def _listen(
    worker: Worker, share: Sequence[Request], arrived: queue.Queue[Completion | Exception | None]
) -> None:
    """Put a worker's completions into ``arrived``, then None, or the error that ended them."""
    try:
        given = [request.model_dump(mode="json") for request in share]
        for reply in worker.replies("generate", requests=given) if given else ():
            if reply is not None:
                arrived.put(Completion.model_validate(reply))
        arrived.put(None)
    except Exception as error:
        arrived.put(error)
