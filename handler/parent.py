"""End with the parent: a pipe that the parent holds open tells a child, by its end of file, that the parent is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def kill_own_group() -> None:
    """End this process, and what it started when it leads a group of its own; somebody else's group is left alone."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def watch(fd: int, on_gone: Callable[[], object] = kill_own_group) -> threading.Thread:
    """Call `on_gone` once the writing end of the pipe `fd` is closed, which the kernel does however the parent dies.

    A supervisor starts its child as the leader of a group of its own, so the default ends everything that the child
    started too.
    """
    os.set_inheritable(fd, False)

    def wait() -> None:
        try:
            while os.read(fd, 1024):
                pass
        except OSError:
            pass
        on_gone()

    thread = threading.Thread(target=wait, name="parent-watch", daemon=True)
    thread.start()
    return thread
