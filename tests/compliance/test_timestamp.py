"""Time stamps: a real authority's are in the picture, and one that is dead, slow or wrong never holds a picture up."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from compliance.reader import new_context, read
from compliance.timestamp import TimestampAuthority, TimestampRelay
from compliance.verify import verify
from tests.compliance.fake_tsa import serving
from tests.compliance.samples import FORMATS, new_signer, signed


@pytest.fixture
def tsa(tmp_path):
    with serving(tmp_path / "tsa") as tsa:
        yield tsa


@pytest.fixture
def trusting(credentials, tsa):
    """Credentials whose readers trust the authority's root too."""
    return replace(credentials, anchors_pem=credentials.anchors_pem + tsa.root_pem)


def codes_of(picture, anchors):
    said = read(picture.data, picture.mime, new_context(anchors))["validation_results"]["activeManifest"]
    return {item["code"] for group in said.values() for item in group}


@pytest.mark.parametrize("format", FORMATS)
def test_a_stamp_is_in_the_picture_and_trusted(tsa, trusting, format):
    picture = signed(new_signer(trusting, timestamps=TimestampAuthority(url=tsa.url)), format)
    assert picture.stamped and tsa.asked == 1
    report = verify(picture.data, trusting.anchors_pem)
    assert report.state == "trusted"
    assert {"timeStamp.validated", "timeStamp.trusted"} <= codes_of(picture, trusting.anchors_pem)
    assert report.when.startswith(time.strftime("%Y-", time.gmtime()))


def test_without_the_root_of_the_authority_the_picture_is_trusted_and_its_time_is_not(tsa, credentials):
    picture = signed(new_signer(credentials, timestamps=TimestampAuthority(url=tsa.url)))
    assert verify(picture.data, credentials.anchors_pem).state == "trusted"
    assert "timeStamp.untrusted" in codes_of(picture, credentials.anchors_pem)


def test_without_an_authority_nothing_is_said_of_stamps(signer):
    assert signed(signer).stamped is None


@pytest.mark.parametrize("fault", ["hang", "drip", "rubbish", "denied", "nonce", "imprint"])
def test_a_bad_authority_costs_the_stamp_and_never_the_picture(tsa, trusting, fault):
    signer = new_signer(trusting, timestamps=TimestampAuthority(url=tsa.url, timeout=0.5, pause=3600))
    if fault == "imprint":
        # It answers with a stamp that it gave for another picture.
        assert signed(signer).stamped
    tsa.fault = fault
    asked = tsa.asked
    picture = signed(signer)
    assert picture.stamped is False and tsa.asked == asked + 1
    assert verify(picture.data, trusting.anchors_pem).state == "trusted"
    assert not any(code.startswith("timeStamp") for code in codes_of(picture, trusting.anchors_pem))
    # From now on nobody is asked for a while.
    assert signed(signer).stamped is False and tsa.asked == asked + 1


def test_a_dead_authority_costs_the_stamp_and_never_the_picture(credentials):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        picture = signed(new_signer(credentials, timestamps=TimestampAuthority(url=url)))
    assert picture.stamped is False
    assert verify(picture.data, credentials.anchors_pem).state == "trusted"


def test_it_is_asked_again_after_a_pause_and_heals(tsa, trusting):
    signer = new_signer(trusting, timestamps=TimestampAuthority(url=tsa.url, pause=0.05))
    tsa.fault = "rubbish"
    assert signed(signer).stamped is False
    tsa.fault = None
    time.sleep(0.06)
    assert signed(signer).stamped is True
    assert signed(signer).stamped is True


def test_after_a_pause_one_goes_ahead_and_the_others_do_not_wait():
    clock = [0.0]
    relay = TimestampRelay(TimestampAuthority(url="http://127.0.0.1:9", pause=60), now=lambda: clock[0])
    try:
        assert relay.willing() and relay.willing()
        relay.report(stamped=False)
        assert not relay.willing()
        clock[0] = 61.0
        assert relay.willing() and not relay.willing()
        relay.report(stamped=True)
        assert relay.willing() and relay.willing()
    finally:
        relay.close()


def test_eight_threads_beside_an_authority_that_hangs_leave_no_thread_behind(tsa, trusting):
    before = set(threading.enumerate())
    authority = TimestampAuthority(url=tsa.url, timeout=0.3, pause=3600)
    signer = new_signer(trusting, timestamps=authority)
    tsa.fault = "hang"
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(lambda number: signed(signer, FORMATS[number % 4]), range(24)))
    assert {picture.stamped for picture in pictures} == {False}
    assert {verify(picture.data, trusting.anchors_pem).state for picture in pictures} == {"trusted"}
    (native,) = signer._natives.values()
    native._relay.close()
    tsa.over.set()
    until = time.monotonic() + 10
    while left := [each for each in set(threading.enumerate()) - before if "timestamp" in each.name]:
        assert time.monotonic() < until, left
        time.sleep(0.02)


def test_nobody_else_asks_through_the_relay(tsa):
    relay = TimestampRelay(TimestampAuthority(url=tsa.url))
    try:
        host, _, rest = relay.url.removeprefix("http://").partition("/")
        with socket.create_connection((host.split(":")[0], int(host.split(":")[1])), timeout=5) as guest:
            guest.sendall(b"POST /guess HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
            assert guest.recv(100).startswith(b"HTTP/1.0 404")
        assert len(rest) >= 20 and tsa.asked == 0
    finally:
        relay.close()
