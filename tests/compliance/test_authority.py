"""The development authority, and chains that come from elsewhere."""

import datetime as dt
import multiprocessing
import stat
from functools import partial

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from compliance.authority import LEAF_LIFE, load_or_create, utc_now
from compliance.credentials import C2PA_EKU, Credentials
from compliance.errors import BadCredentials
from tests.compliance.samples import Authority, new_signer, private_pem


def leaf_of(credentials):
    return x509.load_pem_x509_certificates(credentials.chain_pem)[0]


def roots_of(credentials):
    return x509.load_pem_x509_certificates(credentials.anchors_pem)


def in_years(years):
    return lambda: utc_now() + dt.timedelta(days=365.25 * years)


def test_the_second_start_finds_the_credentials_of_the_first(tmp_path):
    assert load_or_create(tmp_path / "ca") == load_or_create(tmp_path / "ca")


def test_two_folders_have_two_authorities(tmp_path):
    assert roots_of(load_or_create(tmp_path / "a")) != roots_of(load_or_create(tmp_path / "b"))


def test_keys_are_readable_by_their_owner_alone(tmp_path):
    folder = tmp_path / "ca"
    folder.mkdir(mode=0o777)
    load_or_create(folder)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes == {"signer.pem": 0o600, "issuer.pem": 0o600, "lock": 0o600, "anchors.pem": 0o644}


def test_the_root_key_never_touches_the_disk(tmp_path):
    credentials = load_or_create(tmp_path / "ca")
    keys = b"".join(path.read_bytes() for path in (tmp_path / "ca").iterdir()).count(b"BEGIN PRIVATE KEY")
    assert keys == 2  # the leaf's and the intermediate's
    assert credentials.key_pem.decode() not in repr(credentials)


def test_the_leaf_has_the_profile_that_every_reader_accepts(tmp_path):
    leaf = leaf_of(load_or_create(tmp_path / "ca"))
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert usage.digital_signature and not usage.key_cert_sign
    assert set(purposes) == {ExtendedKeyUsageOID.EMAIL_PROTECTION, C2PA_EKU}
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    assert leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    assert leaf.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)


def test_four_processes_that_start_at_once_end_with_one_authority(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        made = pool.map(load_or_create, [tmp_path / "ca"] * 4, chunksize=1)
    assert made == [made[0]] * 4
    assert len(roots_of(made[0])) == 1
    assert not [path for path in (tmp_path / "ca").iterdir() if path.name.startswith(".")]


def test_a_young_leaf_is_kept_and_an_old_one_renewed_under_the_same_root(tmp_path):
    load = partial(load_or_create, tmp_path / "ca")
    first, young, old = load(), load(now=in_years(0.9)), load(now=in_years(1.1))
    assert first == young
    assert leaf_of(first) != leaf_of(old)
    assert first.key_pem != old.key_pem
    assert roots_of(first) == roots_of(old)


def test_pictures_of_an_old_root_stay_trusted_after_its_renewal(tmp_path):
    load = partial(load_or_create, tmp_path / "ca")
    first, later = load(), load(now=in_years(16))
    assert roots_of(later)[0] == roots_of(first)[0]
    assert len(roots_of(later)) == 2


def test_a_crash_between_two_files_is_mended_at_the_next_start(tmp_path):
    folder = tmp_path / "ca"
    load_or_create(folder)
    for lost in ("signer.pem", "issuer.pem", "anchors.pem"):
        (folder / lost).unlink()
        new_signer(load_or_create(folder)).probe()


@pytest.mark.parametrize("name", ["signer.pem", "anchors.pem"])
def test_a_damaged_file_is_named_with_its_fix_and_never_replaced(tmp_path, name):
    folder = tmp_path / "ca"
    load_or_create(folder)
    (folder / name).write_bytes(b"rubbish")
    with pytest.raises(BadCredentials) as caught:
        load_or_create(folder)
    assert caught.value.fix
    assert (folder / name).read_bytes() == b"rubbish"


def test_a_damaged_issuer_stops_only_the_renewal(tmp_path):
    folder = tmp_path / "ca"
    load_or_create(folder)
    (folder / "issuer.pem").write_bytes(b"rubbish")
    load_or_create(folder)
    with pytest.raises(BadCredentials, match=r"issuer\.pem"):
        load_or_create(folder, now=in_years(2))


def test_a_folder_that_cannot_be_made_is_our_error(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(BadCredentials, match="folder"):
        load_or_create(tmp_path / "file" / "ca")


def test_a_leaf_lives_long_enough_for_the_pictures_that_it_signs():
    assert dt.timedelta(days=4 * 365) < LEAF_LIFE


# Chains from elsewhere.

CA = Authority()


def test_a_chain_of_a_real_authority_signs(tmp_path):
    leaf, key = CA.leaf()
    for name, content in (("chain.pem", leaf + CA.issuer), ("key.pem", key), ("roots.pem", CA.root)):
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in ("chain.pem", "key.pem", "roots.pem")]
    credentials = Credentials.from_pem_files(*paths)
    assert (credentials.subject, credentials.issuer) == ("Example leaf", "Example issuer")
    assert credentials.algorithm == "es256"
    new_signer(credentials).probe()


def test_the_root_may_be_in_the_chain():
    leaf, key = CA.leaf()
    new_signer(Credentials.from_pem(leaf + CA.issuer + CA.root, key, CA.root)).probe()


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(ec.generate_private_key(ec.SECP384R1()), "es384"), (ed25519.Ed25519PrivateKey.generate(), "ed25519")],
    ids=["p384", "ed25519"],
)
def test_other_keys_sign_with_their_own_algorithm(key, algorithm):
    leaf, key_pem = CA.leaf(key)
    credentials = Credentials.from_pem(leaf + CA.issuer, key_pem, CA.root)
    assert credentials.algorithm == algorithm
    new_signer(credentials).probe()


def _sec1():
    key = ec.generate_private_key(ec.SECP256R1())
    return CA.leaf(key)[0] + CA.issuer, private_pem(key, PrivateFormat.TraditionalOpenSSL), CA.root


def _with(chain=None, key=None, anchors=CA.root, **leaf):
    certificate, own_key = CA.leaf(**leaf)
    return (certificate + CA.issuer) if chain is None else chain(certificate), own_key if key is None else key, anchors


@pytest.mark.parametrize(
    ("pems", "says"),
    [
        pytest.param(_with(chain=lambda leaf: b""), "no readable certificate", id="empty-chain"),
        pytest.param(_with(anchors=b""), "anchors has no readable", id="no-anchors"),
        pytest.param(
            _with(anchors=b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "anchors", id="bad"
        ),
        pytest.param(_with(key=b"rubbish"), "PKCS#8", id="no-key"),
        pytest.param(_with(key=b"-----BEGIN PRIVATE KEY-----\nAA\n-----END PRIVATE KEY-----\n"), "read", id="bad-key"),
        pytest.param(_sec1(), "openssl pkcs8", id="sec1-key"),
        pytest.param(_with(key=CA.leaf()[1]), "does not belong", id="key-of-another"),
        pytest.param(_with(chain=lambda leaf: CA.issuer + leaf), "does not belong", id="reversed"),
        pytest.param(_with(chain=lambda leaf: leaf + CA.root), "not issued by", id="missing-link"),
        pytest.param(_with(chain=lambda leaf: leaf), "no anchor has issued", id="no-intermediate"),
        pytest.param(_with(anchors=Authority().root), "no anchor has issued", id="another-root"),
        pytest.param(_with(purposes=()), "emailProtection", id="no-purpose"),
        pytest.param(_with(purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)), "emailProtection", id="a-web-server"),
        pytest.param(_with(purposes=(C2PA_EKU,)), "emailProtection", id="only-the-c2pa-purpose"),
        pytest.param(_with(signature=False), "digitalSignature", id="no-signatures"),
        pytest.param(_with(known_issuer=False), "AuthorityKeyIdentifier", id="no-issuer-id"),
        pytest.param((*_with(key=None, **{}, anchors=CA.root)[:2], b"\xff"), "anchors", id="binary"),
    ],
)
def test_a_wrong_chain_is_refused_before_anything_is_signed_and_the_fix_is_said(pems, says):
    with pytest.raises(BadCredentials, match=says) as caught:
        Credentials.from_pem(*pems)
    assert caught.value.fix


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadCredentials, match=r"chain\.pem can't be read"):
        Credentials.from_pem_files(tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "roots.pem")
