"""``imgen cache``: what the semantic cache has, and making it anew from the job store."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gateway.core.cache_feed import CacheFeed
    from gateway.core.images import CacheShare
    from gateway.jobs.cache import SqlEntries
    from gateway.settings import Settings

app = typer.Typer(help="The semantic cache: its figures, and making it anew.", no_args_is_help=True)

Data = Annotated[Path | None, typer.Option(help="Data folder; IMGEN_DATA, or var.", show_default=False)]


@app.command("stats")
def stats(data: Data = None) -> None:
    """Entries, hits, and the seconds of drawing that these saved, for each tenant."""
    import asyncio

    from gateway.console import say, table

    shares, indexed = asyncio.run(_stats(_settings(data)))
    rows = [(s.tenant, f"{s.entries}", f"{s.embedded}", f"{s.hits}", f"{s.saved:.1f}") for s in shares]
    table(("TENANT", "ENTRIES", "EMBEDDED", "HITS", "SECONDS SAVED"), rows)
    if indexed is not None:
        say(f"The Qdrant server has {indexed} points.")


@app.command("purge")
def purge(
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.", show_default=False)] = None,
    data: Data = None,
) -> None:
    """Forget what may be found, of all tenants or one. The jobs stay; `rebuild` brings it back."""
    import asyncio

    from gateway.console import say

    gone = asyncio.run(_purge(_settings(data), tenant))
    say(f"{gone} entries are gone, for a running gateway within a second. New jobs are written down as before.")


@app.command("rebuild")
def rebuild(data: Data = None) -> None:
    """Make all entries and the index anew from the completed jobs. A running gateway follows within seconds."""
    import asyncio

    from gateway.console import say

    filled, indexed = asyncio.run(_rebuild(_settings(data)))
    say(f"{filled} entries are written down, {indexed} of them with words to search by.")


def _settings(data: Path | None) -> Settings:
    from gateway.settings import Settings

    return Settings.from_environ({**os.environ, **({"IMGEN_DATA": str(data)} if data else {})})


async def _stats(settings: Settings) -> tuple[list[CacheShare], int | None]:
    async with _opened(settings, index=bool(settings.cache_url)) as (entries, feed):
        return await entries.shares(), (await feed.count()) if settings.cache_url else None


async def _purge(settings: Settings, tenant: str | None) -> int:
    async with _opened(settings, index=bool(settings.cache_url)) as (entries, feed):
        gone = await entries.clear(tenant)
        await feed.forget(gone)
        return len(gone)


async def _rebuild(settings: Settings) -> tuple[int, int]:
    async with _opened(settings, index=True) as (entries, feed):
        await feed.clear()
        await entries.clear()
        return await feed.fill(), await feed.follow_all()


@asynccontextmanager
async def _opened(settings: Settings, *, index: bool) -> AsyncIterator[tuple[SqlEntries, CacheFeed]]:
    """The entries straight in the job store, and what keeps an index of them; with the index itself if it is asked for.

    Raises `CacheUnavailable` when that can't be had.
    """
    import time
    from contextlib import AsyncExitStack

    from cache.errors import CacheError
    from gateway.core.cache_feed import CacheFeed
    from gateway.core.caching import CachePolicy
    from gateway.core.embedding import Embedder
    from gateway.desk.store import open_database
    from gateway.errors import CacheUnavailable
    from gateway.jobs.cache import SqlEntries
    from gateway.semantics import embedder_of, encoder_of, index_of

    policy = CachePolicy(**{name: getattr(settings, name) for name in CachePolicy.__dataclass_fields__})
    try:
        async with AsyncExitStack() as stack:
            entries = SqlEntries(await stack.enter_async_context(open_database(settings)))
            embedder = embedder_of(settings)
            if index:
                encoder = encoder_of(settings)
                made = index_of(settings, encoder)
                await stack.enter_async_context(made.open())
                embedder = Embedder.ready(encoder, made)
            yield (
                entries,
                CacheFeed(entries=entries, embedder=embedder, policy=policy, now=time.time, shared=settings.cache_url),
            )
    except CacheError as exc:
        raise CacheUnavailable(str(exc)) from exc
