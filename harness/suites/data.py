"""The file behind a suite: found or fetched, held against its hash, read and cut to size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from harness.errors import DataError, InputError
from harness.files import atomic_folder, cache_root, read_bytes, sha256_file
from harness.suites.declaration import DataRef, HubFile, SuiteSpec
from harness.suites.rows import Row
from harness.tables import read_table

T = TypeVar("T")

PATIENCE_S = 60.0
"""How long a server may be silent while a file is fetched."""


@dataclass(frozen=True)
class Found:
    """A data file on this machine.

    Attributes:
        source: where it comes from, as a manifest may say.
        own: whether it comes with the suite's YAML.
    """

    path: Path
    source: str
    own: bool


def find_data(spec: SuiteSpec, folder: Path, given: Path | None) -> Found:
    """Return the file of a suite's rows: the user's, the one beside the YAML, or fetched.

    Args:
        folder: of the YAML.
        given: the user's own copy, whose form may be any of the known ones.

    Raises:
        InputError: it cannot be fetched (what to download is said), or has another hash than the
            declaration names.
    """
    data = spec.data
    if given is not None:
        if not given.is_file():
            what = "is a folder" if given.is_dir() else "does not exist"
            raise InputError(f"--data {spec.name}={given}: the file {what}. Wanted: {data}.")
        return Found(given, given.name, own=False)
    if data.path is not None:
        found = Found(folder / data.path, data.path, own=True)
    elif data.hub is not None:
        found = _from_hub(spec, data.hub)
    else:
        found = _from_web(spec, str(data.url))
    if data.sha256 is not None:
        _check_hash(found.path, _digest(found.path), data)
    return found


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _check_hash(where: Path | str, found: str, data: DataRef) -> None:
    if data.sha256 not in (None, found):
        raise DataError(
            where,
            None,
            f"its SHA-256 is {found}, and the suite is declared for {data.sha256}. Fetch the "
            "declared version, or declare the new one under a new version of the suite.",
        )


def _from_hub(spec: SuiteSpec, hub: HubFile) -> Found:
    from huggingface_hub import hf_hub_download

    try:
        path = Path(
            hf_hub_download(hub.dataset, hub.file, repo_type="dataset", revision=hub.revision)
        )
    except Exception as error:  # the client's own, its HTTP library's and the system's
        raise InputError(_unfetched(spec, " ".join(str(error).split())[:200])) from error
    # The client keeps files under .../snapshots/COMMIT/FILE.
    commit = path.parents[len(Path(hub.file).parts) - 1].name
    return Found(path, f"{hub.dataset}@{commit}, {hub.file}", own=False)


def _from_web(spec: SuiteSpec, url: str) -> Found:
    name = url.rsplit("/", 1)[-1]
    place = cache_root() / "data" / sha256(url.encode()).hexdigest()[:16]
    if not place.is_dir():
        content = _fetched(spec, url)
        _check_hash(url, sha256(content).hexdigest(), spec.data)  # what is wrong is not kept
        with atomic_folder(place) as scratch:
            (scratch / name).write_bytes(content)
    return Found(place / name, url, own=False)


def _fetched(spec: SuiteSpec, url: str) -> bytes:
    import httpx

    try:
        answer = httpx.get(url, follow_redirects=True, timeout=PATIENCE_S)
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise InputError(_unfetched(spec, str(error) or type(error).__name__)) from error
    return answer.content


def _unfetched(spec: SuiteSpec, reason: str) -> str:
    return (
        f"suite '{spec.name}': its data cannot be fetched ({reason}). Download {spec.data} "
        f"elsewhere and name the file: --data {spec.name}=PATH."
    )


def read_rows(path: Path) -> list[tuple[int, Row]]:
    """Return the rows of a file with the lines they start on.

    Raises:
        InputError: the file cannot be read. DataError: it is broken, or holds no row.
    """
    if not read_bytes(path).strip():
        raise DataError(path, None, "the suite is empty: no example found")
    return list(read_table(path).rows)


def chosen(
    items: Sequence[T], keys: Sequence[Sequence[object]], data: DataRef, *, fewer: bool = False
) -> list[T]:
    """Return ``data.rows`` of the items: those whose keys' hashes come first, in that order.

    All are returned as they come where the suite takes all.

    Args:
        keys: JSON values that name the items, whatever the form of their file; the later ones
            count where the earlier ones agree.
        fewer: take all where there are fewer, as of a user's own file.

    Raises:
        InputError: there are fewer.
    """
    if data.rows is None:
        return list(items)
    if len(items) < data.rows and not fewer:
        raise InputError(f"{data}: {len(items)} usable rows, and the suite takes {data.rows}")
    ranks = [[_rank(data.seed or 0, part) for part in key] for key in keys]
    places = sorted(range(len(items)), key=lambda place: ranks[place])
    return [items[place] for place in places[: data.rows]]


def _rank(seed: int, part: object) -> str:
    return sha256(f"{seed}\n{json.dumps(part, sort_keys=True)}".encode()).hexdigest()
