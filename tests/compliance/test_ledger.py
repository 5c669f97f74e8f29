"""A sealed record: whatever is changed, taken out, moved, repeated or cut off is found."""

import datetime as dt
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compliance.authority import load_or_create
from compliance.credentials import Credentials
from compliance.ledger import GENESIS, Entry, Export, canonical, export, link, moment, verify
from tests.compliance.samples import Authority

#: Now: the certificates of the tests are valid from an hour before they are made.
WHEN = dt.datetime.now(dt.UTC).replace(microsecond=0)
LONG = 9
in_any_time = settings(deadline=None)


def chain(bodies, previous=GENESIS, first=1):
    links = []
    for seq, body in enumerate(bodies, first):
        links.append(link(Entry(seq=seq, at=moment(1000.25 + seq), kind="verdict", body=body), previous))
        previous = links[-1].hash
    return links


def rewritten(lines):
    """The entries of an export with hashes that fit together again, as a forger with a hash function writes them."""
    links = chain([json.loads(line)["body"] for line in lines[1:-1]])
    writer = Export()
    return [writer.head, *(writer.line(each) for each in links)]


@pytest.fixture(scope="module")
def lines(credentials):
    bodies = [{"gen_id": f"g{n}", "safe": n % 2 == 0, "scores": [0.25, n]} for n in range(LONG)]
    return list(export(chain(bodies), credentials, WHEN))


@pytest.fixture(scope="module")
def anchors(credentials):
    return credentials.anchors_pem


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return load_or_create(tmp_path_factory.mktemp("stranger") / "ca")


def test_an_export_as_it_was_written_is_intact(lines, anchors):
    report = verify((line + "\n" for line in lines), anchors)
    assert report.problems == ()
    assert report.intact and report.whole
    assert (report.count, report.first, report.last) == (LONG, 1, LONG)
    assert report.hash == json.loads(lines[-2])["hash"]
    assert report.exported_at == WHEN.isoformat(timespec="milliseconds")
    assert (report.signer, report.issuer) == ("imgen development signer", "imgen development issuer")


def test_a_record_without_entries_is_sealed_too(credentials, anchors):
    report = verify(export([], credentials, WHEN), anchors)
    assert report.intact and report.count == 0


def test_a_part_says_that_it_is_none_of_the_whole(credentials, anchors):
    links = chain([{"n": n} for n in range(6)])
    report = verify(export(links[3:], credentials, WHEN, links[2].hash), anchors)
    assert report.intact and not report.whole
    assert (report.first, report.last, report.previous) == (4, 6, links[2].hash)
    pretended = verify(export(links[3:], credentials, WHEN), anchors)
    assert not pretended.intact, "it pretends to begin with the first entry"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=8,
)


@in_any_time
@given(bodies=st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=4))
def test_whatever_json_can_hold_can_be_recorded(credentials, anchors, bodies):
    text = "".join(line + "\n" for line in export(chain(bodies), credentials, WHEN))
    assert text.isascii()
    report = verify(text.splitlines(), anchors)
    assert report.problems == () and report.count == len(bodies)


@pytest.mark.parametrize("body", [{"score": float("nan")}, {"data": b"pixels"}], ids=["nan", "bytes"])
def test_what_json_can_not_hold_is_refused_before_it_is_recorded(body):
    with pytest.raises((ValueError, TypeError)):
        canonical(body)


@in_any_time
@given(data=st.data())
def test_any_other_letter_in_any_line_is_found(lines, anchors, data):
    number = data.draw(st.integers(0, len(lines) - 1))
    line = lines[number]
    at = data.draw(st.integers(0, len(line)))
    until = data.draw(st.integers(at, min(at + 3, len(line))))
    instead = data.draw(st.text(st.characters(exclude_characters="\n"), max_size=3))
    changed = line[:at] + instead + line[until:]
    assume(changed != line)
    assert not verify([*lines[:number], changed, *lines[number + 1 :]], anchors).intact


@in_any_time
@given(data=st.data())
def test_any_line_that_is_missing_moved_or_repeated_is_found(lines, anchors, data):
    one, other = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    taken = [line for number, line in enumerate(lines) if number != one]
    assert not verify(taken, anchors).intact
    repeated = [*lines[:other], lines[one], *lines[other:]]
    assert not verify(repeated, anchors).intact
    assume(one != other)
    moved = [*taken[:other], lines[one], *taken[other:]]
    swapped = list(lines)
    swapped[one], swapped[other] = lines[other], lines[one]
    assert not verify(moved, anchors).intact
    assert not verify(swapped, anchors).intact


@pytest.mark.parametrize("left", range(1, LONG + 1))
def test_entries_that_were_cut_off_before_the_seal_are_found(lines, anchors, left):
    assert not verify([*lines[:left], lines[-1]], anchors).intact


@pytest.mark.parametrize("left", range(LONG + 2))
def test_an_end_that_was_cut_off_is_found(lines, anchors, left):
    assert "The end is missing: there is no seal." in verify(lines[:left], anchors).problems


@in_any_time
@given(data=st.data())
def test_a_record_that_was_written_anew_does_not_fit_its_seal(lines, anchors, data):
    """A forger who knows the format makes all hashes fit, but can't make the seal."""
    gone = data.draw(st.integers(1, LONG))
    forged = rewritten([*lines[:gone], *lines[gone + 1 :]])
    assert not verify([*forged, lines[-1]], anchors).intact
    seal = json.loads(lines[-1])
    last = json.loads(forged[-1])
    seal["seal"] |= {"count": LONG - 1, "last": last["seq"], "hash": last["hash"]}
    report = verify([*forged, canonical(seal)], anchors)
    assert [problem for problem in report.problems if "signature that does not hold" in problem]


def test_a_changed_entry_is_named(lines, anchors):
    changed = canonical({**json.loads(lines[4]), "kind": "nothing"})
    report = verify([*lines[:4], changed, *lines[5:]], anchors)
    assert report.problems == ("Line 5 has entry 4, which was changed: its hash is another one.",)


def test_a_gap_is_named(lines, anchors):
    report = verify([*lines[:4], *lines[6:]], anchors)
    assert "Line 5 has entry 6 after entry 3: what was between them is missing." in report.problems


@pytest.mark.parametrize(
    "extra", [{"note": "mine"}, {"body": {"a": 1}, "seq": True}, {"body": "text"}], ids=["more", "bool", "text"]
)
def test_an_entry_of_another_shape_is_found(lines, anchors, extra):
    odd = canonical({**json.loads(lines[1]), **extra})
    assert not verify([lines[0], odd, *lines[2:]], anchors).intact


def test_a_foreign_signer_is_found(lines, anchors, stranger):
    forged = list(export(chain([{"n": 1}]), stranger, WHEN))
    report = verify(forged, anchors)
    assert not report.intact and report.signer == ""
    assert "has no signer whom these anchors vouch for" in report.problems[0]
    assert verify(forged, stranger.anchors_pem).intact


def test_the_key_of_another_is_found(credentials, stranger, anchors):
    mixed = replace(credentials, key_pem=stranger.key_pem)
    report = verify(export(chain([{"n": 1}]), mixed, WHEN), anchors)
    assert report.problems == ("Line 3 has a signature that does not hold: the seal was changed.",)


def test_nobody_is_trusted_without_anchors(lines):
    report = verify(lines, b"")
    assert not report.intact and "list of anchors" in report.problems[0]


def test_a_signer_whose_time_was_over_is_found(credentials, anchors):
    late = credentials.not_after + dt.timedelta(days=1)
    report = verify(export(chain([{"n": 1}]), credentials, late), anchors)
    assert "was not valid on" in report.problems[0]


def test_a_leaf_that_plays_the_authority_is_found():
    """Whoever has any certificate of the root could issue one to sign with."""
    authority, leaf_key = Authority(), ec.generate_private_key(ec.SECP256R1())
    leaf, _ = authority.leaf(leaf_key)
    sub_leaf, key = authority.leaf_of_a_leaf(leaf_key)
    theirs = Credentials.from_pem(sub_leaf + leaf + authority.issuer, key, authority.root)
    report = verify(export(chain([{}]), theirs, dt.datetime.now(dt.UTC)), authority.root)
    assert "is no authority" in report.problems[0]


@pytest.mark.parametrize(
    "new_key",
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), id="es384"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP521R1()), id="es512"),
        pytest.param(ed25519.Ed25519PrivateKey.generate, id="ed25519"),
        pytest.param(lambda: rsa.generate_private_key(65537, 2048), id="ps256"),
    ],
)
def test_every_kind_of_signing_key_seals(new_key):
    authority = Authority()
    leaf, key = authority.leaf(new_key())
    ours = Credentials.from_pem(leaf + authority.issuer, key, authority.root)
    lines = list(export(chain([{"n": 1}]), ours, dt.datetime.now(dt.UTC)))
    assert verify(lines, authority.root).problems == ()
    changed = lines[-1].replace('"exported_at":"2', '"exported_at":"1')
    assert not verify([*lines[:-1], changed], authority.root).intact


@in_any_time
@given(lines=st.lists(st.text(max_size=60), max_size=6))
def test_whatever_text_it_gets_it_reports(anchors, lines):
    assert not verify(lines, anchors).intact


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, "9" * 5_000, '{"seq":1e999}', '{"a":1,"a":2}', '{"seal":{}}', '{"seal":{},"signature":"é"}'],
    ids=["deep", "long", "infinite", "twice", "bare-seal", "no-base64"],
)
def test_hostile_lines_are_reported(lines, anchors, line):
    assert not verify([lines[0], line], anchors).intact
    assert not verify([line], anchors).intact


def test_a_file_that_is_something_else_does_not_fill_the_memory(anchors):
    assert len(verify(("nonsense" for _ in range(10_000)), anchors).problems) <= 100


def test_anchors_that_do_not_read_are_told(lines):
    assert "The list of anchors has no readable certificate" in verify(lines, b"nothing").problems[0]


@pytest.mark.parametrize("begin", [0, 2, 3, 4], ids=["whole", "overlapping", "at-its-last", "right-after"])
def test_an_export_goes_on_from_an_earlier_one(credentials, anchors, begin):
    links = chain([{"n": n} for n in range(8)])
    earlier = verify(export(links[:4], credentials, WHEN), anchors)
    later = list(export(links[begin:], credentials, WHEN, links[begin - 1].hash if begin else GENESIS))
    assert verify(later, anchors, earlier).problems == ()


@pytest.mark.parametrize(
    ("bodies", "begin"),
    [
        pytest.param([{"n": n} for n in range(3)], 0, id="its-last-entry-is-forgotten"),
        pytest.param([{"n": n} for n in range(6)], 5, id="entries-are-in-neither"),
        pytest.param([{"n": 9}, *({"n": n} for n in range(1, 6))], 0, id="written-anew"),
        pytest.param([{"n": 9}, *({"n": n} for n in range(1, 6))], 4, id="written-anew-before-it-begins"),
        pytest.param([], 0, id="all-forgotten"),
    ],
)
def test_an_export_that_forgets_or_rewrites_what_an_earlier_one_held_is_found(credentials, anchors, bodies, begin):
    """Its own chain and seal are whole: the operator has made it so."""
    earlier = verify(export(chain([{"n": n} for n in range(4)]), credentials, WHEN), anchors)
    links = chain(bodies)
    later = list(export(links[begin:], credentials, WHEN, links[begin - 1].hash if begin else GENESIS))
    assert verify(later, anchors).intact
    report = verify(later, anchors, earlier)
    assert len(report.problems) == 1 and "earlier export" in report.problems[0]


def test_every_export_goes_on_from_an_empty_one(credentials, anchors, lines):
    empty = verify(export([], credentials, WHEN), anchors)
    assert verify(lines, anchors, empty).intact
