"""`imgen cache` on the store of a stack, and on a Qdrant server."""

from __future__ import annotations

import re
from pathlib import Path

import anyio
import pytest
from typer.testing import CliRunner

from gateway.cli import app
from tests.api.conftest import encoder_folder, opened, settings
from tests.api.fake_runpod import FakeRunPod
from tests.api.test_cache import PROMPT, REWORDED, hit, missed, semantic

pytestmark = pytest.mark.anyio


def run(*arguments: str, data: Path, **environ: str) -> str:
    if not (data / "encoder").exists():
        data.mkdir(parents=True, exist_ok=True)
        (data / "encoder").symlink_to(encoder_folder())
    told = CliRunner().invoke(app, ["cache", *arguments, "--data", str(data)], env=environ)
    assert told.exit_code == 0, told.output
    return told.output


async def command(*arguments: str, data: Path, **environ: str) -> str:
    return await anyio.to_thread.run_sync(lambda: run(*arguments, data=data, **environ))


async def test_figures_purge_and_rebuild_beside_a_running_gateway(tmp_path: Path) -> None:
    async with opened(settings(tmp_path), FakeRunPod(key="rp-key")) as gateway:
        first = await gateway.picture(PROMPT)
        await semantic(gateway, REWORDED)
        await hit(gateway)
        figures = (await command("stats", data=tmp_path)).splitlines()[1].split()
        assert figures[:4] == ["default", "1", "1", "2"]

        assert "1 entries are gone" in await command("purge", data=tmp_path)
        await anyio.sleep(1.1)  # as long as a gateway remembers what it has just read
        await missed(gateway, PROMPT)
        await missed(gateway, REWORDED)
        await missed(gateway, REWORDED, cache_force=True)
        assert "0 entries" in await command("purge", "--tenant", "nobody", data=tmp_path)

        assert "1 entries are written down, 1 of them" in await command("rebuild", data=tmp_path)
        assert (await hit(gateway))["gen_id"] == first["gen_id"]
        assert (await semantic(gateway, REWORDED))["gen_id"] == first["gen_id"]


async def test_a_lost_index_is_made_again_with_the_same_hits(tmp_path: Path) -> None:
    prompts = [f"a {colour} house on a {place}, soft light" for colour in ("red", "blue") for place in ("hill", "dune")]
    asked = [f"soft light, {prompt.removesuffix(', soft light').upper()}" for prompt in prompts]
    async with opened(settings(tmp_path), FakeRunPod(key="rp-key")) as gateway:
        for prompt in prompts:
            await gateway.picture(prompt)
        before = [(await semantic(gateway, prompt))["gen_id"] for prompt in asked]
    assert len(set(before)) == 4
    told = await command("purge", data=tmp_path)
    assert re.search(r"\b4 entries", told)
    await command("rebuild", data=tmp_path)
    async with opened(settings(tmp_path), FakeRunPod(key="rp-key")) as gateway:
        assert [(await semantic(gateway, prompt))["gen_id"] for prompt in asked] == before


async def test_an_encoder_that_cannot_be_loaded_is_told_with_its_reason(tmp_path: Path) -> None:
    told = await anyio.to_thread.run_sync(
        lambda: CliRunner().invoke(
            app, ["cache", "rebuild", "--data", str(tmp_path)], env={"IMGEN_CACHE_ENCODER": str(tmp_path / "none")}
        )
    )
    assert told.exit_code == 1 and "imgen:" in told.output and "Traceback" not in told.output
