"""`S3Storage`: pictures in a bucket of S3 or what speaks like it, behind presigned addresses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread
import structlog
from starlette.routing import Route

from gateway.core.images import Readiness, Slot
from gateway.errors import SettingsError, StorageUnavailable
from gateway.storage.bucket import THREADS, Bucket, Place
from gateway.storage.faults import Fault
from gateway.storage.keys import SIGNED, checked, folder_of, mime_of
from gateway.storage.trial import Step, Trial, try_out
from gateway.storage.web import Loans, Uploads

if TYPE_CHECKING:
    from compliance.picture import Signed

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: Seconds that an answer about readiness holds: load balancers ask often, and each look is a call that costs.
_FRESH = 10.0
#: Seconds that a look may take, and that the first question about readiness waits for the first self-test.
_LOOK, _FIRST = 5.0, 15.0
#: Seconds between two self-tests until one succeeds.
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class S3Storage:
    """The port `Storage` on a bucket. Open it before use.

    The folders are those of the disk: ``out/`` and ``unsafe/`` alone have an address for callers. Until a self-test has
    succeeded nothing is written and no worker gets an address to write to; reading and removing are tried regardless.
    """

    def __init__(self, place: Place) -> None:
        self._bucket = Bucket(place)
        self._trial: Trial | None = None
        self._seen = Readiness(ready=True)
        self._look_again_at = 0.0
        self._limiter: anyio.CapacityLimiter | None = None
        self._tried = anyio.Event()
        self._looking = anyio.Lock()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[S3Storage]:
        """Tries the bucket in the background: one that is away for now must not keep the gateway from starting.

        Raises `SettingsError` for what no waiting mends, such as an endpoint that is no address.
        """
        self._limiter = anyio.CapacityLimiter(THREADS)
        try:
            await anyio.to_thread.run_sync(self._bucket.prepare, limiter=self._limiter)
        except Fault as fault:
            raise SettingsError(f"the picture storage can't be used: {fault}") from None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._try_until_it_works)
                try:
                    yield self
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            self._bucket.close()

    def routes(self) -> list[Route]:
        """None: all addresses lead to S3."""
        return []

    async def publish(self, key: str, picture: Signed) -> None:
        if folder_of(checked(key)) not in SIGNED or mime_of(key) != picture.mime:
            raise ValueError(f"{key!r} is no place for a published {picture.mime}")
        self._proven()
        await self._run("publish", partial(self._bucket.write_once, key, picture.data))

    def link(self, key: str, *, filename: str, expires_at: float) -> str:
        if folder_of(checked(key)) not in SIGNED:
            raise ValueError(f"{key!r} is private")
        with _told("link"):
            return self._bucket.download(key, expires_at=expires_at, filename=filename)

    def slot(self, key: str, *, expires_at: float) -> Slot:
        Uploads.writable(key)
        self._proven()
        with _told("slot"):
            url = self._bucket.upload(key, expires_at=expires_at)
        return Slot(url=url, headers={"Content-Type": "image/png"})

    def loan(self, key: str, *, expires_at: float) -> str:
        Loans.readable(key)
        with _told("loan"):
            return self._bucket.loan(key, expires_at=expires_at)

    async def keep(self, key: str, data: bytes) -> None:
        if folder_of(checked(key)) in SIGNED:
            raise ValueError(f"{key!r} has an address: only what is signed goes there")
        self._proven()
        await self._run("keep", partial(self._bucket.write, key, data))

    async def read(self, key: str) -> bytes | None:
        return await self._run("read", partial(self._bucket.read, checked(key)))

    async def purge(self, prefix: str, *, keep: frozenset[str] = frozenset()) -> None:
        await self._run("purge", partial(self._bucket.purge, prefix, keep))

    async def readiness(self) -> Readiness:
        """The self-test's failure, or a look at the bucket that is at most some seconds old."""
        with anyio.move_on_after(_FIRST):
            await self._tried.wait()
        if self._trial is None:
            return _not_ready("the self-test has not ended yet")
        if failed := self._trial.failed:
            return _not_ready(_said(failed))
        async with self._looking:
            if time.monotonic() >= self._look_again_at:
                self._seen = await self._look()
                self._look_again_at = time.monotonic() + _FRESH
            return self._seen

    async def _look(self) -> Readiness:
        try:
            with anyio.fail_after(_LOOK):
                await anyio.to_thread.run_sync(self._bucket.look, limiter=self._limiter, abandon_on_cancel=True)
        except TimeoutError:
            return _not_ready("it does not answer in time")
        except Fault as fault:
            return _not_ready(str(fault))
        return Readiness(ready=True)

    async def _try_until_it_works(self) -> None:
        pause = _PAUSE
        while True:
            trial = await anyio.to_thread.run_sync(try_out, self._bucket, limiter=self._limiter, abandon_on_cancel=True)
            self._bucket.verifies = trial.verifies
            self._trial = trial
            self._tried.set()
            failed = trial.failed
            if failed is None:
                log.info("picture storage open", checks_sha256=trial.verifies)
                return
            log.error("picture storage can't be used", step=failed.name, why=failed.remark)
            await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _proven(self) -> None:
        if self._trial is None or self._trial.failed is not None:
            raise StorageUnavailable

    async def _run(self, operation: str, work: Callable[[], T]) -> T:
        with _told(operation):
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)


@contextmanager
def _told(operation: str) -> Iterator[None]:
    """A `Fault` is logged by its code and becomes `StorageUnavailable`, which says nothing of buckets and addresses."""
    try:
        yield
    except Fault as fault:
        log.warning("storage call failed", operation=operation, code=fault.code, status=fault.status)
        raise StorageUnavailable from None


def _said(failed: Step) -> str:
    return f"{failed.name}: {failed.remark}"


def _not_ready(why: str) -> Readiness:
    return Readiness(ready=False, reason=f"the picture storage can't be used: {why}")
