"""What can go wrong in the cache. For whoever asks, every one of these is a miss."""

from __future__ import annotations


class CacheError(Exception):
    """The cache could not do this."""


class EncoderUnavailable(CacheError):
    """There are no usable weights, or they did not load."""


class IndexUnavailable(CacheError):
    """The index did not answer, or refused."""
