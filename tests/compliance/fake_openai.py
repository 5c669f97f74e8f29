"""A server with the wire format of OpenAI's `/v1/moderations` and `/v1/chat/completions`, for the real SDK.

It checks a request as the real one does (key, model, pictures, schema), notes it, and answers as its script says: one
step for each request, then what `moderation` and `judge` say. A judge who is asked nothing says 0 to every rule.
`received` counts the requests that the real one would not take, too.
"""

import base64
import binascii
import io
import json
import re
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

KEY = "sk-test-3f9a77c1"
MODERATION = "omni-moderation-latest"
TEXT_MODERATION = "text-moderation-latest"
VISION = "gpt-vision"

CATEGORIES = [
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm"),
    *("self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic"),
]
OF_PICTURES = ["self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "violence", "violence/graphic"]


@dataclass(frozen=True)
class Reply:
    """An answer as it goes over the wire; `body` is JSON unless it is bytes. `cut` closes within it."""

    body: object = b""
    status: int = 200
    headers: dict = field(default_factory=dict)
    cut: bool = False


HANG = "hang"
DISCONNECT = "disconnect"


def error(status, code=None, message="No.", type="invalid_request_error", headers=None, **more):
    told = {"message": message, "type": type, "param": None, "code": code, **more}
    return Reply({"error": told}, status, headers or {})


def rate_limited(after=None, **headers):
    headers |= {} if after is None else {"Retry-After": str(after)}
    return error(429, "rate_limit_exceeded", type="requests", headers=headers)


def azure_filter():
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"sexual": {"filtered": True}}}
    return error(400, "content_filter", "The response was filtered.", type=None, param="prompt", innererror=inner)


def completion(content, finish="stop", refusal=None, model=VISION):
    message = {"role": "assistant", "content": content, "refusal": refusal, "annotations": []}
    return Reply(
        {
            "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
            "object": "chat.completion",
            "created": 1_741_569_952,
            "model": model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
            "usage": {"prompt_tokens": 900, "completion_tokens": 90, "total_tokens": 990},
            "service_tier": "default",
            "system_fingerprint": None,
        }
    )


def findings(*of):
    """A judge's answer with the (rule, prompt, picture) given."""
    told = [{"rule": rule, "prompt": prompt, "picture": picture} for rule, prompt, picture in of]
    return completion(json.dumps({"findings": told}))


def moderated(*results):
    return Reply(
        {"id": "modr-970d409ef3bef3b70c73d8232df86e7d", "model": "omni-moderation-2024-09-26", "results": results}
    )


def result(scores, types=("text",)):
    """One result of omni-moderation; what it can't see in a picture has the score 0 and no input type."""
    seen = {name: [kind for kind in types if kind == "text" or name in OF_PICTURES] for name in CATEGORIES}
    scores = {name: scores.get(name, 0.0001) if seen[name] else 0 for name in CATEGORIES}
    flags = {name: score > 0.5 for name, score in scores.items()}
    return {
        "flagged": any(flags.values()),
        "categories": flags,
        "category_scores": scores,
        "category_applied_input_types": seen,
    }


#: Faults by name: what the server does, and whether it helps to ask again and whether the service is down.
FAULTS = {
    "rate-limited": (rate_limited(), True, True),
    "out-of-credit": (error(429, "insufficient_quota"), False, True),
    "broken": (error(500, "server_error"), True, True),
    "gateway-page": (Reply(b"<html>Bad gateway</html>", 502, {"Content-Type": "text/html"}), True, True),
    "overloaded": (error(529), True, True),
    "slow": (HANG, True, True),
    "disconnect": (DISCONNECT, True, True),
    "cut": (Reply(b'{"results": [' * 50, cut=True), True, True),
    "no-json": (Reply(b"It looks fine to me."), True, True),
    "page": (Reply(b"<html>Welcome</html>", headers={"Content-Type": "text/html"}), True, True),
    "empty": (Reply(b""), True, True),
    "null": (Reply(None), True, True),
    "list": (Reply([]), True, True),
    "other-object": (Reply({"ok": True, "safe": True}), True, True),
    "no-utf8": (Reply(b'{"results": "\xff"}'), True, True),
    "bad-key": (error(401, "invalid_api_key", f"Incorrect API key provided: {KEY}."), False, True),
    "forbidden": (error(403), False, True),
    "no-model": (error(404, "model_not_found"), False, True),
    "moved": (Reply(b"", 307, {"Location": "/v1/elsewhere"}), False, True),
    "bad-request": (error(400, "invalid_value", f"I don't take {KEY}."), False, False),
    "error-text": (Reply({"error": "no such thing"}, 400), False, False),
    "too-large": (error(413), False, False),
}


@dataclass(frozen=True)
class Asked:
    """One request: its path, headers (lower case), JSON, and the pictures in it."""

    path: str
    headers: dict
    body: dict
    pictures: tuple

    @property
    def system(self):
        return self.body["messages"][0]["content"]

    @property
    def text(self):
        """What the judge gets beside the instructions, as it went over the wire."""
        return self.body["messages"][1]["content"][0]["text"]

    @property
    def data(self):
        """The data for the judge: what stands between the lines that the instructions name."""
        first, last = re.search(r"between the lines (<\S+>) and (</\S+>)", self.system).groups()
        lines = self.text.split("\n")
        assert (lines[0], lines[-1], len(lines)) == (first, last, 3)
        return json.loads(lines[1])


class Refused(Exception):
    """The request is not one that the real server takes."""

    def __init__(self, reply):
        self.reply = reply


class FakeOpenAI:
    """Runs in threads while it is entered. `moderation` gives scores for a text or a picture, `judge` for one rule."""

    def __init__(self):
        self.asked: list[Asked] = []
        self.received = 0
        self.moderation: Callable = lambda given: {}
        self.judge: Callable = lambda rule, data: (0.0, 0.0)
        self.default: Reply | str | None = None
        self._script: deque = deque()
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def script(self, *steps):
        """What the next requests get, in order, in place of the last script. None is the usual answer."""
        self._script = deque(steps)

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def hang(self):
        self._over.wait(60)

    def answer(self, path, headers, raw):
        self.received += 1
        try:
            asked = _checked(path, headers, raw)
            self.asked.append(asked)
            step = self._script.popleft() if self._script else self.default
            if step is not None:
                return step
            return self._moderated(asked) if path == "/v1/moderations" else self._judged(asked)
        except Refused as exc:
            return exc.reply

    def _moderated(self, asked):
        given = asked.body["input"]
        if asked.pictures:
            return moderated(result(self.moderation(asked.pictures[0]), ("image",)))
        return moderated(*(result(self.moderation(text)) for text in ([given] if isinstance(given, str) else given)))

    def _judged(self, asked):
        data = asked.data
        return findings(*((rule["id"], *self.judge(rule, data)) for rule in data["rules"]))


def _handler(fake):
    class Handler(BaseHTTPRequestHandler):
        # Headers and body are sent apart: otherwise each answer waits 40 ms for the client's acknowledgement.
        disable_nagle_algorithm = True
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            step = fake.answer(self.path, headers, raw)
            if step == HANG:
                fake.hang()
            if step in (HANG, DISCONNECT):
                self._close()
                return
            body = step.body if isinstance(step.body, bytes) else json.dumps(step.body).encode()
            self.send_response(step.status)
            for name, value in {"Content-Type": "application/json", **step.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if step.cut else body)
            if step.cut:
                self._close()

        def _close(self):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_):
            pass

        def finish(self):
            try:
                super().finish()
            except OSError:
                pass  # the client has gone

    return Handler


def _checked(path, headers, raw):
    """The request as noted, if the real server would take it."""
    if headers.get("authorization") != f"Bearer {KEY}":
        given = headers.get("authorization", "")
        raise Refused(error(401, "invalid_api_key", f"Incorrect API key provided: {given}."))
    try:
        body = json.loads(raw)
    except ValueError as exc:
        raise Refused(error(400, None, "We could not parse the JSON body of your request.")) from exc
    if path == "/v1/moderations":
        pictures = _check_moderation(body)
    elif path == "/v1/chat/completions":
        pictures = _check_chat(body)
    else:
        raise Refused(error(404, "unknown_url", f"Unknown request URL: POST {path}."))
    return Asked(path, headers, body, pictures)


def _check_moderation(body):
    if body.get("model") not in (MODERATION, TEXT_MODERATION):
        raise Refused(error(404, "model_not_found"))
    given = body.get("input")
    if isinstance(given, str) or (isinstance(given, list) and given and all(isinstance(each, str) for each in given)):
        return ()
    if not isinstance(given, list) or not given or body["model"] == TEXT_MODERATION:
        raise Refused(error(400, "invalid_type", "Invalid type for 'input'."))
    kinds = [each.get("type") for each in given]
    if set(kinds) - {"text", "image_url"} or kinds.count("image_url") > 1:
        raise Refused(error(400, "invalid_value", "Invalid 'input'."))
    return tuple(_picture(each) for each in given if each["type"] == "image_url")


def _check_chat(body):
    if body.get("model") != VISION:
        raise Refused(error(404, "model_not_found"))
    messages = body.get("messages")
    if not isinstance(messages, list) or [each.get("role") for each in messages] != ["system", "user"]:
        raise Refused(error(400, "invalid_value", "Invalid 'messages'."))
    form = body.get("response_format", {})
    if form.get("type") == "json_schema":
        _check_schema(form.get("json_schema", {}))
    elif form.get("type") != "json_object":
        raise Refused(error(400, "invalid_value", "Invalid 'response_format'."))
    elif "json" not in messages[0]["content"].lower():
        raise Refused(error(400, None, "'messages' must contain the word 'json'."))
    return tuple(_picture(part) for part in messages[1]["content"] if part["type"] == "image_url")


def _check_schema(given):
    """Strict mode: every object closed, all its members required."""
    if given.get("strict") is not True or not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", given.get("name", "")):
        raise Refused(error(400, "invalid_value", "Invalid 'response_format.json_schema'."))
    open_ones = [given["schema"]]
    while open_ones:
        schema = open_ones.pop()
        if schema["type"] == "object":
            if schema.get("additionalProperties") is not False or set(schema["required"]) != set(schema["properties"]):
                raise Refused(error(400, "invalid_json_schema", "Invalid schema for response_format."))
            open_ones.extend(schema["properties"].values())
        elif schema["type"] == "array":
            open_ones.append(schema["items"])


def _picture(part):
    try:
        kind, data = re.fullmatch(r"data:image/(png|jpeg|webp);base64,(.+)", part["image_url"]["url"], re.S).groups()
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=[kind])
        image.load()
        return image
    except (AttributeError, KeyError, OSError, binascii.Error) as exc:
        raise Refused(
            error(400, "invalid_image", "The image data you provided does not represent a valid image.")
        ) from exc
