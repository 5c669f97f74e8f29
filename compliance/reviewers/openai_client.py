"""The one edge to OpenAI-compatible services: texts and pictures go out, and errors of the `openai` SDK become ours.

What a provider says in an error is not repeated anywhere: it may quote the key, the address, or the prompt.
"""

import base64
import io
import re
import weakref
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from PIL import Image
from pydantic import BaseModel, ValidationError

from compliance.errors import BadRules, ReviewUnavailable

if TYPE_CHECKING:
    from openai import APIStatusError

#: The longest side of a picture as a provider gets it, in pixels.
LONGEST_SIDE = 1024
#: Characters of a prompt that are sent. More is not cut but refused: what is cut off nobody has looked at.
LONGEST_TEXT = 20_000
# Codes with which providers say that their content policy forbids them to look: OpenAI's and Azure's, in chat and for
# pictures, and DashScope's. Compared in lower case.
_POLICY_CODES = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "image_content_policy_violation",
        "moderation_blocked",
        "responsibleaipolicyviolation",
        "data_inspection_failed",
    }
)
# Faults of a moment, beside 5xx: time-out, conflict, too early, rate limit.
_MOMENTARY = frozenset({408, 409, 425, 429})

Answer = TypeVar("Answer", bound=BaseModel)


class PolicyRefusal(Exception):
    """The provider's content policy forbids it to look. Final: nobody asks again, and it is no outage."""


class Provider:
    """One model of one OpenAI-compatible service, as the reviewer `name` asks it. Safe to call from threads.

    Raises PolicyRefusal, or ReviewUnavailable which says whether it is worth to ask again; it never asks again itself.
    """

    def __init__(self, name: str, *, base_url: str, api_key: str, model: str, timeout: float) -> None:
        """`base_url` ends where `/chat/completions` begins; an empty `api_key` is for a server that wants none.

        `timeout` is in seconds, for the connection and for each wait for more of the answer. Raises BadRules when the
        address is none.
        """
        # The SDK takes most of a second to import, and most commands never ask a provider.
        from openai import DefaultHttpxClient, OpenAI

        _check_address(name, base_url)
        self.name = name
        self.model = model
        # A redirect would carry the picture to an address that nobody has configured.
        transport = DefaultHttpxClient(follow_redirects=False)
        self._client = OpenAI(
            api_key=api_key or "none", base_url=base_url, timeout=timeout, max_retries=0, http_client=transport
        )
        # Otherwise the SDK takes them from the environment, and they are of OpenAI, whoever the provider is.
        self._client.organization = None
        self._client.project = None
        weakref.finalize(self, transport.close)

    def moderate(self, given: Any) -> bytes:
        """The answer of `/moderations` as it came."""
        return self._sent(lambda: self._client.moderations.with_raw_response.create(model=self.model, input=given))

    def chat(self, **request: Any) -> bytes:
        """The answer of `/chat/completions` as it came."""
        return self._sent(lambda: self._client.chat.completions.with_raw_response.create(model=self.model, **request))

    def nonsense(self, what: str) -> ReviewUnavailable:
        """The error for an answer that came and is none."""
        return ReviewUnavailable(
            f"The {self.name} model gave {what}.", fix=f"Check that it is fit to be a {self.name}."
        )

    def read(self, kind: type[Answer], answer: bytes | str) -> Answer:
        """The answer as `kind`; anything else raises ReviewUnavailable."""
        try:
            return kind.model_validate_json(answer)
        except ValidationError as exc:
            problem = exc.errors(include_url=False, include_input=False, include_context=False)[0]["type"]
            raise self.nonsense(f"an answer that does not read ({problem})") from None

    def _sent(self, send: Callable[[], Any]) -> bytes:
        from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

        # `from None`: the SDK's errors quote what the provider said, and a log would print them with ours.
        try:
            content: bytes = send().content
            return content
        except APITimeoutError:
            raise ReviewUnavailable(f"The {self.name} service did not answer in time.") from None
        except APIConnectionError:
            fix = "See whether it runs and its address is right."
            raise ReviewUnavailable(f"The {self.name} service can't be reached.", fix=fix) from None
        except APIStatusError as exc:
            if _is_policy(exc):
                raise PolicyRefusal from None
            raise _of_status(self.name, exc) from None
        except OpenAIError as exc:
            raise ReviewUnavailable(f"The {self.name} service can't be asked ({type(exc).__name__}).") from None


def sendable(text: str) -> str:
    """The text with half surrogates replaced: they have no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def check_length(name: str, text: str) -> None:
    """Raises ReviewUnavailable for a text that is too long to be looked at as a whole."""
    if len(text) > LONGEST_TEXT:
        raise ReviewUnavailable(
            f"A prompt of {len(text)} characters is too long for the reviewer {name}.",
            fix=f"Send at most {LONGEST_TEXT} characters.",
            again=False,
            outage=False,
        )


def picture_uri(pixels: Image.Image) -> str:
    """The picture as a data URI, small enough to be sent."""
    small = pixels.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that an answer asks to wait, 0 where it does not say. A date counts from the answer's own `Date`."""
    given = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", given, re.ASCII):
        return float(given)
    try:
        wait = parsedate_to_datetime(given) - parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, wait.total_seconds())


def _check_address(name: str, base_url: str) -> None:
    try:
        address = urlsplit(base_url)
        whole = address.scheme in ("http", "https") and bool(address.hostname) and (address.port or True)
    except ValueError:
        whole = False
    if not whole:
        raise BadRules(f"The address of the {name} service is none.", fix="Give one like https://api.example.com/v1.")
    if address.username is not None or address.password is not None:
        raise BadRules(
            f"The address of the {name} service has a name or a password in it.",
            fix="Take it out, for addresses end up in logs; give the key on its own.",
        )


def _is_policy(error: "APIStatusError") -> bool:
    """Whether a 4xx is the provider's policy and not a fault of the request."""
    if not 400 <= error.status_code < 500 or not isinstance(error.body, dict):
        return False
    inner = error.body.get("innererror")
    codes = (error.body.get("code"), error.body.get("type"), inner.get("code") if isinstance(inner, dict) else None)
    return any(isinstance(code, str) and code.lower() in _POLICY_CODES for code in codes)


def _of_status(name: str, error: "APIStatusError") -> ReviewUnavailable:
    status = error.status_code
    says = f"The {name} service answered {status}."
    if status == 429 and error.code == "insufficient_quota":
        return ReviewUnavailable(f"{says} Its account is used up.", fix="Top it up.", again=False)
    if status in _MOMENTARY or status >= 500:
        return ReviewUnavailable(says, after=retry_after(error.response.headers))
    if status == 401:
        return ReviewUnavailable(says, fix=f"Give the {name} reviewer a valid key.", again=False)
    if status == 403:
        return ReviewUnavailable(says, fix=f"Give the {name} reviewer a key that may use its model.", again=False)
    if status == 404 or status < 400:
        return ReviewUnavailable(says, fix=f"Check the address and the model of the {name} reviewer.", again=False)
    fix = f"Check whether the model of the {name} reviewer takes pictures and what else it is sent."
    return ReviewUnavailable(says, fix=fix, again=False, outage=False)
