"""The gateway: wire dialects in front, one core, adapters behind."""

__version__ = "0.1.0"
