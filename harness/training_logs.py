"""Training logs: finding them beside a checkpoint's weights, and reading them strictly.

A log is JSONL, one object a step, in the order of the steps. What stability is read from is kept;
other keys are left alone. It may have been written by any trainer: ``step``, ``loss`` and
``gradient_norm`` (before clipping) must be there, the rest may be absent throughout.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import DataError, InputError
from harness.files import read_json
from harness.types import TrainingLog, TrainingRow, TrainingSource

RECIPE, LAST_GOOD = "recipe.json", "last_good"
"""What ``tbpo train`` calls the record of a run, and the last weights before it diverged."""

LOG = "train_log.jsonl"
SEEDS = "seeds"
NO_LOG = f"no {LOG} beside its weights"

OPTIONAL = ("learning_rate", "tokens", "kl_reference_policy", "chosen_log_ratio")
"""A log whose first row has them has them in every row; null stands for no value."""


@dataclass(frozen=True)
class Logs:
    """A checkpoint's training logs and their rows, by seed and step."""

    source: TrainingSource
    rows: tuple[TrainingRow, ...] = ()


def find_logs(checkpoint: str, folder: Path, chosen: str | None = None) -> Logs:
    """Return the training logs of a checkpoint.

    They are ``seeds/seed-N/train_log.jsonl`` below ``folder``, else its ``train_log.jsonl``.

    Args:
        checkpoint: its name, which every row carries.
        folder: where its weights are; may hold no log.
        chosen: a file or folder that the user named instead; must hold one.

    Raises:
        InputError: ``chosen`` holds no log, or a folder in ``seeds`` names no seed.
        DataError: a log is wrong (file and line are named).
    """
    place = folder.expanduser() if chosen is None else Path(chosen).expanduser()
    files, notes = _files(place)
    if not files and chosen is not None:
        raise InputError(
            f"'{checkpoint}': no training log in {place}: expected {LOG} or "
            f"{SEEDS}/seed-N/{LOG}, or the path of a .jsonl file."
        )
    if not files:
        return Logs(TrainingSource(checkpoint=checkpoint, reason=NO_LOG, notes=notes))
    logs: list[TrainingLog] = []
    rows: list[TrainingRow] = []
    for seed, file in files.items():
        content = _content(file)
        found = parse_log(content, file, checkpoint, seed)
        digest = hashlib.sha256(content).hexdigest()
        name = _below(place, file)
        logs.append(TrainingLog(seed=seed, file=name, sha256=digest, rows=len(found)))
        rows.extend(found)
    source = TrainingSource(checkpoint=checkpoint, logs=tuple(logs), notes=notes)
    return Logs(source, tuple(rows))


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error


def _below(place: Path, file: Path) -> str:
    return file.name if file == place else file.relative_to(place).as_posix()


def _files(place: Path) -> tuple[dict[int | None, Path], tuple[str, ...]]:
    """Return the logs at ``place`` by seed, and what is missing among them in words."""
    if place.is_file():
        return {_recorded_seed(place.parent): place}, ()
    folders = _seed_folders(place / SEEDS)
    found: dict[int | None, Path] = {
        seed: f / LOG for seed, f in folders.items() if (f / LOG).is_file()
    }
    notes = tuple(
        f"seed {seed}: {SEEDS}/{f.name} holds no {LOG}"
        for seed, f in folders.items()
        if seed not in found
    )
    if found:
        return found, notes
    alone = place / LOG
    return ({_recorded_seed(place): alone} if alone.is_file() else {}), notes


def _seed_folders(seeds: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for folder in sorted(seeds.glob("seed-*")):
        match = re.fullmatch(r"seed-(\d+)", folder.name)
        if match is None:
            raise InputError(f"{folder}: expected a folder named seed-N, N a whole number")
        if int(match[1]) in found:
            raise InputError(f"{folder} and {found[int(match[1])].name} name one seed")
        found[int(match[1])] = folder
    return dict(sorted(found.items()))


def _recorded_seed(folder: Path) -> int | None:
    """Return the seed that a trained folder's manifest names; None where it names none."""
    try:
        manifest = read_json(folder / "manifest.json")
    except InputError:
        return None
    recipe = manifest.get("recipe") if isinstance(manifest, dict) else None
    seed = recipe.get("seed") if isinstance(recipe, dict) else None
    return seed if type(seed) is int and seed >= 0 else None


def parse_log(
    content: bytes, path: Path, checkpoint: str, seed: int | None
) -> tuple[TrainingRow, ...]:
    """Return the rows of a log, each marked with its checkpoint and seed.

    Args:
        content: the bytes of the file. path: its name, for messages.

    Raises:
        DataError: a line is not a JSON object, holds NaN or an infinity, lacks a field or has one
            of the wrong type, its step does not come after the one before, it follows a row
            marked ``diverged``, or the log is empty.
    """
    lines = [(n, line) for n, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    places = [_Line(path, number, _parsed(path, number, line)) for number, line in lines]
    if not places:
        raise DataError(path, None, "the training log is empty: no step found")
    expected = [field for field in OPTIONAL if field in places[0].row]
    rows: list[TrainingRow] = []
    for place in places:
        row = place.training_row(checkpoint, seed, expected)
        place.check_after(rows[-1] if rows else None)
        rows.append(row)
    return tuple(rows)


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    def refuse(name: str) -> NoReturn:
        raise DataError(
            path,
            number,
            f"{name} is not JSON; a run that broke ends with a row that says so under 'diverged' "
            "and has null for such values",
        )

    try:
        row = json.loads(line.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise DataError(path, number, f"not valid UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        problem = f"not valid JSON: {error.msg} at column {error.colno}"
        raise DataError(path, number, problem) from error
    except ValueError as error:
        raise DataError(path, number, f"holds a number that is too long: {error}") from error
    if not isinstance(row, dict):
        raise DataError(path, number, f"expected an object, found {type(row).__name__}")
    return row


@dataclass(frozen=True)
class _Line:
    """One line of a log, and where it is."""

    path: Path
    number: int
    row: dict[str, Any]

    def wrong(self, problem: str) -> DataError:
        return DataError(self.path, self.number, problem)

    @property
    def step(self) -> int:
        step = self.row.get("step")
        if type(step) is not int or step < 0:
            raise self.wrong(f"'step' must be a whole number from 0 (given: {step!r})")
        return step

    @property
    def diverged(self) -> str | None:
        """Why training stopped here; a bare ``true`` is accepted, ``false`` is none."""
        given = self.row.get("diverged")
        if given is None or given is False:
            return None
        return str(given) if isinstance(given, str) and given.strip() else "no reason given"

    def training_row(
        self, checkpoint: str, seed: int | None, expected: Sequence[str]
    ) -> TrainingRow:
        """Return the row; ``expected`` are the optional fields that the log's first row has."""
        broken = self.diverged is not None
        row = TrainingRow(
            checkpoint=checkpoint,
            seed=seed,
            step=self.step,
            loss=self._required("loss", broken),
            gradient_norm=self._required("gradient_norm", broken),
            learning_rate=self._rate("learning_rate"),
            tokens=self._count("tokens"),
            kl_reference_policy=self._number("kl_reference_policy"),
            chosen_log_ratio=self._number("chosen_log_ratio"),
            held_out_accuracy=self._share("held_out_accuracy"),
            held_out_pairs=self._count("held_out_pairs"),
            held_out_chosen_log_ratio=self._number("held_out_chosen_log_ratio"),
            diverged=self.diverged,
        )
        absent = [field for field in expected if field not in self.row]
        if absent and not broken:
            raise self.wrong(f"field '{absent[0]}' is missing, which the first row has")
        return row

    def check_after(self, last: TrainingRow | None) -> None:
        """Refuse a row that cannot follow ``last``."""
        if last is None:
            return
        if self.step <= last.step:
            raise self.wrong(f"step {self.step} comes after step {last.step}; steps must increase")
        if last.diverged is not None:
            raise self.wrong(f"a step follows step {last.step}, at which the run diverged")

    def _required(self, field: str, broken: bool) -> float | None:
        value = self._number(field)
        if value is None and not broken:
            state = "null" if field in self.row else "missing"
            raise self.wrong(f"field '{field}' is {state}, and the row is not marked 'diverged'")
        return value

    def _number(self, field: str) -> float | None:
        value = self.row.get(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(f"field '{field}' is not a number (given: {str(value)[:40]!r})")
        if not abs(value) <= sys.float_info.max:
            raise self.wrong(f"field '{field}' is too large for a number")
        return float(value)

    def _rate(self, field: str) -> float | None:
        value = self._number(field)
        if value is not None and value < 0.0:
            raise self.wrong(f"field '{field}' must not be negative (given: {value:g})")
        return value

    def _share(self, field: str) -> float | None:
        value = self._number(field)
        if value is not None and not 0.0 <= value <= 1.0:
            raise self.wrong(f"field '{field}' must lie between 0 and 1 (given: {value:g})")
        return value

    def _count(self, field: str) -> int | None:
        value = self._number(field)
        if value is not None and (value < 1 or value != int(value)):
            raise self.wrong(f"field '{field}' must be a whole number from 1 (given: {value:g})")
        return None if value is None else int(value)
