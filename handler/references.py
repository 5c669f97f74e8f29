"""Fetches a job's reference pictures from the addresses that the gateway signed."""

from __future__ import annotations

import asyncio
import hashlib
import io
import warnings

import aiohttp
from PIL import Image, ImageOps, UnidentifiedImageError
from yarl import URL

from handler.contract import Reference
from handler.drawing import Guide

_LARGEST = 32 * 2**20
"""Bytes."""

_MOST_PIXELS = 64_000_000
_FORMATS = ("PNG", "JPEG", "WEBP")
_TRIES = 3
_PAUSE = 0.5
_ONE_TRY = aiohttp.ClientTimeout(total=60, sock_connect=10)


class ReferenceFailed(Exception):
    """A reference can't be had. The message is fit for a client: signed addresses are not in it."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


async def fetch(session: aiohttp.ClientSession, references: tuple[Reference, ...]) -> tuple[Guide, ...]:
    """All at once, in their order. Raises `ReferenceFailed` for the first that fails."""
    return tuple(await asyncio.gather(*(_one(session, index, each) for index, each in enumerate(references))))


async def _one(session: aiohttp.ClientSession, index: int, reference: Reference) -> Guide:
    data = await _download(session, index, reference.url)
    if hashlib.sha256(data).hexdigest() != reference.sha256:
        raise ReferenceFailed(f"reference {index} is not the picture that was ordered (its SHA-256)", retryable=False)
    image = await asyncio.to_thread(_decode, index, data)
    return Guide(image=image, role=reference.role, strength=reference.strength)


async def _download(session: aiohttp.ClientSession, index: int, address: str) -> bytes:
    for attempt in range(_TRIES):
        try:
            # A signed address is sent as it came, and must not be followed to another place.
            url = URL(address, encoded=True)
            async with session.get(url, timeout=_ONE_TRY, allow_redirects=False) as response:
                if response.status == 200:
                    return await _body(response, index)
                fault = f"its address answered {response.status}"
                if response.status < 500 and response.status not in (408, 429):
                    # Signed addresses run out: the same order with a new one can succeed.
                    raise ReferenceFailed(f"reference {index} can't be read: {fault}", retryable=True)
        except (ValueError, aiohttp.NonHttpUrlClientError):
            raise ReferenceFailed(f"reference {index}: the address is malformed", retryable=False) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            fault = f"its address can't be reached ({type(exc).__name__})"
        if attempt + 1 < _TRIES:
            await asyncio.sleep(_PAUSE * 2**attempt)
    raise ReferenceFailed(f"reference {index} can't be read: {fault}", retryable=True)


async def _body(response: aiohttp.ClientResponse, index: int) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_chunked(2**16):
        data += piece
        if len(data) > _LARGEST:
            limit = _LARGEST // 2**20
            raise ReferenceFailed(f"reference {index} is larger than {limit} MB; send a smaller one", retryable=False)
    return bytes(data)


def _decode(index: int, data: bytes) -> Image.Image:
    """RGB, upright."""
    try:
        with warnings.catch_warnings():
            # Of a size that Pillow finds suspicious we judge ourselves.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > _MOST_PIXELS:
            millions = _MOST_PIXELS // 1_000_000
            raise ReferenceFailed(f"reference {index} has more than {millions} million pixels", retryable=False)
        upright = ImageOps.exif_transpose(image)
        assert upright is not None
        return upright.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as exc:
        formats = ", ".join(_FORMATS)
        raise ReferenceFailed(f"reference {index} is no picture that can be read ({formats})", retryable=False) from exc
