"""Is this picture what its signer released? An answer for people and programs, for any bytes whatever."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import c2pa

from compliance.picture import Mime, sniff
from compliance.reader import new_context, read

State = Literal["trusted", "valid", "invalid", "tampered", "unsigned", "unreadable"]

_WORDS = {
    "assertion.dataHash.mismatch": "The picture was changed after it was signed.",
    "assertion.bmffHash.mismatch": "The picture was changed after it was signed.",
    "assertion.boxesHash.mismatch": "The picture was changed after it was signed.",
    "assertion.hashedURI.mismatch": "A statement in the manifest was changed after it was signed.",
    "assertion.missing": "A statement of the manifest is missing.",
    "claimSignature.mismatch": "The signature does not fit the claim.",
    "claimSignature.missing": "The signature is missing.",
    "claimSignature.outsideValidity": "The certificate was not valid at the time of signing.",
    "signingCredential.untrusted": "The signer is not on the list of trusted roots.",
    "signingCredential.invalid": "The signer's certificate breaks the C2PA certificate profile.",
    "signingCredential.expired": "The signer's certificate has expired.",
    "signingCredential.ocsp.revoked": "The signer's certificate was revoked.",
}
_TAMPERED = (".mismatch", ".missing", "claim.malformed", "claim.cbor.invalid", "assertion.cbor.invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the bytes say about themselves, and whether it holds.

    state      trusted     signed, intact, and the signer leads to one of the given roots
               valid       signed and intact, by somebody whom these roots do not know
               tampered    changed after signing, pixels or manifest
               invalid     intact, but the signature does not count: an expired certificate, say
               unsigned    a picture without a manifest
               unreadable  not a JPEG, PNG, WebP or AVIF that can be read
    `when` is the time that the signer states, ISO 8601; `actions` are C2PA action names in their order; `claims` are
    the other statements by label; `failures` are sentences. Everything but `state` and `failures` is a statement of
    the signer, and worth nothing unless the state is trusted.
    """

    state: State
    mime: Mime | None = None
    signer: str = ""
    issuer: str = ""
    when: str = ""
    generator: str = ""
    model: str = ""
    actions: tuple[str, ...] = ()
    claims: Mapping[str, Any] | None = None
    label: str = ""
    failures: tuple[str, ...] = ()


def verify(data: bytes, anchors_pem: bytes) -> Report:
    """Reads the C2PA manifest of a picture and checks it against `anchors_pem` (PEM roots; empty: nobody is trusted).

    Never raises on account of `data`, and never opens a connection. Raises BadCredentials when the roots do not read.
    """
    context = new_context(anchors_pem)
    mime = sniff(data)
    if mime is None:
        return Report(state="unreadable", failures=("This is not a JPEG, PNG, WebP or AVIF picture.",))
    try:
        store = read(data, mime, context)
    except c2pa.C2paError.ManifestNotFound:
        return Report(state="unsigned", mime=mime, failures=("The picture carries no C2PA manifest.",))
    except (c2pa.C2paError, json.JSONDecodeError, UnicodeError) as exc:
        return _unread(data, mime, exc)
    return _report(store, mime)


def _unread(data: bytes, mime: Mime, exc: Exception) -> Report:
    """A reader that gives up means a broken picture, or, where a manifest is still to be seen, a broken manifest."""
    if b"jumb" in data and b"c2pa" in data:
        return Report(state="tampered", mime=mime, failures=(f"The C2PA manifest is damaged: {exc}.",))
    return Report(state="unreadable", mime=mime, failures=(f"The picture can't be read: {exc}.",))


def _report(store: Mapping[str, Any], mime: Mime) -> Report:
    failures = _failures(store)
    label = str(store.get("active_manifest") or "")
    manifest: Mapping[str, Any] = store.get("manifests", {}).get(label, {})
    claims = {item["label"]: item.get("data") for item in manifest.get("assertions", [])}
    actions = [a for name in claims if name.startswith("c2pa.actions") for a in _mappings(claims[name], "actions")]
    signature = manifest.get("signature_info") or {}
    generators = manifest.get("claim_generator_info") or [{}]
    return Report(
        state=_state(str(store.get("validation_state")), failures),
        mime=mime,
        signer=str(signature.get("common_name") or ""),
        issuer=str(signature.get("issuer") or ""),
        when=str(signature.get("time") or next((a["when"] for a in actions if "when" in a), "")),
        generator=" ".join(str(generators[0][key]) for key in ("name", "version") if key in generators[0]),
        model=next((str(c["model"]) for c in claims.values() if isinstance(c, Mapping) and "model" in c), ""),
        actions=tuple(str(a.get("action", "")) for a in actions),
        claims=claims,
        label=label,
        failures=tuple(_WORDS.get(code, f"{explanation} ({code})") for code, explanation in failures.items()),
    )


def _state(said: str, failures: Mapping[str, str]) -> State:
    if said == "Trusted":
        return "trusted"
    if said == "Valid":
        return "valid"
    return "tampered" if any(code.endswith(_TAMPERED) for code in failures) else "invalid"


def _failures(store: Mapping[str, Any]) -> dict[str, str]:
    """Failure codes with their explanation, of the active manifest and of its ingredients."""
    results = store.get("validation_results") or {}
    groups = [results.get("activeManifest") or {}]
    groups += [_mapping(delta, "validationDeltas") for delta in _mappings(results, "ingredientDeltas")]
    return {item["code"]: item.get("explanation", "") for group in groups for item in _mappings(group, "failure")}


def _mappings(holder: Any, key: str) -> list[Mapping[str, Any]]:
    found = holder.get(key) if isinstance(holder, Mapping) else None
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []


def _mapping(holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = holder.get(key)
    return found if isinstance(found, Mapping) else {}
