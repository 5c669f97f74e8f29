"""The C2PA signature: the last thing that happens to a picture, since any later change breaks it.

Every picture says how it came to be: `c2pa.created` with the IPTC source type trainedAlgorithmicMedia (C2PA 2.2,
"Actions"; EU AI Act Art. 50(2)), and the four facts of California SB 942 §22757.3(b): provider, system and version,
time, unique id. What the requester wants said about the picture (author, title …) is CAWG metadata beside it, never
the identity of the signer.
"""

import io
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import c2pa
from PIL import Image

from compliance.credentials import Credentials
from compliance.encode import EncodeOptions, encode
from compliance.errors import BadCredentials, SigningUnavailable
from compliance.fingerprint import fingerprint
from compliance.picture import Encoded, Marked, Signed
from compliance.reader import new_context
from compliance.verify import verify

AI_GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
DISCLOSURE = "com.efficientstack.imgen.disclosure"
_METADATA_PREFIXES = {"dc": "http://purl.org/dc/elements/1.1/", "photoshop": "http://ns.adobe.com/photoshop/1.0/"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What the requester wants said about the picture; what is empty is left out."""

    author: str = ""
    title: str = ""
    description: str = ""
    organization: str = ""
    vendor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What the manifest of one picture states: facts that we stand for, and the requester's claims beside them."""

    gen_id: str
    model: str
    created: datetime
    claims: Claims = Claims()


class Signer:
    """Signs pictures with one set of credentials; one object serves all threads. Building it does nothing yet."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        name: str,
        version: str,
        provider: str = "imgen",
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        """`name` and `version` are the system's, `provider` whoever offers it to the public."""
        self.credentials = credentials
        self._system = {"name": name, "version": version}
        self._provider = provider
        self._new_id = new_id
        self._native: tuple[int, c2pa.Signer, c2pa.Context] | None = None

    def sign(self, encoded: Encoded, provenance: Provenance, *, parent: Signed | None = None) -> Signed:
        """The picture with a C2PA manifest in it, verified once after signing.

        With `parent`, the picture is a rendition of that one (a thumbnail), which becomes its ingredient: a reader can
        follow it to the manifest of the full picture. Raises SigningUnavailable, and BadCredentials when trying again
        is in vain.
        """
        label = f"urn:c2pa:{self._new_id()}"
        manifest = self._manifest(label, encoded, provenance, parent)
        signed = io.BytesIO()
        try:
            signer, context = self._open()
            with c2pa.Builder(manifest, context) as builder:
                if parent is not None:
                    ingredient = {"title": "Full picture", "relationship": "parentOf", "instance_id": parent.label}
                    builder.add_ingredient(ingredient, parent.mime, io.BytesIO(parent.data))
                store = builder.sign(signer, encoded.mime, io.BytesIO(encoded.data), signed)
        except c2pa.C2paError as exc:
            raise _translated(exc) from exc
        data = signed.getvalue()
        return Signed(
            data=data,
            mime=encoded.mime,
            extension=encoded.extension,
            width=encoded.width,
            height=encoded.height,
            quality=encoded.quality,
            lossless=encoded.lossless,
            sha256=fingerprint(data),
            manifest=bytes(store),
            label=label,
        )

    def probe(self) -> None:
        """Signs a tiny picture and reads it back. Raises SigningUnavailable with the reason unless a reader says
        "trusted".

        Nothing about the chain's quality shows at signing (an incomplete one signs well), so ask this once at the
        start.
        """
        tiny = encode(Marked(pixels=Image.new("RGB", (16, 16))), EncodeOptions(format="jpeg"))
        signed = self.sign(tiny, Provenance(gen_id="probe", model="none", created=datetime.now(UTC)))
        report = verify(signed.data, self.credentials.anchors_pem)
        if report.state != "trusted":
            raise SigningUnavailable(
                f"A test signature reads {report.state!r}: {' '.join(report.failures)}",
                fix="Give a chain that leads from the signer's certificate to one of the anchors.",
            )

    def _open(self) -> tuple[c2pa.Signer, c2pa.Context]:
        """The native signer and context. They die at a fork, so each process makes its own, at its first picture.

        Two threads that come first at the same moment both make a pair, and either pair is good.
        """
        if self._native is None or self._native[0] != os.getpid():
            own = self.credentials
            info = c2pa.C2paSignerInfo(own.algorithm.encode(), own.chain_pem, own.key_pem, None)
            builder = {
                # Off: the thumbnail would add up to three times the bytes of the picture and most of the time.
                "thumbnail": {"enabled": False},
                # What we state ourselves; everything else was gathered from the requester.
                "created_assertion_labels": ["c2pa.actions", DISCLOSURE],
            }
            self._native = (
                os.getpid(),
                c2pa.Signer.from_info(info),
                new_context(own.anchors_pem, builder=builder),
            )
        return self._native[1:]

    def _manifest(self, label: str, encoded: Encoded, stated: Provenance, parent: Signed | None) -> str:
        when = stated.created.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        disclosure = {
            "provider": self._provider,
            "system": self._system,
            "model": stated.model,
            "created": when,
            "id": stated.gen_id,
            "ai_generated": True,
        }
        assertions: list[dict[str, Any]] = [
            {"label": "c2pa.actions.v2", "data": {"actions": self._actions(when, encoded, stated, parent)}},
            {"label": DISCLOSURE, "kind": "Json", "data": disclosure},
        ]
        if metadata := _metadata(stated.claims):
            assertions.append({"label": "cawg.metadata", "kind": "Json", "data": metadata})
        manifest = {
            "label": label,
            "title": stated.claims.title or f"{stated.gen_id}.{encoded.extension}",
            "claim_generator_info": [self._system],
            "assertions": assertions,
        }
        # Half a surrogate pair, which JSON from outside may hold, has no UTF-8 form: it becomes a question mark.
        return json.dumps(manifest, ensure_ascii=False).encode("utf-8", "replace").decode()

    def _actions(self, when: str, encoded: Encoded, stated: Provenance, parent: Signed | None) -> list[dict[str, Any]]:
        """How the picture began, then what was done to it."""
        if parent is None:
            began: dict[str, Any] = {"action": "c2pa.created", "description": f"Drawn by the model {stated.model}"}
        else:
            began = {"action": "c2pa.opened", "parameters": {"ingredientIds": [parent.label]}}
        began |= {"digitalSourceType": AI_GENERATED}
        then = [{"action": edit.action, "description": edit.description} for edit in encoded.edits]
        return [action | {"when": when, "softwareAgent": self._system} for action in (began, *then)]


def _metadata(claims: Claims) -> dict[str, Any]:
    """CAWG metadata as JSON-LD (CAWG Metadata 1.1), or nothing when the requester said nothing."""
    fields = {
        "dc:creator": [claims.author] if claims.author else None,
        "dc:title": claims.title,
        "dc:description": claims.description,
        "dc:publisher": [claims.organization] if claims.organization else None,
        "photoshop:Credit": claims.vendor,
    }
    given: dict[str, Any] = {name: value for name, value in fields.items() if value}
    return given and {"@context": _METADATA_PREFIXES, **given}


def _translated(exc: c2pa.C2paError) -> SigningUnavailable:
    """A Signature error is about the certificate or its key (expired, against the profile), which no retry mends."""
    if isinstance(exc, c2pa.C2paError.Signature):
        return BadCredentials(
            f"The certificate can't sign: {exc}.", fix="Renew it, or see the C2PA certificate profile."
        )
    return SigningUnavailable(f"Signing failed: {exc}.")
