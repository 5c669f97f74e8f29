"""Reading pictures of any origin, honest or not."""

import io
import socket
from itertools import product

import c2pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compliance.authority import load_or_create
from compliance.errors import BadCredentials
from compliance.verify import verify
from tests.compliance.samples import FORMATS, bytes_of, pixels_of, scene, signed, tampered


@pytest.mark.parametrize(("format", "lossless"), [*product(FORMATS, [False, True])])
def test_a_changed_pixel_shows(signer, credentials, format, lossless):
    picture = signed(signer, format, lossless=lossless)
    report = verify(tampered(picture), credentials.anchors_pem)
    assert report.state == "tampered"
    assert report.failures == ("The picture was changed after it was signed.",)


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_added_at_the_end_show(signer, credentials, format):
    assert verify(signed(signer, format).data + b"more", credentials.anchors_pem).state == "tampered"


@pytest.mark.parametrize("format", FORMATS)
def test_a_changed_statement_shows(signer, credentials, format):
    data = signed(signer, format).data
    assert data.count(b"Drawn by the model eros") == 1
    report = verify(data.replace(b"Drawn by the model eros", b"Drawn by the hand of Ann"[:23]), credentials.anchors_pem)
    assert report.state == "tampered"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_picture_without_a_manifest_is_unsigned(credentials, format):
    assert verify(bytes_of(scene(), format), credentials.anchors_pem).state == "unsigned"


@pytest.mark.parametrize("format", FORMATS)
def test_saving_a_signed_picture_again_leaves_it_unsigned(signer, credentials, format):
    again = bytes_of(Image.open(io.BytesIO(signed(signer, format).data)), format.upper())
    assert verify(again, credentials.anchors_pem).state == "unsigned"


def test_a_stranger_is_valid_and_not_trusted(signer, tmp_path):
    stranger = load_or_create(tmp_path / "another")
    report = verify(signed(signer).data, stranger.anchors_pem)
    assert (report.state, report.failures) == ("valid", ("The signer is not on the list of trusted roots.",))


def test_without_anchors_nobody_is_trusted(signer):
    assert verify(signed(signer).data, b"").state == "valid"


@pytest.mark.parametrize(
    "anchors", [b"rubbish", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_anchors_that_do_not_read_are_an_error_and_no_verdict_about_the_picture(signer, anchors):
    with pytest.raises(BadCredentials, match="anchors"):
        verify(signed(signer).data, anchors)


def test_the_manifest_of_another_picture_shows(signer, credentials):
    one, two = signed(signer, "png"), signed(signer, "png", scene(seed=5))
    moved = one.data.replace(one.manifest, two.manifest)
    assert verify(moved, credentials.anchors_pem).state == "tampered"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0WEBP",
        b"\0\0\0\x1cftypavif",
        b"GIF89a",
        b"\0" * 99,
    ],
)
def test_what_is_no_picture_never_reads_as_signed(credentials, data):
    assert verify(data, credentials.anchors_pem).state in ("unreadable", "unsigned")


@pytest.fixture(scope="module")
def originals(signer):
    return [signed(signer, format, scene(24, 16)).data for format in FORMATS]


def shown(data):
    """The pixels as bytes, or None for a file that no viewer opens."""
    try:
        return pixels_of(data).tobytes()
    except (OSError, SyntaxError, ValueError):
        return None


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_no_bytes_raise_and_no_change_of_pixels_or_claims_reads_as_trusted(originals, credentials, data):
    """Padding in the manifest and lengths in the container are not hashed, so a change there may go unseen."""
    original = data.draw(st.sampled_from(originals))
    at = data.draw(st.integers(0, len(original) - 1))
    changed = original[:at] + data.draw(st.binary(max_size=40)) + original[at + data.draw(st.integers(0, 40)) :]
    report = verify(changed, credentials.anchors_pem)
    if report.state == "trusted":
        assert report == verify(original, credentials.anchors_pem)
        assert shown(changed) in (None, shown(original))


def test_a_manifest_elsewhere_is_never_fetched(credentials):
    """The address in a stranger's picture is theirs to choose: following it would let them send us anywhere."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        context = c2pa.Context.from_dict(
            {"builder": {"thumbnail": {"enabled": False}}, "verify": {"verify_after_sign": False}}
        )
        info = c2pa.C2paSignerInfo(b"es256", credentials.chain_pem, credentials.key_pem, None)
        out = io.BytesIO()
        manifest = {
            "claim_generator_info": [{"name": "stranger"}],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [{"action": "c2pa.created"}]}}],
        }
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest, context) as builder:
            builder.set_no_embed()
            builder.set_remote_url(f"http://127.0.0.1:{server.getsockname()[1]}/manifest.c2pa")
            builder.sign(signer, "image/jpeg", io.BytesIO(bytes_of(scene(), "JPEG")), out)
        assert b"manifest.c2pa" in out.getvalue()
        assert verify(out.getvalue(), credentials.anchors_pem).state != "trusted"
        with pytest.raises(TimeoutError):
            server.accept()
