"""What the endpoint knows of each worker process from hearing of it: in memory, and gathered anew after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class Worker:
    """One worker process. Its id is new at every start, so the id is also the fence against an older process."""

    id: str
    seen: float
    parked: int = 0
    parked_takes: int = 0
    # When a parked poll was cut from the other side and none came since: the main process is probably dead, even
    # though its ping process may live on and keep naming the job.
    cut_at: float | None = None
    # How many pings in a row did not name a job that it holds.
    missing: dict[str, int] = field(default_factory=dict)
    draining: bool = False
    lost: bool = False
    stuck: bool = False

    def heard(self, now: float) -> None:
        self.seen = now

    def heard_main(self, now: float) -> None:
        """Only the main process polls and posts results; so it lives and may work again."""
        self.seen, self.cut_at, self.lost = now, None, False

    def silent(self, now: float, lease: float, grace: float) -> bool:
        """Whether nothing vouches for this worker any more."""
        if self.parked:
            return False
        return now - self.seen > lease or (self.cut_at is not None and now - self.cut_at > grace)

    def may_take(self) -> bool:
        return self.want() == "run"

    def want(self) -> str:
        """What the supervisor should do: nothing, end it gently and replace it, or kill it and replace it."""
        if self.lost or self.stuck:
            return "kill"
        return "drain" if self.draining else "run"


class Workers:
    """All workers that were heard of. A worker that is gone stays so: its orphaned pings bring nothing back."""

    # A worker that holds nothing and was not heard of for so long is no longer listed.
    FORGET_S = 60.0

    def __init__(self) -> None:
        self._known: dict[str, Worker] = {}
        self._gone: set[str] = set()

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._known.values()))

    def get(self, worker_id: str, now: float) -> Worker:
        """The worker of that id, entered if it is new. One that is gone gets an entry that nobody lists."""
        if worker_id in self._gone:
            return Worker(id=worker_id, seen=now, draining=True)
        return self._known.setdefault(worker_id, Worker(id=worker_id, seen=now))

    def mark_gone(self, worker_id: str) -> None:
        self._gone.add(worker_id)
        worker = self._known.pop(worker_id, None)
        if worker is not None:
            # Its parked polls hold this object and must not be given anything.
            worker.draining = True

    def excuse(self, seconds: float) -> None:
        """The endpoint itself did not run for that long, so nobody could report to it."""
        for worker in self._known.values():
            worker.seen += seconds
            if worker.cut_at is not None:
                worker.cut_at += seconds

    def forget_idle(self, now: float, holders: set[str]) -> None:
        for worker in list(self._known.values()):
            if worker.id not in holders and not worker.parked and now - worker.seen > self.FORGET_S:
                del self._known[worker.id]
