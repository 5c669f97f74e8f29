"""What the cache knows a job by: the key and the scope it is found under, and the forms of its words.

Each is a hash of what must be equal. They say nothing of whether a job may be handed out: see `gateway.core.caching`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import orjson

from cache.encoder import Encoder
from cache.guard import LEVELS, Level, form
from gateway.core import prompts
from gateway.core.images import Drawing, Entry, Job, PictureReview

#: What a caller may ask to be equal too, beyond the scope.
MATCHES = ("dimensions", "negative")


def entry_of(job: Job, days: float) -> Entry | None:
    """What the cache may know of a finished job that is or is about to be completed; None if it must not know it."""
    drawing = job.drawing
    if not fit(job) or job.outcome is None:
        return None
    verdict = job.outcome.verdict
    of = (job.tenant, job.delivery.tier, verdict.ruleset, verdict.ruleset_version)
    return Entry(
        gen_id=job.gen_id,
        tenant=job.tenant,
        key=key_of(drawing.asked or fingerprint(drawing, optimize=False), *of),
        scope=scope_of(drawing, *of),
        text=words_of(drawing)[0],
        forms=forms_of(drawing),
        width=drawing.width,
        height=drawing.height,
        seed=drawing.seed,
        pictures=len(handed_out(job)),
        created_at=job.created_at,
        expires_at=job.created_at + days * 86_400 if days else None,
    )


def fit(job: Job) -> bool:
    """Whether a finished job's pictures may stand for others: not what a person let go, nor what was drawn with
    references, nor what is a copy itself.
    """
    if job.drawn is None or job.source or job.release or job.deleted_at is not None:
        return False
    return bool(job.drawing.prompt and not job.drawing.references and handed_out(job))


def handed_out(job: Job) -> tuple[int, ...]:
    """The indexes of a job's pictures that a review cleared, that were handed out, and whose originals are there."""
    if job.outcome is None:
        return ()
    out = {picture.index for picture in job.outcome.pictures if picture.type == "signed"}
    return tuple(review.index for review in job.outcome.each if review.index in out and _clear(review))


def _clear(review: PictureReview) -> bool:
    return review.verdict.safe and bool(review.key)


def fingerprint(drawing: Drawing, *, optimize: bool) -> str:
    """Everything that was asked for and decides the picture, but the seed, as 32 hex digits.

    Of a drawing as it was composed, before anything optimised its prompt: a changed catalogue is another picture.
    """
    asked = (
        drawing.worker_model,
        drawing.model,
        drawing.style,
        drawing.character,
        drawing.positive,
        drawing.negative,
        drawing.width,
        drawing.height,
        drawing.steps,
        drawing.guidance,
        drawing.n,
        [(lora.name, lora.strength) for lora in drawing.loras],
        optimize,
    )
    return _word("asked", *asked)


def key_of(asked: str, tenant: str, tier: str, ruleset: str, version: str) -> str:
    return _word("key", asked, tenant, tier, ruleset, version)


def scope_of(drawing: Drawing, tenant: str, tier: str, ruleset: str, version: str) -> str:
    """What must be equal before words are compared (resolutions I8, I19, I20). The tier, for rules may spare one."""
    of = (drawing.worker_model, drawing.model, drawing.style, drawing.character)
    return _word("scope", *of, tenant, tier, ruleset, version)


def index_scope(scope: str, encoder: Encoder) -> str:
    """Vectors of two encoders never meet."""
    return f"{scope}.{encoder.hash}"


def words_of(drawing: Drawing) -> tuple[str, tuple[str, ...]]:
    """The caller's positive words and negative terms, before anything optimised them."""
    if drawing.asked:
        return drawing.text, drawing.terms
    # Of before there was a cache: what was left out was not kept apart from what the catalogue adds.
    negative = tuple(term for term in map(prompts.clean, drawing.negative.split(",")) if term)
    return prompts.parse(drawing.prompt).positive, negative


def forms_of(drawing: Drawing) -> dict[str, str]:
    """The words' canonical form at each level of the guard, and what a caller may ask to be equal too."""
    words = words_of(drawing)
    return {level: form_at(level, *words) for level in LEVELS if level != "off"} | also(drawing)


def form_at(level: Level, text: str, terms: Sequence[str]) -> str:
    return _word(level, form(text, terms, level))


def also(drawing: Drawing) -> dict[str, str]:
    """What `MATCHES` names."""
    _, terms = words_of(drawing)
    return {"dimensions": size_of(drawing), "negative": _word("negative", sorted(term.lower() for term in terms))}


def size_of(drawing: Drawing) -> str:
    return f"{drawing.width}x{drawing.height}"


def seconds_of(job: Job) -> float:
    """How long the worker was at it."""
    if job.drawn_at is None or job.started_at is None:
        return 0.0
    return round(max(job.drawn_at - job.started_at, 0.0), 3)


def _word(kind: str, *parts: object) -> str:
    return hashlib.sha256(orjson.dumps([kind, *parts])).hexdigest()[:32]
