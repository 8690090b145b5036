"""A Hugging Face hub for tests: the routes that huggingface_hub asks, served from folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest


class Hub:
    """Repositories by name, each with the folders of its revisions, and what was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Path]] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.url = ""

    def add(self, repo: str, folder: Path, revision: str = "main") -> str:
        """Publish a folder as a revision of a repository; return its commit."""
        self.repositories.setdefault(repo, {})[revision] = folder
        return self.commit(repo, revision)

    def commit(self, repo: str, revision: str) -> str:
        """Return a hash that stands for a revision's commit."""
        folder = self.repositories[repo][revision]
        return hashlib.sha1(f"{repo}@{revision}@{folder}".encode()).hexdigest()

    def find(self, repo: str, revision: str) -> Path | None:
        """Return the folder of a revision, named by itself or by its commit."""
        name = self.name(repo, revision)
        return None if name is None else self.repositories[repo][name]

    def name(self, repo: str, revision: str) -> str | None:
        """Return the name of a revision, named by itself or by its commit."""
        for name in self.repositories[repo]:
            if revision in (name, self.commit(repo, name)):
                return name
        return None

    def fetched(self) -> list[str]:
        """Return the paths of the files that were downloaded."""
        return [path.split("/resolve/")[1].split("/", 1)[1] for path in self.asked]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def answer(self, body: bool) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            api = parts[0] == "api"
            parts = parts[1:] if api else parts
            parts = parts[1:] if parts[0] in ("models", "datasets") else parts
            repo, (kind, *rest) = "/".join(parts[:2]), parts[2:] or [""]
            if repo in hub.gated:
                self.refuse(403, "GatedRepo", body)
            elif repo not in hub.repositories:
                self.refuse(404, "RepoNotFound", body)
            elif api:
                self.describe(repo, kind, "/".join(rest), body)
            else:
                self.file(repo, rest[0], "/".join(rest[1:]), body)

        def describe(self, repo: str, kind: str, revision: str, body: bool) -> None:
            folder = hub.find(repo, revision)
            if folder is None:
                self.refuse(404, "RevisionNotFound", body)
                return
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [path.relative_to(folder).as_posix() for path in files]
            if kind == "tree":
                tree = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": etag(path)}
                    for name, path in zip(names, files, strict=True)
                ]
                self.send(json.dumps(tree).encode(), body)
                return
            name = next(n for n in hub.repositories[repo] if hub.find(repo, n) == folder)
            siblings = [{"rfilename": name} for name in names]
            facts = {"id": repo, "sha": hub.commit(repo, name), "siblings": siblings}
            self.send(json.dumps(facts).encode(), body)

        def file(self, repo: str, revision: str, name: str, body: bool) -> None:
            folder = hub.find(repo, revision)
            if folder is None or not (folder / name).is_file():
                self.refuse(404, "EntryNotFound", body)
                return
            if body:
                hub.asked.append(self.path)
            commit = hub.commit(repo, str(hub.name(repo, revision)))
            headers = {"ETag": f'"{etag(folder / name)}"', "X-Repo-Commit": commit}
            self.send((folder / name).read_bytes(), body, headers=headers)

        def refuse(self, status: int, code: str, body: bool) -> None:
            self.send(b"{}", body, status, {"X-Error-Code": code, "X-Error-Message": code})

        def send(
            self,
            content: bytes,
            body: bool,
            status: int = 200,
            headers: dict[str, str] | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def etag(file: Path) -> str:
    """Return a file's hash, as a hub's entity tag."""
    return hashlib.sha1(file.read_bytes()).hexdigest()


def point_client(hub: Hub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Point the client at a served hub as HF_ENDPOINT and HF_HOME would."""
    from huggingface_hub import constants

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve ``hub`` on a free port of this machine while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
