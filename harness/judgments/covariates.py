"""Covariates of length-controlled win rates, as files hold them.

AlpacaEval's are published by item: the place of an instruction among its 805.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError, InputError
from harness.judgments.forms import number
from harness.judgments.verdicts import UNKNOWN_ITEM
from harness.stats.bootstrap import FloatArray
from harness.stats.judged import Judged
from harness.tables import read_table

if TYPE_CHECKING:
    from harness.stats.length_model import Regulariser


class Lookup(StrEnum):
    """What a difficulty is looked up by: the prompt's index, or the judgment's row in its file.

    AlpacaEval itself looks up by row, which gives other prompts' difficulties to files with
    missing rows; it is here to reproduce what it published.
    """

    INDEX = "index"
    ROW = "row"


def difficulties(judged: Judged, difficulty: FloatArray, lookup: Lookup, model: str) -> FloatArray:
    """Return the difficulty of each judgment's prompt, (n,).

    Args:
        difficulty: (k,) by item, NaN where there is none.
        model: named in errors.

    Raises:
        InputError: a judgment's item is not known, or has no difficulty.
    """
    places = judged.row if lookup is Lookup.ROW else judged.item
    if lookup is Lookup.INDEX and (places == UNKNOWN_ITEM).any():
        raise InputError(
            f"'{model}': the difficulty of a prompt is looked up by its index, and the judgments "
            "have none. Add a column 'index', or give --lookup row if the file holds every prompt "
            "of the benchmark in its order."
        )
    return _looked_up(difficulty, places, lookup, model)


def _looked_up(
    difficulty: FloatArray, places: NDArray[np.int32], lookup: Lookup, model: str
) -> FloatArray:
    inside = (places >= 0) & (places < len(difficulty))
    found = np.full(len(places), np.nan)
    found[inside] = difficulty[places[inside]]
    if np.isnan(found).any():
        absent = int(places[np.isnan(found)][0])
        raise InputError(
            f"'{model}': the file of difficulties has none for {lookup} {absent}. Give the file "
            "that belongs to these prompts."
        )
    return found


def read_difficulty(path: Path) -> FloatArray:
    """Return the difficulty of each item of a benchmark, (k,), NaN where the file has none.

    Args:
        path: rows with ``index`` and ``instruction_difficulty``, in any of the table forms.

    Raises:
        InputError: the file cannot be read. DataError: a row is broken, or an index occurs twice.
    """
    found: dict[int, float] = {}
    for line, row in read_table(path).rows:
        item, value = _item(path, line, row)
        if item in found:
            raise DataError(path, line, f"index {item} occurs twice")
        found[item] = value
    by_item = np.full(max(found) + 1, np.nan)
    by_item[list(found)] = list(found.values())
    return by_item


def _item(path: Path, line: int, row: dict[str, Any]) -> tuple[int, float]:
    index = _cell(path, line, row, "index")
    if index < 0 or index != int(index):
        raise DataError(path, line, f"'index' must be a whole number from 0, found {index:g}")
    return int(index), _cell(path, line, row, "instruction_difficulty")


def _cell(path: Path, line: int, row: dict[str, Any], name: str) -> float:
    if name not in row:
        raise DataError(path, line, f"field '{name}' is missing")
    try:
        found = number(row[name], name)
    except ValueError as error:
        raise DataError(path, line, str(error)) from error
    if found is None or not np.isfinite(found):
        raise DataError(path, line, f"'{name}' must be a finite number")
    return found


def read_regulariser(path: Path) -> Regulariser:
    """Return the extra rows of AlpacaEval's fit.

    Args:
        path: rows with ``std_delta_len`` (length difference over its standard deviation),
            ``instruction_difficulty`` and ``preference_01``, in any of the table forms.

    Raises:
        InputError: the file cannot be read. DataError: a row is broken.
    """
    from harness.stats.length_model import Regulariser

    names = ("std_delta_len", "instruction_difficulty", "preference_01")
    rows = [[_cell(path, n, row, name) for name in names] for n, row in read_table(path).rows]
    columns = np.array(rows, dtype=np.float64)
    return Regulariser(covariates=columns[:, :2], labels=columns[:, 2])
