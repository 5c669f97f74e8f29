"""Words are embedded once for all who ask for the same at the same time, and whoever gives up takes it from nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import numpy as np
import pytest

from cache.encoder import Vector
from cache.errors import EncoderUnavailable
from cache.memory import MemoryIndex
from gateway.core import embedding
from gateway.core.embedding import Embedder

pytestmark = pytest.mark.anyio


@dataclass
class Counting:
    """An encoder that waits for leave, and counts."""

    hash = "abcd"
    dimensions = 2
    leave: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    error: Exception | None = None

    def encode(self, text: str) -> Vector:
        self.asked.append(text)
        assert self.leave.wait(10)
        if self.error is not None:
            raise self.error
        return np.array([len(text), 0], np.float32)


async def loaded(embedder: Embedder) -> None:
    with anyio.fail_after(10):
        while embedder.encoder is None:
            await anyio.sleep(0.01)


def of(encoder: Counting) -> Embedder:
    return Embedder(lambda: encoder, lambda made: MemoryIndex(made.dimensions))


async def waits(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.01)


async def test_the_same_words_at_the_same_time_are_embedded_once_and_remembered() -> None:
    encoder, got = Counting(), list[float]()
    embedder = of(encoder)
    async with embedder.running():
        await loaded(embedder)

        async def ask() -> None:
            _, vector = await embedder.embed("a red house")
            got.append(float(vector[0]))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
            await waits(lambda: bool(encoder.asked))
            encoder.leave.set()
        assert got == [11.0] * 20 and encoder.asked == ["a red house"]
        await ask()
        assert encoder.asked == ["a red house"]


async def test_whoever_gives_up_does_not_take_it_from_the_others() -> None:
    encoder = Counting()
    embedder = of(encoder)
    async with embedder.running():
        await loaded(embedder)
        with anyio.move_on_after(0.1) as gave_up:
            await embedder.embed("a boat")
        assert gave_up.cancelled_caught
        encoder.leave.set()
        with anyio.fail_after(10):
            await embedder.embed("a boat")
        assert encoder.asked == ["a boat"]


async def test_a_fault_of_the_encoder_is_told_to_all_and_tried_anew_for_the_next() -> None:
    encoder = Counting(error=RuntimeError("of its own"))
    encoder.leave.set()
    embedder = of(encoder)
    async with embedder.running():
        await loaded(embedder)
        for _ in range(2):
            with pytest.raises(EncoderUnavailable, match="RuntimeError"):
                await embedder.embed("a hill")
        encoder.error = None
        assert (await embedder.embed("a hill"))[1].shape == (2,)
        assert len(encoder.asked) == 3


async def test_an_encoder_that_does_not_load_says_why_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "AGAIN", 0.05)
    encoder, tries = Counting(), list[int]()
    encoder.leave.set()

    def opening() -> Counting:
        tries.append(1)
        if len(tries) < 3:
            raise EncoderUnavailable("the weights are gone")
        return encoder

    embedder = Embedder(opening, lambda made: MemoryIndex(made.dimensions))
    async with embedder.running():
        await waits(lambda: bool(tries))
        with pytest.raises(EncoderUnavailable):
            await embedder.embed("a tree")
        await loaded(embedder)
        assert len(tries) == 3 and embedder.index is not None
        await embedder.embed("a tree")
