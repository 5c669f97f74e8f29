"""`imgen acs` from outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from gateway.acs.build import panel_of
from gateway.commands import acs
from gateway.errors import SettingsError
from gateway.listener import CannotListen
from gateway.settings import Settings
from tests.acs.rig import KEY, PATIENCE, ROOT, AcsProcess, make_panel, wait_for_port

HOUSE = """
name = "words"
title = "Words"
[[rules]]
id = "adult"
category = "ADULT_NSFW"
name = "Adult content"
[rules.reviewers]
text = ["ADULT_NSFW"]
"""


@pytest.mark.parametrize("key", ["", "short", "ein-schlüssel-mit-umlaut"], ids=["none", "short", "umlaut"])
def test_it_does_not_start_without_a_good_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGEN_ACS_KEY", key)
    app = typer.Typer()
    app.command()(acs.acs)
    result = CliRunner().invoke(app, [])
    assert isinstance(result.exception, SettingsError)
    told = f"{result.exception.message} {result.exception.fix}"
    assert "IMGEN_ACS_KEY" in told and "openssl" in told


def test_a_port_that_is_taken_is_said_so(acs_process: AcsProcess, tmp_path: Path) -> None:
    with pytest.raises(CannotListen, match="taken"):
        acs.serve(make_panel(tmp_path), key=KEY, threads=1, host="127.0.0.1", port=acs_process.port)


def test_the_shipped_panel_has_the_shipped_rulesets() -> None:
    panel = panel_of(Settings.from_environ({}))
    assert {"default", "strict", "adult-allowed"} <= panel.rulesets.keys()
    assert {"text", "render"} <= {reviewer.name for reviewer in panel.reviewers}


def test_it_serves_the_operator_s_rulesets_until_it_is_asked_to_stop(tmp_path: Path) -> None:
    folder = tmp_path / "rulesets"
    folder.mkdir()
    (folder / "words.toml").write_text(HOUSE, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {**os.environ, "IMGEN_ACS_KEY": KEY, "IMGEN_RULESETS": str(folder), "IMGEN_DATA": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "acs", "--port", str(port)], cwd=ROOT, env=environ, stdout=log, stderr=log
        )
    try:
        wait_for_port(process, f"http://127.0.0.1:{port}", tmp_path / "log")
        told = httpx.get(f"http://127.0.0.1:{port}/v1/rulesets", headers={"Authorization": f"Bearer {KEY}"}).json()
        assert {"default", "words"} <= {each["name"] for each in told["rulesets"]}
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text(encoding="utf-8")
    assert KEY not in (tmp_path / "log").read_text(encoding="utf-8")
