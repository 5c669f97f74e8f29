"""A signing key that never leaves KMS: moto's over real HTTP, and a stand-in for what moto does not do."""

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import boto3
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from moto.server import ThreadedMotoServer

from compliance import ledger
from compliance.credentials import Credentials
from compliance.errors import BadCredentials, SigningUnavailable
from compliance.kms import KmsKey
from compliance.verify import verify
from tests.compliance.fake_kms import serving
from tests.compliance.samples import FORMATS, Authority, new_signer, signed

CA = Authority()


@pytest.fixture(autouse=True)
def account(monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def moto():
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def made(endpoint, spec="ECC_NIST_P256"):
    """A new key of moto's: its id and its public key."""
    client = boto3.client("kms", endpoint_url=endpoint)
    key = client.create_key(KeySpec=spec, KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    return client, key, load_der_public_key(client.get_public_key(KeyId=key)["PublicKey"])


def credentials_of(public_key, key):
    chain = CA.leaf_of(public_key) + CA.issuer
    return Credentials.from_remote_key(chain, key, CA.root)


@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "ECC_NIST_P384"])
def test_every_format_signed_by_kms_reads_trusted(moto, spec):
    _, key, public_key = made(moto, spec)
    credentials = credentials_of(public_key, KmsKey(key_id=key, endpoint=moto))
    signer = new_signer(credentials)
    signer.probe()
    for format in FORMATS:
        assert verify(signed(signer, format).data, credentials.anchors_pem).state == "trusted"


def test_eight_threads_share_one_key_and_ask_once_per_picture():
    private = ec.generate_private_key(ec.SECP256R1())
    with serving(private) as kms:
        credentials = credentials_of(private.public_key(), KmsKey(key_id="k", endpoint=kms.url))
        signer = new_signer(credentials)
        with ThreadPoolExecutor(8) as pool:
            pictures = list(pool.map(lambda number: signed(signer, FORMATS[number % 4]), range(40)))
        assert len(kms.asked) == 40
        assert {verify(picture.data, credentials.anchors_pem).state for picture in pictures} == {"trusted"}


def test_a_child_process_signs_after_a_fork():
    private = ec.generate_private_key(ec.SECP256R1())
    with serving(private) as kms:
        credentials = credentials_of(private.public_key(), KmsKey(key_id="k", endpoint=kms.url))
        signer = new_signer(credentials)
        signed(signer)
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=lambda: theirs.send_bytes(signed(signer).data))
        child.start()
        assert ours.poll(30)
        assert verify(ours.recv_bytes(), credentials.anchors_pem).state == "trusted"
        child.join(30)
        assert child.exitcode == 0


@pytest.mark.parametrize(
    "private",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["p256", "p384", "rsa"],
)
def test_what_is_too_long_for_kms_is_sent_as_its_digest(private):
    with serving(private) as kms:
        key = KmsKey(key_id="k", endpoint=kms.url)
        credentials = credentials_of(private.public_key(), key)
        long = b"x" * 4097
        spec = credentials.algorithm
        _check(private, key.sign(long[:4096], spec), long[:4096])
        _check(private, key.sign(long, spec), long)
        assert [each["MessageType"] for each in kms.asked] == ["RAW", "DIGEST"]


def _check(private, signature, data):
    """Raises InvalidSignature."""
    ledger._check_signature(private.public_key(), signature, data)


@pytest.mark.parametrize(
    ("fault", "again"),
    [
        ("ThrottlingException", True),
        ("KMSInternalException", True),
        ("KeyUnavailableException", True),
        ("drop", True),
        ("hang", True),
        ("AccessDeniedException", False),
        ("DisabledException", False),
        ("KMSInvalidStateException", False),
        ("NotFoundException", False),
        ("InvalidKeyUsageException", False),
    ],
)
def test_what_goes_wrong_is_told_apart_and_heals_without_a_restart(fault, again):
    private = ec.generate_private_key(ec.SECP256R1())
    with serving(private) as kms:
        key = KmsKey(key_id="k", endpoint=kms.url, timeout=0.3)
        credentials = credentials_of(private.public_key(), key)
        signer = new_signer(credentials)
        kms.fault = fault
        began = time.monotonic()
        with pytest.raises(SigningUnavailable) as caught:
            signed(signer)
        assert time.monotonic() - began < 20
        assert isinstance(caught.value, BadCredentials) is not again
        assert caught.value.retryable is again
        assert "KMS" in caught.value.message and kms.url not in str(caught.value)
        assert fault in caught.value.message or fault in ("drop", "hang")
        kms.fault = None
        assert verify(signed(signer).data, credentials.anchors_pem).state == "trusted"


def test_rsa_padded_as_kms_does_it_reads_trusted():
    private = rsa.generate_private_key(65537, 2048)
    with serving(private) as kms:
        credentials = credentials_of(private.public_key(), KmsKey(key_id="k", endpoint=kms.url))
        assert credentials.algorithm == "ps256"
        assert verify(signed(new_signer(credentials)).data, credentials.anchors_pem).state == "trusted"


def test_the_audit_is_sealed_by_the_same_key():
    private = ec.generate_private_key(ec.SECP256R1())
    with serving(private) as kms:
        credentials = credentials_of(private.public_key(), KmsKey(key_id="k", endpoint=kms.url))
        lines = list(ledger.export([], credentials, datetime.now(UTC)))
    assert ledger.verify(lines, credentials.anchors_pem).intact


def test_a_key_that_moto_does_not_know_is_refused(moto):
    _, _, public_key = made(moto)
    with pytest.raises(BadCredentials, match="refuses to sign"):
        new_signer(credentials_of(public_key, KmsKey(key_id="0" * 8, endpoint=moto))).probe()


def test_nobody_there_means_later():
    private = ec.generate_private_key(ec.SECP256R1())
    key = KmsKey(key_id="k", endpoint="http://127.0.0.1:9", timeout=0.3)
    with pytest.raises(SigningUnavailable, match="does not answer") as caught:
        new_signer(credentials_of(private.public_key(), key)).probe()
    assert caught.value.retryable


def test_without_an_account_the_fix_is_said(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    private = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(BadCredentials, match="credentials") as caught:
        new_signer(credentials_of(private.public_key(), KmsKey(key_id="k", endpoint="http://127.0.0.1:9"))).probe()
    assert caught.value.fix


def test_the_probe_refuses_a_key_that_does_not_fit_the_certificate():
    with serving(ec.generate_private_key(ec.SECP256R1())) as kms:
        key = KmsKey(key_id="k", endpoint=kms.url)
        other = ec.generate_private_key(ec.SECP256R1())
        with pytest.raises(SigningUnavailable):
            new_signer(credentials_of(other.public_key(), key)).probe()


def test_an_algorithm_that_kms_lacks_is_said():
    with pytest.raises(BadCredentials, match="ed25519"):
        KmsKey(key_id="k").sign(b"x", "ed25519")
