"""End with the parent: a pipe that the parent holds open tells a child, by its end of file, that the parent is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def kill_own_group() -> None:
    """End this process and everything it started (a child of a supervisor leads its own process group)."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def watch(fd: int, on_gone: Callable[[], object] = kill_own_group) -> threading.Thread:
    """Call `on_gone` once the writing end of the pipe `fd` is closed, which the kernel does however the parent dies.

    The default ends the whole process group, so it is only for a process that leads its own group.
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
