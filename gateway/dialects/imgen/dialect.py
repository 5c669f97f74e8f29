"""`ImgenDialect`: the actions, and the voice in which faults are told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import anyio.to_thread
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.core import prompts
from gateway.core.access import Access
from gateway.core.images import Caller, State
from gateway.core.service import GenerationService
from gateway.dialects.base import Json, fault, iso, read_object
from gateway.dialects.fields import Fields
from gateway.dialects.imgen import answer
from gateway.dialects.imgen.request import (
    FORMATS,
    PICTURES,
    SIZES,
    RequestReader,
    is_hit,
    job_id,
    read_cursor,
    read_prompt,
)
from gateway.errors import (
    AccessDenied,
    AppealDecided,
    BackendRefused,
    BackendUnavailable,
    BadRequest,
    BodyTooLarge,
    CachedResultNotFound,
    EnhancementFailed,
    GatewayError,
    JobNotFound,
    JobNotOpen,
    MethodNotAllowed,
    MissingAction,
    NotFound,
    NothingToAppeal,
    PromptBlocked,
    Unavailable,
    UnknownAction,
)

BODY_LIMIT = 16 * 1024 * 1024
MAX_PAGE = 100

#: The first class that fits decides.
HTTP_STATUS: tuple[tuple[type[GatewayError], int], ...] = (
    (AccessDenied, 401),
    (BodyTooLarge, 413),
    (NotFound, 404),
    (MethodNotAllowed, 405),
    (JobNotOpen, 409),
    (NothingToAppeal, 409),
    (AppealDecided, 409),
    (PromptBlocked, 400),
    (BadRequest, 400),
    (BackendUnavailable, 502),
    (BackendRefused, 502),
    (EnhancementFailed, 502),
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
        unknown_character: str = "error",
        unknown_ruleset: str = "default",
    ) -> None:
        self._service = service
        self._access = access
        self._reader = RequestReader(
            service.catalog,
            rulesets=lambda: service.rulesets,
            unknown_character=unknown_character,
            unknown_ruleset=unknown_ruleset,
        )
        self._actions: dict[str, Action] = {
            "models": self._models,
            "generate": self._generate,
            "optimize": self._optimize,
            "status": self._status,
            "cancel": self._cancel,
            "delete": self._delete,
            "jobs": self._jobs,
            "appeal": self._appeal,
            "random": self._random,
        }

    def routes(self) -> list[BaseRoute]:
        return [Route("/api/v2", self._post, methods=["POST"])]

    def error(self, error: GatewayError, *, request_id: str) -> Response:
        """``{"error": <documented text>}`` and, additive, what to do about it."""
        status = next((code for kind, code in HTTP_STATUS if isinstance(error, kind)), 500)
        body = fault(error, request_id=request_id)
        if isinstance(error, PromptBlocked):
            body["filter_categories"] = list(error.rules)
            body["categories"] = list(error.categories)
            body["classes"] = list(error.classes)
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
            told = self.error(exc, request_id=request_id)
            return Json({**orjson.loads(told.body), "status": "FAILED"}, told.status_code, dict(_passed_on(told)))

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
            "rulesets": sorted(self._service.rulesets),
        }

    async def _generate(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        fields = Fields(body)
        if any(map(fields.given, PICTURES)):
            wish = await anyio.to_thread.run_sync(self._reader.wish, fields, request_id)
        else:
            wish = self._reader.wish(fields, request_id)
        job = await self._service.submit(caller, wish)
        return answer.accepted(job)

    async def _optimize(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        fields, service = Fields(body), self._service
        prompt = read_prompt(fields)
        model = fields.choice("model", service.catalog.models, service.catalog.default_model)
        parsed = prompts.parse(prompt)
        better = await service.optimize(caller, parsed, model=model, surface="imgen", request_id=request_id)
        return {
            "prompt": prompt if better == parsed else prompts.render(better),
            "optimizer": service.optimizer,
            "optimized": better != parsed,
            **answer.warnings(fields.notices),
        }

    async def _status(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        wanted = job_id(body)
        with _as_asked(wanted):
            job = await self._service.find(caller, "imgen", wanted)
        status: dict[str, Any] = {"status": answer.STATUS[job.state]}
        unsafe = partial(self._service.unsafe_link, caller, job)
        match job.state:
            case State.COMPLETED:
                safe = {"compliance": "safe", "meta": answer.meta(job, self._service.link), **answer.from_cache(job)}
                return status | safe | answer.blocked_pictures(job, unsafe)
            case State.BLOCKED:
                return status | answer.blocked(job, unsafe)
            case State.QUEUED | State.RUNNING | State.FINISHING:
                if job.total_steps:
                    status["progress"] = {"step": job.step, "total_steps": job.total_steps}
                return status
            case _:
                code = job.fault.code if job.fault else "failed"
                return status | {"error": "Generation failed", "code": code, "request_id": job.request_id}

    async def _cancel(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        wanted = job_id(body)
        with _as_asked(wanted):
            job = await self._service.cancel(caller, "imgen", wanted)
        return {"id": job.public_id, "status": answer.STATUS[job.state]}

    async def _delete(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        wanted = job_id(body)
        with _as_asked(wanted):
            job = await self._service.delete(caller, "imgen", wanted)
        return {
            "id": job.public_id,
            "deleted": True,
            "status": answer.STATUS[job.state],
            "time": iso(job.deleted_at or 0.0),
            "request_id": request_id,
        }

    async def _appeal(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        job, reason = job_id(body), Fields(body).text("reason")
        appeal = await self._service.appeal(caller, "imgen", job, reason)
        return {
            "id": job,
            "appeal": {"id": appeal.id, "state": appeal.state, "created_at": iso(appeal.created_at)},
        }

    async def _random(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        fields = Fields(body)
        drawn = self._service.random(self._reader.character(fields), self._reader.seed(fields))
        return {
            "prompt": drawn.prompt,
            "character": drawn.character,
            "seed": drawn.seed,
            **answer.warnings(fields.notices),
        }

    async def _jobs(self, caller: Caller, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        fields = Fields(body)
        limit = fields.integer("limit", 1, MAX_PAGE, default=20) or 20
        page = await self._service.page(caller, limit=limit + 1, before=read_cursor(fields.text("cursor")))
        shown = page[:limit]
        return {
            "jobs": [
                {
                    "id": job.public_id,
                    "gen_id": job.gen_id,
                    "status": answer.STATUS[job.state],
                    "prompt": job.drawing.prompt,
                    "model": job.drawing.model,
                    "created_at": iso(job.created_at),
                }
                for job in shown
            ],
            "next": answer.cursor(shown[-1]) if len(page) > limit else None,
            **answer.warnings(fields.notices),
        }


@contextmanager
def _as_asked(wanted: str) -> Iterator[None]:
    """A hit of the cache that is unknown here, or whose hour is over, has words of its own in the reference."""
    try:
        yield
    except JobNotFound as exc:
        if is_hit(wanted):
            raise CachedResultNotFound from exc
        raise


def _passed_on(answer: Response) -> list[tuple[str, str]]:
    return [(k, v) for k, v in answer.headers.items() if k not in {"content-length", "content-type"}]
