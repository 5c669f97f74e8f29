"""``imgen models pull`` against servers that behave as Civitai, the Hugging Face hub and their stores do."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import shutil
import threading
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway import pull as pulling
from gateway.cli import app
from gateway.pull import FAMILIES, PullError, pull
from handler.families import FAMILIES as WORKER_FAMILIES
from handler.families import OTHER
from handler.models import read_models


def safetensors(*keys: str, size: int = 4000, **notes: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": notes} if notes else {}
    for index, key in enumerate(keys):
        header[key] = {"dtype": "U8", "shape": [size], "data_offsets": [index * size, (index + 1) * size]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + os.urandom(len(keys) * size)


LORA = safetensors("unet.x.lora_A.weight", "unet.x.lora_B.weight", ss_base_model_version="sdxl_base_v1-0")
SHA256 = hashlib.sha256(LORA).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Answers with what ``answer`` does; ``asked`` are path, Authorization and Range."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.answer: Callable[[http.server.BaseHTTPRequestHandler], None] = lambda request: None
        super().__init__(("127.0.0.1", 0), _Request)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Request(http.server.BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization"), self.headers.get("Range")))
        self.server.answer(self)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def send(request: Any, status: int, body: bytes = b"", **headers: str) -> None:
    request.send_response(status)
    for key, value in {"Content_Length": str(len(body)), **headers}.items():
        request.send_header(key.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


@dataclass
class Store:
    """Holds one file behind signed addresses; ``cuts`` are the bytes after which the next answers break off."""

    server: Server
    body: bytes = LORA
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True

    def answer(self, request: Any) -> None:
        start = 0
        if self.ranges and (wanted := request.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.body):
                send(request, 416)
                return
        rest = self.body[start:]
        told = {"Content_Range": f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"} if start else {}
        body = rest[: self.cuts.pop(0)] if self.cuts else rest
        send(request, 206 if start else 200, body, Content_Length=str(len(rest)), **told)


def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store() -> Iterator[Store]:
    for server in serving():
        store = Store(server)
        server.answer = store.answer
        yield store


@dataclass
class Site:
    """Civitai and the hub at once; ``version`` is what Civitai tells of every model version."""

    server: Server
    store: Store
    version: dict[str, Any]
    needs: str | None = None
    refusal: int = 401

    def answer(self, request: Any) -> None:
        if self.needs and request.headers.get("Authorization") != f"Bearer {self.needs}":
            send(request, self.refusal)
        elif request.path == "/api/v1/model-versions/7":
            send(request, 200, json.dumps(self.version).encode())
        elif request.path == "/api/download/models/7":
            send(request, 307, Location=f"{self.store.server.url}/signed?key=secret")
        elif request.path == "/someone/loras/resolve/main/old/Aya%20v2.safetensors":
            told = {"X_Linked_ETag": f'"{hashlib.sha256(self.store.body).hexdigest()}"'}
            send(request, 302, Location=f"{self.store.server.url}/signed", **told)
        else:
            send(request, 404)


@pytest.fixture
def site(store: Store) -> Iterator[Site]:
    for server in serving():
        file = {
            "name": "aya.safetensors",
            "type": "Model",
            "primary": True,
            "metadata": {"format": "SafeTensor"},
            "hashes": {"SHA256": SHA256.upper()},
            "downloadUrl": f"{server.url}/api/download/models/7",
        }
        other = {"name": "aya.pt", "type": "Model", "metadata": {"format": "PickleTensor"}, "downloadUrl": "x"}
        version = {
            "id": 7,
            "baseModel": "Illustrious",
            "trainedWords": ["aya, girl", 'x\n[loras.evil]\nsource = "/etc"'],
            "model": {"name": "Aya (the Girl) XL", "type": "LORA"},
            "files": [other, file],
        }
        site = Site(server, store, version)
        server.answer = site.answer
        yield site


def get(site: Site, source: str, into: Path, **more: Any) -> pulling.Pulled:
    return pull(source, into, **{"environ": {}, "civitai": site.server.url, "hub": site.server.url, "pause": 0, **more})


def test_a_lora_of_civitai_comes_with_what_models_toml_needs(site: Site, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    pulled = get(site, "civitai:7", tmp_path / "loras", on_progress=lambda *done: told.append(done))
    assert pulled.path == tmp_path / "loras" / "aya-the-girl-xl.safetensors"
    assert pulled.path.read_bytes() == LORA and pulled.bytes == len(LORA) and pulled.sha256 == SHA256
    assert [path.name for path in pulled.path.parent.iterdir()] == [pulled.path.name]
    assert told[0] == (0, len(LORA)) and told[-1] == (len(LORA), len(LORA))
    table = tomllib.loads(pulled.toml)
    assert table == {"loras": {"aya-the-girl-xl": {"source": str(pulled.path), "family": "sdxl", "sha256": SHA256}}}, (
        "a stranger's trigger word adds no setting"
    )
    assert "# trigger words: aya, girl; x [loras.evil]" in pulled.toml


def test_the_worker_reads_the_snippet(site: Site, tmp_path: Path) -> None:
    toml = get(site, "civitai:7", tmp_path).toml
    builtin = Path(__file__).parents[2] / "handler" / "builtin" / "model"
    (tmp_path / "models.toml").write_text(f"[models.builtin]\nsource = {json.dumps(str(builtin))}\n{toml}")
    lora = read_models(tmp_path / "models.toml").loras["aya-the-girl-xl"]
    assert (lora.family.name, lora.sha256) == ("sdxl", SHA256)


def test_a_token_goes_to_the_site_and_never_on_to_the_store(site: Site, store: Store, tmp_path: Path) -> None:
    site.needs = "secret"
    get(site, "civitai:7", tmp_path, environ={"CIVITAI_TOKEN": "secret"})
    get(site, "hub:someone/loras/old/Aya v2.safetensors", tmp_path, environ={"MINE": "secret"}, token_variable="MINE")
    assert {authorization for _, authorization, _ in site.server.asked} == {"Bearer secret"}
    assert [authorization for _, authorization, _ in store.server.asked] == [None, None]


def test_a_token_is_not_sent_to_an_address_elsewhere_that_civitai_names(
    site: Site, store: Store, tmp_path: Path
) -> None:
    site.version["files"][1]["downloadUrl"] = f"{store.server.url}/direct"
    get(site, "civitai:7", tmp_path, environ={"CIVITAI_TOKEN": "secret"})
    assert [authorization for _, authorization, _ in store.server.asked] == [None]


def test_a_file_of_the_hub_is_held_to_the_hash_that_the_hub_tells(site: Site, tmp_path: Path) -> None:
    pulled = get(site, "hub:someone/loras/old/Aya v2.safetensors", tmp_path, name="aya")
    assert pulled.path.name == "aya.safetensors"
    table = tomllib.loads(pulled.toml)["loras"]["aya"]
    assert table["family"] == "sdxl", "from the notes in its header"
    assert table["sha256"] == SHA256


def test_a_download_that_breaks_goes_on_where_it_stopped(site: Site, store: Store, tmp_path: Path) -> None:
    store.cuts = [1000, 2000, 500]
    assert get(site, "civitai:7", tmp_path).path.read_bytes() == LORA
    assert [wanted for _, _, wanted in store.server.asked] == [None, "bytes=1000-", "bytes=3000-", "bytes=3500-"]


def test_what_is_left_of_a_broken_download_can_not_be_loaded_and_serves_the_next(
    site: Site, store: Store, tmp_path: Path
) -> None:
    store.cuts = [1000, 0, 0, 0]
    with pytest.raises(PullError, match="connection to Civitai breaks") as caught:
        get(site, "civitai:7", tmp_path, name="aya")
    assert caught.value.fix == "Run the same command again: it goes on from there."
    assert [path.name for path in tmp_path.iterdir()] == ["aya.safetensors.part"]
    store.cuts.clear()
    store.server.asked.clear()
    assert get(site, "civitai:7", tmp_path, name="aya").path.read_bytes() == LORA
    assert store.server.asked[0][2] == "bytes=1000-"
    assert [path.name for path in tmp_path.iterdir()] == ["aya.safetensors"]


def test_a_store_that_knows_no_ranges_sends_all_again(site: Site, store: Store, tmp_path: Path) -> None:
    store.ranges, store.cuts = False, [1000]
    assert get(site, "civitai:7", tmp_path).path.read_bytes() == LORA


def test_a_part_that_is_whole_already_only_needs_its_name(site: Site, tmp_path: Path) -> None:
    (tmp_path / "aya.safetensors.part").write_bytes(LORA)
    assert get(site, "civitai:7", tmp_path, name="aya").path.read_bytes() == LORA


def test_a_wrong_file_leaves_nothing(site: Site, store: Store, tmp_path: Path) -> None:
    store.body = LORA[:-1] + bytes([LORA[-1] ^ 1])
    with pytest.raises(PullError, match="not what Civitai promised"):
        get(site, "civitai:7", tmp_path)
    (tmp_path / "aya.safetensors.part").write_bytes(LORA + b"more")
    with pytest.raises(PullError, match="not what Civitai promised"):
        get(site, "civitai:7", tmp_path, name="aya")
    store.body = b"<!DOCTYPE html><title>Sign in</title>"
    with pytest.raises(PullError, match=r"something else than a \.safetensors"):
        get(site, "civitai:7", tmp_path)
    store.body = LORA + b"more"
    with pytest.raises(PullError, match=r"no whole \.safetensors"):
        get(site, "hub:someone/loras/old/Aya v2.safetensors", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_same_again_downloads_nothing_and_another_file_is_not_overwritten(site: Site, tmp_path: Path) -> None:
    first = get(site, "civitai:7", tmp_path, name="aya")
    site.store.server.asked.clear()
    assert get(site, "civitai:7", tmp_path, name="aya") == first
    assert not site.store.server.asked
    first.path.write_bytes(b"mine")
    with pytest.raises(PullError, match="is there already"):
        get(site, "civitai:7", tmp_path, name="aya")
    assert first.path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("refusal", "environ", "fix"),
    [
        (401, {}, "Set CIVITAI_TOKEN to a token"),
        (403, {"CIVITAI_TOKEN": "wrong"}, "Accept its licence there with the account of CIVITAI_TOKEN"),
        (404, {}, "it may have been taken down"),
        (429, {}, "again later"),
        (503, {}, "again later"),
    ],
)
def test_a_refusal_is_told_with_its_fix(
    refusal: int, environ: dict[str, str], fix: str, site: Site, tmp_path: Path
) -> None:
    site.needs, site.refusal = "secret", refusal
    with pytest.raises(PullError) as caught:
        get(site, "civitai:7", tmp_path, environ=environ)
    assert fix in (caught.value.fix or "")


def test_early_access_and_the_login_page_are_understood(site: Site, tmp_path: Path) -> None:
    def answer(request: Any) -> None:
        if request.path.startswith("/api/download"):
            send(request, 403)
        else:
            site.answer(request)

    site.server.answer = answer
    site.version |= {"availability": "EarlyAccess", "earlyAccessEndsAt": "2027-01-01"}
    with pytest.raises(PullError, match="in early access at Civitai until 2027-01-01"):
        get(site, "civitai:7", tmp_path)

    def login(request: Any) -> None:
        if request.path.startswith("/login"):
            send(request, 200, b"<html>")
        elif request.path.startswith("/api/download"):
            send(request, 307, Location="/login?reason=download-auth")
        else:
            site.answer(request)

    site.server.answer = login
    del site.version["availability"], site.version["earlyAccessEndsAt"]
    with pytest.raises(PullError, match="does not give that file to everyone"):
        get(site, "civitai:7", tmp_path)


@pytest.mark.parametrize("told", [b"", b"[]", b'{"files": 1}', b'{"files": [{"name": "a.safetensors"}]}'])
def test_an_answer_that_nobody_understands_is_told(told: bytes, site: Site, tmp_path: Path) -> None:
    site.server.answer = lambda request: send(request, 200, told)
    with pytest.raises(PullError, match="not understood"):
        get(site, "civitai:7", tmp_path)


def test_other_formats_than_safetensors_are_not_downloaded(site: Site, tmp_path: Path) -> None:
    site.version["files"].pop()
    with pytest.raises(PullError, match=r"no \.safetensors"):
        get(site, "civitai:7", tmp_path)


def test_a_whole_model_is_told_how_it_becomes_a_folder(site: Site, store: Store, tmp_path: Path) -> None:
    store.body = safetensors("model.diffusion_model.out.2.weight")
    site.version["model"]["type"] = "Checkpoint"
    site.version["files"][1]["hashes"]["SHA256"] = hashlib.sha256(store.body).hexdigest()
    toml = get(site, "civitai:7", tmp_path, name="big").toml
    assert "StableDiffusionXLPipeline" in toml and "from_single_file" in toml
    assert tomllib.loads(toml) == {"models": {"big": {"source": str(tmp_path / "big"), "family": "sdxl"}}}


def test_too_much_and_a_full_disk_are_told(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PullError, match="too much"):
        get(site, "civitai:7", tmp_path, most_bytes=1000)
    assert not list(tmp_path.iterdir())
    full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(PullError, match=f"disk of {tmp_path} is full"):
        get(site, "civitai:7", tmp_path)
    monkeypatch.undo()

    def full_at_the_end(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_at_the_end)
    with pytest.raises(PullError, match="is full"):
        get(site, "civitai:7", tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_two_at_once_do_not_write_one_file(site: Site, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / "aya.safetensors.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(PullError, match="Another download writes"):
            get(site, "civitai:7", tmp_path, name="aya")


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        ("civitai:x", {}, "is no source"),
        ("hub:someone/aya.safetensors", {}, "is no source"),
        ("http://example.org/a.safetensors", {}, "is no source"),
        ("https://example.org/a.pt", {}, "is no source"),
        ("https://example.org/a.safetensors", {}, "Nobody says what that file must be"),
        ("civitai:7", {"sha256": "abc"}, "is no SHA-256"),
        ("civitai:7", {"name": "../aya"}, "is no name"),
        ("civitai:7", {"token_variable": "MINE"}, "MINE is empty"),
    ],
)
def test_what_was_asked_wrongly_is_told(
    source: str, more: dict[str, str], message: str, site: Site, tmp_path: Path
) -> None:
    with pytest.raises(PullError, match=message):
        get(site, source, tmp_path, **more)
    assert not list(tmp_path.iterdir())


def test_a_site_that_is_away_is_told(tmp_path: Path) -> None:
    with pytest.raises(PullError, match="Civitai does not answer"):
        pull("civitai:7", tmp_path, environ={}, civitai="http://127.0.0.1:9")
    with pytest.raises(PullError, match="connection to Hugging Face breaks"):
        pull("hub:a/b/c.safetensors", tmp_path, environ={}, hub="http://127.0.0.1:9", pause=0)


def test_the_families_are_the_workers() -> None:
    assert {*FAMILIES} <= WORKER_FAMILIES.keys() - {OTHER.name}
    assert {family for _, family in (*pulling._BASES, *pulling._ARCHITECTURES)} <= {*FAMILIES, ""}


@pytest.mark.parametrize(
    ("base", "family"),
    [
        ("SD 1.5", "sd15"),
        ("SDXL 1.0", "sdxl"),
        ("Pony", "sdxl"),
        ("Pony V7", ""),
        ("Illustrious", "sdxl"),
        ("SD 3.5 Large", "sd3"),
        ("Flux.1 D", "flux"),
        ("Flux.2 Klein 9B", "flux2"),
        ("ZImageTurbo", "z-image"),
        ("Qwen", "qwen-image"),
        ("Hunyuan 1", ""),
    ],
)
def test_civitais_base_models_have_their_families(base: str, family: str) -> None:
    assert pulling._family(base, pulling._BASES) == family


def test_an_unknown_family_is_left_to_the_operator(site: Site, store: Store, tmp_path: Path) -> None:
    store.body = safetensors("unet.x.lora_A.weight", "unet.x.lora_B.weight")
    toml = get(site, "hub:someone/loras/old/Aya v2.safetensors", tmp_path).toml
    assert 'family = ""  # unknown: write one of sd15, sdxl' in toml
    assert tomllib.loads(toml)


def test_the_command_prints_the_snippet_alone_on_stdout(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling.pull, "__kwdefaults__", {**pull.__kwdefaults__, "civitai": site.server.url})
    done = CliRunner().invoke(app, ["models", "pull", "civitai:7", "--into", str(tmp_path), "--name", "aya"])
    assert done.exit_code == 0, done.stderr
    assert "aya" in tomllib.loads(done.stdout)["loras"]
    assert "bytes" in done.stderr
    site.needs = "secret"
    done = CliRunner().invoke(app, ["models", "pull", "civitai:7", "--into", str(tmp_path), "--name", "bea"])
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        "imgen: Civitai does not give that file to everyone",
        "       Set CIVITAI_TOKEN to a token of your account there; a name that is wrong looks the same.",
    ]
