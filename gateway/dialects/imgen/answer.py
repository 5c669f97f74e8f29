"""Shaping the answers of the Imgen API: the members that the reference prints, then the additive ones."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

from gateway.core.images import Job, Notice, Outcome, PictureReview, State, StoredPicture
from gateway.dialects.base import iso

#: Gives the address of a picture and the time when it expires.
Link = Callable[[StoredPicture], tuple[str, float]]
#: Gives the address of a blocked picture to a caller who may see it.
UnsafeLink = Callable[[PictureReview], str | None]

#: The states of the reference. Blocked is a completed job with an unsafe verdict.
STATUS: dict[State, str] = {
    State.QUEUED: "IN_QUEUE",
    State.RUNNING: "IN_PROGRESS",
    State.FINISHING: "IN_PROGRESS",
    State.COMPLETED: "COMPLETED",
    State.BLOCKED: "COMPLETED",
    State.FAILED: "FAILED",
    State.TIMED_OUT: "TIMED_OUT",
    State.CANCELLED: "CANCELLED",
}


def accepted(job: Job) -> dict[str, Any]:
    """What ``generate`` answers. For a hit of the cache the prompt is the caller's and ``gen_id`` the generation that
    was found (resolution I23).
    """
    return {
        "id": job.public_id,
        "prompt": job.hit.prompt if job.hit else job.drawing.prompt,
        "model": job.drawing.model,
        "format": job.delivery.format,
        "gen_id": job.source or job.gen_id,
        **from_cache(job),
        **_likeness(job),
        **warnings(job.notices),
    }


def from_cache(job: Job) -> dict[str, Any]:
    """``cache: true`` for a hit; nothing for what was drawn."""
    return {"cache": True} if job.source else {}


def _likeness(job: Job) -> dict[str, Any]:
    """How like what was found is to what was asked for."""
    return {"similarity": job.hit.similarity, "matched_prompt": job.hit.matched} if job.hit else {}


def meta(job: Job, link: Link) -> dict[str, Any]:
    """Everything about a completed job, with fresh addresses of its pictures."""
    drawing, delivery, outcome = job.drawing, job.delivery, job.outcome
    assert outcome is not None and job.drawn is not None
    seeds = {picture.index: picture.seed for picture in job.drawn.pictures}
    images = []
    for picture in outcome.pictures:
        url, expires_at = link(picture)
        images.append(
            {
                "url": url,
                "filename": picture.filename,
                "type": picture.type,
                "mime": picture.mime,
                "bytes": picture.bytes,
                "sha256": picture.sha256,
                "width": picture.width,
                "height": picture.height,
                "expires_at": iso(expires_at),
                "index": picture.index,
                "seed": seeds.get(picture.index, drawing.seed + picture.index),
            }
        )
    delivered = next(picture for picture in outcome.pictures if picture.type == "signed")
    first = seeds.get(delivered.index, drawing.seed + delivered.index)
    return {
        "id": job.public_id,
        "gen_id": job.source or job.gen_id,
        "time": iso(job.finished_at or job.created_at),
        "prompt": drawing.prompt,
        "positive": drawing.positive,
        "negative": drawing.negative,
        "character": drawing.character,
        "model": drawing.model,
        "style": drawing.style,
        "width": delivered.width,
        "height": delivered.height,
        "format": delivery.format,
        "quality": 100 if outcome.quality is None else outcome.quality,
        "lossless": outcome.lossless,
        "optimized": drawing.optimized,
        "compliance": "safe",
        "compliance_codes": list(outcome.verdict.codes),
        "compliance_ruleset": outcome.verdict.ruleset,
        "precompliance": delivery.precompliance,
        "fingerprint": delivered.sha256,
        "images": images,
        "compliance_ruleset_version": outcome.verdict.ruleset_version,
        "compliance_reviewer": _who(outcome.verdict.reviewer),
        "compliance_findings": list(outcome.verdict.findings),
        **_released(job),
        "seed": first,
        "steps": job.drawn.steps,
        "guidance": job.drawn.guidance,
        "sampler": job.drawn.sampler,
        "model_family": job.drawn.family,
        "model_revision": job.drawn.revision,
        "negative_used": job.drawn.negative_used,
        "loras": [{"name": lora.name, "strength": lora.strength} for lora in job.drawn.loras],
        "references": job.drawn.references,
        "created_at": iso(job.created_at),
        "timings": _timings(job),
        "request_id": job.request_id,
        **({**from_cache(job), "requested_prompt": job.hit.prompt, **_likeness(job)} if job.hit else {}),
        **warnings([*job.notices, *_of_the_worker(job), *_unstamped(outcome)]),
    }


def _of_the_worker(job: Job) -> list[Notice]:
    assert job.drawn is not None
    return [Notice(code="worker", field="", given="", used=warning) for warning in job.drawn.warnings]


def _unstamped(outcome: Outcome) -> list[Notice]:
    """That the time-stamp authority did not answer in time: pictures are signed, and their time is our word alone."""
    if all(picture.stamped is not False for picture in outcome.pictures):
        return []
    return [Notice(code="unstamped", field="", given="", used="signed without a time stamp")]


def blocked(job: Job, unsafe: UnsafeLink) -> dict[str, Any]:
    """What is said of a job of which nothing may leave: why, and to a key with the scope where to see it."""
    assert job.outcome is not None
    return {
        "compliance": "unsafe",
        **_refusal(job.outcome, next(map(unsafe, job.outcome.reviews), None)),
        "code": "content_blocked",
        "request_id": job.request_id,
        **blocked_pictures(job, unsafe),
    }


def blocked_pictures(job: Job, unsafe: UnsafeLink) -> dict[str, Any]:
    """The member ``blocked``, with each blocked picture of several; nothing when there is none."""
    assert job.outcome is not None
    seeds = {picture.index: picture.seed for picture in job.drawn.pictures} if job.drawn else {}
    told = [
        {
            "index": review.index,
            "seed": seeds.get(review.index),
            **_refusal(job.outcome if review.verdict.safe else review, unsafe(review)),
        }
        for review in job.outcome.reviews
        if not review.verdict.safe or not job.outcome.pictures
    ]
    return {"blocked": told} if told and job.drawing.n > 1 else {}


def _refusal(of: Outcome | PictureReview, url: str | None) -> dict[str, Any]:
    names = ", ".join(of.verdict.categories) or "content policy"
    told = {
        "error": f"Content blocked — flagged for: {names}",
        "filter_categories": list(of.verdict.codes),
    }
    # Wrapped as the reference has it, to discourage casual display.
    return told | ({"unsafe_url": base64.b64encode(url.encode()).decode()} if url else {})


def _who(reviewer: str) -> str:
    """The reviewers; of a person only that it was one."""
    return "human" if reviewer.startswith("human:") else reviewer


def _released(job: Job) -> dict[str, Any]:
    """That a person let pictures of the job go which a review had blocked, and when."""
    return {"release": {"indexes": list(job.release.indexes), "time": iso(job.release.at)}} if job.release else {}


def warnings(notices: Sequence[Notice]) -> dict[str, Any]:
    """The member ``warnings``; nothing when no fallback was taken."""
    if not notices:
        return {}
    return {
        "warnings": [{"code": n.code, "field": n.field, "given": n.given, "used": n.used} for n in notices],
    }


def _timings(job: Job) -> dict[str, float]:
    """Seconds per phase of this job's life."""
    assert job.outcome is not None and job.drawn is not None
    started = job.started_at or job.created_at
    # Of a hit this is when its original was drawn.
    drawn = max(job.drawn_at or job.created_at, job.created_at)
    phases = {
        "queued": started - job.created_at,
        "drawing": drawn - started,
        "finishing": (job.finished_at or drawn) - drawn,
        "total": (job.finished_at or drawn) - job.created_at,
        **{f"worker_{name}": seconds for name, seconds in job.drawn.timings.items()},
        **{f"finish_{name}": seconds for name, seconds in job.outcome.timings.items()},
    }
    return {name: round(max(seconds, 0.0), 4) for name, seconds in phases.items()}


def cursor(job: Job) -> str:
    """The place of a job in the list, for the caller to hand back."""
    return base64.urlsafe_b64encode(f"{job.created_at!r}:{job.gen_id}".encode()).decode().rstrip("=")
