"""A killed run goes on to the weights and logs of an undisturbed one, bit by bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_records import KEYS, equal_weights, read_log, read_weights

from harness.training.checkpoints import drop_partial, last_checkpoint, mark_whole

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("training_kills.py")
TRAINER = "harness.training.trainer:PreferenceTrainer"

KILLS: list[tuple[str, int, dict[str, bool]]] = [
    # Inside step 2, before any checkpoint.
    (f"{TRAINER}.compute_loss", 4, {}),
    # Inside step 3, between its micro-batches.
    (f"{TRAINER}.compute_loss", 6, {"checkpoint-2": True}),
    # Between steps 3 and 4, from checkpoint 2 on.
    (f"{TRAINER}.open_step", 2, {"checkpoint-2": True}),
    # While checkpoint 4 is written: before its optimiser, then before its mark.
    (f"{TRAINER}._save_optimizer_and_scheduler", 1, {"checkpoint-2": True, "checkpoint-4": False}),
    (f"{TRAINER}.seal_checkpoint", 1, {"checkpoint-2": True, "checkpoint-4": False}),
    # Inside step 6, from checkpoint 4 on.
    (f"{TRAINER}.compute_loss", 7, {"checkpoint-2": True, "checkpoint-4": True}),
    # After the last step: while the policy is saved, then before the manifest.
    (f"{TRAINER}.save_final", 1, {"checkpoint-4": True, "checkpoint-6": True}),
    ("harness.training.search:measure_float32", 1, {}),
]
"""Place, number of the call, and the checkpoints (whole or not) that the kill must leave."""

RUNS: dict[str, dict[str, Any]] = {
    "lora-rmsprop": {"optimizer": "rmsprop", "lora_dropout": 0.1, "learning_rate": 1e-3},
    "full-adamw": {"optimizer": "adamw", "finetune": "full", "weight_decay": 0.01},
}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_killed_run_ends_as_an_undisturbed_one(
    base: Path, pairs: Path, tmp_path: Path, name: str
) -> None:
    keys = KEYS | {
        "objective": "tbpo-q",
        "base": str(base),
        "pairs": [str(pairs)],
        "steps": 6,
        "micro_batch": 2,
        "warmup": 0.3,
        "save_every": 2,
        "eval_every": 3,
        **RUNS[name],
    }
    output, whole = tmp_path / "killed", tmp_path / "whole"
    kills = [(place, call) for place, call, _ in KILLS]
    job = {"keys": keys, "output": str(output), "whole": str(whole), "kills": kills}
    done = subprocess.run(
        [sys.executable, str(DRIVER)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert [state["code"] for state in report["states"]] == [-9] * len(KILLS), done.stderr
    assert [state["checkpoints"] for state in report["states"]] == [left for *_, left in KILLS]
    assert report["ends"] == [0, 0], done.stderr
    assert equal_weights(output, whole)
    assert any(key.startswith("baseline_head.") for key in read_weights(output))
    assert read_log(output) == read_log(whole)
    assert [row["step"] for row in read_log(output)] == [1, 2, 3, 4, 5, 6]
    assert {file.name for file in output.iterdir()} == {file.name for file in whole.iterdir()}
    ours, theirs = (json.loads((f / "manifest.json").read_text()) for f in (output, whole))
    times = {"created", "seconds_of_the_last_start"}
    assert {k: v for k, v in ours.items() if k not in times} == {
        k: v for k, v in theirs.items() if k not in times
    }


def test_only_whole_checkpoints_are_used(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    folders = [tmp_path / "checkpoints" / f"checkpoint-{step}" for step in (9, 10, 11)]
    for folder in folders:
        folder.mkdir(parents=True)
    for folder in folders[:2]:
        mark_whole(folder)
    assert last_checkpoint(tmp_path) == folders[1]
    drop_partial(tmp_path)
    assert [folder.exists() for folder in folders] == [True, True, False]
