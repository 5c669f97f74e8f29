"""``imgen models pull``: brings one weights file onto a worker's volume, for an operator and never for a request.

What is downloaded waits under a name that ends in ``.part`` until its SHA-256 and its form are right; only then does it
get its own name. A download that broke goes on where it stopped.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import httpx

from gateway import __version__
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Iterator

CIVITAI = "https://civitai.com"
HUB = "https://huggingface.co"
#: Bytes; the largest single files that anyone would serve.
MOST_BYTES = 64 * 2**30
_MOST_HEADER = 100 * 2**20
_ATTEMPTS = 4

#: What the worker calls a family, by how Civitai's name of the base model begins; the first that fits.
_BASES = (
    ("Pony V7", ""),
    ("SD 1.", "sd15"),
    ("SDXL", "sdxl"),
    ("Pony", "sdxl"),
    ("Illustrious", "sdxl"),
    ("NoobAI", "sdxl"),
    ("SD 3", "sd3"),
    ("Flux.1", "flux"),
    ("Flux.2", "flux2"),
    ("ZImage", "z-image"),
    ("Qwen", "qwen-image"),
)
#: The same by what training programs write into a file.
_ARCHITECTURES = (
    ("stable-diffusion-xl", "sdxl"),
    ("sdxl", "sdxl"),
    ("stable-diffusion-v1", "sd15"),
    ("sd_v1", "sd15"),
    ("sd_1.5", "sd15"),
    ("stable-diffusion-v3", "sd3"),
    ("stable-diffusion-3", "sd3"),
    ("sd3", "sd3"),
    ("flux-1", "flux"),
    ("flux1", "flux"),
    ("flux-2", "flux2"),
    ("flux2", "flux2"),
    ("zimage", "z-image"),
    ("z-image", "z-image"),
    ("qwen-image", "qwen-image"),
    ("qwen_image", "qwen-image"),
)
FAMILIES = ("sd15", "sdxl", "sd3", "flux", "flux2", "z-image", "qwen-image")
_SINGLE_FILE_PIPELINES = {"sd15": "StableDiffusion", "sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3"} | {
    "flux": "Flux"
}


class PullError(GatewayError):
    """The file can't be downloaded"""

    code = "pull_failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a file comes from and what is known of it before it is here. ``size`` is in bytes, of the whole file."""

    site: str
    url: str
    name: str
    token: str = field(default="", repr=False)
    token_variable: str = ""
    sha256: str = ""
    size: int | None = None
    family: str = ""
    words: tuple[str, ...] = ()
    whole_model: bool | None = None
    early_until: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulled:
    """A file that is here and right. ``toml`` is what ``models.toml`` needs to offer it."""

    path: Path
    sha256: str
    bytes: int
    toml: str


def pull(
    source: str,
    into: Path,
    *,
    name: str | None = None,
    token_variable: str | None = None,
    sha256: str | None = None,
    revision: str = "main",
    environ: Mapping[str, str] = os.environ,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
    civitai: str = CIVITAI,
    hub: str = HUB,
    most_bytes: int = MOST_BYTES,
    pause: float = 1.0,
) -> Pulled:
    """Downloads ``source`` to ``into``/NAME.safetensors. ``on_progress`` gets the bytes so far and in all.

    Raises `PullError`. A download that broke leaves a ``.part``, with which the next one goes on; a wrong one nothing.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256 := sha256.lower()):
        raise PullError("--sha256 is no SHA-256", fix="Give its 64 hexadecimal digits.")
    with httpx.Client(timeout=httpx.Timeout(60.0, connect=15.0), headers=_HEADERS) as http:
        origin = _origin(http, source, token_variable, sha256, revision, environ, civitai, hub)
        origin = replace(origin, name=_checked(name) if name else origin.name, sha256=sha256 or origin.sha256)
        return _fetched(http, origin, into, on_progress, most_bytes, pause)


_HEADERS = {"User-Agent": f"imgen/{__version__}", "Accept-Encoding": "identity"}


def _origin(
    http: httpx.Client,
    source: str,
    token_variable: str | None,
    sha256: str | None,
    revision: str,
    environ: Mapping[str, str],
    civitai: str,
    hub: str,
) -> Origin:
    kind, _, rest = source.partition(":")
    if kind == "civitai" and rest.isdecimal():
        variable = token_variable or "CIVITAI_TOKEN"
        return _of_civitai(http, rest, civitai, _token(environ, variable, token_variable), variable)
    if kind == "hub" and rest.count("/") >= 2 and rest.endswith(".safetensors"):
        variable = token_variable or "HF_TOKEN"
        return _of_hub(rest, hub, revision, _token(environ, variable, token_variable), variable)
    if kind == "https" and urlsplit(source).path.endswith(".safetensors"):
        if sha256 is None:
            raise PullError("Nobody says what that file must be", fix="Add --sha256 with the hash that its page shows.")
        token = _token(environ, token_variable, token_variable) if token_variable else ""
        site = urlsplit(source).hostname or source
        stem = Path(urlsplit(source).path).stem
        return Origin(site=site, url=source, name=_slug(stem), token=token, token_variable=token_variable or "")
    raise PullError(
        f"{source!r} is no source",
        fix="Give civitai:<modelVersionId>, hub:owner/name/file.safetensors or an https address of a .safetensors.",
    )


def _token(environ: Mapping[str, str], variable: str, asked: str | None) -> str:
    token = environ.get(variable, "").strip()
    if asked and not token:
        raise PullError(f"{variable} is empty", fix=f"Set it to the token, or leave out --token-env {variable}.")
    return token


def _of_hub(rest: str, hub: str, revision: str, token: str, variable: str) -> Origin:
    owner, name, file = rest.split("/", 2)
    url = f"{hub}/{quote(owner)}/{quote(name)}/resolve/{quote(revision, safe='')}/{quote(file)}"
    return Origin(site="Hugging Face", url=url, name=_slug(Path(file).stem), token=token, token_variable=variable)


def _of_civitai(http: httpx.Client, version: str, civitai: str, token: str, variable: str) -> Origin:
    page = f"{civitai}/api/v1/model-versions/{version}"
    asking = Origin(site="Civitai", url=page, name=version, token=token, token_variable=variable)
    try:
        with _answers(asking):
            answer = http.get(page, headers=_authorization(asking), follow_redirects=True)
            _refused(answer, asking)
            told = answer.json()
        return _read_version(told, asking)
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise PullError(f"Civitai's answer about {version} is not understood", fix="Try again later.") from exc


def _read_version(told: Any, asking: Origin) -> Origin:
    files = [file for file in told["files"] if _safetensors(file)]
    if not files:
        raise PullError(
            f"Civitai has no .safetensors of {asking.name}",
            fix="Other formats can run code when they are read; choose another version.",
        )
    file = max(files, key=lambda file: (file.get("type") == "Model", bool(file.get("primary"))))
    early = told.get("availability") == "EarlyAccess" or bool(told.get("earlyAccessEndsAt"))
    about = told.get("model") or {}
    return replace(
        asking,
        url=str(file["downloadUrl"]),
        name=_slug(f"{about.get('name') or Path(str(file['name'])).stem}"),
        # Its token is for Civitai; an address elsewhere must not get it.
        token=asking.token if _same_origin(str(file["downloadUrl"]), asking.url) else "",
        sha256=str((file.get("hashes") or {}).get("SHA256") or "").lower(),
        family=_family(str(told.get("baseModel") or ""), _BASES),
        words=tuple(str(word) for word in told.get("trainedWords") or ()),
        whole_model=about.get("type") == "Checkpoint",
        early_until=str(told.get("earlyAccessEndsAt") or "its author opens it") if early else "",
    )


def _safetensors(file: Mapping[str, Any]) -> bool:
    told = (file.get("metadata") or {}).get("format")
    return told == "SafeTensor" if told else str(file.get("name", "")).endswith(".safetensors")


def _same_origin(one: str, other: str) -> bool:
    return urlsplit(one)[:2] == urlsplit(other)[:2]


def _family(text: str, table: tuple[tuple[str, str], ...]) -> str:
    return next((family for start, family in table if text.lower().startswith(start.lower())), "")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "unnamed"


def _checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise PullError(f"{name!r} is no name", fix="Use up to 64 letters, digits, - and _.")
    return name


def _fetched(
    http: httpx.Client,
    origin: Origin,
    into: Path,
    on_progress: Callable[[int, int | None], None],
    most_bytes: int,
    pause: float,
) -> Pulled:
    path, part = into / f"{origin.name}.safetensors", into / f"{origin.name}.safetensors.part"
    if path.exists():
        if origin.sha256 and (found := _sha256(path)) == origin.sha256:
            return _pulled(path, origin, found)
        raise PullError(f"{path} is there already", fix="Choose another --name, or remove it first.")
    with _disk(into):
        into.mkdir(parents=True, exist_ok=True)
        with part.open("ab+") as file:
            _only_one(file, part)
            try:
                origin = _download(http, origin, file, on_progress, most_bytes, pause)
                file.flush()
                os.fsync(file.fileno())
                found = _right(part, origin)
            except _Wrong:
                part.unlink()
                raise
            part.replace(path)
    return _pulled(path, origin, found)


class _Wrong(PullError):
    """What came is not what was asked for"""


def _only_one(file: IO[bytes], part: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise PullError(f"Another download writes {part}", fix="Wait for it, or choose another --name.") from None


def _download(
    http: httpx.Client,
    origin: Origin,
    file: IO[bytes],
    on_progress: Callable[[int, int | None], None],
    most_bytes: int,
    pause: float,
) -> Origin:
    """Until the file is whole. The origin that comes back also knows what only the download told."""
    if not origin.sha256:
        # Without a hash nobody would notice that the rest is another file's.
        file.truncate(0)
    for attempt in range(_ATTEMPTS):
        before = file.seek(0, os.SEEK_END)
        try:
            return _stream(http, origin, file, on_progress, most_bytes)
        except (httpx.TransportError, _Cut):
            # Once for nothing; after that only while more and more of it comes.
            if attempt and file.seek(0, os.SEEK_END) <= before:
                break
            time.sleep(pause * (attempt + 1))
            if not origin.sha256:
                file.truncate(0)
    raise PullError(f"The connection to {origin.site} breaks", fix="Run the same command again: it goes on from there.")


class _Cut(Exception):
    """Fewer bytes came than were announced."""


def _stream(
    http: httpx.Client,
    origin: Origin,
    file: IO[bytes],
    on_progress: Callable[[int, int | None], None],
    most_bytes: int,
) -> Origin:
    have = file.seek(0, os.SEEK_END)
    headers = _authorization(origin) | ({"Range": f"bytes={have}-"} if have else {})
    with http.stream("GET", origin.url, headers=headers, follow_redirects=True) as answer:
        if answer.status_code == 416 and have:
            # All is here, or more than all; the hash tells which.
            return origin
        _refused(answer, origin)
        origin = _told(answer, origin)
        if not _goes_on(answer, have):
            file.truncate(0)
            have = 0
        total = _total(answer, have)
        _fits(file, have, total, most_bytes)
        on_progress(have, total)
        for chunk in answer.iter_bytes():
            if not have:
                _magic(chunk, origin)
            have += len(chunk)
            if have > most_bytes:
                raise _Wrong(f"The file is larger than {most_bytes / 2**30:.0f} GiB", fix="Is that the right file?")
            file.write(chunk)
            on_progress(have, total)
        file.flush()
    if total is not None and have < total:
        raise _Cut
    return origin


def _goes_on(answer: httpx.Response, have: int) -> bool:
    return answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _total(answer: httpx.Response, have: int) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return have + int(length) if length.isdecimal() else None


def _told(answer: httpx.Response, origin: Origin) -> Origin:
    """The hub tells the hash of a large file in the answer that leads on to where it lies."""
    for each in (*answer.history, answer):
        tag = each.headers.get("X-Linked-ETag", "").strip('W/"')
        if not origin.sha256 and re.fullmatch(r"[0-9a-f]{64}", tag):
            return replace(origin, sha256=tag)
    return origin


def _fits(file: IO[bytes], have: int, total: int | None, most_bytes: int) -> None:
    if total is None:
        return
    if total > most_bytes:
        raise _Wrong(f"The file has {total / 2**30:.1f} GiB, too much", fix="Is that the right file?")
    if shutil.disk_usage(Path(file.name).parent).free < total - have:
        raise OSError(errno.ENOSPC, f"{(total - have) / 1e9:.1f} GB are needed")


def _magic(start: bytes, origin: Origin) -> None:
    length = int.from_bytes(start[:8], "little")
    if len(start) >= 9 and not (2 <= length <= _MOST_HEADER and start[8:9] == b"{"):
        raise _Wrong(f"{origin.site} answered with something else than a .safetensors", fix="Check the source.")


def _authorization(origin: Origin) -> dict[str, str]:
    """The client itself leaves it out where an answer leads on to another host."""
    return {"Authorization": f"Bearer {origin.token}"} if origin.token else {}


def _refused(answer: httpx.Response, origin: Origin) -> None:
    status = answer.status_code
    if origin.early_until and status in (401, 402, 403):
        raise PullError(
            f"{origin.name} is in early access at {origin.site} until {origin.early_until}",
            fix="Buy it there with the account of the token, or wait.",
        )
    # Civitai leads who is not signed in to its login page instead of refusing.
    if status in (401, 403) or answer.url.path.startswith("/login"):
        raise PullError(f"{origin.site} does not give that file to everyone", fix=_token_fix(origin))
    if status == 404:
        raise PullError(f"{origin.site} has no such file", fix="Check the source; it may have been taken down.")
    if status == 429:
        raise PullError(f"{origin.site} says that it was asked too often", fix="Run the same command again later.")
    if not 200 <= status < 300:
        raise PullError(f"{origin.site} answers with HTTP {status}", fix="Run the same command again later.")


def _token_fix(origin: Origin) -> str:
    if origin.token:
        return f"Accept its licence there with the account of {origin.token_variable}, or use another token."
    if origin.token_variable:
        return f"Set {origin.token_variable} to a token of your account there; a name that is wrong looks the same."
    return "Name the variable that holds your token with --token-env."


@contextmanager
def _answers(origin: Origin) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as exc:
        raise PullError(f"{origin.site} does not answer", fix="Check the network and try again.") from exc


@contextmanager
def _disk(into: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PullError(f"The disk of {into} is full", fix="Free some space and run the same command.") from exc
        raise


def _right(part: Path, origin: Origin) -> str:
    """Its SHA-256."""
    sha256 = _sha256(part)
    if origin.sha256 and sha256 != origin.sha256:
        raise _Wrong(
            f"What came is not what {origin.site} promised: SHA-256 {sha256[:12]}…, not {origin.sha256[:12]}…",
            fix="It was deleted; run the same command again.",
        )
    try:
        _header(part)
    except (ValueError, RecursionError):
        raise _Wrong(f"{origin.site}'s file is no whole .safetensors", fix="Check the source.") from None
    return sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(path: Path) -> dict[str, Any]:
    """Raises `ValueError` unless the file is a whole safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _MOST_HEADER:
            raise ValueError(length)
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(header)
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    if 8 + length + max(ends, default=0) != path.stat().st_size:
        raise ValueError(path)
    return header


def _pulled(path: Path, origin: Origin, sha256: str) -> Pulled:
    header = _header(path)
    notes = header.get("__metadata__") or {}
    told = str(notes.get("modelspec.architecture") or notes.get("ss_base_model_version") or "")
    family = origin.family or _family(told, _ARCHITECTURES)
    whole = origin.whole_model if origin.whole_model is not None else not any("lora" in key for key in header)
    words = tuple(word for text in origin.words for word in [_plain(text)] if word)
    toml = _model_toml(path, origin.name, family) if whole else _lora_toml(path, origin.name, family, sha256, words)
    return Pulled(path=path, sha256=sha256, bytes=path.stat().st_size, toml=toml)


def _lora_toml(path: Path, name: str, family: str, sha256: str, words: tuple[str, ...]) -> str:
    lines = [
        f"[loras.{name}]",
        f"source = {json.dumps(str(path.resolve()))}",
        _family_line(family),
        f'sha256 = "{sha256}"',
        *([f"# trigger words: {'; '.join(words)}"] if words else []),
    ]
    return "\n".join(lines) + "\n"


def _model_toml(path: Path, name: str, family: str) -> str:
    folder = path.resolve().with_suffix("")
    pipeline = _SINGLE_FILE_PIPELINES.get(family, "Diffusion")
    lines = [
        "# This is a whole model in one file, and the worker loads diffusers folders. Convert it once:",
        f'#   python -c "from diffusers import {pipeline}Pipeline as P;'
        f' P.from_single_file({str(path.resolve())!r}).save_pretrained({str(folder)!r})"',
        f"[models.{name}]",
        f"source = {json.dumps(str(folder))}",
        _family_line(family),
    ]
    return "\n".join(lines) + "\n"


def _family_line(family: str) -> str:
    return f'family = "{family}"' if family else f'family = ""  # unknown: write one of {", ".join(FAMILIES)}'


def _plain(text: str) -> str:
    """One line, since a line of a stranger's choosing could be a setting."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200]
