"""What happens beside the refusal when a rule about minors applies: the key is held and the operator is told."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import structlog

from compliance.verdict import Verdict
from gateway.core.audit import Audit
from gateway.core.images import Caller, Event, Job
from gateway.core.ports import Events, Jobs, Keys

log = structlog.get_logger(__name__)

#: When a key is held: for a drawn picture, for refused words too, or never.
Mode = Literal["picture", "prompt", "off"]
#: Refused prompts of one key are told to the operator once in so many seconds; each one is in the audit.
ONCE_IN = 3600


class Safeguard:
    """Holds keys, cancels what they have queued, and writes the operator's events. Idempotent, step by step."""

    def __init__(
        self,
        *,
        keys: Keys,
        jobs: Jobs,
        events: Events,
        audit: Audit,
        withdraw: Callable[[Job], Awaitable[None] | None],
        mode: Mode,
        now: Callable[[], float],
    ) -> None:
        """``withdraw`` tells the backend to stop a cancelled job, and removes what it kept."""
        self._keys = keys
        self._jobs = jobs
        self._events = events
        self._audit = audit
        self._withdraw = withdraw
        self._mode = mode
        self._now = now

    async def minors(self, job: Job, verdict: Verdict) -> None:
        """A drawn picture falls under a rule about minors.

        To be called before the job's row says that it is blocked: after a crash the job is finished again, and so is
        this. Raises `StoreUnavailable`; then the job must not end yet.
        """
        if not verdict.minors:
            return
        held = self._mode != "off"
        if held:
            await self._hold(job.key_id, f"a picture of job {job.gen_id} was blocked: {', '.join(verdict.codes)}", job)
        await self._tell(
            f"minors-{job.gen_id}-{job.attempt}",
            "minors",
            {
                "gen_id": job.gen_id,
                "public_id": job.public_id,
                "surface": job.surface,
                "request_id": job.request_id,
                "tenant": job.tenant,
                "key_id": job.key_id,
                **_rules(verdict),
                "key_held": held,
            },
        )

    async def refused_prompt(
        self, caller: Caller, verdict: Verdict, *, surface: str, request_id: str, positive: str, negative: str
    ) -> None:
        """The gate has refused a prompt, for whatever rule."""
        await self._audit.refused(
            caller, verdict, surface=surface, request_id=request_id, positive=positive, negative=negative
        )
        await self._refused(caller, verdict, "minors_prompt", surface, request_id)

    async def refused_upload(
        self, caller: Caller, verdict: Verdict, *, surface: str, request_id: str, index: int, sha256: str
    ) -> None:
        """A picture that a caller sent was refused, for whatever rule."""
        await self._audit.upload_refused(
            caller, verdict, surface=surface, request_id=request_id, index=index, sha256=sha256
        )
        await self._refused(caller, verdict, "minors_upload", surface, request_id)

    async def _refused(self, caller: Caller, verdict: Verdict, kind: str, surface: str, request_id: str) -> None:
        if not verdict.minors:
            return
        # A known picture of abuse is no slip of the tongue: it counts like one that was drawn.
        held = self._mode == "prompt" or (self._mode == "picture" and kind == "minors_upload")
        if held:
            await self._hold(caller.key_id, f"request {request_id} was refused: {', '.join(verdict.codes)}")
        await self._tell(
            f"{kind}-{caller.key_id}-{int(self._now() // ONCE_IN)}",
            kind,
            {
                "surface": surface,
                "request_id": request_id,
                "tenant": caller.tenant,
                "key_id": caller.key_id,
                **_rules(verdict),
                "key_held": held,
            },
        )

    async def _hold(self, key_id: str, reason: str, job: Job | None = None) -> None:
        """First the key, so that nothing new comes in behind the queue that is cancelled."""
        held = await self._keys.hold(key_id, reason, now=self._now())
        if held or job is not None:
            await self._audit.key_held(key_id, reason, job=job)
        for cancelled in await self._jobs.cancel_of_key(key_id, now=self._now()):
            log.warning("job cancelled", job=cancelled.gen_id, code="api_key_held")
            waiting = self._withdraw(cancelled)
            if inspect.isawaitable(waiting):
                await waiting

    async def _tell(self, id: str, kind: str, body: dict[str, Any]) -> None:
        if await self._events.add(Event(id=id, at=self._now(), kind=kind, body=body)):
            log.error("operator event", event_id=id, kind=kind, **body)


def _rules(verdict: Verdict) -> dict[str, Any]:
    return {"ruleset": verdict.ruleset, "ruleset_version": verdict.ruleset_version, "rules": list(verdict.codes)}
