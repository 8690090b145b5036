"""Checkpoints on a Hugging Face hub, fetched into the hub client's own cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness.errors import CheckpointError

HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[A-Za-z0-9][\w./+-]*))?"
)

OTHER_WEIGHTS = (".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth")

FILE_SUFFIXES = (*OTHER_WEIGHTS, ".safetensors", ".json", ".jsonl", ".gz", ".csv", ".parquet")
"""A name that ends so is meant as a file, also where it does not exist."""

NOT_FETCHED = ("*/*", "consolidated*", "*.py", *(f"*{suffix}" for suffix in OTHER_WEIGHTS))
"""Folders, code, and copies of the same weights in other forms than safetensors."""


class Snapshot(NamedTuple):
    """One commit of a hub repository, on this machine."""

    folder: Path
    repo: str
    commit: str

    @property
    def note(self) -> str:
        """What to say about it in a checkpoint's notes."""
        return f"hub repository {self.repo} at commit {self.commit}"


def is_hub_id(source: str) -> bool:
    """Return whether ``source`` is meant as ``org/name`` or ``org/name@revision``.

    A path that exists is that path, and a name with a file's ending is a file's.
    """
    if not HUB_ID.fullmatch(source) or source.lower().endswith(FILE_SUFFIXES):
        return False
    path = Path(source)
    return not (path.exists() or path.is_symlink())


def fetch(source: str) -> Snapshot:
    """Return the commit that a hub id names now, fetching the files that are not here yet.

    The hub is that of ``HF_ENDPOINT``; without a connection the client's cache must do. Weights
    are taken as safetensors; where there are none, an ``adapter_model.bin`` or the only GGUF file
    is taken. Code is never fetched.

    Raises:
        CheckpointError: no hub id, unknown repository or revision, no access, no connection, or
            no weights in one of these forms.
    """
    found = HUB_ID.fullmatch(source)
    if found is None:
        raise CheckpointError(f"'{source}' is not a hub id (org/name or org/name@revision).")
    repo = found["repo"]
    try:
        folder = _snapshot(repo, found["revision"], ignore=NOT_FETCHED)
        if not _weights(folder):
            wanted = _other_weights(repo, folder.name)
            folder = _snapshot(repo, folder.name, allow=[wanted])
    except CheckpointError:
        raise
    except Exception as error:  # the client's own, its HTTP library's and the system's
        raise CheckpointError(_problem(source, found["revision"], error)) from error
    return Snapshot(folder, repo, folder.name)


def _snapshot(
    repo: str,
    revision: str | None,
    allow: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        repo,
        revision=revision,
        allow_patterns=None if allow is None else list(allow),
        ignore_patterns=None if ignore is None else list(ignore),
    )
    return Path(folder)


def _weights(folder: Path) -> list[Path]:
    forms = ("*.safetensors", "adapter_model.bin", "*.gguf")
    return [file for form in forms for file in folder.glob(form)]


def _other_weights(repo: str, commit: str) -> str:
    """Return the name of the one weight file to take from a repository without safetensors."""
    from huggingface_hub import HfApi

    names = [n for n in HfApi().list_repo_files(repo, revision=commit) if "/" not in n]
    if "adapter_model.bin" in names:
        return "adapter_model.bin"
    quantised = sorted(name for name in names if name.endswith(".gguf"))
    if len(quantised) == 1:
        return quantised[0]
    if quantised:
        raise CheckpointError(
            f"hub repository {repo} holds {len(quantised)} GGUF files ({', '.join(quantised)}). "
            f"Fetch one (hf download {repo} FILE) and give its path."
        )
    raise CheckpointError(
        f"hub repository {repo} holds no weights as safetensors or GGUF; files: "
        f"{', '.join(sorted(names)) or 'none'}. Name a revision that has them: {repo}@REVISION."
    )


def _problem(source: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = f"the hub at {constants.ENDPOINT}"
    if isinstance(error, GatedRepoError):
        return f"'{source}' is gated at {hub}: accept its terms there and log in (hf auth login)."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"'{source}' is no path on this machine, and {hub} shows no such repository. Check the "
            "spelling; for a private one log in (hf auth login)."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"'{source}': the repository is at {hub}, but has no revision '{revision}'."
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"'{source}' is no path on this machine; {hub} cannot be reached, and the cache holds "
            "no complete copy. Connect, set HF_ENDPOINT, or give a folder."
        )
    said = " ".join(str(error).split())[:300]
    return f"'{source}' is no path on this machine and cannot be fetched from {hub}: {said}"
