"""Which encoder and which index the cache works with: what the settings say, for the gateway and for `imgen cache`."""

from __future__ import annotations

from functools import partial

from cache.encoder import Encoder
from cache.encoders import open_encoder
from cache.index import Index
from cache.memory import MemoryIndex
from gateway.core.embedding import Embedder
from gateway.settings import Settings


def embedder_of(settings: Settings, encoder: Encoder | None = None) -> Embedder:
    """The encoder of the settings, or one that is at hand, with its index; nothing is loaded yet."""
    return Embedder((lambda: encoder) if encoder else partial(encoder_of, settings), partial(index_of, settings))


def encoder_of(settings: Settings) -> Encoder:
    """The encoder, loaded: CPU work, for a thread. Raises `cache.errors.EncoderUnavailable`."""
    return open_encoder(settings.cache_encoder, settings.data / "encoder")


def index_of(settings: Settings, encoder: Encoder) -> Index:
    """Where the cache looks for nearness: a Qdrant server or, without one, the memory of this process."""
    if not settings.cache_url:
        return MemoryIndex(encoder.dimensions)
    from cache.qdrant import QdrantIndex  # its client takes a second to import

    return QdrantIndex(
        settings.cache_url,
        collection=f"imgen-{encoder.hash}",
        dimensions=encoder.dimensions,
        api_key=settings.cache_key or None,
        timeout=settings.cache_timeout,
    )
