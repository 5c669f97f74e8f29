"""Signed, expiring addresses. Each purpose has its own subkey, so that an upload's signature never opens a download."""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from urllib.parse import quote, urlencode

from gateway.storage.keys import is_key


class LinkRefused(Exception):
    """The address was tampered with, is incomplete, or was signed for something else."""


class LinkExpired(LinkRefused):
    """The address was ours, and its time is over."""


class Links:
    """Makes and checks the addresses of one purpose under one base URL."""

    def __init__(self, secret: bytes, purpose: str, base_url: str) -> None:
        self._key = hmac.digest(secret, f"imgen {purpose} v1".encode(), hashlib.sha256)
        self._base = base_url.rstrip("/")

    def make(self, key: str, *, expires_at: float, filename: str = "") -> str:
        """The absolute address of a key; it dies at ``expires_at`` rounded down to a second."""
        expires = str(int(expires_at))
        query = {"expires": expires, "filename": filename, "signature": self._signature(key, expires, filename)}
        return f"{self._base}/{quote(key)}?{urlencode({name: value for name, value in query.items() if value})}"

    def check(self, key: str, *, expires: str, signature: str, filename: str = "", now: float) -> float:
        """The seconds that are left. Raises `LinkExpired` only for a signature that is right."""
        if not (is_key(key) and expires.isascii() and expires.isdigit()):
            raise LinkRefused
        wanted = self._signature(key, expires, filename)
        if not hmac.compare_digest(wanted.encode(), signature.encode("utf-8", "surrogatepass")):
            raise LinkRefused
        left = int(expires) - now
        if left <= 0:
            raise LinkExpired
        return left

    def _signature(self, key: str, expires: str, filename: str) -> str:
        # Neither a key nor a number holds a line break, and the free text comes last: no two links have the same text.
        text = f"{key}\n{expires}\n{filename}"
        mac = hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return urlsafe_b64encode(mac).rstrip(b"=").decode()
