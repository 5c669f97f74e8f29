"""Reading the fields of a JSON request: a wrong kind is refused, a value out of range falls back and is noted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gateway.core.images import Notice
from gateway.errors import InvalidField

_SHOWN = 120
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off", ""})


class Fields:
    """One request's fields. ``null`` counts as not given. ``notices`` collects every fallback taken."""

    def __init__(self, body: Mapping[str, Any], place: str = "") -> None:
        self._body = body
        self._place = place
        self.notices: list[Notice] = []

    def given(self, name: str) -> bool:
        return self._body.get(name) is not None

    def note(self, code: str, name: str, used: object) -> None:
        """Make a fallback visible."""
        given = self._body.get(name)
        self.notices.append(
            Notice(code=code, field=self._place + name, given=str(given)[:_SHOWN], used=str(used)[:_SHOWN])
        )

    def text(self, name: str, default: str = "", *, most: int | None = None) -> str:
        """A string, cut to ``most`` code points. Raises `InvalidField` for anything else."""
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise InvalidField(
                self._place + name, f"must be a string, not {_kind(value)}", fix=f'Send "{name}" as a JSON string.'
            )
        if most is not None and len(value) > most:
            self.note("truncated", name, f"the first {most} characters")
            value = value[:most]
        return value

    def choice(self, name: str, options: Collection[str], default: str) -> str:
        """One of the options; empty means not given, anything else falls back."""
        value = self.text(name).strip().lower()
        if not value:
            return default
        if value in options:
            return value
        self.note("fallback", name, default)
        return default

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._body.get(name)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        words = str(value).strip().lower() if isinstance(value, str | int) else "?"
        if words in _TRUE or words in _FALSE:
            self.note("coerced", name, words in _TRUE)
            return words in _TRUE
        raise InvalidField(
            self._place + name, f"must be true or false, not {_kind(value)}", fix=f'Send "{name}" as true or false.'
        )

    def integer(self, name: str, least: int, most: int, default: int | None = None) -> int | None:
        """A whole number, clamped. Numeric strings and fractions are taken, with a notice."""
        number = self._number(name)
        if number is None:
            return default
        whole = int(min(max(number, least), most))
        if whole != number:
            self.note("clamped" if not least <= number <= most else "coerced", name, whole)
        elif not isinstance(self._body[name], int):
            self.note("coerced", name, whole)
        return whole

    def decimal(self, name: str, least: float, most: float) -> float | None:
        """A number, clamped."""
        number = self._number(name)
        if number is None:
            return None
        clamped = float(min(max(number, least), most))
        if clamped != number:
            self.note("clamped", name, clamped)
        elif isinstance(self._body[name], str):
            self.note("coerced", name, clamped)
        return clamped

    def words(self, name: str, options: Collection[str]) -> list[str]:
        """A list of some of the options; others are left out. Raises `InvalidField` for what is no list of strings."""
        value = self._body.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidField(
                self._place + name, "must be a list of strings", fix=f'Send "{name}" as some of {sorted(options)}.'
            )
        known = [item for item in value if item in options]
        if len(known) != len(value):
            self.note("fallback", name, known)
        return known

    def objects(self, name: str, most: int) -> list[Fields]:
        """A list of objects, each to be read like a request; their notices land here. Raises `InvalidField`."""
        value = self._body.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise InvalidField(self._place + name, "must be a list of objects", fix=f'Send "{name}" as [{{…}}, …].')
        if len(value) > most:
            raise InvalidField(self._place + name, f"has {len(value)} entries", fix=f"Send {most} at most.")
        inner = [Fields(item, f"{self._place}{name}[{index}].") for index, item in enumerate(value)]
        for one in inner:
            one.notices = self.notices
        return inner

    def _number(self, name: str) -> int | float | None:
        value = self._body.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and len(value) <= 32:
            try:
                number = float(value)
            except ValueError:
                number = float("nan")
            if number == number:
                return int(number) if number.is_integer() else number
        raise InvalidField(
            self._place + name, f"must be a number, not {_kind(value)}", fix=f'Send "{name}" as a JSON number.'
        )


def _kind(value: object) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text that is no number"
        case list():
            return "a list"
        case _:
            return "an object"
