"""Fixtures of all tests: a cache of their own, so that no test reads or fills the user's."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from command_records import Tbpo
from suite_records import NAMES, write_suite
from tiny_checkpoints import save_checkpoint, save_llama, save_lora, save_tokenizer
from training_records import pair_row, save_base, write_rows

from harness.cli import main
from harness.engines.environment import hide_mismatched_builds
from harness.report.figures import svg


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the cache at a new folder, except for engine tests, which need the real model."""
    if request.node.get_closest_marker("engine") is None:
        folder: Path = request.getfixturevalue("tmp_path")
        monkeypatch.setenv("TBPO_CACHE", str(folder / "cache"))


@pytest.fixture(autouse=True, scope="session")
def same_dtype_everywhere() -> Iterator[None]:
    """Let checkpoints have one default dtype, whatever this machine's processor is good at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.types.records.computes_bfloat16", lambda: True)
        yield


@pytest.fixture(autouse=True, scope="session")
def each_chart_drawn_once() -> Iterator[None]:
    """Keep drawn charts: hundreds of tests render a report, most of them with the same charts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.report.view.svg", lru_cache(maxsize=256)(svg))
        yield


@pytest.fixture
def tbpo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tbpo:
    """Run the command in this process; return exit code, stdout and stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tbpo", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved byte-level tokenizer with a chat template."""
    hide_mismatched_builds()
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A tiny random Llama; tests change copies of it."""
    return save_llama(tmp_path_factory.mktemp("models") / "base", tokenizer_folder)


@pytest.fixture(scope="session")
def pristine_lora(tmp_path_factory: pytest.TempPathFactory, pristine: Path) -> Path:
    """A LoRA on it; tests change copies of it."""
    return save_lora(tmp_path_factory.mktemp("loras") / "lora", pristine)


@pytest.fixture
def folder(tmp_path: Path, pristine: Path) -> Path:
    """A copy of the Llama that the test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))


@pytest.fixture
def lora(tmp_path: Path, pristine_lora: Path) -> Path:
    """A copy of the LoRA that the test may change."""
    return Path(shutil.copytree(pristine_lora, tmp_path / "lora"))


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A folder with the checkpoints NAMES and the suite own.yaml, for a fake engine."""
    folder = tmp_path_factory.mktemp("given")
    write_suite(folder)
    for seed, name in enumerate(NAMES):
        save_checkpoint(folder / name, tokenizer_folder, seed)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A tiny random Llama that can be trained."""
    return save_base(tmp_path_factory.mktemp("training") / "base", tokenizer_folder)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of preference pairs about sums."""
    folder = tmp_path_factory.mktemp("pairs")
    return write_rows(folder / "sums.jsonl", [pair_row(i) for i in range(30)])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with long tests first, so that no process is left alone with one at the end."""

    def is_long(item: pytest.Item) -> bool:
        return any(item.get_closest_marker(name) for name in ("engine", "slow"))

    long = {item.path for item in items if is_long(item)}
    items.sort(key=lambda item: item.path not in long)
