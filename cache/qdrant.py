"""An index on a Qdrant server, by its URL. Importing this costs a second of CPU and 47 MB: only where one is used."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio
import httpx
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from cache.encoder import Vector
from cache.errors import IndexUnavailable
from cache.index import Near, Point

T = TypeVar("T")
Call = Callable[[AsyncQdrantClient], Awaitable[T]]

#: Points of one request: writing one of this many takes the event loop 2 ms.
BATCH = 32
#: Ids of one request or answer.
PAGE = 1000
#: What is searched by. One scope's points lie together, and each large scope gets a graph of its own.
FIELDS: dict[str, models.PayloadSchemaType | models.KeywordIndexParams] = {
    "scope": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True),
    "forms.ordered": models.PayloadSchemaType.KEYWORD,
    "forms.words": models.PayloadSchemaType.KEYWORD,
    "expires_at": models.PayloadSchemaType.FLOAT,
}
GRAPHS = models.HnswConfigDiff(m=0, payload_m=16)
#: Points are named by UUIDs there; this makes one of an id, always the same.
NAMES = uuid.UUID("5f0c7c55-3a0e-4b6c-9d4e-6d1f4f3a8f10")


class QdrantIndex:
    """Implements `cache.index.Index` on a collection that is made when it is not there, at whatever time.

    ``collection`` must be another one for another encoder. No answer takes longer than ``timeout`` seconds, but for
    `put`, `remove` and `ids`, of which each page is one.
    """

    def __init__(
        self, url: str, *, collection: str, dimensions: int, api_key: str | None = None, timeout: float = 2.0
    ) -> None:
        self._url = url
        self._collection = collection
        self._dimensions = dimensions
        self._api_key = api_key
        self._timeout = timeout
        self._client: AsyncQdrantClient | None = None
        self._making = anyio.Lock()
        self._made = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Asks the server nothing, so that it may be down. Raises ValueError if the URL is none."""
        self._client = AsyncQdrantClient(
            url=self._url,
            # As an api_key it would warn of plain HTTP, which is right between two containers.
            headers={"api-key": self._api_key} if self._api_key else None,
            # Longer than ours, so that one bound counts: this one knows whole seconds alone.
            timeout=math.ceil(self._timeout) + 1,
            check_compatibility=False,
            # Else connections to this machine are not kept. A server closes idle ones after 5 s: be the first to.
            limits=httpx.Limits(max_connections=32, keepalive_expiry=2.0),
        )
        try:
            yield
        finally:
            client, self._client, self._made = self._client, None, False
            await client.close()

    async def put(self, points: Sequence[Point]) -> None:
        # Of one id's two points in one request, which counts is the server's to say.
        last = list({point.id: point for point in points}.values())
        for start in range(0, len(last), BATCH):
            there = [_to_wire(point) for point in last[start : start + BATCH]]
            await self._ask(partial(AsyncQdrantClient.upsert, collection_name=self._collection, points=there))

    async def search(
        self,
        vector: Vector,
        *,
        scope: str,
        floor: float,
        limit: int,
        now: float,
        form: tuple[str, str] | None = None,
    ) -> list[Near]:
        must: list[Any] = [_equals("scope", scope)]
        if form is not None:
            must.append(_equals(f"forms.{form[0]}", form[1]))
        expired = models.FieldCondition(key="expires_at", range=models.Range(lte=now))

        async def nearest(client: AsyncQdrantClient) -> list[Near]:
            found = await client.query_points(
                self._collection,
                query=vector.tolist(),
                query_filter=models.Filter(must=must, must_not=[expired]),
                score_threshold=floor,
                limit=limit,
                with_payload=["id", "forms"],
            )
            return [_near(point) for point in found.points]

        # The threshold there lets through what is equal to it.
        return [near for near in await self._ask(nearest) if near.similarity > floor]

    async def remove(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), PAGE):
            names = models.PointIdsList(points=[_name(id) for id in ids[start : start + PAGE]])
            await self._ask(partial(AsyncQdrantClient.delete, collection_name=self._collection, points_selector=names))

    async def clear(self) -> None:
        await self._ask(lambda client: client.delete_collection(self._collection))
        self._made = False

    async def count(self) -> int:
        return (await self._ask(lambda client: client.count(self._collection, exact=True))).count

    async def ids(self) -> AsyncIterator[str]:
        offset: Any = None

        async def page(client: AsyncQdrantClient) -> tuple[list[str], Any]:
            records, following = await client.scroll(self._collection, limit=PAGE, offset=offset, with_payload=["id"])
            return [_id(record.payload) for record in records], following

        while True:
            ids, offset = await self._ask(page)
            for id in ids:
                yield id
            if offset is None:
                return

    async def _ask(self, call: Call[T]) -> T:
        """Every foreign error becomes ours here. None is chained: what a server or a proxy says may repeat the key."""
        if (client := self._client) is None:
            raise IndexUnavailable("the index on Qdrant is not open")
        try:
            with anyio.fail_after(self._timeout):
                if not self._made:
                    await self._make(client)
                try:
                    return await call(client)
                except UnexpectedResponse as exc:
                    if exc.status_code != 404:
                        raise
                    # Somebody dropped the collection.
                    self._made = False
                    await self._make(client)
                    return await call(client)
        except TimeoutError:
            raise IndexUnavailable(f"Qdrant did not answer within {self._timeout:g} s") from None
        except UnexpectedResponse as exc:
            raise IndexUnavailable(f"Qdrant answered with status {exc.status_code}") from None
        except (ApiException, QdrantException, httpx.HTTPError, ValueError, AssertionError) as exc:
            kind = type(getattr(exc, "source", exc)).__name__
            raise IndexUnavailable(f"Qdrant gave no usable answer: {kind}") from None

    async def _make(self, client: AsyncQdrantClient) -> None:
        """The collection and what it is searched by, once; asking for what is there already is harmless."""
        async with self._making:
            if self._made:
                return
            if not await client.collection_exists(self._collection):
                size = models.VectorParams(size=self._dimensions, distance=models.Distance.COSINE)
                try:
                    await client.create_collection(self._collection, vectors_config=size, hnsw_config=GRAPHS)
                except UnexpectedResponse as exc:
                    # Another gateway was faster.
                    if exc.status_code != 409:
                        raise
            for field, schema in FIELDS.items():
                await client.create_payload_index(self._collection, field, field_schema=schema)
            self._made = True


def _equals(field: str, word: str) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchValue(value=word))


def _name(id: str) -> str:
    return str(uuid.uuid5(NAMES, id))


def _to_wire(point: Point) -> models.PointStruct:
    payload: dict[str, Any] = {"id": point.id, "scope": point.scope, "forms": dict(point.forms)}
    if point.expires_at is not None:
        payload["expires_at"] = point.expires_at
    return models.PointStruct(id=_name(point.id), vector=point.vector.tolist(), payload=payload)


def _near(point: models.ScoredPoint) -> Near:
    forms = (point.payload or {}).get("forms")
    # Rounding takes a vector's product with itself a little over 1.
    similarity = min(1.0, point.score)
    return Near(id=_id(point.payload), similarity=similarity, forms=forms if isinstance(forms, dict) else {})


def _id(payload: dict[str, Any] | None) -> str:
    id = (payload or {}).get("id")
    if not isinstance(id, str):
        raise ValueError("a point that is none of ours")
    return id
