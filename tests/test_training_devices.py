"""Two processes train as one: data parallel on the CPU, through torch's own launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from training_records import read_log

FLAGS = (
    *("--objective", "tbpo-q", "--steps", "4", "--batch", "4", "--holdout", "8"),
    *("--learning-rate", "1e-3", "--optimizer", "adamw", "--save-every", "2"),
    *("--lora-rank", "4", "--lora-dropout", "0"),
)


def start(*launcher: str, base: Path, pairs: Path, output: Path) -> None:
    where = ("--base", str(base), "--pairs", str(pairs), "--output", str(output))
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "harness", "train", *FLAGS, *where],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("held-out preference accuracy") == 1


def test_two_processes_take_the_steps_of_one(base: Path, pairs: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    start(base=base, pairs=pairs, output=one)
    launcher = ("torch.distributed.run", "--nproc-per-node", "2", "-m")
    start(*launcher, base=base, pairs=pairs, output=two)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (one, two)]
    assert [m["devices"] for m in manifests] == [1, 2]
    for alone, shared in zip(read_log(one), read_log(two), strict=True):
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-5)
    for name in ("adapter_model.safetensors", "baseline_head.safetensors"):
        weights = [load_file(folder / name) for folder in (one, two)]
        for key, value in weights[0].items():
            if key == "baseline_head.outer.bias":
                continue  # its gradient is zero but for rounding, of which Adam makes a step
            assert weights[1][key].allclose(value, rtol=1e-3, atol=1e-5), key
