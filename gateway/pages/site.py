"""The pages, straight from the package: no build step, no inline script or style, no request to another host."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import ClassVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: Of the pages themselves. Browsers that know Trusted Types refuse to make markup of text, whatever a script does.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src {connect}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
_PAGE_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    headers: Mapping[str, str]


class Site:
    """``/verify`` and ``/example``, and their styles and scripts below ``/pages/``."""

    pages: ClassVar[tuple[str, ...]] = ("verify", "example")

    def __init__(self, *, most_bytes: int, development: bool, picture_origins: Sequence[str] = ()) -> None:
        """``most_bytes`` is what ``/api/verify`` takes, ``development`` that the signer is known on this machine only.

        ``picture_origins`` is where addresses of pictures may lead to, beside this gateway.
        """
        given = {"most_bytes": str(most_bytes), "development": str(development).lower()}
        connect = {"verify": "'self'", "example": " ".join(["'self'", *dict.fromkeys(picture_origins)])}
        self._files: dict[str, _File] = {}
        for entry in sorted(files("gateway.pages").iterdir(), key=lambda entry: entry.name):
            stem, _, kind = entry.name.rpartition(".")
            if kind not in _TYPES:
                continue
            body, headers = entry.read_bytes(), {**_HEADERS, "Content-Type": _TYPES[kind]}
            if kind == "html":
                for name, value in given.items():
                    body = body.replace(f"{{{{{name}}}}}".encode(), value.encode())
                headers |= {**_PAGE_HEADERS, "Content-Security-Policy": _POLICY.format(connect=connect[stem])}
            # A policy counts as a part of the page: a copy that was kept must not live on under an older one.
            tag = hashlib.sha256(repr(sorted(headers.items())).encode() + body).hexdigest()[:32]
            self._files[entry.name] = _File(body, {**headers, "ETag": f'"{tag}"'})

    def routes(self) -> list[BaseRoute]:
        return [*(Route(f"/{page}", self._page) for page in self.pages), Route("/pages/{name}", self._part)]

    async def _page(self, request: Request) -> Response:
        return _answer(request, self._files[f"{request.url.path.strip('/')}.html"])

    async def _part(self, request: Request) -> Response:
        name: str = request.path_params["name"]
        if name not in self._files or name.endswith(".html"):
            raise HTTPException(404)
        return _answer(request, self._files[name])


def _answer(request: Request, file: _File) -> Response:
    kept = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if kept & {file.headers["ETag"], "*"}:
        return Response(status_code=304, headers=file.headers)
    return Response(file.body, headers=file.headers)
