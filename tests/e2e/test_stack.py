"""What a newcomer does first, on the real stack: generate, fetch, verify; the reference's own clients unchanged."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compliance.verify import verify
from tests.e2e.stack import KEY, running, wait_for

REFERENCE = Path(__file__).parent / "reference"
SIZES = [(1024, 1024), (1344, 768), (768, 1344), (1216, 832), (832, 1216), (1152, 896), (896, 1152)]


def fetch(stack, meta, kind="signed"):
    url = next(image["url"] for image in meta["images"] if image["type"] == kind)
    answer = stack.http.get(url)
    assert answer.status_code == 200
    return answer.content


def test_one_post_gives_a_reviewed_and_signed_picture(stack):
    job = stack.call("generate", prompt="@aya on a hill, -fog", seed=1)
    meta = stack.ended(job["id"])["meta"]
    data = fetch(stack, meta)
    report = verify(data, (stack.data / "signing" / "anchors.pem").read_bytes())
    assert report.state == "trusted"
    assert Image.open(io.BytesIO(data)).size == (1344, 768)
    assert meta["model_family"] == "sd15" and meta["steps"] > 0
    assert {"queued", "drawing", "finishing", "total"} <= meta["timings"].keys()
    assert meta["timings"]["drawing"] > 0


def test_the_prompt_decides_the_picture(stack):
    """Night is dark and noon is bright, whatever the seed: the model obeys, end to end."""
    light = {}
    for time in ("noon", "night"):
        job = stack.call("generate", prompt=f"a house on a hill at {time}", seed=11, format="png")
        pixels = Image.open(io.BytesIO(fetch(stack, stack.ended(job["id"])["meta"]))).convert("L")
        light[time] = float(np.asarray(pixels).mean())
    assert light["night"] + 40 < light["noon"]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_size_is_drawn(stack, size):
    job = stack.call("generate", prompt="a red house on a hill", width=size[0], height=size[1], seed=2)
    assert Image.open(io.BytesIO(fetch(stack, stack.ended(job["id"])["meta"]))).size == size


def test_progress_is_seen_while_it_draws(stack):
    job = stack.call("generate", prompt="a boat at sunset", steps=50)
    seen = []
    while (status := stack.call("status", id=job["id"]))["status"] in {"IN_QUEUE", "IN_PROGRESS"}:
        seen.append(status.get("progress", {}).get("step", 0))
    assert status["status"] == "COMPLETED"
    assert seen == sorted(seen)


def test_cancel_stops_the_drawing_and_the_next_job_is_drawn(stack):
    long = stack.call("generate", prompt="a boat", steps=50)
    stack.call("cancel", id=long["id"])
    assert stack.call("status", id=long["id"])["status"] == "CANCELLED"
    after = stack.call("generate", prompt="a boat")
    assert stack.ended(after["id"])["status"] == "COMPLETED"


def reference(name, stack, prompt):
    """The printed client with our host and key; its prompt is replaced by one that is fit for everybody's eyes."""
    code = (REFERENCE / name).read_text(encoding="utf-8")
    host = "https://imgen.api.efficientstack.com"
    assert host in code and "@aya black lingerie, warm lighting" in code
    return code.replace(host, stack.url).replace("@aya black lingerie, warm lighting", prompt)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        pytest.param("client.py.txt", [sys.executable], id="python"),
        pytest.param(
            "client.mjs.txt",
            ["node"],
            id="javascript",
            marks=pytest.mark.skipif(shutil.which("node") is None, reason="node is not on this machine"),
        ),
    ],
)
def test_the_printed_client_runs_unchanged_and_gets_the_same_from_the_cache(stack, tmp_path, name, command):
    script = tmp_path / name.removesuffix(".txt")
    script.write_text(reference(name, stack, f"@aya on a hill, warm lighting, {command[0][-4:]}"), encoding="utf-8")
    for told in ("(generated)", "(cache)"):
        assert printed(command, script, stack).endswith(told)


def test_the_printed_client_gets_it_from_the_cache_after_everything_was_started_anew(tmp_path):
    script, data = tmp_path / "client.py", tmp_path / "var"
    with running(data) as stack:
        script.write_text(reference("client.py.txt", stack, "@bella in a forest, night"), encoding="utf-8")
        assert printed([sys.executable], script, stack).endswith("(generated)")
        assert stack.stop() == 0
    with running(data) as stack:
        script.write_text(reference("client.py.txt", stack, "@bella in a forest, night"), encoding="utf-8")
        assert printed([sys.executable], script, stack).endswith("(cache)")
        # In other words too: the index is filled again by itself.
        wait_for(lambda: cached(stack, "@bella in the Forest, Night"), seconds=60)
        assert stack.stop() == 0


def cached(stack, prompt):
    answer = stack.http.post(
        "/api/v2", json={"action": "generate", "prompt": prompt, "style": "professional", "cache_only": True}
    )
    return answer.json().get("cache") is True


def printed(command, script, stack):
    """What the client prints in a fresh process: the address of a picture that is there, and where it is from."""
    environ = {**os.environ, "IMGEN_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [*command, str(script)], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert stack.http.get(done.stdout.split()[0]).status_code == 200
    return done.stdout.strip()


def test_the_command_line_draws_and_verifies(stack, tmp_path):
    picture = tmp_path / "x.webp"

    def imgen(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            env={**os.environ, "IMGEN_API_KEY": KEY, "IMGEN_DATA": str(stack.data)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    drawn = imgen("generate", "a lighthouse at sunset", "-o", str(picture), "--url", stack.url)
    assert drawn.returncode == 0, drawn.stderr
    assert Image.open(io.BytesIO(picture.read_bytes())).format == "WEBP"
    assert imgen("verify", str(picture)).returncode == 0
    bare = tmp_path / "bare.png"
    Image.open(picture).resize((672, 384)).save(bare)
    found = imgen("verify", str(bare), "--json")
    asked = imgen("verify", str(bare), "--url", stack.url, "--json")
    for done in (found, asked):
        told = json.loads(done.stdout)
        assert done.returncode == 1 and told["state"] == "unsigned"
        assert told["found"][0]["id"] and "pixel_mark" in told["found"][0]["by"], done.stderr
    assert json.loads(found.stdout)["found"] == json.loads(asked.stdout)["found"]
    picture.write_bytes(picture.read_bytes()[:-400] + b"\x00" * 400)
    assert imgen("verify", str(picture)).returncode == 1
    assert imgen("generate", "@nobody", "-o", str(picture), "--url", stack.url).returncode == 1
    again = imgen(
        "generate", "a lighthouse at sunset", "-o", str(tmp_path / "again.png"), "--cache", "--url", stack.url
    )
    assert again.returncode == 0 and "from the cache, similarity 1.0: a lighthouse at sunset" in again.stderr
    assert imgen("verify", str(tmp_path / "again.png")).returncode == 0
    one, same = (imgen("random", "--character", "bella", "--seed", "7", "--url", stack.url).stdout for _ in range(2))
    assert one == same and one.startswith("@bella ")


def test_what_is_secret_is_the_owners_alone(stack):
    for path in [stack.data / "secret", *(stack.data / "signing").glob("*.pem")]:
        if path.name != "anchors.pem":
            assert path.stat().st_mode & 0o077 == 0, path


def test_the_request_id_follows_the_job_into_the_worker(stack):
    answer = stack.http.post(
        "/api/v2",
        json={"action": "generate", "prompt": "a tree"},
        headers={"X-Request-ID": "trace-e2e-12345"},
    ).json()
    stack.ended(answer["id"])
    assert "trace-e2e-12345" in (stack.data / "log" / "worker.log").read_text(encoding="utf-8")
    assert "trace-e2e-12345" in (stack.data / "log" / "gateway.log").read_text(encoding="utf-8")
