"""The catalogue that an operator edits, one TOML file.

Characters, models, their styles, what `optimize` may add, and the words of `random`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gateway.core import prompts
from gateway.core.images import Lora
from gateway.errors import CatalogError

Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
Words = Annotated[str, Field(max_length=2000)]


def _plain(text: str) -> str:
    if not text or prompts.parse(text) != prompts.Parsed(names=(), positive=text, negatives=()):
        raise ValueError("must be plain words: no @name, no -term, and no blanks or commas too many")
    return text


Plain = Annotated[str, Field(max_length=200), AfterValidator(_plain)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Wearer(_Entry):
    """What can come with a LoRA: ``lora`` is its name in the worker's own models.toml."""

    lora: Name | None = None
    strength: float = Field(1.0, ge=0, le=2)

    @model_validator(mode="after")
    def _strength_of_something(self) -> Self:
        if self.lora is None and "strength" in self.model_fields_set:
            raise ValueError("has a strength but no lora; name one, or take the strength out")
        return self


class Character(_Wearer):
    """A character and the words that call it."""

    label: str
    trigger: Words = ""
    positive: Words = ""
    negative: Words = ""


class Style(_Wearer):
    """A style preset: quality tags added to the positive, extras added to the negative."""

    label: str
    tags: Words = ""
    negative: Words = ""


class Model(_Entry):
    """A model as callers see it. ``worker`` is the name that the worker's own models.toml gives the weights."""

    label: str
    worker: Name
    base_negative: Words = ""
    default_style: Name | None = None
    styles: dict[Name, Style] = {}
    characters: tuple[Name, ...] | None = None
    steps: int | None = Field(None, ge=1, le=150)
    guidance: float | None = Field(None, ge=0, le=30)


class Phrase(_Entry):
    """Something that can be added to a prompt that has one of ``needs``, if any are named, and none of ``unless``."""

    text: Plain
    needs: tuple[Plain, ...] = ()
    unless: tuple[Plain, ...] = ()


#: A phrase may be written as its text alone.
Text = BeforeValidator(lambda given: {"text": given} if isinstance(given, str) else given)


class Aspect(_Entry):
    """Something that a prompt can say or leave open, such as the time of day. ``said`` are words that say it."""

    said: tuple[Plain, ...] = ()
    add: tuple[Annotated[Phrase, Text], ...] = Field(min_length=1)


#: A place in a phrase of a random prompt, with the name of the list that fills it.
SLOT = re.compile(r"\{([a-z0-9_-]{1,64})\}")


class RandomPhrase(Phrase):
    """A part of a random prompt; ``{name}`` in it is filled with a phrase of that list. ``""`` stands for no
    character.
    """

    characters: tuple[Annotated[str, Field(pattern=r"^[a-z0-9_-]{0,64}$")], ...] | None = None
    weight: float = Field(1.0, gt=0, le=1000)


class _File(_Entry):
    version: int = Field(ge=1, le=1)
    characters: dict[Name, Character] = {}
    models: dict[Name, Model] = Field(min_length=1)
    optimize: dict[Name, Aspect] = {}
    random: dict[Name, Annotated[tuple[Annotated[RandomPhrase, Text], ...], Field(min_length=1)]] = {}


@dataclass(frozen=True, slots=True)
class Catalog:
    """Characters, models and aspects, in the order of the file: the first model is the default."""

    characters: Mapping[str, Character]
    models: Mapping[str, Model]
    optimize: Mapping[str, Aspect] = field(default_factory=dict)
    random: Mapping[str, tuple[RandomPhrase, ...]] = field(default_factory=dict)

    @property
    def default_model(self) -> str:
        return next(iter(self.models))

    def style(self, model: str, wanted: str) -> str:
        """The style key to use: the wanted one if the model has it, else the model's default, else ``""``."""
        entry = self.models[model]
        if wanted in entry.styles:
            return wanted
        return entry.default_style or ""

    def characters_of(self, model: str) -> tuple[str, ...]:
        allowed = self.models[model].characters
        return tuple(self.characters) if allowed is None else allowed

    def loras_of(self, model: str) -> dict[str, str]:
        """The LoRA of everything that can ask for one on this model, by its place in the file."""
        characters = {f"characters.{name}": self.characters[name] for name in self.characters_of(model)}
        styles = {f"models.{model}.styles.{name}": style for name, style in self.models[model].styles.items()}
        return {place: each.lora for place, each in (characters | styles).items() if each.lora is not None}


def worn(*wearers: Character | Style | None) -> tuple[Lora, ...]:
    """The LoRAs of all these together, in their order; one that is named twice counts once, at its larger strength."""
    strengths: dict[str, float] = {}
    for wearer in wearers:
        if wearer is not None and wearer.lora is not None:
            strengths[wearer.lora] = max(wearer.strength, strengths.get(wearer.lora, 0.0))
    return tuple(Lora(name=name, strength=strength) for name, strength in strengths.items())


def load(path: Path | None = None) -> Catalog:
    """Read a catalogue; the shipped one without a path. Raises `CatalogError` with the place and the fix."""
    if path is None:
        text, where = resources.files("gateway").joinpath("catalog.toml").read_text(encoding="utf-8"), "catalog.toml"
    else:
        where = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise CatalogError(f"{where}: cannot be read ({exc.__class__.__name__}); check the path") from exc
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise CatalogError(f"{where}: not valid TOML: {exc}") from exc
    return parse(data, where, text)


def parse(data: Mapping[str, Any], where: str, text: str = "") -> Catalog:
    try:
        file = _File.model_validate(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part != "[key]")
        problem = first["msg"].removeprefix("Value error, ")
        raise CatalogError(f"{where}{_line(text, place)}: {place}: {problem}") from exc
    for key, model in file.models.items():
        if model.default_style is not None and model.default_style not in model.styles:
            raise CatalogError(
                f"{where}{_line(text, f'models.{key}.default_style')}: models.{key}.default_style is "
                f"{model.default_style!r}, which is not one of its styles; use one of: {_names(model.styles)}"
            )
        if model.styles and model.default_style is None:
            raise CatalogError(f"{where}{_line(text, f'models.{key}')}: models.{key} has styles but no default_style")
        for name in model.characters or ():
            if name not in file.characters:
                raise CatalogError(
                    f"{where}{_line(text, f'models.{key}.characters')}: models.{key}.characters names {name!r}, "
                    f"which is not a character; use one of: {_names(file.characters)}"
                )
    if wrong := _wrong_grammar(file):
        place, words = wrong
        raise CatalogError(f"{where}{_line(text, place)}: {place}: {words}")
    return Catalog(characters=file.characters, models=file.models, optimize=file.optimize, random=file.random)


def _wrong_grammar(file: _File) -> tuple[str, str] | None:
    """The place and the fault of the first list of ``random`` that can't be used."""
    lists = file.random
    if lists and "prompt" not in lists:
        return "random", "has no list prompt, with which every random prompt begins"
    asked = {name: {slot for each in phrases for slot in SLOT.findall(each.text)} for name, phrases in lists.items()}
    for name, phrases in lists.items():
        for slot in sorted(asked[name] - lists.keys()):
            return f"random.{name}", f"names {{{slot}}}, which is no list of random; use one of: {_names(lists)}"
        for character in sorted({each for phrase in phrases for each in phrase.characters or ()}):
            if character and character not in file.characters:
                return (
                    f"random.{name}",
                    f"names {character!r}, which is not a character; use one of: {_names(file.characters)}",
                )
    # From a list to all that it can lead to: one that leads to itself would never end.
    for name in lists:
        reached, open_lists = set[str](), [*asked[name]]
        while open_lists:
            slot = open_lists.pop()
            if slot not in reached:
                reached.add(slot)
                open_lists += asked[slot]
        if name in reached:
            return f"random.{name}", "leads to itself by the lists that its phrases name"
        if name == "prompt" and (unused := sorted(lists.keys() - reached - {"prompt"})):
            return f"random.{unused[0]}", "is never used: no phrase that prompt leads to names it"
    return None


def _names(entries: Mapping[str, Any]) -> str:
    return ", ".join(entries) or "(none)"


def _line(text: str, place: str) -> str:
    """The line of a dotted place, as ``:12``: the table's header, or the key below it when the file has it."""
    keys = place.split(".")
    lines = text.splitlines()
    for depth in range(len(keys), 0, -1):
        header = f"[{'.'.join(keys[:depth])}]"
        for start, line in enumerate(lines):
            if line.strip() != header:
                continue
            for offset, below in enumerate(lines[start + 1 :], start + 1):
                if below.lstrip().startswith("["):
                    break
                if depth < len(keys) and below.partition("=")[0].strip() == keys[depth]:
                    return f":{offset + 1}"
            return f":{start + 1}"
    return ""
