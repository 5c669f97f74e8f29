"""What the command line shows to a person: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import typer

from compliance.errors import ComplianceError
from gateway.client import Client, Picture, PictureBlocked, Progress, Ticket
from gateway.errors import GatewayError


def say(text: str) -> None:
    typer.echo(text, err=True)


def fail(problem: str, fix: str | None = None) -> typer.Exit:
    """Says what is wrong and how to mend it; to be raised."""
    say(f"imgen: {problem}")
    if fix:
        say(f"       {fix}")
    return typer.Exit(1)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Known errors become one line, their fix another, and exit code 1; anything else is a bug and keeps its trace."""
    try:
        yield
    except PictureBlocked as exc:
        raise fail(f"{exc.message}.", f"Rules: {', '.join(exc.categories)}" if exc.categories else None) from None
    except (GatewayError, ComplianceError) as exc:
        raise fail(exc.message, exc.fix) from None
    except OSError as exc:
        raise fail(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Plain columns, so that other programs can read them too."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Name and value, line by line; what has no value is left out."""
    for name, value in rows:
        if value:
            typer.echo(f"{name:<10} {plain(value)}")


def plain(text: str) -> str:
    """Text without what moves a terminal's cursor or colours: a stranger's file may speak here."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def warn(ticket: Ticket) -> None:
    for warning in ticket.warnings:
        used = f", used {warning['used']!r}" if warning.get("used") else ""
        say(f"warning: {warning.get('field')}: {warning.get('given')!r}{used} ({warning.get('code')})")


@contextlib.contextmanager
def downloading() -> Iterator[Callable[[int, int | None], None]]:
    """A bar that is told the bytes so far and in all. Only a terminal sees it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    screen = Console(stderr=True)
    with Bar(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def wait(client: Client, ticket: Ticket, also: Callable[[Progress], None] = lambda progress: None) -> Picture:
    """Waits for a job with a progress bar that shows what the worker reports. Ctrl-C cancels the job."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    screen = Console(stderr=True)
    with Bar(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("queued", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, description=stage(progress), completed=progress.step, total=progress.total_steps or None)
            also(progress)

        try:
            return client.wait(ticket, show, every=0.25)
        except KeyboardInterrupt:
            with contextlib.suppress(GatewayError):
                client.cancel(ticket)
            raise


def stage(progress: Progress) -> str:
    """In a word, where a job is."""
    if progress.status == "IN_QUEUE":
        return "queued"
    return "finishing" if 0 < progress.total_steps <= progress.step else "drawing"
