"""Is this picture what its signer released? An answer for people and programs, for any bytes whatever."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
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


_CHANGED = {"assertion.dataHash.mismatch", "assertion.bmffHash.mismatch", "assertion.boxesHash.mismatch"}
_CLAIMS = {
    "author": "dc:creator",
    "title": "dc:title",
    "description": "dc:description",
    "organization": "dc:publisher",
    "vendor": "photoshop:Credit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that was done to the picture: a C2PA action, a sentence, and when (ISO 8601), as far as it is said."""

    action: str
    description: str = ""
    when: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the bytes say about themselves, and whether it holds.

    state      trusted     signed, intact, and the signer leads to one of the given roots
               valid       signed and intact, by somebody whom these roots do not know
               tampered    changed after signing, pixels or manifest
               invalid     intact, but the signature does not count: an expired certificate, say
               unsigned    a picture without a manifest
               unreadable  not a JPEG, PNG, WebP or AVIF that can be read
    `when` is the time that the signer states, ISO 8601; `actions` are C2PA action names in their order and `history`
    the same in full; `claims` are the other statements by label; `said` is what whoever asked for the picture wanted
    said of it, by the names of the API; `training` is what it may be used for; `failures` are sentences.
    `pixels_changed` and `ai_generated` are None where nothing is known. Everything but `state`, `pixels_changed` and
    `failures` is a statement of the signer, and worth nothing unless the state is trusted.
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
    history: tuple[Step, ...] = ()
    said: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, str] | None = None
    ai_generated: bool | None = None
    pixels_changed: bool | None = None


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
    state = _state(str(store.get("validation_state")), failures)
    return Report(
        state=state,
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
        history=tuple(
            Step(**{name: str(a.get(name) or "") for name in ("action", "description", "when")}) for a in actions
        ),
        said=_said(_mapping(claims, "cawg.metadata")),
        training=_training(_mapping(_mapping(claims, "cawg.training-mining"), "entries")),
        ai_generated=any("trainedalgorithmicmedia" in str(a.get("digitalSourceType")).lower() for a in actions),
        pixels_changed=True if _CHANGED & failures.keys() else False if state in ("trusted", "valid") else None,
    )


def _step(action: Mapping[str, Any]) -> Step:
    return Step(**{name: str(action.get(name) or "") for name in ("action", "description", "when")})


def _said(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The requester's claims by their names in the API; a list of names as one text."""
    found = {name: metadata.get(key) for name, key in _CLAIMS.items()}
    texts = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str) and text}


def _training(entries: Mapping[str, Any]) -> dict[str, str] | None:
    """What models may be trained with the picture: `use`, and `constraints` where there are any."""
    entry = _mapping(entries, "cawg.ai_generative_training")
    if not entry:
        return None
    told = {"use": str(entry.get("use", "")), "constraints": str(entry.get("constraint_info") or "")}
    return {name: text for name, text in told.items() if text}


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
