"""Puts a picture at its signed address. The gateway behind that address may be restarting, so this is patient."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import Callable

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from handler.contract import Upload

PATIENCE = 60.0
"""Seconds during which an address that does not answer, or answers 408, 429 or 5xx, is tried again."""

#: Besides 5xx: request time-out, and too many requests.
_PASSING = frozenset({408, 429})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 8.0
_ONE_TRY = aiohttp.ClientTimeout(total=60, sock_connect=10)


class UploadFailed(Exception):
    """The picture could not be delivered. The message is fit for a client: signed addresses are not in it."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


async def put_picture(
    session: aiohttp.ClientSession,
    upload: Upload,
    png: bytes,
    *,
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Raises `UploadFailed`: at once for an answer that another try can't change, else after ``patience`` seconds."""
    headers = CIMultiDict({"Content-Type": "image/png"})
    headers.update(upload.headers)
    give_up = clock() + patience
    pause = _FIRST_PAUSE
    while True:
        try:
            # A signed address is sent as it came: left to itself aiohttp writes some characters in another way.
            url = URL(upload.url, encoded=True)
            # From a file object aiohttp sends in pieces, with a Content-Length; an address that was signed for
            # one place must not be followed to another.
            async with session.put(
                url, data=io.BytesIO(png), headers=headers, timeout=_ONE_TRY, allow_redirects=False
            ) as response:
                status = response.status
            if 200 <= status < 300:
                return
            fault = f"the upload address answered {status}"
            if status < 500 and status not in _PASSING:
                raise UploadFailed(f"{fault}; the order needs a new upload address", retryable=True)
        except (ValueError, aiohttp.NonHttpUrlClientError):
            raise UploadFailed("the upload address or one of its headers is malformed", retryable=False) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            fault = f"the upload address can't be reached ({type(exc).__name__})"
        # Jitter: workers that lost the same gateway must not come back in step.
        wait = random.uniform(pause / 2, pause)
        if clock() + wait > give_up:
            raise UploadFailed(f"{fault} for {patience:.0f} s", retryable=True)
        await asyncio.sleep(wait)
        pause = min(pause * 2, _LONGEST_PAUSE)
