"""The Imgen API v2: one POST with an ``action``. What the Imgen reference does not print is additive."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.core import prompts
from gateway.core.access import Access
from gateway.core.images import Caller, Credentials, Delivery, Job, Notice, State
from gateway.core.service import GenerationService, Wish
from gateway.dialects.base import Json, read_object
from gateway.dialects.fields import Fields
from gateway.errors import (
    AccessDenied,
    BackendRefused,
    BackendUnavailable,
    BadId,
    BadRequest,
    BodyTooLarge,
    CachedResultNotFound,
    CacheMiss,
    GatewayError,
    InvalidCharacter,
    InvalidField,
    JobNotOpen,
    MethodNotAllowed,
    MissingAction,
    NotFound,
    PromptBlocked,
    PromptRequired,
    PromptTooLong,
    Unavailable,
    UnknownAction,
)

BODY_LIMIT = 16 * 1024 * 1024
PROMPT_LIMIT = 4000
PRECOMPLIANCE_LIMIT = 2000
SIZES = ((1024, 1024), (1344, 768), (768, 1344), (1216, 832), (832, 1216), (1152, 896), (896, 1152))
DEFAULT_SIZE = (1344, 768)
FORMATS = ("jpeg", "png", "webp", "avif")
POSITIONS = ("top-left", "top-right", "center", "bottom-left", "bottom-right")
MAX_PAGE = 100
#: Stray dashes that a warning is given for; a prompt of nothing else would be answered with a thousand.
MAX_STRAY = 8

_RUN = re.compile(r"run_[A-Za-z0-9_-]{1,128}")
_CACHE = re.compile(r"cache_[0-9a-f]{32}")

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

#: The first class that fits decides.
HTTP_STATUS: tuple[tuple[type[GatewayError], int], ...] = (
    (AccessDenied, 401),
    (BodyTooLarge, 413),
    (NotFound, 404),
    (MethodNotAllowed, 405),
    (JobNotOpen, 409),
    (PromptBlocked, 400),
    (BadRequest, 400),
    (BackendUnavailable, 502),
    (BackendRefused, 502),
    (Unavailable, 503),
)

Action = Callable[[Caller, dict[str, Any], str], Awaitable[dict[str, Any]]]


class ImgenDialect:
    """``POST /api/v2``."""

    prefix: ClassVar[str] = "/api/v2"

    def __init__(
        self,
        service: GenerationService,
        access: Access,
        *,
        rulesets: frozenset[str],
        unknown_character: str = "error",
        unknown_ruleset: str = "default",
    ) -> None:
        self._service = service
        self._access = access
        self._rulesets = rulesets
        self._unknown_character = unknown_character
        self._unknown_ruleset = unknown_ruleset
        self._actions: dict[str, Action] = {
            "models": self._models,
            "generate": self._generate,
            "status": self._status,
            "cancel": self._cancel,
            "jobs": self._jobs,
        }

    def routes(self) -> list[BaseRoute]:
        return [Route("/api/v2", self._post, methods=["POST"])]

    def error(self, error: GatewayError, *, request_id: str) -> Response:
        """``{"error": <documented text>}`` and, additive, what to do about it."""
        status = next((code for kind, code in HTTP_STATUS if isinstance(error, kind)), 500)
        body: dict[str, Any] = {
            "error": error.message,
            "code": error.code,
            "fix": error.fix,
            "retryable": error.retryable,
            "request_id": request_id,
        }
        if isinstance(error, PromptBlocked):
            body["filter_categories"] = list(error.rules)
            body["categories"] = list(error.categories)
        if isinstance(error, InvalidField):
            body["field"] = error.field
        headers = {}
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        if status == 405:
            headers["allow"] = "POST"
        if status == 503:
            headers["retry-after"] = "5"
        return Json(body, status, headers)

    async def _post(self, request: Request) -> Response:
        request_id: str = request.scope["imgen.request_id"]
        caller = await self._access.caller(request.headers.get("authorization"))
        body = await read_object(request, limit=BODY_LIMIT)
        name = body.get("action")
        if name is None or name == "":
            raise MissingAction(fix=f"Send an action: {', '.join(self._actions)}.")
        action = self._actions.get(name) if isinstance(name, str) else None
        if action is None:
            raise UnknownAction(fix=f"Use one of: {', '.join(self._actions)}.")
        try:
            return Json(await action(caller, body, request_id))
        except GatewayError as exc:
            if name != "status":
                raise
            # The reference's Python client reads s["status"] of whatever comes back (resolution I35).
            answer = self.error(exc, request_id=request_id)
            return Json({**orjson.loads(answer.body), "status": "FAILED"}, answer.status_code, dict(_passed_on(answer)))

    # Actions

    async def _models(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        catalog = self._service.catalog
        return {
            "characters": list(catalog.characters),
            "models": {
                key: {
                    "label": model.label,
                    "default_style": model.default_style or "",
                    "styles": {name: {"label": style.label} for name, style in model.styles.items()},
                    "characters": list(catalog.characters_of(key)),
                }
                for key, model in catalog.models.items()
            },
            "default_model": catalog.default_model,
            "character_details": {
                key: {
                    "label": character.label,
                    "models": [name for name in catalog.models if key in catalog.characters_of(name)],
                }
                for key, character in catalog.characters.items()
            },
            "sizes": [f"{width}x{height}" for width, height in SIZES],
            "formats": list(FORMATS),
            "rulesets": sorted(self._rulesets),
        }

    async def _generate(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        fields = Fields(body)
        wish = self._wish(fields, request_id)
        if fields.flag("cache_only"):
            raise CacheMiss
        job = await self._service.submit(caller, wish)
        return {
            "id": job.public_id,
            "prompt": job.drawing.prompt,
            "model": job.drawing.model,
            "format": job.delivery.format,
            "gen_id": job.gen_id,
            **_warnings(job.notices),
        }

    async def _status(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        job = await self._service.find(caller, "imgen", _id(body))
        status: dict[str, Any] = {"status": STATUS[job.state]}
        match job.state:
            case State.COMPLETED:
                return status | {"compliance": "safe", "meta": self._meta(job)}
            case State.BLOCKED:
                return status | self._blocked(caller, job)
            case State.QUEUED | State.RUNNING | State.FINISHING:
                if job.total_steps:
                    status["progress"] = {"step": job.step, "total_steps": job.total_steps}
                return status
            case _:
                code = job.fault.code if job.fault else "failed"
                return status | {"error": "Generation failed", "code": code, "request_id": job.request_id}

    async def _cancel(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        job = await self._service.cancel(caller, "imgen", _id(body))
        return {"id": job.public_id, "status": STATUS[job.state]}

    async def _jobs(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        fields = Fields(body)
        limit = fields.integer("limit", 1, MAX_PAGE, default=20) or 20
        page = await self._service.page(caller, limit=limit + 1, before=_cursor(fields.text("cursor")))
        shown = page[:limit]
        return {
            "jobs": [
                {
                    "id": job.public_id,
                    "gen_id": job.gen_id,
                    "status": STATUS[job.state],
                    "prompt": job.drawing.prompt,
                    "model": job.drawing.model,
                    "created_at": _iso(job.created_at),
                }
                for job in shown
            ],
            "next": _to_cursor(shown[-1]) if len(page) > limit else None,
            **_warnings(fields.notices),
        }

    # Reading a generate request

    def _wish(self, fields: Fields, request_id: str) -> Wish:
        raw = fields.text("prompt")
        # Blanks do not count, but nobody needs so many: a megabyte of them is not even looked at.
        prompt = prompts.clean(raw[: 4 * PROMPT_LIMIT])
        if not prompt:
            raise PromptRequired
        if len(prompt) > PROMPT_LIMIT or len(raw) > 4 * PROMPT_LIMIT:
            raise PromptTooLong(fix=f"Send at most {PROMPT_LIMIT} characters; this prompt has {len(raw)}.")
        parsed = prompts.parse(prompt)
        for word in parsed.stray[:MAX_STRAY]:
            fields.notices.append(
                Notice(code="stray_dash", field="prompt", given=word, used="positive text; put a comma before -term")
            )
        model = self._model(fields)
        character = self._character(fields, parsed.names, model)
        if not parsed.positive and not character:
            raise PromptRequired
        explicit = prompts.explicit_negatives(fields.text("negative", most=PROMPT_LIMIT))
        width, height = _size(fields)
        wish = Wish(
            surface="imgen",
            public_id=f"run_{secrets.token_urlsafe(18)}",
            request_id=request_id,
            prompt=prompt,
            text=parsed.positive,
            model=model,
            style=self._style(fields, model),
            character=character,
            negatives=parsed.negatives,
            explicit_negative=explicit,
            width=width,
            height=height,
            delivery=self._delivery(fields),
            seed=_seed(fields),
            steps=fields.integer("steps", 1, 150),
            guidance=fields.decimal("guidance", 0.0, 30.0),
        )
        _without_effect(fields)
        return replace(wish, notices=tuple(fields.notices))

    def _model(self, fields: Fields) -> str:
        catalog = self._service.catalog
        return fields.choice("model", catalog.models, catalog.default_model)

    def _style(self, fields: Fields, model: str) -> str:
        wanted = fields.text("style").strip().lower()
        style = self._service.catalog.style(model, wanted)
        if wanted and style != wanted:
            fields.note("fallback", "style", style)
        return style

    def _character(self, fields: Fields, names: tuple[str, ...], model: str) -> str:
        allowed = self._service.catalog.characters_of(model)
        known = [name for name in dict.fromkeys(names) if name in allowed]
        for name in dict.fromkeys(names):
            if name in allowed:
                continue
            if self._unknown_character == "error":
                raise InvalidCharacter(fix=f"Use one of: {', '.join('@' + n for n in allowed) or '(none configured)'}.")
            fields.notices.append(Notice(code="unknown_character", field="prompt", given=f"@{name}", used=""))
        for name in known[1:]:
            fields.notices.append(Notice(code="one_character", field="prompt", given=f"@{name}", used=f"@{known[0]}"))
        return known[0] if known else ""

    def _delivery(self, fields: Fields) -> Delivery:
        return Delivery(
            format=fields.choice("format", FORMATS, "jpeg"),
            quality=fields.integer("quality", 1, 100, default=95) or 95,
            lossless=fields.flag("lossless"),
            ruleset=self._ruleset(fields),
            precompliance=fields.text("precompliance", most=PRECOMPLIANCE_LIMIT),
            credentials=Credentials(
                author=prompts.clean(fields.text("cs_author", most=256)),
                title=prompts.clean(fields.text("cs_title", most=256)),
                description=prompts.clean(fields.text("cs_description", most=2000)),
                organization=prompts.clean(fields.text("cs_organization", most=256)),
                vendor=prompts.clean(fields.text("cs_vendor", most=256)),
            ),
        )

    def _ruleset(self, fields: Fields) -> str:
        wanted = fields.text("compliance_ruleset").strip()
        if not wanted or wanted in self._rulesets:
            return wanted or "default"
        if self._unknown_ruleset == "error":
            raise InvalidField(
                "compliance_ruleset", "is not known here", fix=f"Use one of: {', '.join(sorted(self._rulesets))}."
            )
        fields.note("fallback", "compliance_ruleset", "default")
        return "default"

    # Shaping the answer

    def _meta(self, job: Job) -> dict[str, Any]:
        drawing, delivery, outcome = job.drawing, job.delivery, job.outcome
        assert outcome is not None and job.drawn is not None
        images = []
        for picture in outcome.pictures:
            url, expires_at = self._service.link(picture)
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
                    "expires_at": _iso(expires_at),
                }
            )
        delivered = next(picture for picture in outcome.pictures if picture.type == "signed")
        return {
            "id": job.public_id,
            "gen_id": job.gen_id,
            "time": _iso(job.finished_at or job.created_at),
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
            "seed": job.drawn.pictures[0].seed,
            "steps": job.drawn.steps,
            "guidance": job.drawn.guidance,
            "sampler": job.drawn.sampler,
            "model_family": job.drawn.family,
            "model_revision": job.drawn.revision,
            "negative_used": job.drawn.negative_used,
            "loras": [],
            "created_at": _iso(job.created_at),
            "timings": _timings(job),
            "request_id": job.request_id,
            **_warnings(job.notices),
        }

    def _blocked(self, caller: Caller, job: Job) -> dict[str, Any]:
        assert job.outcome is not None
        verdict = job.outcome.verdict
        names = ", ".join(verdict.categories) or "content policy"
        return {
            "compliance": "unsafe",
            "error": f"Content blocked — flagged for: {names}",
            "filter_categories": list(verdict.codes),
            "code": "content_blocked",
            "request_id": job.request_id,
        }


def _warnings(notices: tuple[Notice, ...] | list[Notice]) -> dict[str, Any]:
    if not notices:
        return {}
    return {
        "warnings": [{"code": n.code, "field": n.field, "given": n.given, "used": n.used} for n in notices],
    }


def _timings(job: Job) -> dict[str, float]:
    """Seconds per phase of this job's life."""
    assert job.outcome is not None and job.drawn is not None
    started, drawn = job.started_at or job.created_at, job.drawn_at or job.created_at
    phases = {
        "queued": started - job.created_at,
        "drawing": drawn - started,
        "finishing": (job.finished_at or drawn) - drawn,
        "total": (job.finished_at or drawn) - job.created_at,
        **{f"worker_{name}": seconds for name, seconds in job.drawn.timings.items()},
        **{f"finish_{name}": seconds for name, seconds in job.outcome.timings.items()},
    }
    return {name: round(max(seconds, 0.0), 4) for name, seconds in phases.items()}


def _size(fields: Fields) -> tuple[int, int]:
    """A valid pair, or the default. A missing half is filled with the default's (resolution I10)."""
    width = fields.integer("width", 1, 16384, default=DEFAULT_SIZE[0])
    height = fields.integer("height", 1, 16384, default=DEFAULT_SIZE[1])
    if (width, height) in SIZES:
        return width or 0, height or 0
    used = f"{DEFAULT_SIZE[0]}x{DEFAULT_SIZE[1]}; valid: {', '.join(f'{w}x{h}' for w, h in SIZES)}"
    fields.notices.append(Notice(code="fallback", field="width,height", given=f"{width}x{height}", used=used))
    return DEFAULT_SIZE


def _seed(fields: Fields) -> int | None:
    """-1 and nothing both mean a random seed."""
    seed = fields.integer("seed", -1, 2**31 - 1)
    return None if seed == -1 else seed


def _without_effect(fields: Fields) -> None:
    """Fields whose feature this version lacks: checked like all others, then answered with a warning."""
    fields.integer("cache_pick", 1, 10, default=5)
    fields.choice("wm_position", POSITIONS, "bottom-right")
    for name, least, most in (
        ("wm_scale", 1, 100),
        ("wm_transparency", 0, 100),
        ("wm_rotation", -360, 360),
        ("wm_padding_x", 0, 500),
        ("wm_padding_y", 0, 500),
    ):
        fields.integer(name, least, most)
    asked = [name for name in ("optimize", "use_cache", "cache_force") if fields.flag(name)]
    asked += ["wm_image"] if fields.text("wm_image") else []
    for name in asked:
        fields.notices.append(Notice(code="no_effect", field=name, given=name, used="not available in this version"))


def _id(body: dict[str, Any]) -> str:
    """The job id of a request. ``prompt`` and ``model`` beside it are not read: the job's row is the truth (I24)."""
    value = body.get("id")
    if isinstance(value, str) and _RUN.fullmatch(value):
        return value
    if isinstance(value, str) and _CACHE.fullmatch(value):
        raise CachedResultNotFound
    raise BadId


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _to_cursor(job: Job) -> str:
    return base64.urlsafe_b64encode(f"{job.created_at!r}:{job.gen_id}".encode()).decode().rstrip("=")


def _cursor(text: str) -> tuple[float, str] | None:
    if not text:
        return None
    try:
        when, _, gen_id = base64.urlsafe_b64decode(text[:256] + "=" * (-len(text) % 4)).decode("ascii").partition(":")
        before = float(when)
        if not re.fullmatch(r"[a-z0-9]{20}", gen_id) or not abs(before) < 1e12:
            raise ValueError
    except (ValueError, binascii.Error) as exc:
        raise InvalidField("cursor", "is not one that jobs returned", fix='Send "next" of the last page.') from exc
    return before, gen_id


def _passed_on(answer: Response) -> list[tuple[str, str]]:
    return [(k, v) for k, v in answer.headers.items() if k not in {"content-length", "content-type"}]
