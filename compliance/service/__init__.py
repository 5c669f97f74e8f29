"""Compliance served alone over HTTP, so that one of it can stand behind many gateways.

The only part of `compliance` that knows a web framework; nothing of the library imports it.
"""

from compliance.service.app import create_app

__all__ = ["create_app"]
