"""An ONNX picture classifier that an operator brings, and the small TOML file that describes it:

    file = "nsfw.onnx"                     # beside this file
    sha256 = "9f86…"                       # optional: another model than this one stops the start
    labels = ["neutral", "porn", "teen"]   # in the order of the outputs; or { porn = 1, teen = 2 }
    activation = "softmax"                 # what makes scores of the outputs: softmax, sigmoid, or none
    [input]
    width = 224
    height = 224
    layout = "nchw"                        # or nhwc
    colours = "rgb"                        # or bgr
    resize = "stretch"                     # or crop (the middle), pad (in black), none (the picture as it is)
    scale = 0.00392156862745098            # pixels of 0-255 are multiplied by it; this is 1/255
    mean = [0.485, 0.456, 0.406]           # then this is taken away
    std = [0.229, 0.224, 0.225]            # and the rest divided by this
    [rename]                               # the model's labels in the words of the rulesets; others stay as they are
    porn = "explicit"
    teen = "minors"

Labels that get the same name count together: of classes that exclude each other (softmax) their sum, else the highest.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compliance.errors import BadRules, ReviewUnavailable
from compliance.picture import Raw
from compliance.review import Context, Opinion
from compliance.rulesets import Ruleset

_EXAMPLE = "Compare it with the example in compliance/reviewers/detector.py."
_KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
#: What the shipped rulesets ask a detector for. A model that knows less of it is welcome: it never says the rest.
COMMON = frozenset({"explicit", "suggestive", "minors"})
#: The edge of the picture that a model without a size of its own is tried on.
_TRIAL = 64
# A hair above 1 is rounding, not nonsense.
_SLACK = 1e-3

Floats = npt.NDArray[np.float32]
Edge = Annotated[int, Field(ge=1, le=4096)]
Triple = tuple[float, float, float]


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Edge = 0
    height: Edge = 0
    layout: Literal["nchw", "nhwc"] = "nchw"
    colours: Literal["rgb", "bgr"] = "rgb"
    resize: Literal["stretch", "crop", "pad", "none"] = "stretch"
    scale: float = 1 / 255
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.resize == "none" and (self.width or self.height):
            raise ValueError('resize = "none" takes pictures as they are: leave width and height out')
        if self.resize != "none" and not (self.width and self.height):
            raise ValueError("width and height are missing")
        if 0 in self.std:
            raise ValueError("std divides and can't be 0")
        return self


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] = ""
    labels: Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, int], Field(min_length=1)]
    activation: Literal["softmax", "sigmoid", "none"]
    input: _Input
    rename: dict[str, str] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if isinstance(self.labels, list) and len(set(self.labels)) < len(self.labels):
            raise ValueError("labels has a label twice")
        if isinstance(self.labels, dict) and min(self.labels.values()) < 0:
            raise ValueError("labels has a place below 0")
        if unknown := self.rename.keys() - set(self.labels):
            raise ValueError(f"rename has {sorted(unknown)[0]!r}, which is not in labels")
        return self

    @property
    def places(self) -> Mapping[str, int]:
        """The place of each label among the outputs."""
        if isinstance(self.labels, dict):
            return self.labels
        return {label: place for place, label in enumerate(self.labels)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """A model that is loaded and was tried. One session serves every thread."""

    version: str
    labels: frozenset[str]
    _file: _File = field(repr=False)
    _session: Any = field(repr=False, compare=False)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Reads the TOML file, loads the model that it names and tries it on a grey picture.

        Raises BadRules, with the line where there is one, when the two don't fit each other.
        """
        file = _read(path)
        model = path.parent / file.file
        try:
            content = model.read_bytes()
        except OSError as exc:
            raise BadRules(f"{_at(path, 'file')}: {model} can't be read: {exc}.", fix="Name an ONNX file.") from exc
        actual = hashlib.sha256(content).hexdigest()
        if file.sha256 and file.sha256.lower() != actual:
            raise BadRules(
                f"{_at(path, 'sha256')}: {model.name} has the sha256 {actual}.",
                fix="Get the model that was meant, or write this hash there if it is.",
            )
        session = _session(path, content)
        version = hashlib.sha256(path.read_bytes() + b"\0" + content).hexdigest()[:12]
        labels = frozenset(file.rename.get(label, label) for label in file.places)
        classifier = cls(version=version, labels=labels, _file=file, _session=session)
        classifier._try(path)
        return classifier

    def scores(self, image: Image.Image) -> dict[str, float]:
        """0-1 for each of `labels`. Raises ReviewUnavailable when the model fails or what it says is no score."""
        try:
            outputs = self._outputs(_prepared(image, self._file.input))
        except Exception as exc:  # onnxruntime's errors have no common base of their own.
            raise ReviewUnavailable(f"{self._file.file} failed: {_short(exc)}") from exc
        wanted = max(self._file.places.values())
        if outputs.size <= wanted:
            raise ReviewUnavailable(f"{self._file.file} has {outputs.size} outputs instead of more than {wanted}.")
        if not np.isfinite(outputs).all():
            raise ReviewUnavailable(f"{self._file.file} answered something that is no number.")
        values = _activated(outputs, self._file.activation)
        if values.min() < -_SLACK or values.max() > 1 + _SLACK:
            raise ReviewUnavailable(
                f"{self._file.file} answered {values.min():.3g} to {values.max():.3g}, and a score is 0-1.",
                fix='Set activation to "softmax" or "sigmoid".',
            )
        return self._named(np.clip(values, 0, 1))

    def _named(self, values: Floats) -> dict[str, float]:
        scores: dict[str, float] = {}
        exclusive = self._file.activation == "softmax"
        for label, place in self._file.places.items():
            name, score = self._file.rename.get(label, label), float(values[place])
            scores[name] = scores.get(name, 0.0) + score if exclusive else max(scores.get(name, 0.0), score)
        return {name: min(1.0, round(score, 6)) for name, score in scores.items()}

    def _outputs(self, pixels: Floats) -> Floats:
        (wanted,) = self._session.get_inputs()
        name = self._session.get_outputs()[0].name
        (answer,) = self._session.run([name], {wanted.name: pixels.astype(_KINDS[wanted.type])})
        return np.asarray(answer, np.float32).ravel()

    def _try(self, path: Path) -> None:
        """Runs the model once, so that a file that does not fit it stops the start instead of every review."""
        inputs, told = self._session.get_inputs(), self._file.input
        if len(inputs) != 1 or inputs[0].type not in _KINDS:
            has = ", ".join(f"{each.name} of {each.type}" for each in inputs)
            raise BadRules(
                f"{_at(path, 'file')}: {self._file.file} has the inputs {has}.",
                fix=f"Use a model with one picture as its input, of {' or '.join(_KINDS)}.",
            )
        grey = Image.new("RGB", (told.width or _TRIAL, told.height or _TRIAL), (127, 127, 127))
        pixels = _prepared(grey, told)
        try:
            count = self._outputs(pixels).size
        except Exception as exc:
            raise BadRules(
                f"{_at(path, 'input', table=True)}: {self._file.file} does not take pictures of shape "
                f"{list(pixels.shape)}; its input is {inputs[0].shape}: {_short(exc)}",
                fix="Mend width, height and layout.",
            ) from exc
        places = self._file.places
        listed = isinstance(self._file.labels, list)
        if (listed and count != len(places)) or max(places.values()) >= count:
            raise BadRules(
                f"{_at(path, 'labels')}: {self._file.file} has {count} outputs, and labels speaks of "
                f"{len(places) if listed else max(places.values()) + 1}.",
                fix='Give a label for each output in their order, or the places of those that matter: { "porn" = 3 }.',
            )
        try:
            self.scores(grey)
        except ReviewUnavailable as exc:
            raise BadRules(f"{_at(path, 'activation')}: {exc.message}", fix=exc.fix or "Use another model.") from exc


class Detector:
    """The reviewer `detector`: a classifier that is asked about every picture, for it may know about minors."""

    name = "detector"
    always = True

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Raises BadRules with file, line and fix."""
        return cls(Classifier.from_file(path))

    @property
    def version(self) -> str:
        return self._classifier.version

    @property
    def labels(self) -> frozenset[str]:
        return self._classifier.labels | COMMON

    @property
    def never_said(self) -> frozenset[str]:
        """Labels of the shipped rulesets that this model has not: their rules need another reviewer."""
        return COMMON - self._classifier.labels

    def review(self, picture: Raw, context: Context, ruleset: Ruleset) -> Opinion:
        return Opinion(picture=self._classifier.scores(picture.pixels))


def _session(path: Path, content: bytes) -> Any:
    # Only who has a classifier pays for the library.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Reviews run in threads of their own: more of them inside each would only fight for the cores.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise BadRules(
            f"{_at(path, 'file')}: onnxruntime can't load it: {_short(exc)}", fix="Give an ONNX model in one file."
        ) from exc


def _prepared(image: Image.Image, told: _Input) -> Floats:
    size = told.width, told.height
    if told.resize == "stretch":
        image = image.resize(size, Image.Resampling.BILINEAR)
    elif told.resize == "crop":
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    elif told.resize == "pad":
        image = ImageOps.pad(image, size, Image.Resampling.BILINEAR)
    pixels: Floats = np.asarray(image.convert("RGB"), np.float32)
    if told.colours == "bgr":
        pixels = pixels[..., ::-1]
    values = (pixels * told.scale - np.array(told.mean)) / np.array(told.std)
    ordered = values.transpose(2, 0, 1) if told.layout == "nchw" else values
    return np.ascontiguousarray(ordered, np.float32)[None]


def _activated(outputs: Floats, activation: str) -> Floats:
    if activation == "softmax":
        powers = np.exp(outputs - outputs.max())
        return np.asarray(powers / powers.sum(), np.float32)
    if activation == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * outputs)), np.float32)
    return outputs


def _short(exc: Exception) -> str:
    """The first line of what a foreign error says, for a sentence of ours."""
    return f"{(str(exc).splitlines() or [type(exc).__name__])[0][:300].rstrip('.')}."


def _read(path: Path) -> _File:
    try:
        return _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as exc:
        raise BadRules(f"{path}: can't be read: {exc}.", fix="Give a TOML file in UTF-8.") from exc
    except tomllib.TOMLDecodeError as exc:
        raise BadRules(f"{path}: {exc}.", fix=f"Mend the TOML. {_EXAMPLE}") from exc
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        place = [part for part in first["loc"] if not str(part).startswith(("list[", "dict["))]
        problem = first["msg"].removeprefix("Value error, ")
        # A check over the whole file names the key first.
        key = next((part for part in reversed(place) if isinstance(part, str)), problem.split()[0])
        name = f"{'.'.join(map(str, place))}: " if place else ""
        raise BadRules(f"{_at(path, key, table=key == 'input')}: {name}{problem}.", fix=_EXAMPLE) from exc


def _at(path: Path, key: str, *, table: bool = False) -> str:
    """`detector.toml:3`, the line of a key or of a table's head, or the first one where the key is missing."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if (line.strip().startswith(f"[{key}]")) if table else line.partition("=")[0].strip().strip('"') == key:
            return f"{path}:{number}"
    return f"{path}:1"
