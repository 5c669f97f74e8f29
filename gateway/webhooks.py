"""`Webhook`: tells the operator by an HTTP call, signed as https://www.standardwebhooks.com says.

    webhook-id          the event's id, the same at every try: what came before can be left aside
    webhook-timestamp   seconds since the epoch of this try
    webhook-signature   v1,<Base64 of HMAC-SHA-256 over "id.timestamp.body" with the secret>

The address is a setting of the operator's, never a caller's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import httpx
import orjson

from gateway.core.images import Event
from gateway.errors import NotifierUnavailable, SettingsError

_TIMEOUT = httpx.Timeout(15, connect=5)
_PREFIX = "whsec_"


class Webhook:
    """The port `Notifier`. Open it before use."""

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        now: Callable[[], float],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Raises `SettingsError` for a secret that is none."""
        self._url = url
        self._secret = webhook_key(secret)
        self._now = now
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with httpx.AsyncClient(
            transport=self._transport, timeout=_TIMEOUT, follow_redirects=False, trust_env=False
        ) as client:
            self._client = client
            try:
                yield
            finally:
                self._client = None

    async def send(self, event: Event) -> None:
        if self._client is None:
            raise NotifierUnavailable("The operator's webhook is not open")
        body = orjson.dumps(
            {
                "type": event.kind,
                "timestamp": datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds"),
                "data": dict(event.body),
            }
        )
        timestamp = str(int(self._now()))
        headers = {
            "content-type": "application/json",
            "webhook-id": event.id,
            "webhook-timestamp": timestamp,
            "webhook-signature": signature(self._secret, event.id, timestamp, body),
        }
        try:
            answer = await self._client.post(self._url, content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as exc:
            raise NotifierUnavailable(f"The operator's webhook does not answer: {type(exc).__name__}") from exc
        if not answer.is_success:
            raise NotifierUnavailable(f"The operator's webhook answered {answer.status_code}")


def webhook_key(secret: str) -> bytes:
    """The key in a secret of the form ``whsec_<Base64>``. Raises `SettingsError`."""
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_PREFIX) or not 24 <= len(key) <= 64:
        raise SettingsError(
            "The webhook secret can't be read: it is whsec_ and then 24 to 64 bytes in Base64",
            fix='Make one: echo "whsec_$(openssl rand -base64 32)"',
        )
    return key


def signature(key: bytes, id: str, timestamp: str, body: bytes) -> str:
    """The value of ``webhook-signature``."""
    digest = hmac.digest(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()
