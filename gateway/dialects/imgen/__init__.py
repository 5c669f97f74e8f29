"""The Imgen API v2: one POST with an ``action``. What the Imgen reference does not print is additive."""

from gateway.dialects.imgen.dialect import ImgenDialect

__all__ = ["ImgenDialect"]
