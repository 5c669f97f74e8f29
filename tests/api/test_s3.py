"""A whole gateway whose pictures lie in S3: nothing passes through the gateway but what it reviews and signs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import httpx
import pytest

from compliance.verify import verify
from gateway.check import NotReady, looks
from tests.api.conftest import KEY, Gateway, opened, settings
from tests.api.fake_runpod import FakeRunPod
from tests.api.test_generate import anchors
from tests.storage.fake_s3 import FakeS3, running

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def s3() -> Iterator[FakeS3]:
    with running() as s3:
        yield s3


@pytest.fixture
async def cloud() -> AsyncIterator[httpx.AsyncClient]:
    """How workers and callers reach S3: over real HTTP, and without a key."""
    async with httpx.AsyncClient(timeout=30) as client:
        yield client


class Stored:
    """A gateway on a fresh bucket of the fake S3."""

    def __init__(self, s3: FakeS3, tmp_path: Path) -> None:
        s3.fault = FakeS3().fault
        self.place = s3.place(prefix="imgen/")
        self.settings = settings(
            tmp_path,
            IMGEN_S3_BUCKET=self.place.bucket,
            IMGEN_S3_REGION=self.place.region,
            IMGEN_S3_ENDPOINT=self.place.endpoint,
            IMGEN_S3_PREFIX="imgen",
            IMGEN_S3_PATH_STYLE="true",
            IMGEN_S3_ACCESS_KEY=self.place.access_key,
            IMGEN_S3_SECRET_KEY=self.place.secret_key,
        )


@pytest.fixture
def stored(s3: FakeS3, tmp_path: Path) -> Stored:
    return Stored(s3, tmp_path)


async def _ready(gateway: Gateway) -> None:
    with anyio.fail_after(20):
        while True:
            answer = await gateway.http.get("/readyz")
            if answer.status_code == 200:
                return
            await anyio.sleep(0.05)


async def test_a_picture_goes_through_s3_and_is_trusted(
    s3: FakeS3, stored: Stored, cloud: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with opened(stored.settings, FakeRunPod(key="rp-key")) as gateway:
        gateway.runpod.uploads = cloud
        await _ready(gateway)
        meta = await gateway.picture(format="webp")
        image, thumb = meta["images"]
        assert urlsplit(image["url"]).netloc == urlsplit(s3.url).netloc
        for each in (image, thumb):
            answer = await cloud.get(each["url"])
            assert (answer.status_code, answer.headers["content-type"]) == (200, each["mime"])
            assert verify(answer.content, anchors(gateway)).state == "trusted"
        assert sha256((await cloud.get(image["url"])).content).hexdigest() == meta["fingerprint"]
        assert (await cloud.get(image["url"].partition("?")[0])).status_code == 403
        folders = [key.split("/")[1] for key in s3.keys(stored.place.bucket)]
        with anyio.fail_after(20):
            while "raw" in folders:  # what the worker sent goes after the commit
                await anyio.sleep(0.05)
                folders = [key.split("/")[1] for key in s3.keys(stored.place.bucket)]
        assert folders == ["master", "out", "out"]
    assert not (tmp_path / "pictures").exists()


async def test_an_outage_while_a_picture_is_finished_loses_nothing(
    s3: FakeS3, stored: Stored, cloud: httpx.AsyncClient
) -> None:
    async with opened(stored.settings, FakeRunPod(key="rp-key")) as gateway:
        gateway.runpod.uploads = cloud
        await _ready(gateway)
        refused = 0

        def fault(method: str, url: str) -> tuple[int, str] | None:
            nonlocal refused
            if method == "PUT" and "/out/" in url and refused < 4:
                refused += 1
                return 503, "SlowDown"
            return None

        s3.fault = fault
        meta = await gateway.picture()
        assert refused == 4
        assert len(gateway.runpod.submitted) == 1
        answer = await cloud.get(meta["images"][0]["url"])
        assert verify(answer.content, anchors(gateway)).state == "trusted"


async def test_check_looks_at_the_bucket(s3: FakeS3, stored: Stored) -> None:
    look = dict(looks(stored.settings))["storage"]
    assert await look() == f"pictures in the bucket {stored.place.bucket}"
    s3.fault = lambda method, url: (404, "NoSuchBucket")
    with pytest.raises(NotReady, match="NoSuchBucket: there is no such bucket"):
        await look()


async def test_a_gateway_that_can_not_use_its_bucket_says_so_and_takes_no_job(s3: FakeS3, stored: Stored) -> None:
    s3.fault = lambda method, url: (403, "AccessDenied")
    async with opened(stored.settings, FakeRunPod(key="rp-key")) as gateway:
        answer = await gateway.http.get("/readyz")
        assert answer.status_code == 503
        (missing,) = answer.json()["missing"]
        assert missing.startswith("the picture storage can't be used: write: AccessDenied: ")
        assert stored.place.bucket not in answer.text and s3.url not in answer.text
        answer = await gateway.post({"action": "generate", "prompt": "a red house"})
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        assert stored.place.bucket not in answer.text
        (job,) = (await gateway.call("jobs"))["jobs"]
        assert job["status"] == "FAILED"
        assert gateway.runpod.submitted == []
        # It was only the permission: when it is granted, the gateway mends itself.
        s3.fault = FakeS3().fault
        await _ready(gateway)


async def test_stable_addresses_and_the_example_lead_to_the_bucket(stored: Stored, cloud: httpx.AsyncClient) -> None:
    async with opened(stored.settings, FakeRunPod(key="rp-key")) as gateway:
        gateway.runpod.uploads = cloud
        await _ready(gateway)
        meta = await gateway.picture()
        answer = await gateway.http.get(f"/i/{meta['id']}", headers={"Authorization": f"Bearer {KEY}"})
        assert answer.status_code == 302
        file = await cloud.get(answer.headers["location"])
        assert file.status_code == 200 and sha256(file.content).hexdigest() == meta["fingerprint"]
        place = urlsplit(answer.headers["location"])
        policy = (await gateway.http.get("/example")).headers["content-security-policy"]
        assert f"connect-src 'self' {place.scheme}://{place.netloc};" in policy
