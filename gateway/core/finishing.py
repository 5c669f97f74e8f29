"""From the worker's pixels to what may be handed out: one straight road, one type per stage.

    fetch raw → decode → review → watermark → encode → sign → store

A blocked picture leaves the road after the review, to the quarantine. No verdict, no signature: no picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import anyio
import anyio.to_thread

from compliance import watermark
from compliance.encode import THUMBNAIL_OPTIONS, EncodeOptions, encode, thumbnail
from compliance.errors import PictureRefused
from compliance.picture import Blocked, Raw, Signed, decode
from compliance.review import Reviewer, review
from compliance.sign import Claims, Provenance, Signer
from gateway.core.images import Credentials, Job, Outcome, RawPicture, StoredPicture
from gateway.core.ports import Storage


class RawLost(Exception):
    """The worker's picture is not in the storage, or not the one that it reported: it has to be drawn again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """One picture that may leave, with the milliseconds that each stage took."""

    raw: Raw
    signed: Signed
    thumb: Signed
    timings: dict[str, float]


def raw_key(job: Job, index: int) -> str:
    """Where the worker puts a picture of the present attempt."""
    return f"raw/{job.gen_id}/{job.attempt}/{index}.png"
