"""What operators set about the content credentials, seen in what a caller gets; and the figures of the signer."""

from __future__ import annotations

import io
import re

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from compliance.authority import load_or_create
from compliance.verify import verify
from gateway.check import looks, tried
from gateway.errors import SettingsError
from tests.api.conftest import settings
from tests.compliance.fake_kms import serving as serving_kms
from tests.compliance.fake_tsa import serving as serving_tsa
from tests.compliance.samples import Authority

pytestmark = pytest.mark.anyio


async def drawn(gateway, **fields):
    """The signed file, and its meta."""
    meta = await gateway.picture("a secret hill", **fields)
    return (await gateway.http.get(meta["images"][0]["url"])).content, meta


def anchors_of(gateway):
    return load_or_create(gateway.settings.data / "signing").anchors_pem


def xmp_of(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.info["xmp"].decode()


async def test_a_caller_sees_who_drew_it_in_the_xmp_and_never_the_prompt(gateway):
    data, _ = await drawn(gateway, cs_author="Ann & Co", cs_title="<Hill>")
    xmp = xmp_of(data)
    assert "trainedAlgorithmicMedia" in xmp and "Ann &amp; Co" in xmp and "&lt;Hill&gt;" in xmp
    assert "secret" not in xmp and b"secret" not in data


async def test_the_prompt_is_told_where_the_operator_says_so(open_gateway):
    data, _ = await drawn(await open_gateway(IMGEN_EMBED_PROMPTS="true"))
    assert "AIPromptInformation>a secret hill<" in xmp_of(data)


async def test_what_may_be_done_with_the_pictures_is_in_each_of_them(open_gateway):
    gateway = await open_gateway(IMGEN_TRAINING_MINING="constrained", IMGEN_TRAINING_MINING_INFO="Ask us.")
    data, _ = await drawn(gateway)
    entries = verify(data, anchors_of(gateway)).claims["cawg.training-mining"]["entries"]
    assert entries["cawg.ai_training"] == {"use": "constrained", "constraint_info": "Ask us."}


async def test_a_stamped_picture_has_no_warning(open_gateway, tmp_path):
    with serving_tsa(tmp_path / "tsa") as tsa:
        gateway = await open_gateway(IMGEN_TSA_URL=tsa.url, IMGEN_TSA_TIMEOUT="5")
        data, meta = await drawn(gateway)
        assert "warnings" not in meta
        assert verify(data, anchors_of(gateway)).state == "trusted"
        assert figures(await gateway.http.get("/metrics"))['imgen_pictures_signed_total{stamped="yes"}'] == 2.0


async def test_a_missing_stamp_is_a_warning(open_gateway):
    silent = await open_gateway(IMGEN_TSA_URL="http://127.0.0.1:9/")
    data, meta = await drawn(silent)
    assert [(each["code"], each["used"]) for each in meta["warnings"]] == [("unstamped", "signed without a time stamp")]
    assert verify(data, anchors_of(silent)).state == "trusted"
    assert figures(await silent.http.get("/metrics"))['imgen_pictures_signed_total{stamped="no"}'] == 2.0


async def test_a_gateway_signs_with_a_key_in_kms_and_says_why_when_it_can_not(open_gateway, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    authority = Authority()
    with serving_kms(ec.generate_private_key(ec.SECP256R1())) as kms:
        (tmp_path / "chain.pem").write_bytes(authority.leaf_of(kms.key.public_key()) + authority.issuer)
        (tmp_path / "roots.pem").write_bytes(authority.root)
        configured = {
            "IMGEN_SIGNING_CHAIN": str(tmp_path / "chain.pem"),
            "IMGEN_SIGNING_ANCHORS": str(tmp_path / "roots.pem"),
            "IMGEN_SIGNING_KMS_KEY": "alias/pictures",
            "IMGEN_SIGNING_KMS_REGION": "eu-west-1",
            "IMGEN_SIGNING_KMS_ENDPOINT": kms.url,
        }
        gateway = await open_gateway(**configured)
        data, _ = await drawn(gateway)
        report = verify(data, authority.root)
        assert (report.state, report.signer) == ("trusted", "Example leaf")
        assert {each["KeyId"] for each in kms.asked} == {"alias/pictures"}
        kms.fault = "AccessDeniedException"
        closed = await open_gateway(**configured)
        answer = await closed.http.get("/readyz")
        assert answer.status_code == 503
        assert any("Allow kms:Sign" in each for each in answer.json()["missing"])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"IMGEN_SIGNING_KMS_KEY": "k"}, "IMGEN_SIGNING_CHAIN"),
        (
            {"IMGEN_SIGNING_KMS_KEY": "k", "IMGEN_SIGNING_KEY": "key.pem", "IMGEN_SIGNING_CHAIN": "c.pem"},
            "IMGEN_SIGNING_KMS_KEY",
        ),
        ({"IMGEN_TRAINING_MINING": "constrained"}, "IMGEN_TRAINING_MINING_INFO"),
        ({"IMGEN_TRAINING_MINING": "allowed", "IMGEN_TRAINING_MINING_INFO": "Ask."}, "IMGEN_TRAINING_MINING_INFO"),
        ({"IMGEN_TRAINING_MINING": "maybe"}, "IMGEN_TRAINING_MINING"),
        ({"IMGEN_TSA_URL": "ftp://example.org"}, "IMGEN_TSA_URL"),
        ({"IMGEN_TSA_TIMEOUT": "25"}, "IMGEN_TSA_TIMEOUT"),
    ],
)
def test_settings_that_do_not_fit_together_name_what_to_mend(tmp_path, changed, says):
    with pytest.raises(SettingsError, match=says):
        settings(tmp_path, **changed)


@pytest.mark.parametrize(("days", "said"), [(20, "it expires in 19 days: renew it"), (60, None)])
async def test_the_check_tells_of_a_certificate_that_ends_soon(tmp_path, days, said):
    authority = Authority()
    leaf, key = authority.leaf(ends=days)
    issuer = authority._certificate("issuer", authority.issuer_key, "root", authority.root_key, ca=True, ends=900)
    for name, pem in (("chain", leaf + issuer), ("key", key), ("anchors", authority.root)):
        (tmp_path / f"{name}.pem").write_bytes(pem)
    named = {f"IMGEN_SIGNING_{name.upper()}": str(tmp_path / f"{name}.pem") for name in ("chain", "key", "anchors")}
    ok, remark = await tried(dict(looks(settings(tmp_path, **named)))["signing"])
    assert ok and str(tmp_path / "chain.pem") in remark
    assert (said in remark) if said else ("expires" not in remark)


def figures(answer):
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
    lines = re.findall(r"^(imgen\S*(?:\{[^}]*\})?) (\S+)$", answer.text, re.M)
    return {name: float(value) for name, value in lines}


async def test_the_figures_count_what_is_signed_and_when_the_certificate_ends(gateway):
    before = figures(await gateway.http.get("/metrics"))
    five_years = 5 * 365 * 86_400
    assert five_years - 3600 < before["imgen_signing_certificate_expiry_seconds"] <= five_years
    assert before['imgen_pictures_signed_total{stamped="off"}'] == 0.0
    await gateway.picture("a hill")
    after = figures(await gateway.http.get("/metrics"))
    assert after['imgen_pictures_signed_total{stamped="off"}'] == 2.0
    assert after["imgen_signing_seconds_count"] == 2.0 and after["imgen_signing_seconds_sum"] > 0
