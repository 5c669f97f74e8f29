"""A small client of the Imgen API: what the command line uses, and what a script may."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from gateway.errors import GatewayError

_RETRIES = 5
#: Loopback never goes through a proxy, whatever the environment says of the rest.
_NO_PROXY = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}


class ClientError(GatewayError):
    """The gateway refused the request"""

    code = "client_error"


class GatewayBusy(ClientError):
    """The gateway cannot answer just now"""

    code = "gateway_busy"
    retryable = True


class PictureBlocked(ClientError):
    """Content blocked"""

    code = "blocked"

    def __init__(self, message: str, categories: tuple[str, ...]) -> None:
        super().__init__(message)
        self.categories = categories


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """What `generate` answered."""

    id: str
    prompt: str
    model: str
    warnings: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a job is; steps are 0 of 0 until the worker has said something."""

    status: str
    step: int = 0
    total_steps: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A signed picture: where it is, for as long as the address lives, and the gateway's name for it.

    ``index`` is its number among the pictures of its job, from 0.
    """

    url: str
    filename: str
    index: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A finished job: its ``meta`` as the gateway said it, and what it said of pictures that the review blocked."""

    meta: dict[str, Any]
    blocked: tuple[dict[str, Any], ...] = ()

    @property
    def files(self) -> tuple[File, ...]:
        """One for each picture of the job, in their order; no name has a folder in it."""
        return tuple(
            File(
                url=str(image["url"]),
                filename=PurePosixPath(str(image["filename"])).name,
                index=int(image.get("index", 0)),
                seed=int(image.get("seed", 0)),
            )
            for image in self.meta["images"]
            if image["type"] == "signed"
        )


class Client:
    """Speaks to one gateway with one key. Every method raises `ClientError` in words for the user."""

    def __init__(
        self, url: str, key: str, *, timeout: float = 30.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(timeout=timeout, transport=transport, mounts=_NO_PROXY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._http.close()

    def models(self) -> dict[str, Any]:
        return self._call({"action": "models"})

    def generate(self, prompt: str, **fields: Any) -> Ticket:
        """Submits a job; fields that are None are left to the gateway."""
        given = {name: value for name, value in fields.items() if value is not None}
        answer = self._call({"action": "generate", "prompt": prompt, **given})
        return Ticket(
            id=answer["id"],
            prompt=answer["prompt"],
            model=answer["model"],
            warnings=tuple(answer.get("warnings", ())),
        )

    def random(self, **fields: Any) -> str:
        """A random prompt; fields that are None are left to the gateway."""
        given = {name: value for name, value in fields.items() if value is not None}
        return str(self._call({"action": "random", **given})["prompt"])

    def status(self, ticket: Ticket) -> dict[str, Any]:
        return self._call({"action": "status", "id": ticket.id, "prompt": ticket.prompt, "model": ticket.model})

    def cancel(self, ticket: Ticket) -> None:
        self._call({"action": "cancel", "id": ticket.id})

    def delete(self, job_id: str) -> dict[str, Any]:
        """Takes the job and its pictures away for good. The answer's ``status`` says how it stood."""
        return self._call({"action": "delete", "id": job_id})

    def wait(
        self,
        ticket: Ticket,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        *,
        every: float = 0.5,
        timeout: float = 600.0,
    ) -> Picture:
        """Polls until the job has ended. A gateway that is away for a moment is asked again."""
        failures, deadline = 0, time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                answer = self.status(ticket)
                failures = 0
            except ClientError as exc:
                failures += 1
                if not exc.retryable or failures > _RETRIES:
                    raise
                time.sleep(every * 2**failures)
                continue
            status = str(answer.get("status"))
            if status == "COMPLETED":
                return _picture(answer)
            if status not in {"IN_QUEUE", "IN_PROGRESS"}:
                raise ClientError(f"{answer.get('error') or 'Generation failed'} ({status}).", fix=answer.get("fix"))
            progress = answer.get("progress") or {}
            on_progress(
                Progress(status=status, step=progress.get("step", 0), total_steps=progress.get("total_steps", 0))
            )
            time.sleep(every)
        raise ClientError(f"The job {ticket.id} did not end within {timeout:g} seconds.", fix="Ask again later.")

    def download(self, file: File) -> bytes:
        """A signed picture. The address is its own permission, so the key is not sent along."""
        with _spoken(_origin(file.url)):
            answer = self._http.get(file.url)
        if not answer.is_success:
            raise ClientError(f"The picture cannot be fetched: HTTP {answer.status_code}.", fix="Ask for status again.")
        return answer.content

    def verify(self, picture: bytes) -> dict[str, Any]:
        """What the gateway says of any picture; no key is needed."""
        with _spoken(self.url):
            answer = self._http.post(f"{self.url}/api/verify", content=picture, headers=self._headers)
        return self._said(answer)

    def _call(self, body: dict[str, Any]) -> dict[str, Any]:
        with _spoken(self.url):
            answer = self._http.post(f"{self.url}/api/v2", json=body, headers=self._headers)
        return self._said(answer)

    def _said(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            said = answer.json()
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise ClientError(
                f"{self.url} does not speak the Imgen API (HTTP {answer.status_code}).", fix="Check --url."
            )
        if not answer.is_success:
            kind = GatewayBusy if said.get("retryable", answer.status_code >= 500) else ClientError
            raise kind(str(said.get("error", f"HTTP {answer.status_code}")), fix=said.get("fix"))
        return said


@contextmanager
def _spoken(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, httpx.InvalidURL) as exc:
        raise GatewayBusy(
            f"Nobody answers at {url} ({exc.__class__.__name__}).",
            fix="Start a gateway with: imgen up; or name another with --url.",
        ) from exc


def data_uri(picture: bytes) -> str:
    """A picture as the gateway takes it in a request: PNG, JPEG or WebP. Raises `ClientError` for anything else."""
    kinds = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
    kind = next((kind for start, kind in kinds.items() if picture.startswith(start)), None)
    if kind is None:
        raise ClientError("A reference is no picture that can be sent.", fix="Send a PNG, JPEG or WebP file.")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _picture(answer: dict[str, Any]) -> Picture:
    if answer.get("compliance") == "unsafe":
        raise PictureBlocked(str(answer.get("error", "Content blocked")), tuple(answer.get("filter_categories", ())))
    return Picture(meta=answer["meta"], blocked=tuple(answer.get("blocked", ())))


def _origin(url: str) -> str:
    """Without the rest: a picture's address is a permission, and no business of a log or a screen."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
