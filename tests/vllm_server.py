"""vLLM's own server as a process of its own, for tests of what asks it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.adapters.endpoint import Endpoint
from harness.engines.environment import engine_environment, hide_mismatched_builds
from harness.errors import CheckpointError
from harness.types import CheckpointSpec, Loadable

START_S = 240


@contextmanager
def vllm_server(folder: Path, name: str, log: Path, *, context: int) -> Iterator[Loadable]:
    """Serve a model folder as ``name`` until the block ends; yield the endpoint.

    Args:
        log: file for what the server says.
        context: longest sequence, in tokens.
    """
    port = _free_port()
    with log.open("wb") as stream:
        server = subprocess.Popen(
            _command(folder, name, port, context),
            env=_environment(),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        spec = CheckpointSpec(name="served", source=f"http://127.0.0.1:{port}/v1")
        yield _prepared(spec, server, log)
    finally:
        _end(server)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _command(folder: Path, name: str, port: int, context: int) -> list[str]:
    options = {
        "model": folder,
        "served-model-name": name,
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max-model-len": context,
        "max-num-seqs": 8,
        "generation-config": "vllm",
    }
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    module = ["-m", "vllm.entrypoints.openai.api_server"]
    return [sys.executable, *module, *given, "--enforce-eager"]


def _environment() -> dict[str, str]:
    hide_mismatched_builds()
    # The server runs its engine in a process of its own and finds it through multiprocessing.
    wanted = engine_environment() | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
    }
    return os.environ | wanted


def _prepared(spec: CheckpointSpec, server: subprocess.Popen[bytes], log: Path) -> Loadable:
    """Return the endpoint's record as soon as the server answers."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            return Endpoint().prepare(spec)
        except CheckpointError:
            time.sleep(1)
    pytest.fail(f"vLLM's server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server, and what it started, which shares its session."""
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
