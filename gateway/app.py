"""The composition root: which adapters, which dialects, and in which order they open and close."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import cv2
import httpx
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cache.encoder import Encoder
from compliance.pixelmark import ALGORITHM, PixelMark
from compliance.review import Reviewer
from compliance.reviewers.words import Words
from compliance.rules import PromptGate
from compliance.sign import Signer
from compliance.timestamp import TimestampAuthority
from gateway import __version__
from gateway.acs.build import panel_of
from gateway.acs.local import LocalCompliance
from gateway.acs.remote import RemoteCompliance
from gateway.backends.runpod import RunPodBackend
from gateway.core import access
from gateway.core.advance import Advancer, Policy, let_go, withdraw
from gateway.core.appeals import Appeals
from gateway.core.audit import Audit
from gateway.core.cache_feed import CacheFeed
from gateway.core.caching import CachePolicy, Caching
from gateway.core.catalog import Catalog, load
from gateway.core.deletion import Deletion
from gateway.core.finishing import Finisher
from gateway.core.images import Credentials
from gateway.core.logos import LogoDesk
from gateway.core.operator import OperatorEvents
from gateway.core.optimizing import Optimizing
from gateway.core.originals import Originals
from gateway.core.polishing import Polisher
from gateway.core.ports import Meter
from gateway.core.recognition import Recognition
from gateway.core.safeguard import Safeguard
from gateway.core.service import GenerationService
from gateway.core.throttle import Throttle
from gateway.dialects.base import Dialect, Json
from gateway.dialects.imgen import ImgenDialect
from gateway.dialects.pictures import PictureDialect
from gateway.dialects.provenance import BODY_LIMIT, ProvenanceDialect
from gateway.errors import (
    GatewayError,
    InternalError,
    MethodNotAllowed,
    RouteNotFound,
    SettingsError,
)
from gateway.jobs.appeals import SqlAppeals
from gateway.jobs.audit import SqlAudit
from gateway.jobs.cache import SqlEntries
from gateway.jobs.database import Database
from gateway.jobs.deletions import SqlDeletions
from gateway.jobs.events import SqlEvents
from gateway.jobs.keys import SqlKeys
from gateway.jobs.migrations import migrate
from gateway.jobs.originals import SqlOriginals
from gateway.jobs.records import SqlRecords
from gateway.jobs.store import SqlJobs
from gateway.llm.openai import ChatModel
from gateway.llm.templates import Templates
from gateway.metrics import Metrics
from gateway.middleware import LastResort, RequestId
from gateway.pages.site import Site
from gateway.semantics import embedder_of
from gateway.settings import Settings
from gateway.signing import pixel_mark_of, secret_of, signing_credentials
from gateway.storage.build import storage_of
from gateway.storage.keys import PUBLISHED
from gateway.webhooks import Webhook

log = structlog.get_logger(__name__)


def create_app(
    settings: Settings,
    *,
    backend_transport: httpx.AsyncBaseTransport | None = None,
    reviewers: Sequence[Reviewer] = (),
    encoder: Encoder | None = None,
) -> Starlette:
    """One gateway. Builds without I/O but for reading the files that the settings name; opens all in the lifespan.

    ``reviewers`` are asked beside those of the settings; ``encoder`` is that of the settings, loaded already. Raises
    `CatalogError`, `SettingsError` and `compliance.errors.BadRules`, which name what to mend.
    """
    if not settings.backend_url:
        raise SettingsError(
            "IMGEN_BACKEND_URL: name the GPU endpoint, such as https://api.runpod.ai/v2/<endpoint id>",
            fix="Or run: imgen up, which brings an endpoint and a worker of its own.",
        )
    catalog = load(settings.catalog)
    secret = secret_of(settings)
    # Pictures are finished side by side, each by a thread of ours.
    cv2.setNumThreads(1)
    database = Database(settings.database())
    keys = SqlKeys(database)
    storage = storage_of(settings, secret=secret)
    backend = RunPodBackend(
        settings.backend_url,
        settings.backend_key,
        secret=secret,
        webhook_url=settings.worker_url(),
        min_workers=settings.backend_min_workers,
        transport=backend_transport,
    )
    compliance = compliance_of(settings, reviewers)
    records = SqlRecords(database)
    pixel_mark = pixel_mark_of(settings, secret)
    signer = signer_of(settings)
    metrics = Metrics(expires_at=signer.credentials.not_after.timestamp())
    finisher = Finisher(
        storage=storage,
        records=records,
        compliance=compliance,
        polisher=polisher_of(settings, signer, pixel_mark if settings.pixel_mark else None, metrics),
        threads=settings.finish_threads,
        now=time.time,
    )
    jobs = SqlJobs(database)
    audit = Audit(SqlAudit(database), now=time.time, keep_prompts=settings.audit_prompts)
    events = SqlEvents(database)
    notifier = (
        Webhook(settings.operator_webhook, settings.operator_secret, now=time.time)
        if settings.operator_webhook
        else None
    )
    safeguard = Safeguard(
        keys=keys,
        jobs=jobs,
        events=events,
        audit=audit,
        withdraw=partial(let_go, backend, storage),
        mode=settings.minors_hold,
        now=time.time,
    )
    policy = Policy(**{name: getattr(settings, name) for name in Policy.__dataclass_fields__})
    entries = SqlEntries(database)
    embedder = embedder_of(settings, encoder)
    cache_policy = CachePolicy(**{name: getattr(settings, name) for name in CachePolicy.__dataclass_fields__})
    caching = Caching(
        entries=entries,
        jobs=jobs,
        embedder=embedder,
        compliance=compliance,
        policy=cache_policy,
        meter=metrics,
        now=time.time,
        shared=bool(settings.cache_url),
    )
    feed = CacheFeed(
        entries=entries,
        embedder=embedder,
        policy=cache_policy,
        now=time.time,
        shared=settings.cache_url,
    )
    caching.on_new = feed.wake
    advancer = Advancer(
        jobs=jobs,
        backend=backend,
        storage=storage,
        finisher=finisher,
        audit=audit,
        safeguard=safeguard,
        policy=policy,
        now=time.time,
        webhook=backend.webhook,
        remember=caching.remember if settings.cache == "on" else None,
    )
    appeals = SqlAppeals(database)
    deletion = Deletion(
        store=SqlDeletions(database),
        storage=storage,
        records=records,
        appeals=appeals,
        audit=audit,
        forget=caching.forget if settings.cache == "on" else entries.remove,
        withdraw=partial(withdraw, backend),
        policy=policy,
        now=time.time,
    )
    originals = Originals(
        store=SqlOriginals(database), storage=storage, appeals=appeals, audit=audit, policy=policy, now=time.time
    )
    optimizer = optimizer_of(settings, catalog)
    service = GenerationService(
        jobs=jobs,
        backend=backend,
        storage=storage,
        catalog=catalog,
        compliance=compliance,
        finisher=finisher,
        advancer=advancer,
        logos=LogoDesk(storage=storage, compliance=compliance, safeguard=safeguard),
        appeals=Appeals(store=appeals, jobs=jobs, audit=audit, now=time.time),
        deletion=deletion,
        safeguard=safeguard,
        caching=caching if settings.cache == "on" else None,
        optimizing=Optimizing(optimizer),
        policy=policy,
        now=time.time,
    )
    entrance = access.Access(keys, now=time.time)
    recognition = Recognition(
        records=records,
        jobs=jobs,
        pixel_mark=pixel_mark,
        anchors=signer.credentials.anchors_pem,
        threads=settings.finish_threads,
        now=time.monotonic,
    )
    dialects: list[Dialect] = [
        ImgenDialect(
            service,
            entrance,
            unknown_character=settings.unknown_character,
            unknown_ruleset=settings.unknown_ruleset,
        ),
        PictureDialect(service, entrance),
        ProvenanceDialect(recognition, Throttle(per_minute=settings.verify_rate, now=time.monotonic)),
    ]
    site = Site(
        most_bytes=BODY_LIMIT,
        development=settings.signing_chain is None,
        picture=lambda: storage.link(f"{PUBLISHED}/some/picture.png", filename="", expires_at=time.time() + 1),
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await migrate(settings.database())
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(database.open())
            await stack.enter_async_context(storage.open())
            await stack.enter_async_context(backend.open())
            await stack.enter_async_context(compliance.open())
            if settings.cache == "on":
                await stack.enter_async_context(embedder.running())
                await stack.enter_async_context(feed.running())
            if isinstance(optimizer, ChatModel):
                await stack.enter_async_context(optimizer.open())
            await finisher.open()
            await recognition.open()
            await stack.enter_async_context(finisher.running())
            if settings.api_key:
                await register(keys, settings.api_key)
            await stack.enter_async_context(advancer.running())
            await stack.enter_async_context(deletion.running())
            await stack.enter_async_context(originals.running())
            if notifier is not None:
                await stack.enter_async_context(notifier.open())
                await stack.enter_async_context(OperatorEvents(events, notifier, now=time.time).running())
            log.info("gateway open", url=settings.base_url(), database=settings.database().partition(":")[0])
            yield
        log.info("gateway closed")

    async def healthz(request: Request) -> Response:
        return Json({"status": "ok", "version": __version__})

    async def readyz(request: Request) -> Response:
        missing = [part.reason for part in await service.readiness() if not part.ready]
        return Json({"ready": not missing, "missing": missing}, 503 if missing else 200)

    routes: list[BaseRoute] = [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        *(route for dialect in dialects for route in dialect.routes()),
        *backend.routes(advancer.hint),
        *storage.routes(),
        *site.routes(),
        *metrics.routes(),
    ]
    middleware = [Middleware(RequestId)]
    if origins := settings.origins():
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "HEAD", "POST"],
                allow_headers=["authorization", "content-type", "if-none-match", "range", "x-request-id"],
                # Keys travel in a header that a page must set itself: no cookie ever opens anything here.
                allow_credentials=False,
                expose_headers=["content-disposition", "content-range", "etag", "retry-after", "x-request-id"],
            )
        )
    voices = _voices(dialects)
    middleware.append(Middleware(LastResort, render=voices[Exception]))
    return Starlette(routes=routes, middleware=middleware, lifespan=lifespan, exception_handlers=voices)


def _voices(dialects: Sequence[Dialect]) -> Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    """One renderer for every fault, which speaks in the voice of the dialect whose path was called."""
    by_length = sorted(dialects, key=lambda dialect: len(dialect.prefix), reverse=True)

    async def render(request: Request, exc: Exception) -> Response:
        error = _translated(exc)
        path = request.url.path
        request_id: str = request.scope.get("imgen.request_id", "")
        for dialect in by_length:
            if path == dialect.prefix or path.startswith(dialect.prefix + "/"):
                return dialect.error(error, request_id=request_id)
        status = exc.status_code if isinstance(exc, HTTPException) else 500
        return Json({"error": error.message, "code": error.code, "request_id": request_id}, status)

    return {GatewayError: render, HTTPException: render, Exception: render}


def _translated(exc: Exception) -> GatewayError:
    match exc:
        case GatewayError():
            return exc
        case HTTPException(status_code=404):
            return RouteNotFound(fix="The API is POST /api/v2.")
        case HTTPException(status_code=405):
            return MethodNotAllowed(fix="Send a POST with a JSON body.")
        case _:
            log.error("request failed", exc_info=exc)
            return InternalError()


def compliance_of(settings: Settings, reviewers: Sequence[Reviewer] = ()) -> LocalCompliance | RemoteCompliance:
    """The reviewers of this process or, where the settings name one, a service of its own."""
    if not settings.acs_url:
        return LocalCompliance(panel_of(settings, reviewers), threads=settings.acs_threads)
    words = Words(PromptGate.built_in())
    return RemoteCompliance(settings.acs_url, settings.acs_key, minors=words, timeout=settings.acs_timeout)


def optimizer_of(settings: Settings, catalog: Catalog) -> ChatModel | Templates:
    """The language model that the settings name or, where they name none, the phrases of the catalogue."""
    if not settings.llm_url:
        return Templates(catalog.optimize)
    return ChatModel(
        base_url=settings.llm_url,
        api_key=settings.llm_key,
        model=settings.llm_model,
        timeout=settings.llm_timeout,
        temperature=settings.llm_temperature,
        max_tokens=settings.llm_max_tokens,
    )


def polisher_of(settings: Settings, signer: Signer, pixel_mark: PixelMark | None, meter: Meter) -> Polisher:
    """What marks, encodes and signs."""
    return Polisher(
        signer=signer,
        defaults=Credentials(
            author=settings.author,
            title=settings.title,
            description=settings.description,
            organization=settings.organization,
            vendor=settings.vendor,
        ),
        now=time.time,
        badge_at=None if settings.badge == "off" else settings.badge,
        tell_prompts=settings.embed_prompts,
        pixel_mark=pixel_mark,
        meter=meter,
    )


def signer_of(settings: Settings) -> Signer:
    """What signs the pictures. Raises `SettingsError` when the signing credentials are not usable."""
    return Signer(
        signing_credentials(settings),
        name="imgen",
        version=__version__,
        provider=settings.provider,
        training=None if settings.training_mining == "off" else settings.training_mining,
        constraints=settings.training_mining_info,
        pixel_mark=ALGORITHM,
        timestamps=TimestampAuthority(url=settings.tsa_url, timeout=settings.tsa_timeout) if settings.tsa_url else None,
    )


async def register(keys: SqlKeys, secret: str) -> None:
    """Make the key of the environment a key. Does nothing when it is one, disabled or not."""
    key = access.new_key(
        secret, name="IMGEN_API_KEY", tenant="default", now=time.time(), tier="standard", scopes=frozenset()
    )
    await keys.create(key, access.digest(secret))
