"""The command line. What a command needs is imported when it runs, so that ``imgen --help`` is there at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway import __version__
from gateway.commands.acs import acs
from gateway.commands.appeals import app as appeals_app
from gateway.commands.audit import app as audit_app
from gateway.commands.cache import app as cache_app
from gateway.commands.jobs import app as jobs_app
from gateway.commands.rulesets import app as rulesets_app
from gateway.commands.storage import app as storage_app
from gateway.commands.verify import verify

if TYPE_CHECKING:
    from gateway.client import Client
    from gateway.settings import Settings


class _Commands(typer.core.TyperGroup):
    """Known errors of any command are told in one line and its fix, never as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        from gateway.console import told

        with told():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="One POST in, a reviewed and signed picture out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="API keys, made and ended straight in the job store.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
models_app = typer.Typer(invoke_without_command=True)
app.add_typer(models_app, name="models")
app.command()(acs)
app.command()(verify)
app.add_typer(audit_app, name="audit")
app.add_typer(appeals_app, name="appeals")
app.add_typer(cache_app, name="cache")
app.add_typer(jobs_app, name="jobs")
app.add_typer(rulesets_app, name="rulesets")
app.add_typer(storage_app, name="storage")

Data = Annotated[Path | None, typer.Option(help="Data folder; IMGEN_DATA, or var.", show_default=False)]
Host = Annotated[str | None, typer.Option(help="Address to listen on; IMGEN_HOST, or 127.0.0.1.", show_default=False)]
Port = Annotated[int | None, typer.Option(help="Port to listen on; IMGEN_PORT, or 8080.", show_default=False)]
Url = Annotated[str | None, typer.Option(help="A gateway; the one of this data folder.", show_default=False)]
Key = Annotated[
    str | None, typer.Option(help="API key; IMGEN_API_KEY, or the one in the data folder.", show_default=False)
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every line of the children's logs.")]


def main() -> None:
    app(prog_name="imgen")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"imgen {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def up(host: Host = None, port: Port = None, data: Data = None, verbose: Verbose = False) -> None:
    """Start everything on this machine and keep it running: gateway, local endpoint and worker."""
    import asyncio

    settings = _settings(host=host, port=port, data=data)
    raise typer.Exit(asyncio.run(_up(settings, verbose=verbose)))


async def _up(settings: Settings, *, verbose: bool) -> int:
    import asyncio
    import time

    from gateway.console import say
    from gateway.desk.keys import key_file, read_key
    from gateway.desk.stack import Stack, open_stack
    from gateway.settings import Settings

    async def announce(stack: Stack) -> None:
        if await stack.ready(say):
            typer.echo(f"ready    {stack.url}  after {time.monotonic() - began:.1f} s")
            typer.echo(f'         try: imgen generate "@aya on a hill, -fog" -o aya.jpg{elsewhere}')

    began = time.monotonic()
    elsewhere = "" if settings.data == Settings.from_environ({}).data else f" --data {settings.data}"
    if settings.backend_url:
        say("IMGEN_BACKEND_URL is not used here: imgen up brings its own endpoint, imgen serve uses yours.")
    async with open_stack(settings, os.environ, say=say, verbose=verbose) as stack:
        typer.echo(f"imgen    {stack.url}  (data and logs in {settings.data}; Ctrl-C stops)")
        if stack.new_key:
            typer.echo(f"API key  {stack.new_key}")
            typer.echo(f"         shown this once; imgen generate finds it in {key_file(settings.data)}")
        elif not (settings.api_key or read_key(settings.data)):
            typer.echo(f"API key  those of the former starts; a new one: imgen keys create{elsewhere}")
        announcing = asyncio.create_task(announce(stack))
        await stack.desk.stop_wanted()
        say("stopping; press Ctrl-C again to stop at once")
        announcing.cancel()
        return await stack.finished


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    data: Data = None,
    fd: Annotated[int | None, typer.Option(hidden=True, help="A socket that listens already.")] = None,
    parent_fd: Annotated[
        int | None, typer.Option(hidden=True, envvar="IMGEN_PARENT_FD", help="A pipe that ends with the supervisor.")
    ] = None,
) -> None:
    """Run the gateway alone; IMGEN_BACKEND_URL says where the GPU endpoint is."""
    if parent_fd is not None:
        from gateway import lifeline

        lifeline.hold(parent_fd)
    import gc

    # What imports make stays for good: to look for garbage among it again and again takes a sixth of their time.
    gc.disable()
    from gateway.server import serve as run

    gc.enable()
    run(_settings(host=host, port=port, data=data), fd)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help='What to draw, for example "@aya on a hill, -fog".')],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="See imgen models.", show_default=False)] = None,
    style: Annotated[str | None, typer.Option(help="A style of the model.", show_default=False)] = None,
    size: Annotated[str | None, typer.Option(help="Such as 1344x768.", show_default=False)] = None,
    format: Annotated[
        str | None, typer.Option(help="jpeg, png, webp or avif; the file's own ending.", show_default=False)
    ] = None,
    quality: Annotated[int | None, typer.Option(help="1 to 100.", show_default=False)] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="For webp and avif.")] = False,
    negative: Annotated[str | None, typer.Option(help="What should not be there.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same again.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default=False)] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the words.", show_default=False)] = None,
    n: Annotated[int | None, typer.Option("-n", min=1, max=8, help="How many pictures.", show_default=False)] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="A picture to start from.", exists=True, dir_okay=False, show_default=False),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(min=0, max=1, help="How far to go from the reference.", show_default=False)
    ] = None,
    ruleset: Annotated[str | None, typer.Option(help="Compliance ruleset.", show_default=False)] = None,
    optimize: Annotated[bool, typer.Option("--optimize", help="Have the prompt said better first.")] = False,
    cache: Annotated[bool, typer.Option("--cache", help="Take what was drawn for the same before.")] = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Draw a picture, wait for it and save it; of several each gets a number in its name."""
    from compliance.verify import verify as read
    from gateway import console
    from gateway.client import data_uri
    from gateway.signing import anchors_of

    settings = _settings(data=data)
    width, height = _size(size)
    with _client(settings, url, key) as client:
        ticket = client.generate(
            prompt,
            model=model,
            style=style,
            width=width,
            height=height,
            format=format or _format_of(output),
            quality=quality,
            lossless=lossless or None,
            negative=negative,
            seed=seed,
            steps=steps,
            guidance=guidance,
            n=n,
            references=[{"image": data_uri(file.read_bytes()), "strength": strength} for file in reference or ()]
            or None,
            compliance_ruleset=ruleset,
            optimize=optimize or None,
            use_cache=cache or None,
        )
        console.warn(ticket)
        picture = console.wait(client, ticket)
        contents = [client.download(file) for file in picture.files]
    meta = picture.meta
    if meta.get("cache"):
        console.say(f"from the cache, similarity {meta['similarity']}: {console.plain(meta['matched_prompt'])}")
    for blocked in picture.blocked:
        console.say(f"picture {blocked['index'] + 1}: {blocked['error']} ({', '.join(blocked['filter_categories'])})")
    for file, content in zip(picture.files, contents, strict=True):
        path = output or Path(file.filename)
        if output and (n or 1) > 1:
            path = output.with_stem(f"{output.stem}_{file.index + 1}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        report = read(content, anchors_of(settings))
        console.say(f"{meta['width']}x{meta['height']} {meta['format']}, {len(content):,} bytes, seed {file.seed}")
        console.say(f"{report.state}: signed by {report.signer or 'nobody'}, {report.when}")
        typer.echo(str(path))


@app.command("random")
def random_prompt(
    character: Annotated[
        str | None, typer.Option(help='Whom to call; "" for nobody, and left out for anybody.', show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same again.", show_default=False)] = None,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """A random prompt, for `imgen generate`."""
    with _client(_settings(data=data), url, key) as client:
        typer.echo(client.random(character=character, seed=seed))


@app.command()
def delete(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="As generate returned it: run_….")],
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Take a job and its pictures away for good."""
    from gateway.console import say

    with _client(_settings(data=data), url, key) as client:
        deleted = client.delete(job_id)
    say(f"{deleted['id']} is deleted; it was {deleted['status']}")


@models_app.callback()
def models(context: typer.Context, url: Url = None, key: Key = None, data: Data = None) -> None:
    """List models, styles and characters; pull brings weights onto a worker's volume."""
    if context.invoked_subcommand is not None:
        return
    from gateway.console import table

    with _client(_settings(data=data), url, key) as client:
        known = client.models()
    table(
        ("MODEL", "LABEL", "STYLES", "CHARACTERS"),
        [
            (
                name,
                model["label"],
                " ".join(f"{style}*" if style == model["default_style"] else style for style in model["styles"]),
                " ".join(f"@{character}" for character in model.get("characters", known["characters"])),
            )
            for name, model in known["models"].items()
        ],
    )


@models_app.command("pull")
def pull_model(
    source: Annotated[
        str,
        typer.Argument(help="civitai:<modelVersionId>, hub:owner/name/file.safetensors or https://….safetensors."),
    ],
    into: Annotated[Path, typer.Option(help="The folder that gets the file.", file_okay=False)],
    name: Annotated[str | None, typer.Option(help="The name that jobs use.", show_default=False)] = None,
    token_env: Annotated[
        str | None,
        typer.Option(help="The variable that holds your token; CIVITAI_TOKEN or HF_TOKEN.", show_default=False),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="What the file must be; needed for https.", show_default=False)
    ] = None,
    revision: Annotated[str, typer.Option(help="Of hub: the commit or tag.")] = "main",
) -> None:
    """Download a LoRA or a model, check it and print what models.toml needs."""
    from gateway.console import downloading, say
    from gateway.pull import pull

    with downloading() as show:
        pulled = pull(
            source, into, name=name, token_variable=token_env, sha256=sha256, revision=revision, on_progress=show
        )
    say(f"{pulled.path}, {pulled.bytes:,} bytes, SHA-256 {pulled.sha256}; add to the worker's models.toml:")
    typer.echo(pulled.toml, nl=False)


@app.command()
def check(
    worker: Annotated[
        bool,
        typer.Option(
            "--worker",
            help="Compare the catalogue with what a worker really has. Asking one may start one that you pay for.",
        ),
    ] = False,
    data: Data = None,
) -> None:
    """Look at every part that the gateway needs and say what to mend."""
    import asyncio

    from gateway.check import compared, looks, tried
    from gateway.console import table

    settings = _settings(data=data)
    seen = [("ok", "settings", "")]
    for name, look in looks(settings):
        fine, remark = asyncio.run(tried(look))
        seen.append(("ok" if fine else "failed", name, remark))
    if worker:
        seen += asyncio.run(compared(settings))
    table(("STATE", "PART", "REMARK"), seen)
    raise typer.Exit(0 if all(state == "ok" for state, _, _ in seen) else 1)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("out/demo.jpg"),
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "@aya on a hill, -fog",
    data: Annotated[Path, typer.Option(help="Data folder.")] = Path("var/demo"),
    verbose: Verbose = False,
) -> None:
    """Start everything, draw one picture, verify its signature, say how long each part took, stop."""
    import asyncio

    from gateway.demo import show

    asyncio.run(show(data, os.environ, prompt, output, verbose=verbose))
    typer.echo(str(output))


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Whose it is, for the list.")] = "",
    tenant: Annotated[str, typer.Option(help="Keys of one tenant share their jobs.")] = "default",
    tier: Annotated[str, typer.Option(help="Tier.")] = "standard",
    scope: Annotated[list[str] | None, typer.Option(help="May be given several times.", show_default=False)] = None,
    data: Data = None,
) -> None:
    """Make a key. Its secret is shown this once."""
    import asyncio

    from gateway.console import say
    from gateway.desk import keys

    settings = _settings(data=data)

    async def run() -> tuple[str, str]:
        async with keys.open_keys(settings) as store:
            key, secret = await keys.create_key(
                store, name=name, tenant=tenant, tier=tier, scopes=frozenset(scope or ())
            )
        return key.id, secret

    key_id, secret = asyncio.run(run())
    say(f"{key_id}; its secret is shown this once:")
    typer.echo(secret)


@keys_app.command("list")
def list_keys(data: Data = None) -> None:
    """List the keys. Nobody knows their secrets."""
    import asyncio
    from datetime import UTC, datetime

    from gateway.console import table
    from gateway.core.images import ApiKey
    from gateway.desk import keys

    settings = _settings(data=data)

    async def run() -> list[ApiKey]:
        async with keys.open_keys(settings) as store:
            return list(await store.list())

    table(
        ("ID", "SECRET", "NAME", "TENANT", "TIER", "SCOPES", "CREATED", "STATE"),
        [
            (
                key.id,
                f"{key.prefix}…",
                key.name,
                key.tenant,
                key.tier,
                " ".join(sorted(key.scopes)),
                datetime.fromtimestamp(key.created_at, UTC).isoformat(sep=" ", timespec="seconds"),
                keys.state(key),
            )
            for key in asyncio.run(run())
        ],
    )


@keys_app.command("disable")
def disable_key(key_id: Annotated[str, typer.Argument(metavar="ID")], data: Data = None) -> None:
    """End a key at once."""
    import asyncio
    import time

    from gateway.console import fail, say
    from gateway.desk import keys

    settings = _settings(data=data)

    async def run() -> bool:
        async with keys.open_keys(settings) as store:
            return await store.disable(key_id, now=time.time())

    if not asyncio.run(run()):
        raise fail(f"There is no active key {key_id}.", "See: imgen keys list")
    say(f"{key_id} is disabled")


@keys_app.command("release")
def release_key(
    key_id: Annotated[str, typer.Argument(metavar="ID")],
    by: Annotated[str, typer.Option(help="Who has looked into it, for the audit.")],
    data: Data = None,
) -> None:
    """Accept a key again that was held after a review."""
    import asyncio

    from gateway.console import fail, say
    from gateway.desk import keys

    if not asyncio.run(keys.release_key(_settings(data=data), key_id, by=by)):
        raise fail(f"There is no held key {key_id}.", "See: imgen keys list")
    say(f"{key_id} is accepted again")


def _settings(**given: object) -> Settings:
    """The settings of the environment, but for what the command line says."""
    from gateway.settings import PREFIX, Settings

    said = {PREFIX + name.upper(): str(value) for name, value in given.items() if value is not None}
    return Settings.from_environ({**os.environ, **said})


def _client(settings: Settings, url: str | None, key: str | None) -> Client:
    """A client of the gateway that was named, or of the desk that runs on the data folder."""
    from gateway.client import Client
    from gateway.desk.claim import read_note
    from gateway.desk.keys import read_key

    return Client(
        url or settings.public_url or str(read_note(settings.data).get("url") or "") or settings.base_url(),
        key or settings.api_key or read_key(settings.data),
    )


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise typer.BadParameter("Give width and height, such as 1344x768.", param_hint="--size")
    return int(width), int(height)


def _format_of(file: Path | None) -> str | None:
    """The format that a file's name asks for."""
    ending = file.suffix.lower().lstrip(".") if file else ""
    return "jpeg" if ending == "jpg" else ending or None
