"""The review on the real stack: blocked on pixels, looked at by a person, and told to an auditor with only a file."""

import json
import os
import subprocess
import sys

from compliance.verify import verify
from tests.e2e.stack import KEY
from tests.e2e.test_stack import fetch


def imgen(stack, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        env={**os.environ, "IMGEN_API_KEY": KEY, "IMGEN_DATA": str(stack.data)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_ruleset_demo_blocks_what_the_picture_shows_and_a_person_may_let_it_go(stack, tmp_path):
    asked = {
        name: stack.call("generate", prompt=f"a {name} on a hill, noon", compliance_ruleset="demo", seed=4)
        for name in ("lighthouse", "house")
    }
    ended = {name: stack.ended(job["id"]) for name, job in asked.items()}
    assert ended["house"]["compliance"] == "safe"
    assert (ended["lighthouse"]["status"], ended["lighthouse"]["compliance"]) == ("COMPLETED", "unsafe")
    assert ended["lighthouse"]["error"] == "Content blocked — flagged for: Lighthouses"
    assert ended["lighthouse"]["filter_categories"] == ["demo.lighthouse"]

    blocked = asked["lighthouse"]["id"]
    appeal = stack.call("appeal", id=blocked, reason="It is a toy.")["appeal"]["id"]
    assert appeal in imgen(stack, "appeals", "list").stdout
    assert "demo.lighthouse" in imgen(stack, "appeals", "show", appeal).stdout
    released = imgen(stack, "appeals", "release", appeal, "--by", "kim", "--note", "A toy indeed.")
    assert released.returncode == 0, released.stderr
    while (status := stack.call("status", id=blocked)).get("compliance") != "safe":
        assert status["status"] in {"IN_PROGRESS", "COMPLETED"}
    data = fetch(stack, status["meta"])
    assert verify(data, (stack.data / "signing" / "anchors.pem").read_bytes()).state == "trusted"
    assert status["meta"]["compliance_reviewer"] == "human"

    file = tmp_path / "audit.jsonl"
    assert imgen(stack, "audit", "export", "-o", str(file)).returncode == 0
    assert imgen(stack, "audit", "verify", str(file)).returncode == 0
    lines = file.read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if asked["lighthouse"]["gen_id"] in line]
    kinds = [json.loads(line)["kind"] for line in told]
    assert kinds == ["verdict", "appeal", "appeal_decided", "verdict"]
    assert "demo.lighthouse" in told[0] and "human:kim" in told[-1]
    file.write_text("\n".join(line for line in lines if line != told[0]) + "\n", encoding="utf-8")
    assert imgen(stack, "audit", "verify", str(file)).returncode == 1
