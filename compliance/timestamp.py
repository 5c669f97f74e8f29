"""Time stamps (RFC 3161) that never hold up a picture.

The SDK asks the authority itself, waits 30 seconds for one that hangs, and knows no other deadline. So it is given an
address on the loopback instead, where `TimestampRelay` asks the authority and answers within the deadline, with the
stamp or with an error. After an error nobody is asked for a while. The SDK checks the stamp: that it is well-formed,
over these bytes, and with the nonce that was sent.
"""

import secrets
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_LARGEST = 100_000  # bytes, of a question and of an answer; a stamp has about 6,000
_ASKERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TimestampAuthority:
    """Whom to ask. `timeout` is the seconds that an answer may take, `pause` those without asking after a failure."""

    url: str
    timeout: float = 3.0
    pause: float = 60.0


class TimestampRelay:
    """The way of one process to its authority. It listens on the loopback until it is closed or forgotten."""

    def __init__(self, authority: TimestampAuthority, *, now: Callable[[], float] = time.monotonic) -> None:
        self._pause = authority.pause
        self._now = now
        self._asleep_until = 0.0
        self._lock = threading.Lock()
        # Nobody else on this machine can guess the path, and so nobody asks through us.
        path = f"/{secrets.token_urlsafe(16)}"
        askers = ThreadPoolExecutor(_ASKERS, thread_name_prefix="timestamp")
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(authority, path, askers))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, name="timestamp-relay", daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}{path}"
        self.close = weakref.finalize(self, _stop, server, askers)

    def willing(self) -> bool:
        """Whether to ask for a stamp now. After a pause one is let through, and the others wait for how it fares."""
        with self._lock:
            if self._now() < self._asleep_until:
                return False
            if self._asleep_until:
                self._asleep_until = self._now() + self._pause
            return True

    def report(self, *, stamped: bool) -> None:
        """How it fared: after a failure nobody is asked for a while."""
        with self._lock:
            self._asleep_until = 0.0 if stamped else self._now() + self._pause


def _stop(server: ThreadingHTTPServer, askers: ThreadPoolExecutor) -> None:
    server.shutdown()
    server.server_close()
    askers.shutdown(wait=False, cancel_futures=True)


def _handler(authority: TimestampAuthority, path: str, askers: ThreadPoolExecutor) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            if self.path != path or not 0 < size <= _LARGEST:
                self._answer(404, b"")
                return
            try:
                # The deadline covers the look-up of the name too, which has none of its own.
                asked = askers.submit(_ask, authority, self.rfile.read(size))
                answer = asked.result(timeout=authority.timeout)
            except (TimeoutError, OSError, HTTPException, ValueError, RuntimeError):
                self._answer(504, b"")
            else:
                self._answer(200, answer)

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _ask(authority: TimestampAuthority, question: bytes) -> bytes:
    """The authority's answer. Raises OSError (urllib's errors among them), HTTPException or ValueError."""
    request = urllib.request.Request(
        authority.url, question, {"Content-Type": "application/timestamp-query"}, method="POST"
    )
    until = time.monotonic() + authority.timeout
    with urllib.request.urlopen(request, timeout=authority.timeout) as response:
        answer = b""
        # One that sends a byte now and then would be read for ever.
        while piece := response.read1(_LARGEST):
            answer += piece
            if time.monotonic() > until or len(answer) > _LARGEST:
                raise ValueError("the answer is too long")
    return answer
