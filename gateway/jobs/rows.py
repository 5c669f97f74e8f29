"""Between `Job` and its row: scalars as they are, value objects as JSON text.

Stored JSON outlives the code that wrote it: unknown keys are ignored and missing ones take the dataclass's default, so
a field may be added while old and new replicas share a database; renaming or removing one needs a migration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from gateway.core.images import Delivery, Drawing, Drawn, Fault, Hit, Job, Notice, Outcome, Release, State
from gateway.jobs.tables import jobs

_VALUES: dict[str, TypeAdapter[Any]] = {
    "drawing": TypeAdapter(Drawing),
    "delivery": TypeAdapter(Delivery),
    "notices": TypeAdapter(tuple[Notice, ...]),
    "drawn": TypeAdapter(Drawn),
    "outcome": TypeAdapter(Outcome),
    "fault": TypeAdapter(Fault),
    "release": TypeAdapter(Release),
    "hit": TypeAdapter(Hit),
}
#: Pixels that travelled inline belong into the storage, never into a row.
_LEFT_OUT: dict[str, Any] = {"drawn": {"pictures": {"__all__": {"data"}}}}
_PARSERS = tuple((name, adapter.validator.validate_json) for name, adapter in _VALUES.items())

#: The columns of a `Job`, in the order that `decode` expects.
_NOT_OF_IT = frozenset({"lease", "lease_until", "purged_at"})
FIELDS = tuple(column.name for column in jobs.columns if column.name not in _NOT_OF_IT)
#: What `save` never writes: what a job is from birth to end, and whether somebody has taken it away meanwhile.
FIXED = frozenset(
    {
        *("gen_id", "public_id", "surface", "tenant", "key_id", "request_id"),
        *("created_at", "drawing", "delivery", "deleted_at", "source"),
    }
)
CHANGING = tuple(name for name in FIELDS if name not in FIXED)


def encode(job: Job, fields: Sequence[str]) -> dict[str, Any]:
    """The values of some columns."""
    return {name: _encode(name, getattr(job, name)) for name in fields}


def decode(row: Sequence[Any]) -> Job:
    """A job from its columns in the order of `FIELDS`."""
    values = dict(zip(FIELDS, row, strict=True))
    for name, parse in _PARSERS:
        text = values[name]
        if text is not None:
            values[name] = parse(text)
    values["state"] = State(values["state"])
    return Job(**values)


def encode_release(release: Release) -> tuple[str, str]:
    """The text of a release, and how every text of a release of the same pictures begins."""
    text = _VALUES["release"].dump_json(release).decode()
    return text, text[: text.index("]") + 1]


def _encode(name: str, value: Any) -> Any:
    if name == "state":
        return str(value.value)
    if value is None or name not in _VALUES:
        return value
    return _VALUES[name].dump_json(value, exclude=_LEFT_OUT.get(name)).decode()
