"""Appeals: a caller objects to what was blocked, and a person decides."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import structlog

from gateway.core.audit import Audit
from gateway.core.images import Appeal, Caller, Job, PictureReview, Release, State
from gateway.core.ports import AppealStore, Jobs
from gateway.errors import (
    AppealDecided,
    AppealNotFound,
    InvalidField,
    JobNotFound,
    NothingToAppeal,
    NotReleasable,
)

log = structlog.get_logger(__name__)

#: Characters of a reason or of a note.
LONGEST = 2000
_NO_LONGER = "What was blocked of this job is no longer kept"


def new_appeal_id() -> str:
    return f"app_{secrets.token_hex(12)}"


def blocked_pictures(job: Job) -> tuple[PictureReview, ...]:
    """The pictures of an ended job that its review has kept back; those without a key are gone."""
    if job.outcome is None or job.state not in (State.BLOCKED, State.COMPLETED):
        return ()
    return tuple(review for review in job.outcome.each if not review.verdict.safe)


class Appeals:
    """Files appeals and decides them."""

    def __init__(
        self,
        *,
        store: AppealStore,
        jobs: Jobs,
        audit: Audit,
        now: Callable[[], float],
        new_id: Callable[[], str] = new_appeal_id,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._audit = audit
        self._now = now
        self._new_id = new_id

    async def file(self, caller: Caller, surface: str, public_id: str, reason: str) -> Appeal:
        """Object to what was blocked of the caller's job. While an appeal is open, it is the answer to every other.

        Raises `InvalidField`, `JobNotFound`, `AppealDecided`, and `NothingToAppeal` where nothing is blocked (yet).
        """
        reason = _checked("reason", reason)
        job = await self._jobs.find(surface, public_id)
        if job is None or job.tenant != caller.tenant:
            raise JobNotFound
        appeal = await self._undecided(job)
        if appeal is None:
            if not any(review.key for review in blocked_pictures(job)):
                raise NothingToAppeal(_NO_LONGER if blocked_pictures(job) else None)
            appeal = Appeal(
                id=self._new_id(),
                gen_id=job.gen_id,
                tenant=job.tenant,
                key_id=caller.key_id,
                public_id=job.public_id,
                surface=job.surface,
                reason=reason,
                created_at=self._now(),
            )
            if await self._store.add(appeal):
                if await self._jobs.find(surface, public_id) is None:
                    # Deleted, and maybe purged, in between: nobody would close it any more.
                    await self._store.forget(job.gen_id, keep_words=False, now=self._now())
                    raise JobNotFound
                log.warning("appeal filed", job=job.gen_id, appeal=appeal.id)
            else:
                # Somebody else was faster.
                appeal = await self._undecided(job) or appeal
        await self._audit.appeal(appeal)
        return appeal

    async def list(self, state: str | None = "open") -> Sequence[Appeal]:
        """Oldest first; None for all."""
        return await self._store.list(state)

    async def get(self, appeal_id: str) -> tuple[Appeal, Job]:
        """An appeal and its job. Raises `AppealNotFound`."""
        appeal = await self._store.get(appeal_id)
        job = await self._jobs.get(appeal.gen_id) if appeal else None
        if appeal is None or job is None:
            raise AppealNotFound
        return appeal, job

    async def uphold(self, appeal_id: str, by: str, note: str) -> Appeal:
        """What is blocked stays so. Idempotent; raises `AppealNotFound`, and `AppealDecided` when it was let go."""
        by, note = _checked("by", by), _checked("note", note)
        appeal, job = await self._to_decide(appeal_id)
        if appeal.state == "upheld":
            return appeal
        if appeal.state != "open" or job.release is not None:
            raise AppealDecided("The picture has been released", fix="A release can't be taken back.")
        verdicts = {review.index: review.verdict for review in blocked_pictures(job)}
        await self._audit.appeal_decided(appeal, "upheld", by=by, note=note, verdicts=verdicts)
        return await self._decide(appeal, "upheld", by, note)

    async def release(self, appeal_id: str, by: str, note: str) -> Appeal:
        """Have what was blocked finished and handed out like any other picture. Idempotent.

        Raises `AppealNotFound`; `AppealDecided` when it was upheld; `NotReleasable` where nobody may decide so, and
        then nothing has changed.

        The order survives a crash between any two of its writes, for each can be done again: the human verdict is in
        the audit before the picture moves, and the appeal stays open until it has.
        """
        by, note = _checked("by", by), _checked("note", note)
        appeal, job = await self._to_decide(appeal_id)
        if appeal.state == "released":
            return appeal
        if appeal.state != "open":
            raise AppealDecided("The appeal has been upheld", fix="The caller can generate again.")
        if job.release is None:
            await self._let_go(appeal, job, by, note)
        return await self._decide(appeal, "released", by, note)

    async def _to_decide(self, appeal_id: str) -> tuple[Appeal, Job]:
        appeal, job = await self.get(appeal_id)
        if job.deleted_at is not None:
            raise AppealDecided("The job was deleted", fix="Nothing of it is left to decide about.")
        return appeal, job

    async def _let_go(self, appeal: Appeal, job: Job, by: str, note: str) -> None:
        blocked = blocked_pictures(job)
        if any(review.verdict.minors for review in blocked):
            raise NotReleasable
        free = [review for review in blocked if review.verdict.releasable and review.key]
        if not blocked:
            raise NothingToAppeal(f"Nothing of job {job.gen_id} is blocked: it is {job.state}")
        if not free and any(review.verdict.releasable for review in blocked):
            raise NothingToAppeal(_NO_LONGER)
        if not free:
            raise NotReleasable
        verdicts = {review.index: review.verdict.released(by) for review in free}
        await self._audit.appeal_decided(appeal, "released", by=by, note=note, verdicts=verdicts)
        release = Release(indexes=tuple(sorted(verdicts)), by=by, note=note, at=self._now())
        if await self._jobs.reopen(job.gen_id, release, now=self._now()):
            log.warning("pictures released", job=job.gen_id, appeal=appeal.id, by=by, indexes=release.indexes)
        else:
            # Somebody released the same before, or took the job away this moment.
            await self._to_decide(appeal.id)

    async def _undecided(self, job: Job) -> Appeal | None:
        """The job's open appeal. Raises `AppealDecided` when a person has decided one."""
        latest = await self._store.latest(job.gen_id)
        if latest is not None and latest.state != "open":
            raise AppealDecided(f"The appeal has been decided: {latest.state}")
        return latest

    async def _decide(self, appeal: Appeal, state: str, by: str, note: str) -> Appeal:
        decided = await self._store.decide(appeal.id, state, by=by, note=note, now=self._now())
        if decided is not None:
            log.warning("appeal decided", job=appeal.gen_id, appeal=appeal.id, state=state, by=by)
            return decided
        current, _ = await self.get(appeal.id)
        if current.state != state:
            raise AppealDecided(f"The appeal has been decided: {current.state}")
        return current


def _checked(field: str, text: str) -> str:
    """Text that every database can hold."""
    text = text.strip()
    if not text:
        raise InvalidField(field, "has no text", fix=f"Send 1 to {LONGEST} characters.")
    if len(text) > LONGEST:
        raise InvalidField(field, f"has {len(text)} characters", fix=f"Send 1 to {LONGEST} characters.")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InvalidField(field, "is no Unicode text", fix="Send text without NUL and without half surrogate pairs.")
    return text
