"""End with the supervisor: a pipe that it holds open tells a child, by its end of file, that it is gone."""

from __future__ import annotations

import os
import signal
import threading


def hold(fd: int) -> None:
    """End this process and its group once the other end of the pipe closes, which the kernel does however it dies."""
    os.set_inheritable(fd, False)
    threading.Thread(target=_wait, args=(fd,), name="lifeline", daemon=True).start()


def _wait(fd: int) -> None:
    try:
        while os.read(fd, 1024):
            pass
    except OSError:
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    # Somebody else's group is not ours to end.
    os.kill(os.getpid(), signal.SIGKILL)
