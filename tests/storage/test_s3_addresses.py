"""What S3 is asked and what it signs, checked by a second implementation of signature version 4."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from gateway.storage.bucket import LONGEST, Bucket, Place
from tests.storage.sigv4 import Refused, ends, verify

ACCESS, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
KEYS = {ACCESS: SECRET}
PLACE = Place(bucket="my-pictures", region="eu-central-1", access_key=ACCESS, secret_key=SECRET)
KEY = "out/job1/0.jpg"


@pytest.fixture(scope="module")
def bucket() -> Bucket:
    bucket = Bucket(PLACE)
    bucket.prepare()
    return bucket


def check(url: str, *, method: str = "GET", now: float | None = None, **headers: str) -> None:
    sent = {"Host": urlsplit(url).netloc, **{name.replace("_", "-"): value for name, value in headers.items()}}
    verify(method, url, sent, b"", KEYS, time.time() if now is None else now)


def soon() -> int:
    return int(time.time()) + 600


def test_the_verifier_agrees_with_amazons_printed_example():
    """Amazon S3 API reference, "Authenticating Requests: Using Query Parameters", the example with its signature."""
    url = (
        "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )
    keys = {"AKIAIOSFODNN7EXAMPLE": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
    begun = 1_369_353_600.0
    host = {"Host": "examplebucket.s3.amazonaws.com"}
    verify("GET", url, host, b"", keys, begun + 86_399)
    with pytest.raises(Refused, match="AccessDenied"):
        verify("GET", url, host, b"", keys, begun + 86_400)
    with pytest.raises(Refused, match="SignatureDoesNotMatch"):
        verify("PUT", url, host, b"", keys, begun)


def test_a_download_is_signed_for_the_bucket_in_its_region(bucket):
    url = bucket.download(KEY, expires_at=soon(), filename="job 1.jpg")
    assert url.startswith(f"https://my-pictures.s3.eu-central-1.amazonaws.com/{KEY}?")
    check(url)


@pytest.mark.parametrize(
    ("changed", "start"),
    [
        ({"region": "us-east-1"}, "https://my-pictures.s3.amazonaws.com/"),
        ({"region": "us-west-2", "path_style": True}, "https://s3.us-west-2.amazonaws.com/my-pictures/"),
        ({"endpoint": "http://minio:9000", "path_style": True}, "http://minio:9000/my-pictures/"),
        ({"endpoint": "https://s3.example.org"}, "https://my-pictures.s3.example.org/"),
        (
            {"endpoint": "http://minio:9000", "public_endpoint": "https://s3.example.org", "path_style": True},
            "https://s3.example.org/my-pictures/",
        ),
        ({"prefix": "imgen/production/"}, "https://my-pictures.s3.eu-central-1.amazonaws.com/imgen/production/"),
    ],
)
def test_addresses_lead_to_where_callers_and_workers_reach_the_bucket(changed, start):
    bucket = Bucket(replace(PLACE, **changed))
    bucket.prepare()
    end = soon()
    for url, headers, method in (
        (bucket.download(KEY, expires_at=end, filename="a.jpg"), {}, "GET"),
        (bucket.loan("raw/job1/references/0.png", expires_at=end), {}, "GET"),
        (bucket.upload("raw/job1/0/0.png", expires_at=end), {"Content_Type": "image/png"}, "PUT"),
    ):
        assert url.startswith(start)
        check(url, method=method, **headers)


def test_an_address_ends_to_the_second(bucket):
    for seconds in (1, 2, 600, 3600, LONGEST - 2):
        end = int(time.time()) + seconds + 1
        url = bucket.download(KEY, expires_at=end + 0.9, filename="a.jpg")
        assert ends(url) == end
        check(url, now=end - 0.001)
        with pytest.raises(Refused, match="AccessDenied"):
            check(url, now=end)


def test_an_address_that_would_live_too_long_is_a_mistake_of_ours(bucket):
    with pytest.raises(ValueError, match="604800 seconds at most"):
        bucket.download(KEY, expires_at=time.time() + LONGEST + 60, filename="a.jpg")


def test_an_address_whose_end_is_past_lives_for_the_shortest_time_there_is(bucket):
    url = bucket.download(KEY, expires_at=time.time() - 60, filename="a.jpg")
    assert "X-Amz-Expires=1&" in url
    with pytest.raises(Refused):
        check(url, now=time.time() + 2)


def test_the_end_is_right_when_a_second_passes_while_it_is_signed(bucket, monkeypatch):
    """boto reads the clock after us: the first time here it is a second ahead."""
    real = time.time
    behind = iter([1.0])
    monkeypatch.setattr("gateway.storage.bucket.time.time", lambda: real() - next(behind, 0.0))
    end = int(real()) + 600
    assert ends(bucket.download(KEY, expires_at=end, filename="a.jpg")) == end


@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param(lambda url: url.replace("job1", "job2"), id="another key"),
        pytest.param(lambda url: url.replace("out/", "raw/"), id="another folder"),
        pytest.param(lambda url: url.replace("a.jpg", "b.exe"), id="another filename"),
        pytest.param(lambda url: url.replace("image%2Fjpeg", "text%2Fhtml"), id="another type"),
        pytest.param(lambda url: re.sub(r"X-Amz-Expires=\d+", "X-Amz-Expires=86400", url), id="a longer life"),
        pytest.param(lambda url: re.sub(r"X-Amz-Date=\d", "X-Amz-Date=3", url), id="another date"),
        pytest.param(lambda url: url.replace("eu-central-1%2F", "us-east-1%2F"), id="another region"),
        pytest.param(lambda url: url.replace("my-pictures", "other-bucket"), id="another bucket"),
        pytest.param(lambda url: url.replace("SignedHeaders=host", "SignedHeaders="), id="no signed header"),
        pytest.param(lambda url: url + "&response-expires=x", id="one parameter more"),
        pytest.param(lambda url: re.sub(r"&response-cache-control=[^&]+", "", url), id="one parameter less"),
        pytest.param(lambda url: url[:-1] + ("0" if url[-1] != "0" else "1"), id="another signature"),
        pytest.param(lambda url: url.replace(ACCESS, "AKIDOTHER"), id="another's access key"),
        pytest.param(lambda url: url.partition("?")[0], id="no query"),
    ],
)
def test_a_tampered_download_is_refused(bucket: Bucket, tamper: Callable[[str], str]) -> None:
    url = bucket.download(KEY, expires_at=soon(), filename="a.jpg")
    check(url)
    assert tamper(url) != url
    with pytest.raises(Refused):
        check(tamper(url))


def test_another_secret_signs_for_nothing(bucket):
    other = Bucket(replace(PLACE, secret_key="a secret that nobody knows"))
    other.prepare()
    with pytest.raises(Refused, match="SignatureDoesNotMatch"):
        check(other.download(KEY, expires_at=soon(), filename="a.jpg"))


def test_an_upload_is_signed_for_its_method_its_key_and_its_type(bucket):
    url = bucket.upload("raw/job1/0/0.png", expires_at=soon())
    assert "X-Amz-SignedHeaders=content-type%3Bhost" in url
    check(url, method="PUT", Content_Type="image/png", User_Agent="aiohttp", Content_Length="10")
    for method, headers in (
        ("GET", {"Content_Type": "image/png"}),
        ("DELETE", {"Content_Type": "image/png"}),
        ("PUT", {"Content_Type": "text/html"}),
        ("PUT", {}),
        ("PUT", {"Content_Type": "image/png", "X_Amz_Acl": "public-read"}),
    ):
        with pytest.raises(Refused):
            check(url, method=method, **headers)
    with pytest.raises(Refused):
        check(url.replace("0/0.png", "0/1.png"), method="PUT", Content_Type="image/png")


def test_no_address_holds_the_secret_and_no_place_shows_it(bucket):
    assert SECRET not in bucket.download(KEY, expires_at=soon(), filename="a.jpg")
    assert SECRET not in repr(PLACE)
