"""Adapter for a checkpoint behind an OpenAI-compatible endpoint.

What can be known of such a checkpoint is its address, the name it is served under and what the
server says of it in ``GET /models``; its weights, tokenizer and chat template stay out of sight.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ValidationError

from harness.errors import CheckpointError
from harness.files import sha256_json
from harness.types import CheckpointSpec, Form, Loadable, Record

if TYPE_CHECKING:
    import httpx

DEFAULT_KEY_ENV = "OPENAI_API_KEY"
TIMEOUT_S = 20.0
WAITS_S = (0.5, 1.0, 2.0)
"""Seconds before each new try to read ``GET /models``."""

VLLM = "vllm"
"""Who vLLM's server says owns its models."""

ARCHITECTURE = "endpoint:chat-completions"
"""One client asks any endpoint: nothing has to agree for two of them to share it."""

NOTES = (
    "weights cannot be seen: known by address, model name and what the server says of it",
    "chat template, temperature and seed are the server's to apply and cannot be checked; its own "
    "defaults may add top-k or penalties (vLLM's: start it with --generation-config vllm)",
)


class Served(Record):
    """A model as its server describes it.

    Attributes:
        root: what the name stands for, such as a folder on the server.
        max_model_len: longest prompt plus answer, in tokens.
        server: the server's software, as far as it says who owns the model.
        version: of the server's software.

    Each is None where the server does not say.
    """

    url: str
    model: str
    root: str | None = None
    max_model_len: int | None = None
    server: str | None = None
    version: str | None = None

    @property
    def sha256(self) -> str:
        """Hash of all that decides the answers: the model, and the version that serves it."""
        return sha256_json(self.model_dump(exclude={"server"}, exclude_none=True))


class _Card(BaseModel):
    id: str
    root: str | None = None
    max_model_len: int | None = None
    owned_by: str | None = None


class _Cards(BaseModel):
    data: list[_Card]


def endpoint_url(source: str) -> str:
    """Return an endpoint's address without a slash at its end.

    Raises:
        CheckpointError: no http(s) address of an API, or one with a password in it. The message
            does not repeat the password.
    """
    try:
        parts = urlsplit(source)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise CheckpointError(f"an endpoint's address is not a URL: {error}.") from error
    if parts.username is not None or parts.password is not None:
        raise CheckpointError(
            f"the address of the endpoint at {host} holds a user name or a password, which would "
            "be written into the run. Put the key into an environment variable and name it with "
            "api_key_env=NAME."
        )
    path = parts.path.rstrip("/")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise CheckpointError(
            f"{source.partition('?')[0]} is not an endpoint's address. Give http://HOST:PORT/v1, "
            "without a query."
        )
    if path.endswith("/completions"):
        raise CheckpointError(f"{source}: give the part of the address before /chat/completions.")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def api_key(spec: CheckpointSpec) -> str | None:
    """Return the endpoint's key: from the variable the spec names, else OPENAI_API_KEY, if set.

    Raises:
        CheckpointError: the variable that the spec names is not set, or holds no key.
    """
    name = spec.api_key_env or DEFAULT_KEY_ENV
    key = os.environ.get(name, "").strip()
    if not key and spec.api_key_env:
        raise CheckpointError(
            f"'{spec.name}' names the environment variable {name} for its key, but it is not set. "
            "Export it, or leave api_key_env out for a server that wants no key."
        )
    if not (key.isascii() and key.isprintable()):
        raise CheckpointError(f"the key in {name} holds characters that no HTTP header can carry.")
    return key or None


def headers(key: str | None) -> dict[str, str]:
    """Return the headers that carry a key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def redacted(text: str, key: str | None) -> str:
    """Return ``text`` on one line, cut to 300 characters, without the key."""
    hidden = text.replace(key, "(key)") if key else text
    line = " ".join(hidden.split())
    return line if len(line) <= 300 else line[:300] + "..."


def _once(client: httpx.Client, url: str) -> httpx.Response | str:
    """Return the reply, or why there is none that is worth keeping."""
    import httpx

    try:
        reply = client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{type(error).__name__}: {error}"
    if reply.status_code in (408, 429) or reply.status_code >= 500:
        return f"HTTP {reply.status_code}"
    return reply


def _patiently(client: httpx.Client, url: str) -> httpx.Response | str:
    """Return what `_once` does, tried again after each of WAITS_S."""
    found = _once(client, url)
    for wait in WAITS_S:
        if not isinstance(found, str):
            break
        time.sleep(wait)
        found = _once(client, url)
    return found


def _get(client: httpx.Client, url: str) -> httpx.Response:
    found = _patiently(client, url)
    if isinstance(found, str):
        raise CheckpointError(f"{url} gives no answer ({found}). Is the server up, and is it this?")
    return found


def _cards(reply: httpx.Response, key: str | None) -> list[_Card]:
    url, status = reply.request.url, reply.status_code
    if status in (401, 403):
        raise CheckpointError(
            f"{url} refuses the key (HTTP {status}). Export the right one and name its variable "
            "with api_key_env=NAME."
        )
    if status != 200:
        raise CheckpointError(
            f"{url} answers HTTP {status} ({redacted(reply.text, key)}). Give the address up to "
            "and with /v1."
        )
    try:
        return _Cards.model_validate_json(reply.content).data
    except ValidationError as error:
        raise CheckpointError(f"{url} does not list models as OpenAI's API does.") from error


def _chosen(cards: list[_Card], spec: CheckpointSpec) -> _Card:
    if spec.model is None and len(cards) == 1:
        return cards[0]
    for card in cards:
        if card.id == spec.model:
            return card
    problem = f"no model '{spec.model}'" if spec.model else f"{len(cards)} models"
    listed = ", ".join(sorted(card.id for card in cards)) or "none"
    raise CheckpointError(
        f"'{spec.name}': {spec.source} serves {problem}. Served: {listed}. Choose with model=NAME."
    )


def _version(client: httpx.Client, url: str, card: _Card) -> str | None:
    """Return the server's version, which vLLM tells beside the API; None where it is not told."""
    if card.owned_by != VLLM:
        return None
    reply = _patiently(client, url.removesuffix("/v1") + "/version")
    try:
        told: Any = None if isinstance(reply, str) else reply.json()
    except ValueError:
        told = None
    version = told.get("version") if isinstance(told, dict) else None
    return version if isinstance(version, str) else None


def look_up(spec: CheckpointSpec) -> Served:
    """Return what the endpoint says of the model that ``spec`` names.

    A server without ``GET /models`` is believed where the spec names the model.

    Raises:
        CheckpointError: no such server, key or model; the message says what is served.
    """
    import httpx

    url, key = endpoint_url(spec.source), api_key(spec)
    with httpx.Client(headers=headers(key), timeout=TIMEOUT_S) as client:
        reply = _get(client, f"{url}/models")
        if reply.status_code in (404, 405) and spec.model is not None:
            return Served(url=url, model=spec.model)
        card = _chosen(_cards(reply, key), spec)
        return Served(
            url=url,
            model=card.id,
            root=card.root,
            max_model_len=card.max_model_len,
            server=card.owned_by,
            version=_version(client, url, card),
        )


class Endpoint:
    """A checkpoint that an OpenAI-compatible server holds, such as vLLM's."""

    def prepare(self, spec: CheckpointSpec) -> Loadable:
        """Return the endpoint's record.

        Its weight hash stands for the address, the model and, where told, the server's version.

        Raises:
            CheckpointError: the server does not answer, or does not serve the model.
        """
        served = look_up(spec)
        told = f"asked as model '{served.model}'"
        software = " ".join(filter(None, (served.server, served.version)))
        return Loadable(
            spec=spec,
            form=Form.ENDPOINT,
            folder=served.url,
            weights_sha256=served.sha256,
            architecture=ARCHITECTURE,
            template_sha256=None,
            notes=(f"{told} of {software}" if software else told, *NOTES),
        )
