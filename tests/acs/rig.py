"""A panel whose verdicts depend on pixels, the pictures for it, and the service over it as a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
from PIL import Image

from compliance.errors import ReviewUnavailable
from compliance.panel import Panel
from compliance.picture import Raw
from compliance.review import Context, Opinion
from compliance.reviewers.render import RenderCheck
from compliance.reviewers.words import Words
from compliance.rules import PromptGate
from compliance.rulesets import Ruleset, load_rulesets
from compliance.verdict import Verdict
from tests.compliance.samples import bytes_of, decoded, scene

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-this-test-alone"
PATIENCE = 40.0
SIZE = (96, 64)
#: Colours of the first pixel at which the reviewer of colours has no answer, breaks, or takes for ever.
AWAY, BUG, SLOW = (1, 2, 3), (3, 2, 1), (9, 9, 9)

RULESET = """
name = "colours"
title = "Colours"
requires = ["builtin"]

[[rules]]
id = "red"
category = "COLOUR"
name = "Too much red"
looks_at = "picture"
except_tiers = ["painter"]
[rules.reviewers]
builtin = { red = 0.6 }

[[rules]]
id = "green"
category = "COLOUR"
name = "Green"
action = "flag"
[rules.reviewers]
builtin = { green = 0.3 }

[[rules]]
id = "adult"
category = "ADULT_NSFW"
name = "Adult content"
looks_at = "prompt"
refuse_prompt = true
[rules.reviewers]
text = ["ADULT_NSFW"]
"""


class Colours:
    """Sees how much of a picture is plainly red or green."""

    name, version = "builtin", "colours-1"
    labels = frozenset({"red", "green", "lighthouse"})
    always = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def review(self, picture: Raw, context: Context, ruleset: Ruleset) -> Opinion:
        corner = picture.pixels.getpixel((0, 0))
        if corner == AWAY:
            raise ReviewUnavailable("Nobody at /srv/models/colours.onnx.")
        if corner == BUG:
            raise RuntimeError("a bug at /srv/models")
        if corner == SLOW:
            (self._folder / "reviewing").touch()
            time.sleep(600)
        count = picture.pixels.width * picture.pixels.height
        seen = picture.pixels.getcolors(count) or []
        return Opinion(
            picture={
                "red": sum(n for n, (r, g, b) in seen if r > 200 and g < 60 and b < 60) / count,
                "green": sum(n for n, (r, g, b) in seen if g > 200 and r < 60 and b < 60) / count,
            }
        )


class Known:
    """Knows one picture by its bytes."""

    name, version = "hashes", "1"
    labels = frozenset({"known_bad", "minors"})
    always = True

    def review(self, picture: Raw, context: Context, ruleset: Ruleset) -> Opinion:
        return Opinion(picture={"known_bad": 1.0} if picture.sha256 == KNOWN.sha256 else {})


def picture(colour: str = "", share: float = 0.8, *, corner: tuple[int, int, int] | None = None, seed: int = 1) -> Raw:
    """A scene of which so much is painted over."""
    image = scene(*SIZE, seed=seed)
    if colour:
        image.paste(Image.new("RGB", (round(SIZE[0] * share), SIZE[1]), colour))
    if corner:
        image.putpixel((0, 0), corner)
    return decoded(bytes_of(image))


PLAIN, RED, GREEN, KNOWN = picture(), picture("#f01010"), picture("#10f010"), picture(seed=66)
FLAT = decoded(bytes_of(Image.new("RGB", SIZE)))


def words(positive: str = "a hill", negative: str = "", **more: object) -> Context:
    return replace(Context(positive=positive, negative=negative, width=SIZE[0], height=SIZE[1]), **more)


def make_panel(folder: Path) -> Panel:
    rulesets = folder / "rulesets"
    rulesets.mkdir(exist_ok=True)
    (rulesets / "colours.toml").write_text(RULESET, encoding="utf-8")
    others = [RenderCheck(), Known(), Colours(folder)]
    return Panel(Words(PromptGate.built_in()), others, load_rulesets(rulesets))


def timeless(verdict: Verdict) -> Verdict:
    """The verdict but for how long it took."""
    return replace(verdict, latency_ms=0, asked=tuple(replace(each, latency_ms=0) for each in verdict.asked))


class AcsProcess:
    """The service as `imgen acs` serves it, over the panel above. It may be killed and started again."""

    def __init__(self, folder: Path, panel: str = "rig") -> None:
        """``panel`` is one that `served` knows."""
        self.folder, self.panel = folder, panel
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> AcsProcess:
        command = [sys.executable, "-m", "tests.acs.served", str(self.folder), KEY, str(self.port), self.panel]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
            )
        wait_for_port(self.process, self.url, self.folder / "log")
        return self

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE)


def wait_for_port(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            if httpx.get(f"{url}/healthz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"no answer within {PATIENCE} s: {log.read_text(encoding='utf-8')}")
