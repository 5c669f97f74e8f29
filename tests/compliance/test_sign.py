"""Signing, and what a reader then sees."""

import base64
import io
import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import product

import c2pa
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compliance.authority import load_or_create, utc_now
from compliance.credentials import Credentials
from compliance.encode import THUMBNAIL_OPTIONS, EncodeOptions, encode, thumbnail
from compliance.errors import BadCredentials, SigningUnavailable
from compliance.fingerprint import fingerprint
from compliance.picture import Marked, SoftBinding
from compliance.reader import new_context, read_in_detail
from compliance.sign import AI_EDITED, AI_GENERATED, DISCLOSURE, Source
from compliance.sources import carries
from compliance.verify import verify
from tests.compliance.samples import FORMATS, Authority, bytes_of, new_signer, pixels_of, provenance, scene, signed

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
    created, converted = report.claims["c2pa.actions.v2"]["actions"]
    assert created == {
        "action": "c2pa.created",
        "digitalSourceType": AI_GENERATED,
        "softwareAgent": {"name": "imgen", "version": "0.1.0"},
        "description": "Drawn by the model eros",
        "when": "2026-05-28T20:02:50Z",
    }
    assert (converted["action"], converted["description"]) == ("c2pa.converted", "PNG to JPEG")
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
    assert (report.state, report.actions) == ("trusted", ("c2pa.opened", "c2pa.resized", "c2pa.converted"))
    assert report.claims["c2pa.actions.v2"]["actions"][0]["digitalSourceType"] == AI_GENERATED
    assert any(label.startswith("c2pa.ingredient") for label in claim_labels(small, credentials))
    assert full.label.encode() in small.manifest


def claim_labels(picture, credentials):
    return [entry["url"].split("/")[-1] for entry in claim_of(picture, credentials)["created_assertions"]] + [
        entry["url"].split("/")[-1] for entry in claim_of(picture, credentials).get("gathered_assertions", [])
    ]


@pytest.mark.parametrize(("format", "converted"), [("jpeg", True), ("png", False), ("webp", True), ("avif", True)])
def test_a_change_of_format_is_an_action_and_png_is_how_it_was_drawn(signer, credentials, format, converted):
    actions = verify(signed(signer, format).data, credentials.anchors_pem).actions
    assert ("c2pa.converted" in actions) is converted


# Reference pictures.


def source(role, data, *, carried=False):
    return Source(role=role, sha256=fingerprint(data), data=data if carried else b"")


def drawn_from(signer, *sources, format="jpeg"):
    stated = replace(provenance(), sources=sources)
    return signer.sign(encode(Marked(pixels=scene()), EncodeOptions(format=format), signer.xmp(stated)), stated)


def store_of(picture, credentials):
    return read_in_detail(picture.data, picture.mime, new_context(credentials.anchors_pem))


def actions_and_ingredients(picture, credentials):
    """Name, source type and inputs of each action; an input as (relationship, instance id)."""
    held = store_of(picture, credentials)["manifests"][picture.label]["assertion_store"]

    def inputs(action):
        labels = [each["url"].split("/")[-1] for each in action.get("parameters", {}).get("ingredients", [])]
        return [(held[label]["relationship"], held[label]["instanceID"]) for label in labels]

    actions = held["c2pa.actions.v2"]["actions"]
    return [(each["action"], each.get("digitalSourceType"), inputs(each)) for each in actions]


@pytest.fixture(scope="module")
def photo():
    return bytes_of(scene(seed=9))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """A picture that somebody else has signed."""
    return signed(new_signer(load_or_create(tmp_path_factory.mktemp("stranger") / "ca")), image=scene(seed=11)).data


@pytest.mark.parametrize("format", FORMATS)
def test_a_drawing_over_a_picture_was_opened_and_not_created(signer, credentials, photo, format):
    picture = drawn_from(signer, source("init", photo), format=format)
    report = verify(picture.data, credentials.anchors_pem)
    assert (report.state, report.failures) == ("trusted", ())
    opened, edited = actions_and_ingredients(picture, credentials)[:2]
    assert opened == ("c2pa.opened", None, [("parentOf", source("init", photo).name)])
    assert edited == ("c2pa.edited", AI_EDITED, [])
    assert "c2pa.created" not in report.actions
    assert report.claims["c2pa.actions.v2"]["actions"][1]["description"] == "Drawn over by the model eros"


def test_an_unsigned_reference_is_known_by_the_hash_of_its_file(signer, credentials, photo):
    picture = drawn_from(signer, source("init", photo))
    held = store_of(picture, credentials)["manifests"][picture.label]["assertion_store"]
    digest = base64.urlsafe_b64encode(bytes.fromhex(fingerprint(photo))).decode().rstrip("=")
    assert held["c2pa.ingredient.v3"]["instanceID"] == f"ni:///sha-256;{digest}"
    assert fingerprint(photo) in held["c2pa.ingredient.v3"]["description"]
    assert held[DISCLOSURE]["sources"] == [{"role": "init", "sha256": fingerprint(photo)}]


def test_a_picture_that_was_only_looked_at_is_an_input_of_a_created_one(signer, credentials, photo):
    picture = drawn_from(signer, source("guide", photo))
    assert verify(picture.data, credentials.anchors_pem).state == "trusted"
    (created, *_) = actions_and_ingredients(picture, credentials)
    assert created == ("c2pa.created", AI_GENERATED, [("inputTo", source("guide", photo).name)])


def test_of_several_references_the_first_to_begin_with_is_the_parent(signer, credentials, photo, strangers):
    own = signed(signer).data
    given = source("guide", photo), source("init", strangers, carried=True), source("init", own, carried=True)
    picture = drawn_from(signer, *given, source("guide", photo), source("guide", strangers, carried=True))
    report = verify(picture.data, credentials.anchors_pem)
    assert report.state == "trusted"
    opened, edited = actions_and_ingredients(picture, credentials)[:2]
    assert opened[2] == [("parentOf", given[1].name)]
    assert edited[2] == [("inputTo", given[0].name), ("inputTo", given[2].name)]


@pytest.mark.parametrize("role", ["init", "guide"])
def test_a_signed_reference_brings_its_manifests_along(signer, credentials, strangers, role):
    picture = drawn_from(signer, source(role, strangers, carried=True))
    assert verify(picture.data, credentials.anchors_pem).state == "trusted"
    store = store_of(picture, credentials)
    assert len(store["manifests"]) == 2
    ingredient = store["manifests"][picture.label]["assertion_store"]["c2pa.ingredient.v3"]
    said = [entry["code"] for entry in ingredient["validationResults"]["activeManifest"]["failure"]]
    assert said == ["signingCredential.untrusted"]


def test_only_what_holds_and_shows_nothing_is_carried_along(signer, strangers, photo):
    assert carries(strangers) and carries(signed(signer, "avif").data)
    assert not carries(photo) and not carries(b"") and not carries(strangers + b"more")
    assert not carries(strangers.replace(b"Drawn by the model eros", b"Drawn by the hand of An"))
    # A store with a thumbnail would smuggle out a picture that nobody has reviewed.
    out = io.BytesIO()
    claim = {"actions": [{"action": "c2pa.created", "digitalSourceType": AI_GENERATED}]}
    manifest = {"claim_generator_info": [{"name": "x"}], "assertions": [{"label": "c2pa.actions.v2", "data": claim}]}
    own = signer.credentials
    info = c2pa.C2paSignerInfo(b"es256", own.chain_pem, own.key_pem, None)
    with c2pa.Signer.from_info(info) as native, c2pa.Builder(manifest, new_context(b"")) as builder:
        builder.sign(native, "image/jpeg", io.BytesIO(bytes_of(scene(), "JPEG")), out)
    assert not carries(out.getvalue())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_bytes_raise_when_they_are_looked_at(strangers, data):
    at = data.draw(st.integers(0, len(strangers)))
    carries(strangers[:at] + data.draw(st.binary(max_size=40)) + strangers[at + data.draw(st.integers(0, 40)) :])


# Soft bindings and uses.


def test_each_soft_binding_is_an_assertion_and_a_mark_in_the_pixels_an_action(credentials):
    signer = new_signer(credentials, pixel_mark="com.example.mark")
    code = SoftBinding(alg="io.iscc.v0", value="ISCC:EEAWT7LB2WNEEGQQ")
    mark = SoftBinding(alg="com.example.mark", value="0123456789ab")

    def told(*bindings):
        encoded = encode(Marked(pixels=scene(), bindings=bindings), EncodeOptions())
        picture = signer.sign(encoded, provenance())
        assert verify(picture.data, credentials.anchors_pem).state == "trusted"
        held = store_of(picture, credentials)["manifests"][picture.label]["assertion_store"]
        named = [held[label] for label in sorted(held) if label.startswith("c2pa.soft-binding")]
        actions = [each["action"] for each in held["c2pa.actions.v2"]["actions"]]
        return [(each["alg"], each["blocks"]) for each in named], "c2pa.watermarked.bound" in actions

    assert told() == ([], False)
    assert told(code) == ([(code.alg, [{"scope": {}, "value": code.value}])], False)
    both, marked = told(code, mark)
    assert both == [(each.alg, [{"scope": {}, "value": each.value}]) for each in (code, mark)]
    assert marked


@pytest.mark.parametrize(
    ("use", "constraints", "entry"),
    [
        ("notAllowed", "", {"use": "notAllowed"}),
        ("allowed", "", {"use": "allowed"}),
        ("constrained", "Ask us first.", {"use": "constrained", "constraint_info": "Ask us first."}),
    ],
)
def test_what_the_operator_allows_to_be_done_with_the_pictures_is_stated(credentials, use, constraints, entry):
    signer = new_signer(credentials, training=use, constraints=constraints)
    picture = signed(signer)
    report = verify(picture.data, credentials.anchors_pem)
    assert report.state == "trusted"
    entries = report.claims["cawg.training-mining"]["entries"]
    assert entries == dict.fromkeys(
        ("cawg.ai_generative_training", "cawg.ai_training", "cawg.ai_inference", "cawg.data_mining"), entry
    )
    created = {each["url"].split("/")[-1] for each in claim_of(picture, credentials)["created_assertions"]}
    assert "cawg.training-mining" in created


def test_nothing_is_said_about_uses_by_default(signer, credentials):
    assert "cawg.training-mining" not in verify(signed(signer).data, credentials.anchors_pem).claims


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


def test_many_signings_by_eight_threads_leave_no_memory_behind(credentials):
    signer = new_signer(credentials)
    encoded = encode(Marked(pixels=scene()), EncodeOptions())

    def once(number):
        return verify(signer.sign(encoded, provenance()).data, credentials.anchors_pem).state

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(once, range(50))) == {"trusted"}
        before = psutil.Process().memory_info().rss
        assert set(pool.map(once, range(200))) == {"trusted"}
    # A picture has 25 kB here, so a leak of any one buffer would show as 5 MB; `bench provenance` does a thousand.
    assert psutil.Process().memory_info().rss - before < 4_000_000


def test_pictures_verify_after_a_rotation_to_another_root(tmp_path):
    """The anchors of yesterday stay: an operator adds the new root, and the folder of a desk does it itself."""
    old, new = (Authority() for _ in range(2))
    leaf, key = old.leaf()
    before = signed(new_signer(Credentials.from_pem(leaf + old.issuer, key, old.root)))
    leaf, key = new.leaf()
    rotated = Credentials.from_pem(leaf + new.issuer, key, old.root + new.root)
    new_signer(rotated).probe()
    after = signed(new_signer(rotated))
    for picture in (before, after):
        assert verify(picture.data, rotated.anchors_pem).state == "trusted"
    assert verify(after.data, old.root).state == "valid"
    folder = tmp_path / "ca"
    ours = signed(new_signer(load_or_create(folder)))
    for name in ("issuer.pem", "signer.pem"):
        (folder / name).unlink()
    assert verify(ours.data, load_or_create(folder).anchors_pem).state == "trusted"


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
