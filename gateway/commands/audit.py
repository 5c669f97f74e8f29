"""``imgen audit``: hand out the audit, and check what was handed out."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from compliance.credentials import Credentials
    from compliance.ledger import Report
    from gateway.settings import Settings

app = typer.Typer(help="Every verdict on record: hand it out, and check what was handed out.", no_args_is_help=True)

Data = Annotated[Path | None, typer.Option(help="Data folder; IMGEN_DATA, or var.", show_default=False)]
#: Entries that are read at once.
PAGE = 1000


@app.command("export")
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.", show_default=False)],
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Begin there (UTC); all of it.", show_default=False
        ),
    ] = None,
    data: Data = None,
) -> None:
    """Write the audit as JSON lines, sealed with the key that signs the pictures."""
    import asyncio

    from gateway.signing import signing_credentials

    settings = _settings(data)
    credentials = signing_credentials(settings)
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f".{output.name}.part")
    try:
        asyncio.run(_write(settings, credentials, since, part))
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    _tell(_read(output, credentials.anchors_pem))
    typer.echo(str(output))


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(help="An export.", exists=True, dir_okay=False)],
    anchors: Annotated[
        Path | None, typer.Option(help="PEM roots to trust; this desk's own.", show_default=False)
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option(help="An earlier export that this one must go on from.", exists=True, dir_okay=False),
    ] = None,
    data: Data = None,
) -> None:
    """Say whether an export is as it was written: nothing changed, taken out, moved or cut off, and by whom sealed."""
    trusted = _anchors(_settings(data), anchors)
    earlier = _read(after, trusted) if after else None
    if earlier and not earlier.intact:
        from gateway.console import fail

        raise fail(f"{after} is broken: {earlier.problems[0]}", "Compare with an export that is intact.")
    _tell(_read(file, trusted, earlier))


def _read(file: Path, anchors: bytes, earlier: Report | None = None) -> Report:
    from compliance.ledger import verify as read

    with file.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        return read(lines, anchors, earlier)


def _tell(report: Report) -> None:
    """Exit code 1 when anything is wrong."""
    from gateway.console import facts

    facts(
        [
            ("state", "intact" if report.intact else "broken"),
            ("entries", f"{report.count}, {report.first} to {report.last}" if report.count else "0"),
            ("begins", "with the first entry of all" if report.whole else f"after {report.previous}"),
            ("ends", f"with {report.hash}"),
            ("exported", report.exported_at),
            ("signer", report.signer),
            ("issuer", report.issuer),
            *(("problem", problem) for problem in report.problems),
        ]
    )
    if not report.intact:
        raise typer.Exit(1)


async def _write(settings: Settings, credentials: Credentials, since: datetime | None, path: Path) -> None:
    from datetime import UTC

    from compliance.ledger import GENESIS, Export
    from gateway.desk.store import open_database
    from gateway.jobs.audit import SqlAudit

    async with open_database(settings) as database:
        audit = SqlAudit(database)
        after = await audit.since(since.replace(tzinfo=UTC).timestamp()) if since else 0
        before = await audit.after(after - 1, 1) if after else []
        writer = Export(before[0].hash if before else GENESIS)
        newest = await audit.head()
        # What is written meanwhile is for the next export.
        end = newest.entry.seq if newest else 0
        with path.open("w", encoding="ascii", newline="\n") as file:
            file.write(writer.head + "\n")
            while after < end and (links := await audit.after(after, min(PAGE, end - after))):
                file.writelines(writer.line(link) + "\n" for link in links)
                after = links[-1].entry.seq
            file.write(writer.seal(credentials, datetime.now(UTC)) + "\n")


def _anchors(settings: Settings, file: Path | None) -> bytes:
    """The roots to trust: those named, the configured ones, or the development authority's. None is an answer, too."""
    from gateway.signing import authority_folder

    path = file or settings.signing_anchors or authority_folder(settings) / "anchors.pem"
    return path.read_bytes() if file or path.exists() else b""


def _settings(data: Path | None) -> Settings:
    from gateway.settings import Settings

    return Settings.from_environ({**os.environ, **({"IMGEN_DATA": str(data)} if data else {})})
