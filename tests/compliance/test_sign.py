"""Signing, and what a reader then sees."""

import io
import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import product

import c2pa
import pytest
from PIL import Image

from compliance.authority import load_or_create, utc_now
from compliance.credentials import Credentials
from compliance.encode import THUMBNAIL_OPTIONS, EncodeOptions, encode, thumbnail
from compliance.errors import BadCredentials, SigningUnavailable
from compliance.fingerprint import fingerprint
from compliance.picture import Marked
from compliance.sign import AI_GENERATED, DISCLOSURE
from compliance.verify import verify
from tests.compliance.samples import FORMATS, Authority, new_signer, pixels_of, provenance, scene, signed

SIZES = [(16, 16), (1024, 1024), (1344, 768), (832, 1216)]


@pytest.mark.parametrize(("format", "size"), [*product(FORMATS, SIZES)])
def test_every_format_and_size_reads_trusted_and_keeps_its_pixels(signer, credentials, format, size):
    encoded = encode(Marked(pixels=scene(*size)), EncodeOptions(format=format))
    picture = signer.sign(encoded, provenance())
    assert verify(picture.data, credentials.anchors_pem).state == "trusted"
    assert picture.sha256 == fingerprint(picture.data)
    assert (pixels_of(picture.data) == pixels_of(encoded.data)).all()
    assert len(picture.data) - len(encoded.data) < 6000


def test_the_manifest_states_how_the_picture_came_to_be(signer, credentials):
    picture = signed(signer)
    report = verify(picture.data, credentials.anchors_pem)
    (created,) = report.claims["c2pa.actions.v2"]["actions"]
    assert created == {
        "action": "c2pa.created",
        "digitalSourceType": AI_GENERATED,
        "softwareAgent": {"name": "imgen", "version": "0.1.0"},
        "description": "Drawn by the model eros",
        "when": "2026-05-28T20:02:50Z",
    }
    assert report.claims[DISCLOSURE] == {
        "provider": "Example Pictures",
        "system": {"name": "imgen", "version": "0.1.0"},
        "model": "eros",
        "created": "2026-05-28T20:02:50Z",
        "id": "a1b2c3d4e5f6g7h8i9j0",
        "ai_generated": True,
    }
    assert (report.generator, report.model, report.when) == ("imgen 0.1.0", "eros", "2026-05-28T20:02:50Z")
    assert (report.signer, report.label) == ("imgen development signer", picture.label)


def claim_of(picture, credentials):
    context = c2pa.Context.from_dict({"trust": {"user_anchors": credentials.anchors_pem.decode()}})
    with c2pa.Reader(picture.mime, io.BytesIO(picture.data), context=context) as reader:
        return json.loads(reader.detailed_json())["manifests"][picture.label]["claim"]


def test_what_the_requester_says_is_gathered_and_never_stated_by_the_signer(signer, credentials):
    told = {"author": "Ann", "title": "A hill", "description": "Fog", "organization": "Hill & Co", "vendor": "Shop"}
    picture = signed(signer, **told)
    metadata = verify(picture.data, credentials.anchors_pem).claims["cawg.metadata"]
    assert (
        metadata.items()
        >= {
            "dc:creator": ["Ann"],
            "dc:title": "A hill",
            "dc:description": "Fog",
            "dc:publisher": ["Hill & Co"],
            "photoshop:Credit": "Shop",
        }.items()
    )
    claim = claim_of(picture, credentials)
    assert claim["dc:title"] == "A hill"
    assert [entry["url"].split("/")[-1] for entry in claim["gathered_assertions"]] == ["cawg.metadata"]
    created = {entry["url"].split("/")[-1] for entry in claim["created_assertions"]}
    assert created == {"c2pa.hash.data", "c2pa.actions.v2", DISCLOSURE}


def test_claims_that_nobody_made_are_left_out(signer, credentials):
    assert "cawg.metadata" not in verify(signed(signer).data, credentials.anchors_pem).claims
    only = verify(signed(signer, vendor="Shop").data, credentials.anchors_pem).claims["cawg.metadata"]
    assert only.keys() == {"@context", "photoshop:Credit"}


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "é😀", "x" * 2000, '"}]', "\u202e", "\uffff"], ids=ascii)
def test_any_text_can_be_claimed(signer, credentials, text):
    picture = signed(signer, title=text, description=text)
    assert verify(picture.data, credentials.anchors_pem).state == "trusted"


def test_a_thumbnail_leads_to_the_full_picture(signer, credentials):
    marked = Marked(pixels=scene(1344, 768))
    full = signer.sign(encode(marked, EncodeOptions(format="avif")), provenance())
    small = signer.sign(encode(thumbnail(marked), THUMBNAIL_OPTIONS), provenance(), parent=full)
    report = verify(small.data, credentials.anchors_pem)
    assert (report.state, report.actions) == ("trusted", ("c2pa.opened", "c2pa.resized"))
    assert report.claims["c2pa.actions.v2"]["actions"][0]["digitalSourceType"] == AI_GENERATED
    assert any(label.startswith("c2pa.ingredient") for label in claim_labels(small, credentials))
    assert full.label.encode() in small.manifest


def claim_labels(picture, credentials):
    return [entry["url"].split("/")[-1] for entry in claim_of(picture, credentials)["created_assertions"]] + [
        entry["url"].split("/")[-1] for entry in claim_of(picture, credentials).get("gathered_assertions", [])
    ]


def test_two_signatures_of_one_picture_are_two_manifests(signer):
    assert signed(signer).label != signed(signer).label


def test_eight_threads_sign_at_once_and_no_picture_gets_the_manifest_of_another(credentials):
    signer = new_signer(credentials)

    def one(number):
        format = FORMATS[number % 4]
        encoded = encode(Marked(pixels=scene(64, 48, seed=number)), EncodeOptions(format=format))
        return number, signer.sign(encoded, replace(provenance(title=f"picture {number}"), gen_id=f"id{number}"))

    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(one, range(80)))
    for number, picture in pictures:
        report = verify(picture.data, credentials.anchors_pem)
        assert (report.state, report.claims[DISCLOSURE]["id"]) == ("trusted", f"id{number}")
        assert report.claims["cawg.metadata"]["dc:title"] == f"picture {number}"


def test_a_child_process_signs_after_a_fork(signer, credentials):
    signed(signer)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send_bytes(signed(signer).data))
    child.start()
    assert ours.poll(30)
    assert verify(ours.recv_bytes(), credentials.anchors_pem).state == "trusted"
    child.join(30)
    assert child.exitcode == 0


def test_building_a_signer_does_nothing_yet(credentials):
    new_signer(replace(credentials, chain_pem=b"rubbish"))


def test_the_probe_accepts_good_credentials(signer):
    assert signer.probe() is None


def test_the_probe_refuses_an_expired_certificate(tmp_path):
    long_ago = load_or_create(tmp_path / "ca", now=lambda: utc_now() - timedelta(days=6 * 365))
    assert long_ago.not_after < utc_now()
    with pytest.raises(BadCredentials, match="Renew"):
        new_signer(long_ago).probe()


def test_the_probe_refuses_a_certificate_of_the_future():
    authority = Authority()
    leaf, key = authority.leaf(begins=2)
    with pytest.raises(SigningUnavailable):
        new_signer(Credentials.from_pem(leaf + authority.issuer, key, authority.root)).probe()


def test_the_probe_refuses_the_key_of_another_certificate(credentials):
    other = Authority().leaf()[1]
    with pytest.raises(SigningUnavailable):
        new_signer(replace(credentials, key_pem=other)).probe()


def test_the_probe_refuses_a_chain_that_no_anchor_vouches_for(credentials):
    with pytest.raises(SigningUnavailable, match="anchors"):
        new_signer(replace(credentials, anchors_pem=Authority().root)).probe()


@pytest.mark.parametrize("field", ["chain_pem", "key_pem"])
def test_rubbish_is_our_error(credentials, field):
    with pytest.raises(SigningUnavailable):
        new_signer(replace(credentials, **{field: b"rubbish"})).probe()


def test_a_picture_that_is_no_picture_is_our_error(signer):
    encoded = replace(encode(Marked(pixels=Image.new("RGB", (8, 8))), EncodeOptions()), data=b"rubbish")
    with pytest.raises(SigningUnavailable):
        signer.sign(encoded, provenance())
