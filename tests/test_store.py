"""Run folders: append, kill, resume, seal, read."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from run_records import (
    make_examples,
    make_generation,
    make_judgment,
    make_score,
    run_manifest,
    suite_card,
)

from harness import store
from harness.errors import DataError, RunFolderError
from harness.store import (
    EXAMPLES,
    GENERATIONS,
    JUDGMENTS,
    LOCK,
    MANIFEST,
    SCORES,
    RunFolder,
    open_run,
    read_records,
    read_run,
)
from harness.types import EngineCard, Generation, Outcome, RunManifest, Status, SuiteExample

EXAMPLE_ROWS = [SuiteExample(suite="s", example=e) for e in make_examples(3)]
CARD = suite_card(examples=3, samples=2, judges=["j"])
NAMES = ("e00", "e01", "e02")
ANSWERS = [make_generation(c, e, s) for c in ("sft", "dpo") for e in NAMES for s in (0, 1)]
SCORE_ROWS = [
    make_score(c, e, i / 7, sample=s)
    for c in ("sft", "dpo")
    for i, e in enumerate(NAMES)
    for s in (None, 0, 1)
]
VERDICTS = [make_judgment("dpo", "sft", e, Outcome.WIN) for e in NAMES]


def manifest(**changes: object) -> RunManifest:
    return run_manifest(CARD, status=Status.RUNNING).model_copy(update=changes)


def fill(path: Path, answers: Sequence[Generation] = ANSWERS) -> RunFolder:
    with open_run(path, manifest(), EXAMPLE_ROWS) as folder:
        folder.append(GENERATIONS, answers)
        folder.append(SCORES, SCORE_ROWS)
        folder.append(JUDGMENTS, VERDICTS)
    return folder


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name != LOCK}


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    fill(tmp_path / "run")
    folder = read_run(tmp_path / "run")
    assert folder.records(EXAMPLES) == EXAMPLE_ROWS
    assert folder.records(GENERATIONS) == ANSWERS
    assert folder.records(SCORES) == SCORE_ROWS
    assert folder.records(JUDGMENTS) == VERDICTS
    assert folder.manifest == manifest()


def test_text_of_any_kind_survives(tmp_path: Path) -> None:
    text = 'a\nb\r\n\u2028\u0085\x00 "quoted" \\ \U0001f600'
    row = ANSWERS[0].model_copy(update={"text": text})
    fill(tmp_path / "run", [row, ANSWERS[1]])
    assert read_run(tmp_path / "run").records(GENERATIONS) == [row, ANSWERS[1]]


def test_append_counts_what_it_wrote(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", manifest(), EXAMPLE_ROWS) as folder:
        assert folder.append(GENERATIONS, iter(ANSWERS[:5])) == 5
        assert folder.append(GENERATIONS, []) == 0


def test_resuming_appends_to_what_is_there(tmp_path: Path) -> None:
    fill(tmp_path / "run", ANSWERS[:4])
    with open_run(tmp_path / "run", manifest(created="later"), EXAMPLE_ROWS) as folder:
        assert folder.records(GENERATIONS) == ANSWERS[:4]
        folder.append(GENERATIONS, ANSWERS[4:])
        assert folder.manifest.created == manifest().created
    assert read_run(tmp_path / "run").records(GENERATIONS) == ANSWERS


def test_torn_line_is_cut_at_every_byte(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    fill(whole)
    undisturbed = (whole / GENERATIONS.file).read_bytes()
    start = undisturbed.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start, len(undisturbed)):
        file = whole / GENERATIONS.file
        file.write_bytes(undisturbed[:end])
        assert list(read_records(GENERATIONS, file)) == ANSWERS[:-1], end
        with open_run(whole, manifest(), EXAMPLE_ROWS) as folder:
            assert file.read_bytes() == undisturbed[:start], end
            folder.append(GENERATIONS, ANSWERS[-1:])
        assert file.read_bytes() == undisturbed, end


@pytest.mark.parametrize("kind", [SCORES, JUDGMENTS])
def test_torn_line_is_cut_in_every_file(tmp_path: Path, kind: object) -> None:
    folder = fill(tmp_path / "run")
    file = folder.path / kind.file  # type: ignore[attr-defined]
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with open_run(folder.path, manifest(), EXAMPLE_ROWS):
        assert file.read_bytes() == whole[: whole.rstrip(b"\n").rfind(b"\n") + 1]


def test_file_of_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run", [])
    (folder.path / GENERATIONS.file).write_bytes(b'{"checkp')
    with open_run(folder.path, manifest(), EXAMPLE_ROWS):
        assert (folder.path / GENERATIONS.file).read_bytes() == b""


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b"{}\n", "checkpoint"),
        (b"not json\n", "JSON"),
        (b"\n", "JSON"),
        (b"\xff\n", ""),
    ],
)
def test_bad_line_in_the_middle_is_named(tmp_path: Path, bad: bytes, problem: str) -> None:
    folder = fill(tmp_path / "run")
    file = folder.path / GENERATIONS.file
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = bad
    file.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=rf"generations\.jsonl:3: .*{problem}"):
        read_run(folder.path).records(GENERATIONS)


def test_unknown_key_and_nan_are_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    file = folder.path / SCORES.file
    row = SCORE_ROWS[0].model_copy(update={"example_id": "new"}).model_dump_json()
    file.write_text(row.replace('"value":0.0', '"value":NaN') + "\n")
    with pytest.raises(DataError, match=r"scores\.jsonl:1: .*value"):
        folder.records(SCORES)
    file.write_text(row[:-1] + ',"extra":1}\n')
    with pytest.raises(DataError, match=r"scores\.jsonl:1: .*extra"):
        folder.records(SCORES)


def test_doubled_record_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    folder.append(GENERATIONS, [ANSWERS[3].model_copy(update={"text": "other"})])
    with pytest.raises(DataError, match=r"generations\.jsonl:13: record .*e01.* occurs twice"):
        folder.records(GENERATIONS)


def test_sealed_files_do_not_depend_on_the_order_of_appending(tmp_path: Path) -> None:
    first = fill(tmp_path / "a")
    shuffled = list(ANSWERS)
    random.Random(3).shuffle(shuffled)
    assert shuffled != ANSWERS
    second = fill(tmp_path / "b", shuffled)
    assert contents(first.path) != contents(second.path)
    first.seal()
    second.seal()
    assert contents(first.path) == contents(second.path)
    assert first.manifest.status == Status.COMPLETE
    assert sorted(first.records(GENERATIONS), key=GENERATIONS.identity) == first.records(
        GENERATIONS
    )
    assert {*first.records(GENERATIONS)} == {*ANSWERS}


def test_sealing_twice_changes_nothing(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    folder.seal()
    once = contents(folder.path)
    folder.seal()
    assert contents(folder.path) == once


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 7}, "seed"),
        ({"engines": (EngineCard(checkpoints=("a",), identity={"chunk": 3}),)}, "engine"),
        ({"judges": ()}, "judges"),
        ({"suites": (CARD.model_copy(update={"content_sha256": "d"}),)}, "suites"),
        ({"suites": (CARD.model_copy(update={"metrics": ()}),)}, "metrics"),
        (
            {"suites": (suite_card(examples=4).model_copy(update={"content_sha256": "d"}),)},
            "suites",
        ),
        (
            {"checkpoints": run_manifest(checkpoints=("sft", "tbpo")).checkpoints},
            "checkpoints",
        ),
    ],
)
def test_folder_of_another_run_is_refused_and_the_difference_named(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    folder = fill(tmp_path / "run")
    before = contents(folder.path)
    other = manifest(run_key="another", **changes)
    with (
        pytest.raises(RunFolderError, match=rf"belongs to another run .*differ in: {named}\."),
        open_run(folder.path, other, EXAMPLE_ROWS),
    ):
        pass
    assert contents(folder.path) == before


def test_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(RunFolderError, match="is not empty and holds no run"),
        open_run(tmp_path, manifest(), EXAMPLE_ROWS),
    ):
        pass
    assert contents(tmp_path) == {"thesis.tex": b"x"}


def test_start_killed_before_the_manifest_can_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / LOCK).touch()
    (path / EXAMPLES.file).write_text("half a li")
    (path / f".{MANIFEST}.x1y2z3").write_text("{")
    fill(path)
    assert read_run(path).records(EXAMPLES) == EXAMPLE_ROWS


def test_file_as_output_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("x")
    with (
        pytest.raises(RunFolderError, match="is a file"),
        open_run(file, manifest(), EXAMPLE_ROWS),
    ):
        pass
    with (
        pytest.raises(RunFolderError, match="cannot be created"),
        open_run(file / "run", manifest(), EXAMPLE_ROWS),
    ):
        pass


def test_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with open_run(path, manifest(), EXAMPLE_ROWS) as folder:
        folder.append(GENERATIONS, ANSWERS[:2])
        with (
            pytest.raises(RunFolderError, match="is being written by another process"),
            open_run(path, manifest(), EXAMPLE_ROWS),
        ):
            pass
        assert read_run(path).records(GENERATIONS) == ANSWERS[:2]
    with open_run(path, manifest(), EXAMPLE_ROWS):
        pass


def test_lock_of_a_killed_process_does_not_stay(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    code = (
        "import fcntl, os, sys\n"
        "handle = open(sys.argv[1], 'w')\n"
        "fcntl.flock(handle, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path / LOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunFolderError), open_run(folder.path, manifest(), EXAMPLE_ROWS):
        pass
    holder.kill()
    holder.communicate()
    with open_run(folder.path, manifest(), EXAMPLE_ROWS):
        pass


def test_incomplete_run_can_be_read(tmp_path: Path) -> None:
    fill(tmp_path / "run", ANSWERS[:3])
    folder = read_run(tmp_path / "run")
    assert folder.manifest.status == Status.RUNNING
    assert folder.records(GENERATIONS) == ANSWERS[:3]


def test_reading_changes_nothing(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    with (folder.path / GENERATIONS.file).open("ab") as stream:
        stream.write(b'{"torn')
    before = contents(folder.path)
    read_run(folder.path).records(GENERATIONS)
    assert contents(folder.path) == before


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunFolderError, match=r"manifest\.json is missing"):
            read_run(path)


def test_manifest_of_another_version_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    text = (folder.path / MANIFEST).read_text()
    (folder.path / MANIFEST).write_text(text.replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(RunFolderError, match="schema_version"):
        _ = read_run(folder.path).manifest


@pytest.mark.parametrize("stage", ["look", "lock", "write", "repair"])
def test_what_the_system_refuses_is_said_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    real = Path.open
    places = {"look": (os, "listdir"), "write": (store, "write_atomic")}
    if stage in places:
        monkeypatch.setattr(*places[stage], refuse)
    elif stage == "repair":
        monkeypatch.setattr(RunFolder, "repair", refuse)
    else:
        monkeypatch.setattr(
            Path, "open", lambda p, *a, **k: refuse() if p.name == LOCK else real(p, *a, **k)
        )
    verb = "read" if stage == "look" else "written"
    with (
        pytest.raises(RunFolderError, match=rf"cannot be {verb}: Permission denied; .*--output"),
        open_run(tmp_path, manifest(), EXAMPLE_ROWS),
    ):
        pass


def test_error_of_the_run_itself_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), open_run(tmp_path, manifest(), EXAMPLE_ROWS):
        raise PermissionError


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with (
        pytest.raises(RunFolderError, match="cannot be created"),
        open_run(closed / "run", manifest(), EXAMPLE_ROWS),
    ):
        pass
    with (
        pytest.raises(RunFolderError, match="cannot be written"),
        open_run(closed, manifest(), EXAMPLE_ROWS),
    ):
        pass
    shutil.rmtree(closed)
