"""The audit: what was decided about whom and what, by which rule of which ruleset version, and by whom.

No pixels, and no words of a caller unless the operator wants them: their hashes say whether a text is the one that was
judged. An entry about a job is written once however often its step is done again after a crash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compliance.verdict import Verdict
from gateway.core.images import Appeal, Caller, Job
from gateway.core.ports import AuditLog


class Audit:
    """Writes the entries. Every method raises `StoreUnavailable` when the entry is not written: then nothing counts."""

    def __init__(self, log: AuditLog, *, now: Callable[[], float], keep_prompts: bool = False) -> None:
        self._log = log
        self._now = now
        self._keep_prompts = keep_prompts

    async def verdict(self, job: Job, index: int, verdict: Verdict, sha256: str) -> None:
        """The verdict about one drawn picture; ``sha256`` is that of its lossless original."""
        await self._once(
            "verdict",
            job.gen_id,
            {
                **_job(job),
                "attempt": job.attempt,
                "index": index,
                "sha256": sha256,
                **_verdict(verdict),
                **self._texts(positive=job.drawing.positive, negative=job.drawing.negative),
            },
        )

    async def refused(
        self, caller: Caller, verdict: Verdict, *, surface: str, request_id: str, positive: str, negative: str
    ) -> None:
        """A prompt that was refused before anything was drawn."""
        body = {**_caller(caller), "surface": surface, "request_id": request_id, **_verdict(verdict)}
        await self._add("prompt_refused", {**body, **self._texts(positive=positive, negative=negative)})

    async def upload_refused(
        self, caller: Caller, verdict: Verdict, *, surface: str, request_id: str, index: int, sha256: str
    ) -> None:
        """A picture of a caller that was refused; ``sha256`` is that of the bytes that were looked at."""
        body = {**_caller(caller), "surface": surface, "request_id": request_id, "index": index, "sha256": sha256}
        await self._add("upload_refused", {**body, **_verdict(verdict)})

    async def appeal(self, appeal: Appeal) -> None:
        body = {**_appeal(appeal), "key_id": appeal.key_id, **self._texts(reason=appeal.reason)}
        await self._once("appeal", appeal.gen_id, body)

    async def appeal_decided(
        self, appeal: Appeal, decision: str, *, by: str, note: str, verdicts: Mapping[int, Verdict]
    ) -> None:
        """A person's decision, ``upheld`` or ``released``, with the verdict that now holds for each picture."""
        pictures = [{"index": index, **_verdict(verdict)} for index, verdict in sorted(verdicts.items())]
        body = {**_appeal(appeal), "decision": decision, "by": by, "note": note, "pictures": pictures}
        await self._once("appeal_decided", appeal.gen_id, body)

    async def key_held(self, key_id: str, reason: str, *, job: Job | None = None) -> None:
        about = {"gen_id": job.gen_id, "attempt": job.attempt} if job else {}
        body = {"key_id": key_id, "reason": reason, **about}
        if job is None:
            await self._add("key_held", body)
        else:
            await self._once("key_held", job.gen_id, body)

    async def key_released(self, key_id: str, *, by: str) -> None:
        await self._add("key_released", {"key_id": key_id, "by": by})

    async def deleted(self, job: Job, *, by: str) -> None:
        """A caller takes a job away, by the id of a key."""
        await self._once("deleted", job.gen_id, {**_job(job), "cause": "caller", "by": by})

    async def expired(self, job: Job) -> None:
        """The end of its time took a job away, or that of the job it is a copy of. Nothing where somebody is on record
        for it.
        """
        if not any(link.entry.kind in ("deleted", "purge_ordered") for link in await self._log.of(job.gen_id)):
            cause = "copy" if job.source else "retention"
            await self._once("deleted", job.gen_id, {**_job(job), "cause": cause, "by": ""})

    async def purged(self, job: Job, *, kept: Sequence[str]) -> None:
        """The files of a deleted job are gone, but for the folders that were kept."""
        await self._once("purged", job.gen_id, {**_job(job), "kept": list(kept)})

    async def originals_purged(self, job: Job, *, folder: str) -> None:
        """The time of originals is over; the job itself stays."""
        await self._once("originals_purged", job.gen_id, {**_job(job), "folder": folder})

    async def purge_ordered(self, job: Job, *, by: str, note: str) -> None:
        """The operator has a job purged, whatever evidence it is."""
        await self._once("purge_ordered", job.gen_id, {**_job(job), "by": by, "note": note})

    async def is_evidence(self, gen_id: str) -> bool:
        """Whether a rule about minors has spoken of the job, and the operator has not let it go since."""
        links = await self._log.of(gen_id)
        ordered = max((link.entry.seq for link in links if link.entry.kind == "purge_ordered"), default=0)
        verdicts = [link.entry for link in links if link.entry.kind == "verdict" and link.entry.seq > ordered]
        return any(entry.body.get("minors", True) for entry in verdicts)

    async def _once(self, kind: str, gen_id: str, body: dict[str, Any]) -> None:
        """Written before, the same is not written again: its step is done over after a crash between two writes."""
        before = await self._log.of(gen_id)
        if not any(link.entry.kind == kind and link.entry.body == body for link in before):
            await self._log.append(kind, self._now(), gen_id, body)

    async def _add(self, kind: str, body: dict[str, Any]) -> None:
        await self._log.append(kind, self._now(), None, body)

    def _texts(self, **texts: str) -> dict[str, str]:
        """The hashes of a caller's words; the words themselves only where the operator keeps them."""
        hashed = {f"{name}_sha256": sha256_of(text) for name, text in texts.items()}
        return {**hashed, **texts} if self._keep_prompts else hashed


def sha256_of(text: str) -> str:
    """The hash by which an entry names a text: lowercase hex over its UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _job(job: Job) -> dict[str, Any]:
    return {
        "gen_id": job.gen_id,
        "public_id": job.public_id,
        "surface": job.surface,
        "tenant": job.tenant,
        "key_id": job.key_id,
        "request_id": job.request_id,
    }


def _caller(caller: Caller) -> dict[str, Any]:
    return {"tenant": caller.tenant, "key_id": caller.key_id, "tier": caller.tier}


def _appeal(appeal: Appeal) -> dict[str, Any]:
    return {
        "appeal": appeal.id,
        "gen_id": appeal.gen_id,
        "public_id": appeal.public_id,
        "surface": appeal.surface,
        "tenant": appeal.tenant,
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """Who decided, under which rules, and why. Lists as JSON has them, so that it compares equal when it was stored."""
    return {
        "ruleset": verdict.ruleset,
        "ruleset_version": verdict.ruleset_version,
        "safe": verdict.safe,
        "minors": verdict.minors,
        "releasable": verdict.releasable,
        "codes": list(verdict.codes),
        "findings": list(verdict.findings),
        "reasons": [
            {
                "rule": reason.rule,
                "category": reason.category,
                "action": reason.action,
                "reviewer": reason.reviewer,
                "label": reason.label,
                "seen_in": reason.seen_in,
                "score": reason.score,
                "threshold": reason.threshold,
            }
            for reason in verdict.reasons
        ],
        "asked": _asked(verdict),
        "reviewer": verdict.reviewer,
    }


def _asked(verdict: Verdict) -> Sequence[dict[str, str]]:
    return [{"name": each.name, "version": each.version} for each in verdict.asked]
