"""``imgen verify``: who signed a picture, whether that holds, and which of ours a copy without credentials is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gateway.settings import Settings

Data = Annotated[Path | None, typer.Option(help="Data folder; IMGEN_DATA, or var.", show_default=False)]


def verify(
    file: Annotated[Path, typer.Argument(help="A picture; - reads it from the standard input.", allow_dash=True)],
    anchors: Annotated[
        Path | None, typer.Option(help="PEM roots to trust; this desk's own.", show_default=False)
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask a gateway instead; no key is needed.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as POST /api/verify answers it.")] = False,
    data: Data = None,
) -> None:
    """Say who signed a picture, when and with which model, and whether that holds.

    A copy without credentials is looked for among the pictures of this desk, or of the gateway that --url names. Ends
    with 0 when the picture is signed and unchanged, with 1 in every other case.
    """
    import asyncio

    import orjson

    from gateway.settings import Settings

    content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    if url:
        from gateway.client import Client

        with Client(url, "") as client:
            told = client.verify(content)
    else:
        settings = Settings.from_environ({**os.environ, **({"IMGEN_DATA": str(data)} if data else {})})
        told = asyncio.run(_examine(settings, anchors, content))
    if as_json:
        typer.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    else:
        _show(told)
    raise typer.Exit(0 if told["state"] in {"trusted", "valid"} else 1)


async def _examine(settings: Settings, anchors: Path | None, content: bytes) -> dict[str, Any]:
    """On this machine: against this desk's roots and, where it has any, among its pictures."""
    import time

    from gateway.core.recognition import Recognition
    from gateway.desk.store import open_database
    from gateway.dialects.provenance import findings_as_json
    from gateway.jobs.records import SqlRecords
    from gateway.jobs.store import SqlJobs
    from gateway.signing import anchors_of, pixel_mark_of, secret_of

    if not _has_pictures(settings):
        from compliance.verify import verify as read
        from gateway.core.recognition import Findings

        return findings_as_json(Findings(report=read(content, anchors_of(settings, anchors))))
    async with open_database(settings) as database:
        recognition = Recognition(
            records=SqlRecords(database),
            jobs=SqlJobs(database),
            pixel_mark=pixel_mark_of(settings, secret_of(settings)),
            anchors=anchors_of(settings, anchors),
            threads=1,
            now=time.monotonic,
        )
        await recognition.open()
        return findings_as_json(await recognition.examine(content))


def _has_pictures(settings: Settings) -> bool:
    """Whether a gateway ever ran on these settings: looking must not make anything."""
    has_secret = bool(settings.secret) or (settings.data / "secret").exists()
    return has_secret and (bool(settings.database_url) or (settings.data / "imgen.db").exists())


def _show(told: dict[str, Any]) -> None:
    from gateway.console import facts

    signer = told["signer"] or {}
    facts(
        [
            ("state", told["state"]),
            ("summary", told["summary"]),
            ("signer", signer.get("name", "")),
            ("issuer", signer.get("issuer", "")),
            ("when", told["time"] or ""),
            ("generator", told["generator"] or ""),
            ("model", told["model"] or ""),
            ("actions", ", ".join(action["action"] for action in told["actions"])),
            *(("claims", f"{name}: {text}") for name, text in told["claims"].items()),
            *(("problem", failure) for failure in told["failures"]),
            *(("found", _found(match)) for match in told["found"]),
        ]
    )


def _found(match: dict[str, Any]) -> str:
    mirrored = ", mirrored" if match["mirrored"] else ""
    return f"{match['id']} of {match['created']}, drawn by {match['model']}; by {' and '.join(match['by'])}{mirrored}"
