"""The job contract: the recorded samples read for ever, and nothing but `ContractError` comes of a bad message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handler import contract
from handler.contract import (
    ContractError,
    Failure,
    Inventory,
    Job,
    Lora,
    Picture,
    Progress,
    Reference,
    Result,
    Upload,
)

SHA_A = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
SHA_B = "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"

#: What each recorded sample means. A sample is never edited; a new one is added beside it.
MEANINGS: dict[str, Any] = {
    "job": Job(
        version="1.0",
        id="run_5Q0xR2mVb8",
        request_id="req_7f3a",
        model="builtin",
        positive="aya, girl with silver hair, on a hill at dawn",
        negative="fog, blurry",
        width=1344,
        height=768,
        seed=9007199254740993,
        steps=14,
        guidance=4.5,
        n=2,
        loras=(Lora(name="aya", strength=0.8),),
        references=(Reference(url="https://gateway.example/raw/a?sig=1", sha256=SHA_A, role="init", strength=0.5),),
        uploads=(
            Upload(url="https://gateway.example/raw/run_5Q0xR2mVb8/0?sig=2", headers={"Content-Type": "image/png"}),
            Upload(url="https://gateway.example/raw/run_5Q0xR2mVb8/1?sig=3"),
        ),
        deadline=1795176000.5,
    ),
    "job-smallest": Job(
        version="1.0",
        id="run_1",
        request_id="",
        model="builtin",
        positive="a house",
        negative="",
        width=1024,
        height=1024,
        seed=1,
    ),
    "progress": Progress(
        version="1.0", sequence=1795176000123, phase="drawing", picture=1, pictures=2, step=7, total_steps=14
    ),
    "result": Result(
        version="1.0",
        pictures=(
            Picture(index=0, seed=41, sha256=SHA_A, width=1344, height=768, bytes=20311),
            Picture(index=1, seed=42, sha256=SHA_B, width=1344, height=768, bytes=19004),
        ),
        steps=14,
        guidance=4.5,
        sampler="DPMSolverMultistepScheduler",
        family="sd15",
        revision="0253e20ae3c2",
        negative_used=False,
        timings={"load": 0.0, "draw": 0.71, "encode": 0.02, "upload": 0.01},
        warnings=("builtin draws with at most 50 steps; 80 were asked for",),
    ),
    "result-inline": Result(
        version="1.0",
        pictures=(Picture(index=0, seed=1, sha256=SHA_A, width=64, height=64, bytes=8, data="iVBORw0KGgo="),),
        steps=4,
        guidance=5.0,
        sampler="EulerDiscreteScheduler",
        family="sdxl",
        revision="main",
    ),
    "failure": Failure(
        version="1.0",
        code="out_of_memory",
        message="the worker has not enough memory for this picture now; try a smaller size or try again",
        retryable=True,
    ),
    "job-1.1": Job(
        version="1.1",
        id="run_1",
        request_id="req_1",
        model="builtin",
        positive="a house",
        negative="",
        width=1024,
        height=1024,
        seed=1,
        references=(Reference(url="https://gateway.example/raw/b?sig=4", sha256=SHA_B, role="guide", strength=1.0),),
        preview_every=5,
    ),
    "progress-1.1": Progress(
        version="1.1",
        sequence=1795176000124,
        phase="drawing",
        picture=2,
        pictures=4,
        step=33,
        total_steps=56,
        preview="UklGRiQAAABXRUJQ",
    ),
    "result-1.1": Result(
        version="1.1",
        pictures=(Picture(index=0, seed=1, sha256=SHA_A, width=64, height=64, bytes=8),),
        steps=4,
        guidance=5.0,
        sampler="EulerDiscreteScheduler",
        family="sdxl",
        revision="main",
        loras=(Lora(name="aya", strength=0.8),),
        references=1,
    ),
    "inventory-1.1": Inventory(
        version="1.1", models={"builtin": "sd15", "xl": "sdxl"}, loras={"aya": "sd15", "bella": "sd15"}
    ),
}

KINDS: dict[type, tuple[Callable[[Any], dict[str, Any]], Callable[[Any], Any]]] = {
    Job: (contract.job_to_wire, contract.job_from_wire),
    Progress: (contract.progress_to_wire, contract.progress_from_wire),
    Result: (contract.result_to_wire, contract.result_from_wire),
    Failure: (contract.failure_to_wire, contract.failure_from_wire),
    Inventory: (contract.inventory_to_wire, contract.inventory_from_wire),
}

samples = pytest.mark.parametrize("name", sorted(MEANINGS))


def sample(name: str) -> dict[str, Any]:
    path = Path(__file__).with_name("samples") / f"{name}.json"
    wire: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return wire


def reader(name: str) -> Callable[[Any], Any]:
    return KINDS[type(MEANINGS[name])][1]


@samples
def test_a_recorded_sample_reads_for_ever(name: str) -> None:
    assert reader(name)(sample(name)) == MEANINGS[name]


@samples
def test_what_is_written_holds_all_that_the_sample_holds(name: str) -> None:
    write, _ = KINDS[type(MEANINGS[name])]
    written = json.loads(json.dumps(write(MEANINGS[name])))
    assert {key: written[key] for key in sample(name)} == sample(name)


@samples
def test_keys_of_a_newer_minor_version_are_passed_over(name: str) -> None:
    wire = _with_news(sample(name))
    wire["version"] = "1.9"
    read = reader(name)(wire)
    assert read.version == "1.9"
    write, _ = KINDS[type(read)]
    assert write(read) | {"version": MEANINGS[name].version} == write(MEANINGS[name])


_MAPS = {"headers", "timings", "models", "loras"}


def _with_news(value: Any) -> Any:
    """The same message with an unknown key in every object that is no map."""
    if isinstance(value, list):
        return [_with_news(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {"a key of tomorrow": {"x": 1}} | {
        key: item if key in _MAPS and isinstance(item, dict) else _with_news(item) for key, item in value.items()
    }


@samples
@pytest.mark.parametrize("version", ["0.9", "2.0", "10.0", "", "one", 1, 1.0, None])
def test_another_major_version_is_refused(name: str, version: Any) -> None:
    with pytest.raises(ContractError, match="contract version"):
        reader(name)(sample(name) | {"version": version})


@samples
def test_a_missing_version_is_refused(name: str) -> None:
    wire = sample(name)
    del wire["version"]
    with pytest.raises(ContractError, match="contract version"):
        reader(name)(wire)


def test_every_sample_on_disk_has_a_meaning() -> None:
    names = {path.stem for path in Path(__file__).with_name("samples").glob("*.json")}
    assert names - {"test_input"} == set(MEANINGS)


def test_the_sample_for_the_sdk_s_local_mode_holds_a_job() -> None:
    assert contract.job_from_wire(sample("test_input")["input"]).model == "builtin"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        pytest.param({"id": 5}, "'id'", id="id is a number"),
        pytest.param({"width": "1024"}, "'width'", id="width is text"),
        pytest.param({"width": 8}, "16..4096", id="too small"),
        pytest.param({"height": 5000}, "16..4096", id="too large"),
        pytest.param({"seed": True}, "'seed'", id="seed is a flag"),
        pytest.param({"n": 0}, "'n'", id="no picture"),
        pytest.param({"n": 9}, "'n'", id="nine pictures"),
        pytest.param({"n": 3}, "'uploads'", id="an upload is missing"),
        pytest.param({"uploads": "here"}, "'uploads'", id="uploads is text"),
        pytest.param({"uploads": [{"url": "u", "headers": ["a"]}] * 2}, "'headers'", id="headers is a list"),
        pytest.param({"loras": [{"strength": 1}]}, "'name'", id="a LoRA without a name"),
        pytest.param({"references": [{"url": "u"}]}, "'sha256'", id="a reference without a hash"),
        pytest.param({"deadline": "soon"}, "'deadline'", id="deadline is text"),
    ],
)
def test_a_bad_job_is_refused_with_the_key_that_is_wrong(change: dict[str, Any], names: str) -> None:
    with pytest.raises(ContractError, match=names):
        contract.job_from_wire(sample("job") | change)


#: A busy machine is no fault of the contract.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

words = st.text(max_size=20)
numbers = st.floats(-1e200, 1e200)
whole = st.integers(min_value=0, max_value=2**63 - 1)


def optional(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | of


uploads = st.builds(Upload, url=words, headers=st.dictionaries(words, words, max_size=3))
references = st.builds(Reference, url=words, sha256=words, role=st.text(min_size=1, max_size=8), strength=numbers)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    n = draw(st.integers(1, 8))
    return Job(
        id=draw(words),
        request_id=draw(words),
        model=draw(words),
        positive=draw(words),
        negative=draw(words),
        width=draw(st.integers(16, 4096)),
        height=draw(st.integers(16, 4096)),
        seed=draw(whole),
        steps=draw(optional(whole)),
        guidance=draw(optional(numbers)),
        n=n,
        loras=tuple(draw(st.lists(st.builds(Lora, name=words, strength=numbers), max_size=3))),
        references=tuple(draw(st.lists(references, max_size=3))),
        uploads=tuple(draw(st.just([]) | st.lists(uploads, min_size=n, max_size=n))),
        deadline=draw(optional(numbers)),
        preview_every=draw(st.integers(0, 100)),
    )


pictures = st.builds(
    Picture,
    index=whole,
    seed=whole,
    sha256=words,
    width=whole,
    height=whole,
    bytes=whole,
    data=optional(words),
)
results = st.builds(
    Result,
    pictures=st.lists(pictures, min_size=1, max_size=3).map(tuple),
    steps=whole,
    guidance=numbers,
    sampler=words,
    family=words,
    revision=words,
    negative_used=st.booleans(),
    loras=st.lists(st.builds(Lora, name=words, strength=numbers), max_size=3).map(tuple),
    references=whole,
    timings=st.dictionaries(words, numbers, max_size=3),
    warnings=st.lists(words, max_size=3).map(tuple),
    version=st.just(contract.VERSION),
)
progresses = st.builds(
    Progress,
    sequence=whole,
    phase=words,
    picture=whole,
    pictures=st.integers(1, 8),
    step=whole,
    total_steps=whole,
    preview=optional(words),
    version=st.just(contract.VERSION),
)
names = st.dictionaries(words, words, max_size=3)
inventories = st.builds(Inventory, models=names, loras=names, version=st.just(contract.VERSION))
failures = st.builds(Failure, code=words, message=words, retryable=st.booleans(), version=st.just(contract.VERSION))


@patient
@given(jobs() | results | progresses | failures | inventories)
def test_a_message_that_was_written_reads_as_the_same(message: Any) -> None:
    write, read = KINDS[type(message)]
    assert read(json.loads(json.dumps(write(message)))) == message


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@patient
@given(name=st.sampled_from(sorted(MEANINGS)), key=st.integers(0, 30), value=junk)
def test_a_spoilt_message_is_read_or_refused_but_never_crashes(name: str, key: int, value: Any) -> None:
    wire = sample(name)
    wire[sorted(wire)[key % len(wire)]] = value
    try:
        reader(name)(wire)
    except ContractError:
        pass


@patient
@given(name=st.sampled_from(["job", "result"]), key=st.integers(0, 30), value=junk)
def test_a_spoilt_part_of_a_message_is_read_or_refused_but_never_crashes(name: str, key: int, value: Any) -> None:
    wire = sample(name)
    parts = [part for value in wire.values() if isinstance(value, list) for part in value if isinstance(part, dict)]
    part = parts[key % len(parts)]
    part[sorted(part)[key % len(part)]] = value
    try:
        reader(name)(wire)
    except ContractError:
        pass
