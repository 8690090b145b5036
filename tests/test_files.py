"""Small file operations: whole or nothing, and errors that name the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import DataError, InputError
from harness.files import (
    atomic_folder,
    cache_root,
    packaged,
    read_json,
    sha256_file,
    sha256_json,
    write_atomic,
)


def test_atomic_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_atomic_folder_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    def fill_and_fail() -> None:
        with atomic_folder(tmp_path / "target") as folder:
            (folder / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_atomic_folder_keeps_the_folder_of_a_faster_process(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("late")
        target.mkdir()
        (target / "a").write_text("early")
    assert (target / "a").read_text() == "early"
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_write_atomic_keeps_the_old_file_after_an_error(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_atomic(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(file, "new \ud800")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_read_json_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text('{"a": 1,\n"b" 2}')
    with pytest.raises(DataError, match=r"f\.json:2: not valid JSON"):
        read_json(file)


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_read_json_names_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "f.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"f\.json cannot be read"):
        read_json(file)


def test_hashes() -> None:
    # SHA-256 of the two bytes {}
    empty = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert sha256_json({}) == empty
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    assert sha256_json({"a": "é"}) != sha256_json({"a": "e"})


def test_file_hash_is_that_of_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(file) == expected


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TBPO_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"
    monkeypatch.delenv("TBPO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "tbpo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "tbpo"


def test_packaged_suites_are_found() -> None:
    assert packaged("hh.yaml").is_file()
