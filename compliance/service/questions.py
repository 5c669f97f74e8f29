"""What the service is asked, read from JSON. Unknown keys are ignored; what is wrong is said with its fix."""

import base64
import binascii
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compliance.picture import MAX_BYTES, Raw, decode
from compliance.review import Context
from compliance.service.faults import BadQuestion

#: Bytes of a question: the largest picture that `compliance.picture.decode` takes, in base64, and room for the words.
MAX_BODY = 4 * MAX_BYTES // 3 + 1024 * 1024

Stage = Literal["gate", "upload", "review"]
Words = Annotated[str, Field(max_length=100_000)]
Side = Annotated[int, Field(ge=0, le=1_000_000)]
_EXAMPLE = '{"ruleset": "default", "stage": "gate", "context": {"positive": "a hill"}}'


class _Context(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    positive: Words = ""
    negative: Words = ""
    width: Side = 0
    height: Side = 0
    tier: Annotated[str, Field(max_length=1000)] = "standard"
    precompliance: Words = ""


class Question(BaseModel):
    """One call of `POST /v1/review`. Without a stage it is about the picture, or the prompt where there is none."""

    model_config = ConfigDict(strict=True, frozen=True)

    ruleset: str
    context: _Context | None = None
    picture: Annotated[str | None, Field(repr=False)] = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    stage: Stage | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.about != "gate" and self.picture is None:
            raise ValueError("picture: is needed at this stage, in base64")
        if self.about != "gate" and self.sha256 is None:
            raise ValueError("sha256: is needed with a picture, that of its bytes in hex")
        # A review of a picture with no words is one of half the case, so it has to be asked for in so many words.
        if self.about != "upload" and (self.context is None or "positive" not in self.context.model_fields_set):
            raise ValueError("context.positive: is needed at this stage, the prompt as the model got it")
        return self

    @property
    def about(self) -> Stage:
        return self.stage or ("gate" if self.picture is None else "review")

    @property
    def words(self) -> Context:
        return Context(**(self.context or _Context()).model_dump())

    def read_picture(self) -> Raw:
        """Decodes it, which is work for a thread. Raises `BadQuestion`, and PictureRefused for what is no picture."""
        try:
            data = base64.b64decode(self.picture or "", validate=True)
        except (binascii.Error, ValueError) as exc:
            raise BadQuestion("picture: is not base64.", fix="Send the picture's bytes in standard base64.") from exc
        return decode(data, self.sha256 or "")


def read_question(body: bytes) -> Question:
    """Raises `BadQuestion`."""
    try:
        return Question.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as exc:
        raise BadQuestion("The body is not JSON.", fix=f"Send one JSON object in UTF-8, such as {_EXAMPLE}") from exc
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        raise BadQuestion(_sentence(first), fix=f"Compare it with {_EXAMPLE}") from exc


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    problem = error["msg"].removeprefix("Value error, ")
    return f"{where}: {problem}." if where else f"{problem}."
