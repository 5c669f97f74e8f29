"""Rules by which a bucket itself removes what nobody came for. Only rules of ours are touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Days after which raw pictures go, as at the start of a gateway with a folder: their jobs have ended long ago.
RAW_DAYS = 1
FOLDERS = ("raw", "quarantine", "master")


def rules(prefix: str, *, quarantine_days: int = 0, master_days: int = 0) -> list[dict[str, Any]]:
    """The rules for one prefix of a bucket. Those for quarantine and masters only with days above 0."""
    days = {"raw": RAW_DAYS, "quarantine": quarantine_days, "master": master_days}
    return [
        {
            "ID": _id(prefix, folder),
            "Status": "Enabled",
            "Filter": {"Prefix": f"{prefix}{folder}/"},
            "Expiration": {"Days": days[folder]},
        }
        for folder in FOLDERS
        if days[folder]
    ]


def merged(
    there: Sequence[Mapping[str, Any]], prefix: str, wanted: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The rules that are there, those of others untouched and in their order, with ours as they are wanted now."""
    ours = {_id(prefix, folder) for folder in FOLDERS}
    return [*(rule for rule in there if rule.get("ID") not in ours), *wanted]


def _id(prefix: str, folder: str) -> str:
    """Gateways that share a bucket have different prefixes, and so different rules."""
    return f"imgen-{prefix.replace('/', '-')}{folder}"
