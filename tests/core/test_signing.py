"""A signer that breaks and is mended while the gateway runs: what waits, what fails, and what is said."""

from contextlib import AsyncExitStack
from datetime import timedelta

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from compliance.authority import load_or_create
from compliance.credentials import Credentials
from compliance.errors import BadCredentials
from compliance.kms import KmsKey
from compliance.sign import Signer
from gateway.acs.local import LocalCompliance
from gateway.core.finishing import EXPIRY_WARNING, Finisher, raw_key
from gateway.core.images import Credentials as Claims
from gateway.core.polishing import Polisher
from gateway.errors import FinishingFailed
from gateway.metrics import Metrics
from gateway.storage.disk import DiskStorage
from tests.compliance.fake_kms import serving
from tests.compliance.samples import Authority
from tests.core.test_finishing import job_of, png, unrecorded
from tests.reviewers import SeesColours, panel

pytestmark = pytest.mark.anyio


@pytest.fixture
def kms(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with serving(ec.generate_private_key(ec.SECP256R1())) as kms:
        yield kms


@pytest.fixture
def remote(kms):
    authority = Authority()
    chain = authority.leaf_of(kms.key.public_key()) + authority.issuer
    key = KmsKey(key_id="k", endpoint=kms.url, timeout=0.3)
    return Credentials.from_remote_key(chain, key, authority.root)


@pytest.fixture
async def make(tmp_path, anyio_backend):
    storage = DiskStorage(
        tmp_path / "p", secret=b"s" * 32, public_url="http://x", internal_url="http://x", now=lambda: 0.0
    )
    async with storage.open(), AsyncExitStack() as stack:

        async def make(credentials, **more):
            compliance = LocalCompliance(panel(SeesColours()), threads=2)
            await stack.enter_async_context(compliance.open())
            signer = Signer(credentials, name="imgen", version="0")
            metrics = Metrics(expires_at=credentials.not_after.timestamp())
            polisher = Polisher(signer=signer, defaults=Claims(), now=lambda: 0.0, meter=metrics)
            finisher = Finisher(
                storage=storage, compliance=compliance, polisher=polisher, threads=2, probe_again=0.02, **more
            )
            await finisher.open()
            await stack.enter_async_context(finisher.running())
            job = job_of(png())
            await storage.keep(raw_key(job, 0), png())
            return finisher, job

        yield make


async def until(finisher, ready):
    with anyio.fail_after(20):
        while finisher.readiness().ready is not ready:
            await anyio.sleep(0.01)


async def test_a_key_that_is_out_of_reach_at_the_start_is_taken_up_when_it_is_there(make, kms, remote):
    kms.fault = "KMSInternalException"
    finisher, job = await make(remote)
    assert not finisher.readiness().ready
    assert "KMS can't sign now" in finisher.readiness().reason
    with pytest.raises(FinishingFailed) as caught:
        await finisher.finish(job, unrecorded)
    assert caught.value.retryable
    kms.fault = None
    await until(finisher, True)
    assert (await finisher.finish(job, unrecorded)).verdict.safe


async def test_a_key_that_is_disabled_fails_one_job_and_the_next_wait_until_it_is_enabled(make, kms, remote):
    finisher, job = await make(remote)
    kms.fault = "DisabledException"
    with pytest.raises(FinishingFailed) as caught:
        await finisher.finish(job, unrecorded)
    assert (caught.value.code, caught.value.retryable) == ("bad_credentials", False)
    assert not finisher.readiness().ready and "Enable the key" in finisher.readiness().reason
    asked = len(kms.asked)
    with pytest.raises(FinishingFailed) as caught:
        await finisher.finish(job, unrecorded)
    assert caught.value.retryable and len(kms.asked) == asked
    kms.fault = None
    await until(finisher, True)
    assert (await finisher.finish(job, unrecorded)).verdict.safe


async def test_a_key_that_answers_no_more_is_found_out_soon_after_the_first_try(make, kms, remote):
    finisher, job = await make(remote)
    kms.fault = "drop"
    with pytest.raises(FinishingFailed) as caught:
        await finisher.finish(job, unrecorded)
    assert (caught.value.code, caught.value.retryable) == ("signing_unavailable", True)
    await until(finisher, False)
    kms.fault = None
    await until(finisher, True)


async def test_a_picture_with_its_thumbnail_asks_the_key_twice(make, kms, remote):
    finisher, job = await make(remote)
    asked = len(kms.asked)
    await finisher.finish(job, unrecorded)
    assert len(kms.asked) == asked + 2


@pytest.mark.parametrize(("left", "warned"), [(EXPIRY_WARNING - 1, True), (EXPIRY_WARNING + 1, False)])
async def test_a_certificate_that_ends_within_30_days_is_told_in_the_log_and_signs(make, tmp_path, left, warned):
    credentials = load_or_create(tmp_path / "ca")
    now = (credentials.not_after - timedelta(seconds=left)).timestamp()
    with capture_logs() as logs:
        finisher, _ = await make(credentials, now=lambda: now)
    assert finisher.readiness().ready
    said = [entry for entry in logs if entry["event"] == "signing certificate expires soon"]
    assert [(entry["days"], entry["log_level"]) for entry in said] == ([(30.0, "warning")] if warned else [])


async def test_a_certificate_that_has_expired_keeps_the_gateway_from_being_ready(make):
    authority = Authority()
    leaf, key = authority.leaf(begins=-9, ends=-1)
    finisher, job = await make(Credentials.from_pem(leaf + authority.issuer, key, authority.root))
    assert not finisher.readiness().ready and "Renew it" in finisher.readiness().reason
    with pytest.raises(FinishingFailed):
        await finisher.finish(job, unrecorded)


def test_the_chain_ends_with_the_first_of_its_certificates():
    authority = Authority()
    leaf, key = authority.leaf(ends=300)
    short = Credentials.from_pem(leaf + authority.issuer, key, authority.root).not_after
    leaf, key = authority.leaf(ends=3)
    shorter = Credentials.from_pem(leaf + authority.issuer, key, authority.root).not_after
    assert shorter < short
    with pytest.raises(BadCredentials):
        Credentials.from_pem(leaf, key, authority.root)
