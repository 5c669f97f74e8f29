"""Tells the client how far a job is: numbers that never fall, a few times a second, and previews if they are wanted."""

from __future__ import annotations

import base64
import io
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

from PIL import Image

from handler.contract import Progress, progress_to_wire

_POST_EVERY = 0.25
"""Seconds between two posts: the SDK starts a thread and a connection for each."""


class Reporter:
    """Posts the `Progress` of one job. ``first`` is where the sequence begins: after that of an earlier attempt."""

    def __init__(self, post: Callable[[dict[str, Any]], object], *, pictures: int, first: int) -> None:
        self._post = post
        self._pictures = pictures
        self._sequence = itertools.count(first)
        self._last_post = -math.inf
        self._picture = self._done = self._total = 0

    def loading(self) -> None:
        self._send("loading")

    def drawing(self, picture: int, at_once: int, step: int, steps: int) -> None:
        """So many steps are done of the batch of ``at_once`` pictures that begins with ``picture``."""
        # A batch that is drawn again in smaller parts, for want of memory, begins anew; what clients see must not.
        self._total = max(self._total, self._pictures * steps)
        self._done = max(self._done, min(picture * steps + at_once * step, self._total))
        self._picture = max(self._picture, picture)
        if self._done == self._total or time.monotonic() - self._last_post >= _POST_EVERY:
            self._send("drawing")

    def preview(self, picture: int, image: Image.Image) -> None:
        self._picture = max(self._picture, picture)
        self._send("drawing", _webp(image))

    def _send(self, phase: str, preview: str | None = None) -> None:
        self._last_post = time.monotonic()
        progress = Progress(
            sequence=next(self._sequence),
            phase=phase,
            picture=self._picture,
            pictures=self._pictures,
            step=self._done,
            total_steps=self._total,
            preview=preview,
        )
        self._post(progress_to_wire(progress))


def _webp(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=60, method=0)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
