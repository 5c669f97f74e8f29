"""Our signatures, read by a second implementation of C2PA that shares no code with the one that signs.

It runs in node and does not follow the certificate chain, so the chain is checked here with a third library. Its
packages are pinned in c2pa_ts/package-lock.json and installed at the first run.
"""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import pytest
from cryptography import x509
from cryptography.x509 import verification

from compliance.encode import THUMBNAIL_OPTIONS, EncodeOptions, encode, thumbnail
from compliance.fingerprint import fingerprint
from compliance.picture import Edit, Marked
from compliance.sign import Source
from compliance.verify import verify
from tests.compliance.flips import covered, flipped
from tests.compliance.samples import FORMATS, Authority, provenance, scene, signed, tampered

FOLDER = Path(__file__).with_name("c2pa_ts")
INSTALLED = FOLDER / "node_modules" / ".package-lock.json"


@pytest.fixture(scope="session")
def second_reader():
    """A function: the reader's answers for a list of files, each {"valid", "codes", "error"}."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("the second C2PA reader needs node 20 with npm on the PATH")
    if not INSTALLED.exists() or INSTALLED.stat().st_mtime < (FOLDER / "package-lock.json").stat().st_mtime:
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        installed = subprocess.run(install, cwd=FOLDER, check=False, timeout=240)
        if installed.returncode and not os.environ.get("CI"):
            pytest.skip("npm could not install the second C2PA reader; where CI is set this is a failure")
        assert installed.returncode == 0
        INSTALLED.touch()

    def read(*files):
        command = ["node", "verify.mjs", *map(str, files)]
        done = subprocess.run(command, cwd=FOLDER, check=True, timeout=60, capture_output=True, encoding="utf-8")
        return [json.loads(line) for line in done.stdout.splitlines()]

    return read


def stored(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


CASES = [*product(FORMATS, [False, True])]


def test_it_accepts_what_we_sign_in_every_format(second_reader, signer, tmp_path):
    files = [
        stored(tmp_path, f"{format}-{lossless}", signed(signer, format, lossless=lossless, author="Ann").data)
        for format, lossless in CASES
    ]
    assert second_reader(*files) == [{"valid": True, "codes": [], "error": None}] * len(CASES)


def test_it_refuses_every_tampered_picture(second_reader, signer, tmp_path):
    files = [
        stored(tmp_path, f"{format}-{lossless}", tampered(signed(signer, format, lossless=lossless)))
        for format, lossless in CASES
    ]
    for (format, _), answer in zip(CASES, second_reader(*files), strict=True):
        assert not answer["valid"]
        assert answer["codes"] == ["assertion.bmffHash.mismatch" if format == "avif" else "assertion.dataHash.mismatch"]


def test_it_accepts_a_thumbnail_with_the_full_picture_as_its_ingredient(second_reader, signer, tmp_path):
    marked = Marked(pixels=scene(1344, 768))
    full = signer.sign(encode(marked, EncodeOptions()), provenance())
    small = signer.sign(encode(thumbnail(marked), THUMBNAIL_OPTIONS), provenance(), parent=full)
    assert second_reader(stored(tmp_path, "thumbnail.jpg", small.data)) == [{"valid": True, "codes": [], "error": None}]


def every_kind(signer, format):
    """A picture that is plain, marked, drawn over a signed reference, and claimed by somebody."""
    reference = signed(signer).data
    source = Source(role="init", sha256=fingerprint(reference), data=reference)
    mark = Edit(action="c2pa.edited", description="Visible mark")
    plain = Marked(pixels=scene())
    for marked, stated in (
        (plain, provenance()),
        (Marked(pixels=scene(seed=2), edits=(mark,)), provenance()),
        (plain, replace(provenance(), sources=(source,))),
        (plain, provenance(author="Ann", title="A hill", description="Fog", organization="Hill", vendor="Shop")),
    ):
        yield signer.sign(encode(marked, EncodeOptions(format=format), signer.xmp(stated)), stated)


def test_both_readers_accept_every_kind_and_catch_a_flip_of_any_byte(second_reader, signer, credentials, tmp_path):
    """A sample: 12 bytes of the picture and 12 of its manifest for each of 16 files, chosen anew at every run."""
    chance = Random()
    asked, whole = [], []
    for format in FORMATS:
        for number, picture in enumerate(every_kind(signer, format)):
            path = stored(tmp_path, f"{format}-{number}", picture.data)
            whole.append(path)
            assert verify(picture.data, credentials.anchors_pem).state == "trusted"
            for part, regions in covered(picture).items():
                offsets = [at for region in regions for at in region]
                for at in chance.sample(offsets, 12):
                    state = verify(flipped(picture.data, at), credentials.anchors_pem).state
                    assert state not in ("trusted", "valid"), f"{format} {number} {part} {at}"
                    # What a reference brought along, the second reader does not look into.
                    asked += [f"{path}@{at}"] if part != "brought" else []
    answers = second_reader(*whole, *asked)
    assert [answer["valid"] for answer in answers[: len(whole)]] == [True] * 16
    missed = [name for name, answer in zip(asked, answers[len(whole) :], strict=True) if answer["valid"]]
    assert missed == []


def test_it_refuses_an_unsigned_picture(second_reader, tmp_path):
    plain = encode(Marked(pixels=scene()), EncodeOptions())
    (answer,) = second_reader(stored(tmp_path, "plain.jpg", plain.data))
    assert not answer["valid"]


def chain_to(roots, credentials):
    """The chain that X.509 path validation finds from the leaf to one of the roots."""
    leaf, *intermediates = x509.load_pem_x509_certificates(credentials.chain_pem)
    # The defaults for leaves are those of web servers and ask for a host name.
    policies = {
        "ca_policy": verification.ExtensionPolicy.webpki_defaults_ca(),
        "ee_policy": verification.ExtensionPolicy.permit_all(),
    }
    builder = verification.PolicyBuilder().store(verification.Store(roots)).extension_policies(**policies)
    return builder.build_client_verifier().verify(leaf, intermediates).chain


def test_the_certificate_chain_holds_for_a_third_library(credentials):
    roots = x509.load_pem_x509_certificates(credentials.anchors_pem)
    assert chain_to(roots, credentials) == [*x509.load_pem_x509_certificates(credentials.chain_pem), *roots]


def test_the_third_library_refuses_the_root_of_a_stranger(credentials):
    with pytest.raises(verification.VerificationError):
        chain_to(x509.load_pem_x509_certificates(Authority().root), credentials)
