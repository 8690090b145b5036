"""The dtype that fits a processor, read from what the system says of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness import processor
from harness.types import CheckpointSpec, Dtype
from harness.types.records import native_dtype

FLAGS = "processor : 0\nflags\t\t: fpu sse2 avx2 {}\n"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Linux machine without a GPU, whose processor is described by the file."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor, "DEVICES", tmp_path / "dev")
    (tmp_path / "dev").mkdir()
    processor.computes_bfloat16.cache_clear()
    return tmp_path / "cpuinfo"


@pytest.mark.parametrize(
    ("flag", "able"),
    [("avx512_bf16", True), ("amx_bf16", True), ("bf16", True), ("avx512f", False)],
)
def test_bfloat16_needs_instructions_for_it(told: Path, flag: str, able: bool) -> None:
    told.write_text(FLAGS.format(flag))
    assert processor.computes_bfloat16() is able


@pytest.mark.parametrize("device", ["nvidia3", "kfd", "dxg"])
def test_a_gpu_counts_where_the_engine_uses_it(
    told: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    told.write_text(FLAGS.format(""))
    (told.parent / "dev" / device).touch()
    for cpu_build in (True, False):
        processor.computes_bfloat16.cache_clear()
        monkeypatch.setattr(processor, "is_cpu_build", lambda build=cpu_build: build)
        assert processor.computes_bfloat16() is not cpu_build


def test_what_cannot_be_told_counts_as_able(told: Path) -> None:
    assert processor.computes_bfloat16()  # no such file


@pytest.mark.parametrize(("able", "dtype"), [(True, Dtype.BFLOAT16), (False, Dtype.FLOAT32)])
def test_checkpoints_get_the_dtype_that_fits(
    monkeypatch: pytest.MonkeyPatch, able: bool, dtype: Dtype
) -> None:
    monkeypatch.setattr("harness.types.records.computes_bfloat16", lambda: able)
    assert native_dtype() is dtype
    assert CheckpointSpec(name="a", source="x").dtype is dtype
    assert CheckpointSpec(name="a", source="x", dtype=Dtype.FLOAT16).dtype is Dtype.FLOAT16
