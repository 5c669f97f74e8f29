"""What programs read that know nothing of C2PA: XMP with the IPTC fields, in the file before it is signed."""

import io
from dataclasses import replace
from itertools import product
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compliance.encode import EncodeOptions, encode
from compliance.errors import EncodingFailed
from compliance.picture import Marked
from compliance.sign import AI_EDITED, AI_GENERATED, Source
from compliance.verify import verify
from compliance.xmp import MAX_BYTES, Fields, into_avif, packet
from tests.compliance.samples import FORMATS, noise, pixels_of, provenance, scene

PLAIN = Fields(source_type=AI_GENERATED, system="imgen, eros", version="0.1.0", created="2026-05-28T20:02:50Z")
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"


def fields_of(data):
    """Every property of a packet by its name, the text of an array for the array."""
    tree = ElementTree.fromstring(data.decode("utf-8"))
    (about,) = tree.iter(f"{RDF}Description")
    return {each.tag: next((item.text for item in each.iter(f"{RDF}li")), each.text) for each in about}


def xmp_in(data):
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.info.get("xmp")


@pytest.mark.parametrize(("format", "lossless"), [*product(FORMATS, [False, True])])
def test_a_signed_file_of_every_format_carries_it_beside_the_same_pixels(signer, credentials, format, lossless):
    stated = provenance(title="Ein Hügel", author="Ann & Söhne")
    options = EncodeOptions(format=format, lossless=lossless)
    marked = Marked(pixels=noise())
    with_xmp = signer.sign(encode(marked, options, signer.xmp(stated)), stated)
    assert xmp_in(with_xmp.data) == signer.xmp(stated)
    assert verify(with_xmp.data, credentials.anchors_pem).state == "trusted"
    assert (pixels_of(with_xmp.data) == pixels_of(encode(marked, options).data)).all()
    assert xmp_in(encode(marked, options).data) is None


@pytest.mark.parametrize("format", FORMATS)
def test_a_change_of_it_breaks_the_signature(signer, credentials, format):
    stated = provenance(title="The true title")
    picture = signer.sign(encode(Marked(pixels=scene()), EncodeOptions(format=format), signer.xmp(stated)), stated)
    # The first one is in the XMP in all formats but WebP, where the manifest comes last too; PNG does not squeeze it.
    at = picture.data.index(b"The true title</rdf:li>")
    changed = picture.data[:at] + b"The fake title" + picture.data[at + 14 :]
    assert verify(changed, credentials.anchors_pem).state == "tampered"


def test_it_says_what_the_manifest_says(signer):
    told = {"author": "Ann", "title": "A hill", "description": "Fog", "organization": "Hill & Co", "vendor": "Shop"}
    assert fields_of(signer.xmp(provenance(**told))) == {
        f"{IPTC}DigitalSourceType": AI_GENERATED,
        f"{IPTC}AISystemUsed": "imgen, eros",
        f"{IPTC}AISystemVersionUsed": "0.1.0",
        "{http://ns.adobe.com/xap/1.0/}CreateDate": "2026-05-28T20:02:50Z",
        f"{DC}creator": "Ann",
        f"{DC}title": "A hill",
        f"{DC}description": "Fog",
        f"{DC}publisher": "Hill & Co",
        "{http://ns.adobe.com/photoshop/1.0/}Credit": "Shop",
    }


def test_a_picture_that_began_with_another_is_said_to_be_a_composite(signer):
    stated = replace(provenance(), sources=(Source(role="init", sha256="00" * 32),))
    assert fields_of(signer.xmp(stated))[f"{IPTC}DigitalSourceType"] == AI_EDITED


def test_the_prompt_stays_private_unless_it_is_given(signer):
    assert f"{IPTC}AIPromptInformation" not in fields_of(signer.xmp(provenance()))
    told = fields_of(signer.xmp(replace(provenance(), prompt="a hill")))
    assert told[f"{IPTC}AIPromptInformation"] == "a hill"


def test_a_prompt_that_no_jpeg_could_hold_is_left_out():
    assert len(packet(replace(PLAIN, prompt="&" * 30_000))) < MAX_BYTES
    longest = packet(replace(PLAIN, prompt="&" * 10_000))
    assert fields_of(longest)[f"{IPTC}AIPromptInformation"] == "&" * 10_000
    encode(Marked(pixels=scene(16, 16)), EncodeOptions(), longest)


@given(st.text(st.characters(exclude_categories=[])), st.text(st.characters(exclude_categories=[])))
def test_any_text_comes_back_as_it_was_or_as_a_question(title, author):
    """What XML can't hold becomes U+FFFD; nothing that is written can become a tag."""
    read = fields_of(packet(replace(PLAIN, title=title, author=author)))
    allowed = [f"{IPTC}DigitalSourceType", f"{IPTC}AISystemUsed", f"{IPTC}AISystemVersionUsed"]
    allowed += ["{http://ns.adobe.com/xap/1.0/}CreateDate"]
    assert set(read) == {*allowed, *([f"{DC}title"] if title else []), *([f"{DC}creator"] if author else [])}
    for name, given_text in ((f"{DC}title", title), (f"{DC}creator", author)):
        if given_text:
            assert len(read[name]) == len(given_text)
            assert all(a == b or a == "\ufffd" for a, b in zip(read[name], given_text, strict=True))


@given(st.text("ab &<>\"'\n\r\t]é😀", max_size=40))
def test_ordinary_text_comes_back_exactly(text):
    assert fields_of(packet(replace(PLAIN, title=text))).get(f"{DC}title", "") == text


@given(st.binary(max_size=400))
def test_a_file_that_is_no_avif_of_ours_is_refused(data):
    with pytest.raises(EncodingFailed):
        into_avif(data, b"xmp")


def test_an_avif_with_the_packet_reads_the_same_for_another_decoder():
    bare = bytes(imagecodecs.avif_encode(np.asarray(noise()), level=100, speed=9, numthreads=1))
    assert (imagecodecs.avif_decode(into_avif(bare, packet(PLAIN))) == np.asarray(noise())).all()


def test_a_cut_avif_is_refused():
    bare = bytes(imagecodecs.avif_encode(np.asarray(noise()), level=100, speed=9, numthreads=1))
    for length in range(0, len(bare), 97):
        with pytest.raises(EncodingFailed):
            into_avif(bare[:length], b"xmp")
