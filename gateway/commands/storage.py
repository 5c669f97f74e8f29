"""``imgen storage``: whether pictures can be stored where the settings say, and the bucket's own rules."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gateway.settings import Settings
    from gateway.storage.bucket import Bucket

app = typer.Typer(help="Where pictures lie: try it out, and set the bucket's rules.", no_args_is_help=True)


@app.command("check")
def check() -> None:
    """Go through everything that the storage needs, step by step. Exit code 1 when something fails."""
    from gateway.console import table
    from gateway.storage.trial import try_out

    settings = _settings()
    if not settings.s3_bucket:
        _check_folder(settings)
        return
    with _open(settings) as bucket:
        trial = try_out(bucket)
    table(("STEP", "", "REMARK"), [(step.name, step.state, step.remark) for step in trial.steps])
    raise typer.Exit(1 if trial.failed else 0)


@app.command("lifecycle")
def lifecycle(
    apply: Annotated[bool, typer.Option("--apply", help="Put them on the bucket; rules of others stay.")] = False,
) -> None:
    """Print the rules by which the bucket removes old objects itself: raw uploads, and originals where set."""
    from gateway.console import say
    from gateway.errors import SettingsError
    from gateway.storage.lifecycle import merged, rules

    settings = _settings()
    if not settings.s3_bucket:
        raise SettingsError(
            "IMGEN_S3_BUCKET: the pictures lie in a folder, which has no such rules",
            fix="The gateway clears the folder of raw pictures itself when it starts.",
        )
    wanted = rules(settings.s3_prefix, quarantine_days=settings.s3_quarantine_days, master_days=settings.s3_master_days)
    if not apply:
        typer.echo(json.dumps({"Rules": wanted}, indent=2))
        return
    with _open(settings) as bucket:
        there = bucket.rules()
        whole = merged(there["Rules"], settings.s3_prefix, wanted)
        if whole == there["Rules"]:
            say("The bucket has these rules already.")
            return
        bucket.put_rules({**there, "Rules": whole})
    for rule in wanted:
        typer.echo(f"{rule['ID']}  {rule['Filter']['Prefix']}  {rule['Expiration']['Days']} days")
    say(f"Rules of others on the bucket, untouched: {len(whole) - len(wanted)}.")


def _check_folder(settings: Settings) -> None:
    import asyncio

    from gateway.console import fail
    from gateway.signing import secret_of
    from gateway.storage.build import storage_of

    async def look() -> str:
        storage = storage_of(settings, secret=secret_of(settings))
        async with storage.open():
            return (await storage.readiness()).reason

    if problem := asyncio.run(look()):
        raise fail(f"{problem}.")
    typer.echo(f"pictures in {settings.data / 'pictures'}: ok")


@contextlib.contextmanager
def _open(settings: Settings) -> Iterator[Bucket]:
    """The bucket; what it refuses is told in one sentence."""
    from gateway.console import fail
    from gateway.storage.bucket import Bucket
    from gateway.storage.build import place_of
    from gateway.storage.faults import Fault

    bucket = Bucket(place_of(settings))
    try:
        bucket.prepare()
        yield bucket
    except Fault as fault:
        raise fail(f"the bucket: {fault}.") from None
    finally:
        bucket.close()


def _settings() -> Settings:
    from gateway.settings import Settings

    return Settings.from_environ(os.environ)
