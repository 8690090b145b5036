"""The processes around the engines: ended with all they started, and never waited for in vain."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from harness.engines import workers
from harness.engines.environment import engine_environment
from harness.engines.settings import EngineSettings
from harness.engines.workers import PATIENCE_S, VllmWorkers, Worker, end_group
from harness.errors import EngineError

READING = [[-1.0, -2.0], [-3.0]]


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A real worker, idle: its engine starts with the first checkpoint."""
    made = Worker(EngineSettings(), seed=0)
    yield made
    made.kill()


def test_close_does_not_wait_for_a_thread_that_reads(worker: Worker) -> None:
    reader = threading.Thread(target=worker._stream.readline, daemon=True)
    reader.start()
    time.sleep(0.2)  # until it waits for a line
    started = time.monotonic()
    worker.close()
    assert time.monotonic() - started < PATIENCE_S
    assert worker.process.returncode == 0
    reader.join(timeout=5)
    assert not reader.is_alive()


def test_worker_is_out_of_the_terminals_reach(worker: Worker) -> None:
    assert os.getpgid(worker.process.pid) == worker.process.pid != os.getpgid(0)


def test_group_ends_with_its_leader() -> None:
    command = ["sh", "-c", "sleep 600 & echo $!; wait"]
    leader = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    with leader.stdout:
        assert int(leader.stdout.readline()) != leader.pid
        end_group(leader)
        leader.wait()
        assert leader.stdout.read() == b""  # the child held the other end until it ended
    end_group(leader)  # ended already: nothing to do


FORKING = """
import os, socket, time
from harness.engines.worker import close_in_children
ours, theirs = socket.socketpair()
close_in_children(theirs.fileno())
if os.fork() == 0:
    time.sleep(60)
theirs.close()
ours.settimeout(10)
print(ours.recv(1))
"""


def test_forked_children_do_not_hold_the_link_open() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
    end_group(process)
    process.wait()
    assert line.strip() == b"b''"


class Reader:
    """A worker that reads what it was made with."""

    def __init__(self, reading: list[list[float]]) -> None:
        self.reading = reading
        self.closed = False

    def ask(self, do: str, **_: Any) -> Any:
        assert do == "prompt_logprobs"
        return self.reading

    def close(self) -> None:
        self.closed = True

    kill = close


def side_by_side(*readings: list[list[float]]) -> tuple[VllmWorkers, list[Reader]]:
    engine = VllmWorkers(EngineSettings(data_parallel_size=len(readings)), seed=0)
    held: Any = [Reader(reading) for reading in readings]
    engine.workers = held
    return engine, held


def test_workers_may_round_otherwise() -> None:
    engine, _ = side_by_side(READING, [[-1.001, -2.0], [-3.002]])
    assert engine.prompt_logprobs([[1, 2, 3], [1, 2]]) == READING


@pytest.mark.parametrize("off", [-4.0, float("nan")])
def test_workers_with_other_weights_are_refused(off: float) -> None:
    engine, held = side_by_side(READING, READING, [[-1.0, off], [-3.0]])
    with pytest.raises(EngineError, match="different readings"):
        engine.prompt_logprobs([[1, 2, 3], [1, 2]])
    assert all(reader.closed for reader in held)
    assert engine.workers == []


def test_nothing_is_compiled_on_a_cpu_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)
    monkeypatch.setattr("harness.engines.environment.is_cpu_build", lambda: True)
    assert engine_environment()["TORCH_COMPILE_DISABLE"] == "1"
    assert "TORCH_COMPILE_DISABLE" not in engine_environment(eager=False)
    seen: list[dict[str, str]] = []

    def start(*_: object, env: dict[str, str], **__: object) -> None:
        seen.append(env)
        raise OSError("enough")

    monkeypatch.setattr(workers.subprocess, "Popen", start)
    for eager in (True, False):
        with pytest.raises(OSError, match="enough"):
            Worker(EngineSettings(enforce_eager=eager), seed=0)
    assert ["TORCH_COMPILE_DISABLE" in env for env in seen] == [True, False]


def test_worker_that_repeats_itself_where_another_changed_is_refused() -> None:
    engine, held = side_by_side(READING, READING)
    engine.prompt_logprobs([[1, 2, 3], [1, 2]])
    assert engine.prompt_logprobs([[1, 2, 3], [1, 2]]) == READING  # both: the same checkpoint
    held[0].reading = [[-1.001, -2.0], [-3.0]]
    with pytest.raises(EngineError, match="as before a reload that others carried out"):
        engine.prompt_logprobs([[1, 2, 3], [1, 2]])


class Stuck(Reader):
    """A worker that answers only once it is killed."""

    def __init__(self) -> None:
        super().__init__(READING)
        self.killed = threading.Event()

    def ask(self, do: str, **_: Any) -> Any:
        assert self.killed.wait(timeout=PATIENCE_S)
        return self.reading

    def kill(self) -> None:
        self.killed.set()


class Interrupted(Reader):
    def ask(self, do: str, **_: Any) -> Any:
        raise KeyboardInterrupt


def test_interrupt_does_not_wait_for_the_other_workers() -> None:
    engine, _ = side_by_side(READING)
    stuck = Stuck()
    held: Any = [Interrupted(READING), stuck]
    engine.workers = held
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        engine.prompt_logprobs([[1, 2]])
    assert stuck.killed.is_set()
    assert time.monotonic() - started < PATIENCE_S / 2


def test_death_of_the_leader_ends_its_group(worker: Worker) -> None:
    command = ["sh", "-c", "sleep 600 & echo $!; exit 7"]
    worker.process.kill()
    worker.process.wait()
    leader = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    worker.process = leader
    assert leader.stdout is not None
    with leader.stdout:
        leader.stdout.readline()
        assert "ended with exit code 7" in worker._obituary()
        assert leader.stdout.read() == b""  # the child held the other end until it ended
