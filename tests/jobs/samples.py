"""Jobs to store: one that a test can change, and any that there could be."""

from __future__ import annotations

import dataclasses
import itertools
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from gateway.core.images import Delivery, Drawing, Job, State

DRAWING = Drawing(
    prompt="@aya on a hill, -fog",
    positive="aya, on a hill",
    negative="fog",
    model="toon",
    worker_model="builtin",
    style="plain",
    character="aya",
    width=512,
    height=768,
    seed=7,
)

_numbers = itertools.count()


def job(**changes: Any) -> Job:
    """A queued job with ids of its own."""
    number = next(_numbers)
    values: dict[str, Any] = {
        "gen_id": f"g{number:019d}",
        "public_id": f"run_{number}",
        "surface": "imgen",
        "tenant": "default",
        "key_id": "key_0123456789ab",
        "request_id": "req_1",
        "drawing": DRAWING,
        "delivery": Delivery(),
        "created_at": 1000.0,
        "deadline_at": 2000.0,
        "next_at": 1000.0,
    }
    return Job(**(values | changes))


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: _TEXT,
    int: st.integers(-(2**31), 2**31 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=20),
    type(None): st.none(),
    State: st.sampled_from(State),
}


def anything(kind: Any, **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any value of a type of the core."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        fields = {field.name: given.get(field.name, anything(hints[field.name])) for field in dataclasses.fields(kind)}
        return st.builds(kind, **fields)
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return st.one_of([anything(one) for one in inside])
    if origin is tuple:
        return st.lists(anything(inside[0]), max_size=3).map(tuple)
    if origin in (dict, Mapping):
        return st.dictionaries(anything(inside[0]), anything(inside[1]), max_size=3)
    return _SCALARS[kind]
