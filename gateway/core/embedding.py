"""The encoder and its index, loaded beside the requests, and words to vectors, each once.

What is asked for by several at the same time, or was a moment ago, is not embedded again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from cache.encoder import Encoder, Vector
from cache.errors import CacheError, EncoderUnavailable
from cache.index import Index

log = structlog.get_logger(__name__)

#: Vectors that are remembered: 1.5 KB each.
_REMEMBERED = 2048
#: Seconds until an encoder that did not load is tried again.
AGAIN = 60.0


@dataclass(slots=True)
class _Flight:
    """A text that is being embedded, and what came of it."""

    done: anyio.Event = field(default_factory=anyio.Event)
    vector: Vector | None = None
    error: CacheError | None = None


class Embedder:
    """One encoder and the index of its vectors, loaded in the background. Open it with `running` before use."""

    def __init__(
        self, open_encoder: Callable[[], Encoder], index_of: Callable[[Encoder], Index], *, threads: int = 1
    ) -> None:
        """``open_encoder`` loads it, in a thread; raises `EncoderUnavailable`."""
        self._open = open_encoder
        self._index_of = index_of
        self._threads = threads
        self._encoder: Encoder | None = None
        self._index: Index | None = None
        self._why = "the encoder is being loaded"
        self._known: OrderedDict[str, Vector] = OrderedDict()
        self._flights: dict[str, _Flight] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._limiter: anyio.CapacityLimiter | None = None

    @classmethod
    def ready(cls, encoder: Encoder, index: Index) -> Embedder:
        """With both at hand, the index open: for a command, which is alone with them."""
        embedder = cls(lambda: encoder, lambda _: index)
        embedder._encoder, embedder._index = encoder, index
        return embedder

    @property
    def encoder(self) -> Encoder | None:
        """None until it is loaded."""
        return self._encoder

    @property
    def index(self) -> Index | None:
        """None until the encoder is loaded."""
        return self._index

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._limiter = anyio.CapacityLimiter(self._threads)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._load)
            try:
                yield
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()

    async def embed(self, text: str) -> tuple[Encoder, Vector]:
        """The vector of a text, and whose it is. Raises `cache.errors.EncoderUnavailable`, also while it is loading."""
        encoder = self._encoder
        if encoder is None:
            raise EncoderUnavailable(self._why)
        known = self._known.get(text)
        if known is not None:
            self._known.move_to_end(text)
            return encoder, known
        flight = self._flights.get(text)
        if flight is None:
            flight = self._flights[text] = _Flight()
            if self._tasks is None:
                await self._fly(encoder, text, flight)
            else:
                # A task of its own: whoever gives up waiting must not take it from the others.
                self._tasks.start_soon(self._fly, encoder, text, flight)
        await flight.done.wait()
        if flight.vector is None:
            raise flight.error or EncoderUnavailable("the encoder was stopped")
        return encoder, flight.vector

    async def _fly(self, encoder: Encoder, text: str, flight: _Flight) -> None:
        try:
            flight.vector = await anyio.to_thread.run_sync(encoder.encode, text, limiter=self._limiter)
        except CacheError as exc:
            flight.error = exc
        except Exception as exc:
            log.exception("encoder failed")
            flight.error = EncoderUnavailable(f"the encoder failed ({type(exc).__name__})")
        else:
            self._known[text] = flight.vector
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        finally:
            del self._flights[text]
            flight.done.set()

    async def _load(self) -> None:
        while True:
            try:
                encoder = await anyio.to_thread.run_sync(self._open, abandon_on_cancel=True)
            except CacheError as exc:
                self._why = str(exc)
                log.warning("encoder not loaded", error=self._why)
            except Exception as exc:
                self._why = f"the encoder failed ({type(exc).__name__})"
                log.exception("encoder not loaded")
            else:
                log.info("encoder loaded", hash=encoder.hash)
                break
            await anyio.sleep(AGAIN)
        index = self._index_of(encoder)
        async with index.open():
            self._encoder, self._index = encoder, index
            await anyio.sleep_forever()
