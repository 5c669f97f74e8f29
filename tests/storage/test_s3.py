"""S3 when it can't or won't: the right sentence, nothing lost, nothing leaked, and a start that goes on trying."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import anyio
import boto3
import httpx
import pytest
import structlog.testing
from typer.testing import CliRunner

from gateway.cli import app
from gateway.errors import SettingsError, StorageUnavailable
from gateway.settings import Settings
from gateway.storage import s3 as s3_module
from gateway.storage.bucket import Bucket, Place
from gateway.storage.build import storage_of
from gateway.storage.disk import DiskStorage
from gateway.storage.faults import Fault
from gateway.storage.lifecycle import merged, rules
from gateway.storage.s3 import S3Storage
from gateway.storage.trial import Trial, try_out
from tests.storage.conftest import PNG, signed
from tests.storage.fake_s3 import ACCESS, REGION, SECRET, FakeS3, running

pytestmark = pytest.mark.anyio

KEY = "out/job1/0.jpg"
STEPS = [
    "write",
    "read",
    "conditional write",
    "checksum",
    "private",
    "download address",
    "upload address",
    "delete",
    "read what is gone",
]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeS3]:
    with running() as fake:
        yield fake


@pytest.fixture
def fake(server: FakeS3) -> Iterator[FakeS3]:
    """One without faults."""
    plain = FakeS3()
    for name in ("fault", "lost", "ahead", "slow", "checks", "conditional", "public"):
        setattr(server, name, getattr(plain, name))
    server.asked.clear()
    return server


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto waits for seconds between two tries, and so do we."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    monkeypatch.setattr(s3_module, "_PAUSE", 0.02)


@asynccontextmanager
async def opened(place: Place, *, ready: bool = True) -> AsyncIterator[S3Storage]:
    storage = S3Storage(place)
    async with storage.open():
        if ready:
            assert (await storage.readiness()).ready
        yield storage


def tried(place: Place) -> Trial:
    bucket = Bucket(place)
    bucket.prepare()
    try:
        return try_out(bucket)
    finally:
        bucket.close()


def answers(status: int, code: str, *, to: str = "", where: str = "") -> Callable[[str, str], tuple[int, str] | None]:
    return lambda method, url: (status, code) if to in ("", method) and where in unquote(url) else None


# The self-test


async def test_the_self_test_goes_through_everything_and_leaves_nothing(fake):
    place = fake.place()
    trial = tried(place)
    assert [step.name for step in trial.steps] == STEPS
    assert {step.state for step in trial.steps} == {"ok"} and trial.failed is None and trial.verifies
    assert fake.keys(place.bucket) == []


async def test_an_endpoint_that_checks_no_sums_is_found_out_and_its_writes_are_read_back(fake):
    fake.checks = False
    place = fake.place()
    trial = tried(place)
    assert trial.failed is None and not trial.verifies
    (step,) = [step for step in trial.steps if step.name == "checksum"]
    assert "each write is read back" in step.remark
    async with opened(place) as storage:
        fake.asked.clear()
        await storage.keep("master/job1/0.png", b"pixels")
        assert [method for method, _ in fake.asked] == ["PUT", "GET"]


async def test_bytes_that_came_to_harm_on_the_way_are_not_taken_for_written(fake, monkeypatch):
    fake.checks = False
    async with opened(fake.place()) as storage:
        real = Bucket.put
        monkeypatch.setattr(Bucket, "put", lambda self, key, data, **more: real(self, key, data[:-1] + b"?", **more))
        with pytest.raises(StorageUnavailable):
            await storage.keep("master/job1/0.png", b"pixels")


async def test_an_endpoint_that_overwrites_is_refused(fake):
    fake.conditional = False
    place = fake.place()
    failed = tried(place).failed
    assert failed and failed.name == "conditional write"
    assert failed.remark == "OverwriteAccepted: it ignores If-None-Match: use an endpoint with conditional writes"
    assert fake.keys(place.bucket) == []


async def test_a_bucket_that_anybody_reads_is_refused(fake):
    fake.public = True
    place = fake.place()
    failed = tried(place).failed
    assert failed and failed.name == "private" and "block all public access" in failed.remark
    async with opened(place, ready=False) as storage:
        assert not (await storage.readiness()).ready
        for write in (storage.keep("raw/job1/0.png", PNG), storage.publish(KEY, signed())):
            with pytest.raises(StorageUnavailable):
                await write
        with pytest.raises(StorageUnavailable):
            storage.slot("raw/job1/0.png", expires_at=2e9)
    assert fake.keys(place.bucket) == []


async def test_a_public_address_that_this_machine_can_not_reach_is_said_and_no_failure(fake):
    trial = tried(fake.place(public_endpoint="http://127.0.0.1:9"))
    assert trial.failed is None
    unknown = {step.name: step.remark for step in trial.steps if step.state == "unknown"}
    assert set(unknown) == {"download address", "upload address"}
    assert set(unknown.values()) == {"not reachable from this machine"}
    fake.public = True
    failed = tried(fake.place(public_endpoint="http://127.0.0.1:9")).failed
    assert failed and failed.name == "private"


@pytest.mark.parametrize(
    ("fault", "step", "says"),
    [
        (answers(403, "AccessDenied", to="PUT"), "write", "AccessDenied: the credentials may not do this"),
        (answers(403, "AccessDenied", to="GET"), "read", "AccessDenied"),
        (answers(403, "AccessDenied", to="GET", where="0.png?response"), "download address", "AccessDenied"),
        (answers(403, "SignatureDoesNotMatch", to="PUT", where="2.png"), "upload address", "SignatureDoesNotMatch"),
        (answers(403, "AccessDenied", to="GET", where="list-type"), "delete", "AccessDenied"),
        (answers(403, "AccessDenied", to="POST"), "delete", "AccessDenied"),
        (answers(404, "NoSuchBucket"), "write", "there is no such bucket: check IMGEN_S3_BUCKET"),
        (answers(403, "InvalidAccessKeyId"), "write", "the credentials are not accepted"),
        (answers(400, "ExpiredToken"), "write", "have expired: renew them"),
        (answers(400, "AuthorizationHeaderMalformed"), "write", "set IMGEN_S3_REGION to the bucket's"),
        (answers(400, "AuthorizationQueryParametersError", where="?response"), "download address", "IMGEN_S3_REGION"),
        (answers(301, "PermanentRedirect", where="?response"), "download address", "IMGEN_S3_REGION"),
        (answers(503, "SlowDown"), "write", "SlowDown: it is busy"),
        (answers(500, "<html>"), "write", "500: it is busy"),
        (answers(501, "NotImplemented"), "write", "it does not know this"),
        (answers(403, "RequestTimeTooSkewed"), "write", "set this machine's by NTP"),
    ],
)
async def test_what_fails_is_named_with_its_step_its_code_and_the_fix(fake, fault, step, says):
    place = fake.place()
    fake.fault = fault
    failed = tried(place).failed
    assert failed and failed.name == step and says in failed.remark
    assert "secret" not in failed.remark and place.bucket not in failed.remark and fake.url not in failed.remark


async def test_a_wrong_clock_is_said_as_s3_sees_it(fake):
    place = fake.place()
    fake.ahead = 1000
    failed = tried(place).failed
    assert failed and failed.remark.startswith("RequestTimeTooSkewed: the clocks differ by more than 15 minutes")


async def test_those_who_may_not_list_are_told_before_a_lost_picture_looks_like_an_outage(fake):
    """Without s3:ListBucket S3 says 403 of what is not there."""
    place = fake.place()
    bucket = Bucket(place)
    bucket.prepare()
    fake.fault = answers(403, "AccessDenied", to="GET", where="gone.png")
    with pytest.raises(Fault, match="AccessDenied"):
        bucket.read("raw/job1/gone.png")
    bucket.close()


@pytest.mark.parametrize("secret", ["", "another secret"])
async def test_missing_and_wrong_credentials_are_told_apart(fake, monkeypatch, tmp_path, secret):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    place = replace(fake.place(), access_key=ACCESS if secret else "", secret_key=secret)
    failed = tried(place).failed
    code = "SignatureDoesNotMatch" if secret else "NoCredentialsError"
    assert failed and failed.name == "write" and failed.remark.startswith(f"{code}: ")


async def test_credentials_come_from_botos_own_chain_where_none_are_set(fake, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert tried(replace(fake.place(), access_key="", secret_key="")).failed is None


# Faults in the middle of work


FAULTS = [
    pytest.param(lambda fake: setattr(fake, "fault", answers(403, "AccessDenied")), "AccessDenied", id="denied"),
    pytest.param(lambda fake: setattr(fake, "fault", answers(404, "NoSuchBucket")), "NoSuchBucket", id="no bucket"),
    pytest.param(lambda fake: setattr(fake, "fault", answers(503, "SlowDown")), "SlowDown", id="slow down"),
    pytest.param(lambda fake: setattr(fake, "ahead", 1000), "RequestTimeTooSkewed", id="clock"),
    pytest.param(lambda fake: setattr(fake, "slow", 0.6), "ReadTimeoutError", id="slow"),
]


@pytest.mark.parametrize(("switch", "code"), FAULTS)
async def test_a_fault_is_an_outage_that_loses_nothing_and_tells_nothing(fake, switch, code):
    place = fake.place(read_timeout=0.3, attempts=2)
    async with opened(place) as storage:
        await storage.keep("master/job1/0.png", b"pixels")
        await storage.publish(KEY, signed())
        switch(fake)
        with structlog.testing.capture_logs() as logs:
            for work in (
                lambda: storage.publish("out/job1/1.jpg", signed()),
                lambda: storage.keep("master/job1/0.png", b"other pixels"),
                lambda: storage.read("master/job1/0.png"),
                lambda: storage.purge("master/job1"),
            ):
                with pytest.raises(StorageUnavailable) as error:
                    await work()
                assert error.value.retryable and error.value.__cause__ is None
                said = f"{error.value} {error.value.fix}"
                assert place.bucket not in said and ACCESS not in said and "127.0.0.1" not in said
        assert {entry["code"] for entry in logs} == {code}
        assert SECRET not in str(logs) and fake.url not in str(logs)
        fake.fault, fake.ahead, fake.slow = FakeS3().fault, 0, 0
        # A write that was answered too late may have been done all the same; what is there is whole.
        assert await storage.read("master/job1/0.png") in (b"pixels", b"other pixels", None)
        await storage.publish("out/job1/1.jpg", signed())
        assert {KEY, "out/job1/1.jpg"} <= set(fake.keys(place.bucket))


async def test_a_server_that_is_gone_is_an_outage(fake):
    with running() as other:
        place = other.place(attempts=1, connect_timeout=0.5)
        storage = S3Storage(place)
        opening = storage.open()
        await opening.__aenter__()
        assert (await storage.readiness()).ready
    try:
        with structlog.testing.capture_logs() as logs, pytest.raises(StorageUnavailable):
            await storage.keep("master/job1/0.png", b"pixels")
        assert [entry["code"] for entry in logs] == ["EndpointConnectionError"]
    finally:
        await opening.__aexit__(None, None, None)


async def test_a_write_whose_answer_was_lost_is_found_to_be_done(fake):
    place = fake.place()
    async with opened(place) as storage:
        fake.lost = 1
        await storage.publish(KEY, signed())
        assert fake.lost == 0
        assert fake.client.get_object(Bucket=place.bucket, Key=KEY)["Body"].read() == signed().data


async def test_a_picture_that_is_there_with_other_bytes_is_written_anew(fake):
    place = fake.place()
    async with opened(place) as storage:
        fake.client.put_object(Bucket=place.bucket, Key=KEY, Body=b"something else")
        with structlog.testing.capture_logs() as logs:
            await storage.publish(KEY, signed())
        assert fake.client.get_object(Bucket=place.bucket, Key=KEY)["Body"].read() == signed().data
        assert [entry["log_level"] for entry in logs] == ["error"]


async def test_two_replicas_in_each_others_way_both_publish(fake):
    place = fake.place()
    async with opened(place) as storage:
        conflicts = iter([(409, "ConditionalRequestConflict")])
        fake.fault = lambda method, url: next(conflicts, None) if method == "PUT" else None
        await storage.publish(KEY, signed())
        assert fake.keys(place.bucket) == [KEY]


async def test_an_object_is_stored_with_its_type_and_for_no_cache(fake):
    place = fake.place()
    async with opened(place) as storage:
        await storage.publish(KEY, signed())
        head = fake.client.head_object(Bucket=place.bucket, Key=KEY)
    assert (head["ContentType"], head["CacheControl"]) == ("image/jpeg", "private, no-store")


async def test_what_no_picture_can_be_is_not_read(fake, monkeypatch):
    place = fake.place()
    async with opened(place) as storage:
        fake.client.put_object(Bucket=place.bucket, Key="raw/job1/0/0.png", Body=b"x" * 100)
        monkeypatch.setattr("gateway.storage.bucket.MOST_BYTES", 99)
        assert await storage.read("raw/job1/0/0.png") is None


async def test_purge_pages_through_and_deletes_in_batches(fake, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    monkeypatch.setattr("gateway.storage.bucket._BATCH", 4)
    place = fake.place()
    async with opened(place) as storage:
        for number in range(10):
            fake.client.put_object(Bucket=place.bucket, Key=f"raw/job1/0/{number}.png", Body=b"x")
        fake.client.put_object(Bucket=place.bucket, Key="raw/job10/0/0.png", Body=b"x")
        fake.asked.clear()
        await storage.purge("raw/job1", keep=frozenset({"raw/job1/0/7.png"}))
        calls = [method for method, _ in fake.asked]
        assert (calls.count("GET"), calls.count("POST")) == (4, 3)
        assert fake.keys(place.bucket) == ["raw/job1/0/7.png", "raw/job10/0/0.png"]


async def test_what_a_batch_could_not_delete_is_an_outage(fake, monkeypatch):
    place = fake.place()
    async with opened(place) as storage:
        await storage.keep("raw/job1/0/0.png", PNG)
        client: Any = storage._bucket._client
        refused = {"Errors": [{"Key": "raw/job1/0/0.png", "Code": "AccessDenied", "Message": "no"}]}
        monkeypatch.setattr(client, "delete_objects", lambda **_: refused)
        with pytest.raises(StorageUnavailable):
            await storage.purge("raw/job1")


# The start, and readiness


async def test_a_bucket_that_is_away_at_the_start_is_tried_until_it_is_there(fake):
    place = fake.place(attempts=1)
    fake.fault = answers(503, "SlowDown")
    async with opened(place, ready=False) as storage:
        readiness = await storage.readiness()
        assert not readiness.ready
        why = "write: SlowDown: it is busy or has a fault of its own; it is tried again"
        assert readiness.reason == f"the picture storage can't be used: {why}"
        with pytest.raises(StorageUnavailable):
            await storage.keep("master/job1/0.png", b"pixels")
        fake.fault = FakeS3().fault
        with anyio.fail_after(20):
            while not (await storage.readiness()).ready:
                await anyio.sleep(0.02)
        await storage.keep("master/job1/0.png", b"pixels")


async def test_readiness_does_not_ask_s3_each_time(fake, monkeypatch):
    async with opened(fake.place(attempts=1)) as storage:
        fake.asked.clear()
        for _ in range(20):
            assert (await storage.readiness()).ready
        assert len(fake.asked) <= 1
        fake.fault = answers(403, "AccessDenied")
        monkeypatch.setattr(storage, "_look_again_at", 0.0)
        readiness = await storage.readiness()
        assert not readiness.ready and "AccessDenied" in readiness.reason
        monkeypatch.setattr(storage, "_look_again_at", 0.0)
        fake.fault = FakeS3().fault
        assert (await storage.readiness()).ready


async def test_a_look_that_hangs_is_not_waited_for(fake, monkeypatch):
    monkeypatch.setattr(s3_module, "_LOOK", 0.05)
    async with opened(fake.place()) as storage:
        monkeypatch.setattr(storage, "_look_again_at", 0.0)
        fake.slow = 0.5
        assert (await storage.readiness()).reason.endswith("it does not answer in time")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"endpoint": "http://s3 .example"}, "InvalidEndpoint: this is no address: check IMGEN_S3_ENDPOINT"),
        ({"region": "eu central 1"}, "InvalidRegionError: this is no region: check IMGEN_S3_REGION"),
    ],
)
async def test_what_is_no_address_or_region_is_said_at_the_start(changed, says):
    with pytest.raises(SettingsError) as error:
        async with opened(Place(**{"bucket": "abc", "access_key": ACCESS, "secret_key": SECRET, **changed})):
            pass
    assert says in str(error.value) and SECRET not in str(error.value)


def test_building_a_storage_touches_nothing(monkeypatch):
    monkeypatch.setattr(boto3.session.Session, "client", lambda *_, **__: pytest.fail("a client was made"))
    S3Storage(Place(bucket="my-pictures"))


# Settings, and the commands


def environ(place: Place) -> dict[str, str]:
    return {
        "IMGEN_S3_BUCKET": place.bucket,
        "IMGEN_S3_REGION": place.region,
        "IMGEN_S3_ENDPOINT": place.endpoint,
        "IMGEN_S3_PATH_STYLE": "true",
        "IMGEN_S3_ACCESS_KEY": place.access_key,
        "IMGEN_S3_SECRET_KEY": place.secret_key,
        "IMGEN_S3_PREFIX": place.prefix,
    }


def test_the_settings_alone_choose_the_storage(tmp_path):
    data = {"IMGEN_DATA": str(tmp_path)}
    assert isinstance(storage_of(Settings.from_environ(data), secret=b"s"), DiskStorage)
    assert isinstance(storage_of(Settings.from_environ({**data, "IMGEN_S3_BUCKET": "abc"}), secret=b"s"), S3Storage)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"IMGEN_S3_PREFIX": "imgen"}, "IMGEN_S3_PREFIX: set it together with s3_bucket"),
        ({"IMGEN_S3_BUCKET": "s3://pictures"}, "IMGEN_S3_BUCKET: must be a bucket's name"),
        ({"IMGEN_S3_BUCKET": "my.pictures"}, "IMGEN_S3_BUCKET: a name with a dot"),
        ({"IMGEN_S3_BUCKET": "abc", "IMGEN_S3_ACCESS_KEY": "x"}, "set it together with s3_secret_key"),
        ({"IMGEN_S3_BUCKET": "abc", "IMGEN_S3_PREFIX": "a/../b"}, "IMGEN_S3_PREFIX: must be names of"),
        ({"IMGEN_S3_BUCKET": "abc", "IMGEN_URL_TTL": "604801"}, "IMGEN_URL_TTL: must not be above 604800"),
        ({"IMGEN_S3_BUCKET": "abc", "IMGEN_S3_ENDPOINT": "minio:9000"}, "IMGEN_S3_ENDPOINT: must start with http"),
    ],
)
def test_a_setting_that_can_not_work_is_named(wrong, says):
    with pytest.raises(SettingsError, match="IMGEN_") as error:
        Settings.from_environ(wrong)
    assert says in str(error.value)


@pytest.mark.parametrize("prefix", ["imgen/production", "/imgen/production/"])
def test_a_prefix_ends_in_one_slash(prefix):
    settings = Settings.from_environ({"IMGEN_S3_BUCKET": "abc", "IMGEN_S3_PREFIX": prefix})
    assert settings.s3_prefix == "imgen/production/"


def imgen(monkeypatch: pytest.MonkeyPatch, place: Place, *command: str, **more: str) -> Any:
    for name, value in {**environ(place), **more}.items():
        monkeypatch.setenv(name, value)
    return CliRunner().invoke(app, ["storage", *command])


def test_check_prints_each_step(fake, monkeypatch):
    result = imgen(monkeypatch, fake.place(), "check")
    assert result.exit_code == 0
    assert [line.rpartition("  ok")[0].strip() for line in result.stdout.splitlines()[1:]] == STEPS


def test_check_says_what_fails(fake, monkeypatch):
    place = fake.place()
    fake.fault = answers(404, "NoSuchBucket")
    result = imgen(monkeypatch, place, "check")
    assert result.exit_code == 1
    assert "write  failed  NoSuchBucket: there is no such bucket" in result.stdout


def test_lifecycle_prints_the_rules_and_asks_nobody(fake, monkeypatch):
    place = fake.place()
    fake.asked.clear()
    result = imgen(monkeypatch, place, "lifecycle", IMGEN_S3_QUARANTINE_DAYS="30")
    printed = json.loads(result.stdout)["Rules"]
    assert [(r["ID"], r["Filter"]["Prefix"], r["Expiration"]["Days"]) for r in printed] == [
        ("imgen-raw", "raw/", 1),
        ("imgen-quarantine", "quarantine/", 30),
    ]
    assert fake.asked == []


def test_lifecycle_leaves_the_rules_of_others(fake, monkeypatch):
    place = replace(fake.place(), prefix="imgen/")
    others = [
        {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 7}},
        *rules("other/"),
    ]
    fake.client.put_bucket_lifecycle_configuration(Bucket=place.bucket, LifecycleConfiguration={"Rules": others})
    for days, ids in (("30", ["imgen-imgen-raw", "imgen-imgen-master"]), ("0", ["imgen-imgen-raw"])):
        assert imgen(monkeypatch, place, "lifecycle", "--apply", IMGEN_S3_MASTER_DAYS=days).exit_code == 0
        there = fake.client.get_bucket_lifecycle_configuration(Bucket=place.bucket)["Rules"]
        assert [rule["ID"] for rule in there] == ["logs", "imgen-other-raw", *ids]
        assert there[0]["Expiration"] == {"Days": 7} and there[0]["Filter"] == {"Prefix": "logs/"}
    fake.asked.clear()
    assert imgen(monkeypatch, place, "lifecycle", "--apply").exit_code == 0
    assert [method for method, _ in fake.asked] == ["GET"]


def test_lifecycle_says_what_it_may_not(fake, monkeypatch):
    place = fake.place()
    fake.fault = answers(403, "AccessDenied", where="lifecycle")
    result = imgen(monkeypatch, place, "lifecycle", "--apply")
    assert result.exit_code == 1 and "AccessDenied: the credentials may not do this" in result.stderr


def test_merged_rules_keep_what_is_not_ours_as_it_is():
    there = [{"Prefix": "old-style/", "Status": "Enabled"}, *rules("", quarantine_days=3), {"ID": "imgen-web"}]
    assert merged(there, "", rules("")) == [there[0], {"ID": "imgen-web"}, *rules("")]


async def test_an_unsigned_request_is_refused_by_the_fake(fake):
    """What the suite relies on: its S3 looks at signatures."""
    place = fake.place()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{fake.url}/{place.bucket}?list-type=2")).status_code == 403
    assert place.region == REGION
