"""The gateway: wire dialects in front, one core, adapters behind."""
