"""The pages, straight from the package: no build step, no inline script or style, no request to another host."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import ClassVar
from urllib.parse import urlsplit

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

    def __init__(self, *, most_bytes: int, development: bool, picture: Callable[[], str]) -> None:
        """``most_bytes`` is what ``/api/verify`` takes, ``development`` that the signer is known on this machine only.

        ``picture`` gives the address of some picture, there or not, once all is open: the example may read from there.
        """
        self._given = {"most_bytes": str(most_bytes), "development": str(development).lower()}
        self._picture = picture

    @cached_property
    def _files(self) -> dict[str, _File]:
        address = urlsplit(self._picture())
        connect = {"verify": "'self'", "example": f"'self' {address.scheme}://{address.netloc}"}
        made: dict[str, _File] = {}
        for entry in sorted(files("gateway.pages").iterdir(), key=lambda entry: entry.name):
            stem, _, kind = entry.name.rpartition(".")
            if kind not in _TYPES:
                continue
            body, headers = entry.read_bytes(), {**_HEADERS, "Content-Type": _TYPES[kind]}
            if kind == "html":
                for name, value in self._given.items():
                    body = body.replace(f"{{{{{name}}}}}".encode(), value.encode())
                headers |= {**_PAGE_HEADERS, "Content-Security-Policy": _POLICY.format(connect=connect[stem])}
            # A policy counts as a part of the page: a copy that was kept must not live on under an older one.
            tag = hashlib.sha256(repr(sorted(headers.items())).encode() + body).hexdigest()[:32]
            made[entry.name] = _File(body, {**headers, "ETag": f'"{tag}"'})
        return made

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
