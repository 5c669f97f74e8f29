"""Who may import whom is held by `make check`; these tests break each rule on purpose and see that it is caught."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = Path(sys.executable).with_name("lint-imports")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in ("gateway", "handler", "compliance", "cache"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("model", "__pycache__"))
    return folder


def lint(folder):
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([LINT, "--no-cache"], cwd=folder, env=environ, capture_output=True, text=True, check=False)


def test_the_code_as_it_stands_keeps_every_contract(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        pytest.param("handler/worker.py", "import gateway.core.images", "The worker imports nothing", id="worker"),
        pytest.param("gateway/core/service.py", "import starlette.requests", "Core knows no HTTP", id="core-web"),
        pytest.param("gateway/core/prompts.py", "import handler.contract", "Core knows no HTTP", id="core-worker"),
        pytest.param("gateway/backends/runpod.py", "import gateway.dialects.imgen", "Backends know", id="backend"),
        pytest.param("gateway/app.py", "import handler.renderer", "reads only the contract", id="gateway-torch"),
        pytest.param("compliance/sign.py", "import gateway.settings", "Compliance is a leaf", id="compliance"),
        pytest.param("compliance/panel.py", "import starlette.requests", "only its service knows", id="compliance-web"),
        pytest.param("compliance/service/app.py", "import httpx", "Compliance is a leaf", id="service-httpx"),
        pytest.param("compliance/service/app.py", "import uvicorn", "Compliance is a leaf", id="service-server"),
        pytest.param("compliance/service/app.py", "import gateway.log", "Compliance is a leaf", id="service-gateway"),
        pytest.param("compliance/panel.py", "import compliance.service", "Nobody but the command", id="library"),
        pytest.param("gateway/acs/local.py", "import compliance.service", "Nobody but the command", id="acs-service"),
        pytest.param("gateway/acs/remote.py", "import gateway.dialects.imgen", "Who reviews knows", id="acs-dialect"),
        pytest.param("gateway/acs/remote.py", "import gateway.jobs.store", "Who reviews knows", id="acs-jobs"),
        pytest.param("gateway/acs/build.py", "import gateway.app", "The gateway's layers", id="acs-app"),
        pytest.param(
            "gateway/llm/openai.py", "import gateway.dialects.imgen", "Who enhances prompts", id="llm-dialect"
        ),
        pytest.param("gateway/llm/templates.py", "import gateway.jobs.store", "Who enhances prompts", id="llm-jobs"),
        pytest.param("gateway/core/optimizing.py", "import openai", "Core knows no HTTP", id="core-openai"),
        pytest.param("gateway/core/service.py", "import gateway.acs.local", "The gateway's layers", id="core-acs"),
        pytest.param(
            "gateway/dialects/imgen/answer.py", "import compliance.rules", "Dialects only translate", id="dialect"
        ),
    ],
)
def test_a_forbidden_import_is_caught(copy, module, line, contract):
    file = copy / module
    before = file.read_text(encoding="utf-8")
    try:
        file.write_text(f"{before}\n\n{line}\n", encoding="utf-8")
        done = lint(copy)
    finally:
        file.write_text(before, encoding="utf-8")
    assert done.returncode != 0
    assert any(contract in broken for broken in done.stdout.splitlines() if "BROKEN" in broken), done.stdout
