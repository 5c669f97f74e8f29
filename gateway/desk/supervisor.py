"""Keeps child processes running, each in a process group of its own, and leaves nobody behind however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex

import httpx

from gateway.desk.broker import Broker, EndpointSilent
from gateway.desk.claim import MARK, Claim
from gateway.desk.logs import ChildLog

_PIPE_CHUNK = 64 * 1024
_PIPE_BITES = 16
_FOLLOW_EVERY = 1.0
_IDLE_GRACE = 0.5
_PR_SET_CHILD_SUBREAPER = 36
_DYING_LOOKS, _DYING_PAUSE = 100, 0.02
_KILLED = (-signal.SIGKILL, -signal.SIGTERM)


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """One start of a child: an id that is new each time, and a descriptor at whose end of file the desk is gone."""

    id: str
    parent_fd: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """A program to keep running.

    ``command`` gives the arguments and the whole environment of one start. ``needs`` is a URL that must answer before
    it is started. A child that ``takes_jobs`` is drained at the broker before it is asked to end.
    """

    name: str
    command: Callable[[Start], tuple[Sequence[str], Mapping[str, str]]]
    needs: str = ""
    fds: tuple[int, ...] = ()
    takes_jobs: bool = False
    #: Seconds between asking it to end and killing it.
    grace: float = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """How long to wait before a dead child is started again: doubling, and forgotten after a good while of life."""

    first: float = 0.2
    most: float = 10.0
    good_life: float = 30.0

    def after(self, last: float | None, lived: float) -> float:
        if last is None or lived >= self.good_life:
            return self.first
        return min(last * 2, self.most)


@dataclass(kw_only=True, slots=True)
class _Running:
    child: Child
    start: Start
    process: subprocess.Popen[bytes]
    output: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    #: Set when the desk itself asked it to end, so its end is no accident.
    asked: bool = False

    def send(self, number: signal.Signals) -> None:
        """To the process alone; a dead one is fine."""
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def kill_group(self) -> None:
        """The process and whatever it started. The group can outlive its leader, never the other way round."""
        # macOS answers EPERM for a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Desk:
    """Starts the children in their order and ends them in the reverse one.

    ``say`` shows a line to a person; ``log`` makes the log of a child by its name.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        claim: Claim,
        log: Callable[[str], ChildLog],
        say: Callable[[str], None],
        broker: Broker | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.children = tuple(children)
        self._claim = claim
        self._say = say
        self._logs = {child.name: log(child.name) for child in children}
        self._broker = broker
        self._backoff = backoff or Backoff()
        self._running: dict[str, _Running] = {}
        # Nobody could say so of the children of a former run when it ended with them.
        self._unreported = {claim.former[c.name] for c in children if c.takes_jobs and c.name in claim.former}
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._parent_fd = -1

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def stop_wanted(self) -> None:
        """Returns when somebody wants the desk to stop, or it ended."""
        await self._stopping.wait()

    def pids(self) -> dict[str, int]:
        """The process of each child that runs now."""
        return {name: running.process.pid for name, running in self._running.items()}

    def stop(self) -> None:
        """End everything in order; said a second time, at once."""
        if self._stopping.is_set():
            self._hurry.set()
            for running in self._running.values():
                running.kill_group()
        self._stopping.set()

    async def run(self) -> int:
        """Runs until `stop`; 0 when everybody ended in order."""
        self._parent_fd, lifeline = os.pipe()
        try:
            async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
                if self._broker is not None:
                    await stack.enter_async_context(self._broker)
                follower = tasks.create_task(self._follow())
                keepers = {child.name: tasks.create_task(self._keep(child)) for child in self.children}
                await self._stopping.wait()
                follower.cancel()
                for child in reversed(self.children):
                    await self._end(child.name)
                    await keepers[child.name]
        finally:
            self._stopping.set()
            for running in self._running.values():
                running.kill_group()
            os.close(lifeline)
            os.close(self._parent_fd)
        return 1 if self._hurry.is_set() else 0

    async def _keep(self, child: Child) -> None:
        """Runs a child again and again until the desk stops."""
        delay: float | None = None
        while await self._needs_are_met(child):
            began = time.monotonic()
            try:
                running = self._start(child)
            except OSError as exc:
                code, asked = 0, False
                how = f"{child.name} cannot be started: {exc.strerror}"
            else:
                code = await asyncio.to_thread(running.process.wait)
                await self._bury(running)
                how, asked = f"{child.name} ended ({_spoken(code)})", running.asked
            if self._stopping.is_set():
                return
            if asked:
                self._say(f"{child.name} is replaced")
                delay = None
                continue
            delay = self._backoff.after(delay, time.monotonic() - began)
            self._say(f"{how}; starting it again in {delay:g} s{self._last_words(child, code)}")
            await self._pause(delay)

    async def _needs_are_met(self, child: Child) -> bool:
        """Waits for what the child needs; False when the desk stops instead."""
        if child.needs:
            async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
                while not self._stopping.is_set():
                    with contextlib.suppress(httpx.HTTPError):
                        if (await http.get(child.needs)).is_success:
                            break
                    await self._pause(0.1)
        return not self._stopping.is_set()

    def _start(self, child: Child) -> _Running:
        start = Start(id=f"{child.name}-{token_hex(6)}", parent_fd=self._parent_fd)
        argv, env = child.command(start)
        output, write_end = os.pipe()
        try:
            process = subprocess.Popen(
                argv,
                env={**env, MARK: self._claim.run},
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(self._parent_fd, *child.fds),
            )
        except OSError:
            os.close(output)
            raise
        finally:
            os.close(write_end)
        self._claim.note(child.name, start.id, process.pid)
        running = _Running(child=child, start=start, process=process, output=output)
        self._running[child.name] = running
        os.set_blocking(output, False)
        asyncio.get_running_loop().add_reader(output, self._read, running)
        return running

    def _read(self, running: _Running) -> bool:
        """Takes what the pipe holds now, in one bite; whether there may be more."""
        try:
            data = os.read(running.output, _PIPE_CHUNK)
        except BlockingIOError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(running.output)
            return False
        self._logs[running.child.name].feed(data)
        return True

    async def _bury(self, running: _Running) -> None:
        """The leader has ended: nothing that it started may go on, hold the device or vouch for its jobs."""
        running.kill_group()
        await _emptied(running.process.pid)
        # Bounded: somebody who escaped from the group may go on writing.
        for _ in range(_PIPE_BITES):
            if not self._read(running):
                break
        asyncio.get_running_loop().remove_reader(running.output)
        os.close(running.output)
        self._logs[running.child.name].end()
        del self._running[running.child.name]
        self._claim.forget(running.child.name)
        running.ended.set()
        if running.child.takes_jobs:
            self._unreported.add(running.start.id)
            await self._report()

    async def _end(self, name: str) -> None:
        """Asks a child to end, and kills it when it takes too long."""
        running = self._running.get(name)
        if running is None:
            return
        running.asked = True
        self._logs[name].quiet = True
        grace = running.child.grace
        if running.child.takes_jobs and self._broker is not None and not self._hurry.is_set():
            with contextlib.suppress(EndpointSilent):
                if not await self._broker.drain(running.start.id):
                    # It holds nothing and gets nothing, but its polls may take seconds to come home.
                    grace = min(grace, _IDLE_GRACE)
        running.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(0 if self._hurry.is_set() else grace):
                await running.ended.wait()
        except TimeoutError:
            running.kill_group()
        self._logs[name].quiet = self._stopping.is_set()

    async def _follow(self) -> None:
        """Does what the broker wants done with the workers, and repeats to it what it did not hear."""
        replacing: set[asyncio.Task[None]] = set()
        while self._broker is not None:
            with contextlib.suppress(EndpointSilent):
                await self._report()
                known = await self._broker.workers()
                for name, running in list(self._running.items()):
                    worker = known.get(running.start.id)
                    if worker is None:
                        continue
                    if worker.want == "kill":
                        running.asked = True
                        running.kill_group()
                    elif worker.want == "drain" and not running.asked:
                        task = asyncio.create_task(self._end(name))
                        replacing.add(task)
                        task.add_done_callback(replacing.discard)
            await asyncio.sleep(_FOLLOW_EVERY)

    async def _report(self) -> None:
        """Tells the broker who is gone; what it does not hear now is said again."""
        if self._broker is None:
            return
        for worker in list(self._unreported):
            with contextlib.suppress(EndpointSilent):
                await self._broker.gone(worker)
                self._unreported.discard(worker)

    async def _pause(self, seconds: float) -> None:
        """Sleeps, but not while the desk wants to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _last_words(self, child: Child, code: int) -> str:
        """Why a child ended, as far as it says so itself; a killed one did not see it coming."""
        words = self._logs[child.name].last_words()
        return "" if code in _KILLED else "".join(f"\n         | {line}" for line in words)


async def _emptied(group: int) -> None:
    """Waits a little for a killed group to be gone: dying takes time, and a dying process still holds the device."""
    for _ in range(_DYING_LOOKS):
        _reap(group)
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return
        await asyncio.sleep(_DYING_PAUSE)


def adopt_grandchildren() -> None:
    """On Linux, let this process inherit what its dead children leave, and not process 1, which may be slow to bury."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap(group: int) -> None:
    """Bury the dead of a group that this process has inherited."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass


def stop_on_signals(desk: Desk) -> None:
    """Ctrl-C, a service manager's SIGTERM and a closed terminal all end the desk in order."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, desk.stop)


def _spoken(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
