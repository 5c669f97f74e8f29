"""A language model behind OpenAI's `/v1/chat/completions`, for the real SDK: it checks, notes and answers a question.

It obeys: `write` decides from the data and the instructions what it answers, as a model does that falls for a trick.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.compliance.fake_openai import KEY, FakeOpenAI, Refused, completion, error

MODEL = "gpt-words"
#: Takes its limit as OpenAI's newer models do.
NEWER = "gpt-words-2"


@dataclass(frozen=True)
class Question:
    """One request: its headers (lower case) and JSON."""

    headers: dict
    body: dict

    @property
    def system(self) -> str:
        return self.body["messages"][0]["content"]

    @property
    def user(self) -> str:
        return self.body["messages"][1]["content"]

    @property
    def data(self) -> dict:
        """What stands between the lines that the instructions name."""
        first, last = re.search(r"between the lines (<\S+>) and (</\S+>)", self.system).groups()
        lines = self.user.split("\n")
        assert (lines[0], lines[-1], len(lines)) == (first, last, 3)
        return json.loads(lines[1])


class FakeLLM(FakeOpenAI):
    """Runs in threads while it is entered."""

    def __init__(self):
        super().__init__()
        self.asked: list[Question] = []
        self.write: Callable[[Question], str] = lambda question: f"{question.data['prompt']}, golden light"

    def answer(self, path, headers, raw):
        self.received += 1
        try:
            question = _checked(path, headers, raw)
        except Refused as exc:
            return exc.reply
        self.asked.append(question)
        step = self._script.popleft() if self._script else self.default
        return completion(self.write(question), model=MODEL) if step is None else step


def _checked(path, headers, raw):
    """The request as noted, if the real server would take it."""
    if headers.get("authorization") != f"Bearer {KEY}":
        given = headers.get("authorization", "")
        raise Refused(error(401, "invalid_api_key", f"Incorrect API key provided: {given}."))
    if path != "/v1/chat/completions":
        raise Refused(error(404, "unknown_url", f"Unknown request URL: POST {path}."))
    body = json.loads(raw)
    if body.get("model") not in (MODEL, NEWER):
        raise Refused(error(404, "model_not_found", "The model does not exist."))
    messages = body.get("messages", [])
    if [each.get("role") for each in messages] != ["system", "user"] or not all(each["content"] for each in messages):
        raise Refused(error(400, "invalid_value", "Invalid 'messages'."))
    if body["model"] == NEWER and "max_tokens" in body:
        told = "Unsupported parameter: 'max_tokens' is not supported with this model."
        raise Refused(error(400, "unsupported_parameter", told, param="max_tokens"))
    if not 0 <= body.get("temperature", 1) <= 2 or unknown(body):
        raise Refused(error(400, "invalid_value", "Invalid request."))
    return Question(headers, body)


def unknown(body):
    """Members that the endpoint does not know."""
    return body.keys() - {"model", "messages", "temperature", "max_tokens", "max_completion_tokens"}
