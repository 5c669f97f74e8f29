"""The C2PA signature: the last thing that happens to a picture, since any later change breaks it.

Every picture says how it came to be (C2PA 2.2, "Actions"; EU AI Act Art. 50(2)):

    from words alone           c2pa.created by the model, trainedAlgorithmicMedia
    with pictures to look at   the same, with these as its ingredients (inputTo)
    begun from a picture       c2pa.opened with it (parentOf), then c2pa.edited by the model
    a thumbnail                c2pa.opened with the full picture (parentOf)

then what was done to it: visible marks, a mark in the pixels, the format. It states the four facts of California SB 942
§22757.3(b): provider, system and version, time, unique id. What the requester wants said about the picture (author,
title …) is CAWG metadata beside it, never the identity of the signer.
"""

import base64
import io
import json
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import c2pa
from PIL import Image

from compliance.credentials import Credentials
from compliance.encode import EncodeOptions, encode
from compliance.errors import BadCredentials, SigningUnavailable
from compliance.fingerprint import fingerprint
from compliance.picture import Encoded, Marked, Signed, SoftBinding, sniff
from compliance.reader import new_context
from compliance.timestamp import TimestampAuthority, TimestampRelay
from compliance.verify import verify
from compliance.xmp import Fields, packet

AI_GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
#: A model drew over a picture that was there before.
AI_EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
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
class Source:
    """A picture that the drawing began with (`init`) or only looked at (`guide`).

    `sha256` (lowercase hex) is of the file as it was sent. `data` is that file where it brings content credentials that
    are to be carried along (`reference.carried`), and empty otherwise.
    """

    role: Literal["init", "guide"]
    sha256: str
    data: bytes = field(default=b"", repr=False)

    @property
    def name(self) -> str:
        """Its hash as a URI (RFC 6920), by which an action and an ingredient find each other."""
        digest = base64.urlsafe_b64encode(bytes.fromhex(self.sha256)).rstrip(b"=").decode()
        return f"ni:///sha-256;{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What the manifest of one picture states: facts that we stand for, and the requester's claims beside them.

    `prompt` goes into the XMP alone, and only where it is given.
    """

    gen_id: str
    model: str
    created: datetime
    claims: Claims = Claims()
    sources: tuple[Source, ...] = ()
    prompt: str = ""

    @property
    def parent(self) -> Source | None:
        """What the drawing began with. C2PA has one parent at most; further ones count as looked at."""
        return next((source for source in self.sources if source.role == "init"), None)

    @property
    def source_type(self) -> str:
        return AI_EDITED if self.parent else AI_GENERATED

    @property
    def when(self) -> str:
        """`created` in ISO 8601, UTC."""
        return self.created.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


#: What may be done with the pictures by those who train models (CAWG Training and Data Mining 1.1).
Training = Literal["notAllowed", "allowed", "constrained"]
_USES = ("cawg.ai_generative_training", "cawg.ai_training", "cawg.ai_inference", "cawg.data_mining")


class Signer:
    """Signs pictures with one set of credentials; one object serves all threads. Building it does nothing yet."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        name: str,
        version: str,
        provider: str = "imgen",
        training: Training | None = None,
        constraints: str = "",
        pixel_mark: str = "",
        timestamps: TimestampAuthority | None = None,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        """`name` and `version` are the system's, `provider` whoever offers it to the public.

        `training` says what the pictures may be used for, `constraints` under which; nothing is said by default.
        `pixel_mark` names the algorithm of those soft bindings that were laid into the pixels. With `timestamps` each
        signature is stamped where the authority answers in time, and left without a stamp where it does not.
        """
        self.credentials = credentials
        self._training = training
        self._constraints = constraints
        self._pixel_mark = pixel_mark
        self._system = {"name": name, "version": version}
        self._provider = provider
        self._new_id = new_id
        self._timestamps = timestamps
        self._natives: dict[int, _Native] = {}

    def sign(self, encoded: Encoded, provenance: Provenance, *, parent: Signed | None = None) -> Signed:
        """The picture with a C2PA manifest in it, verified once after signing.

        With `parent`, the picture is a rendition of that one (a thumbnail), which becomes its ingredient: a reader can
        follow it to the manifest of the full picture. Raises SigningUnavailable, and BadCredentials when trying again
        is in vain.
        """
        label = f"urn:c2pa:{self._new_id()}"
        manifest = self._manifest(label, encoded, provenance, parent)

        def sign_with(signer: c2pa.Signer, context: c2pa.Context) -> tuple[bytes, bytes]:
            signed = io.BytesIO()
            with c2pa.Builder(manifest, context) as builder:
                if parent is not None:
                    ingredient = {"title": "Full picture", "relationship": "parentOf", "instance_id": parent.label}
                    builder.add_ingredient(ingredient, parent.mime, io.BytesIO(parent.data))
                for source, ingredient in _ingredients(provenance) if parent is None else ():
                    if source.data:
                        builder.add_ingredient(ingredient, sniff(source.data), io.BytesIO(source.data))
                store = builder.sign(signer, encoded.mime, io.BytesIO(encoded.data), signed)
            return signed.getvalue(), bytes(store)

        data, store, stamped = self._open().run(sign_with)
        return Signed(
            data=data,
            mime=encoded.mime,
            extension=encoded.extension,
            width=encoded.width,
            height=encoded.height,
            quality=encoded.quality,
            lossless=encoded.lossless,
            sha256=fingerprint(data),
            manifest=store,
            label=label,
            stamped=stamped if self._timestamps else None,
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

    def _open(self) -> "_Native":
        """What the SDK needs. It dies at a fork, so each process makes its own, at its first picture."""
        native = self._natives.get(os.getpid())
        if native is not None:
            return native
        try:
            made = _Native(self.credentials, self._timestamps)
        except c2pa.C2paError as exc:
            raise _translated(exc) from exc
        # Of two threads that come first at the same moment one wins, and the other's is forgotten.
        return self._natives.setdefault(os.getpid(), made)

    def xmp(self, provenance: Provenance) -> bytes:
        """The XMP packet of the picture, to be encoded with it: what the manifest says, for who reads no C2PA."""
        claims = provenance.claims
        return packet(
            Fields(
                source_type=provenance.source_type,
                system=f"{self._system['name']}, {provenance.model}",
                version=self._system["version"],
                created=provenance.when,
                prompt=provenance.prompt,
                author=claims.author,
                title=claims.title,
                description=claims.description,
                organization=claims.organization,
                credit=claims.vendor,
            )
        )

    def _manifest(self, label: str, encoded: Encoded, stated: Provenance, parent: Signed | None) -> str:
        disclosure: dict[str, Any] = {
            "provider": self._provider,
            "system": self._system,
            "model": stated.model,
            "created": stated.when,
            "id": stated.gen_id,
            "ai_generated": True,
        }
        if stated.sources:
            disclosure["sources"] = [{"role": source.role, "sha256": source.sha256} for source in stated.sources]
        assertions: list[dict[str, Any]] = [
            {"label": "c2pa.actions.v2", "data": {"actions": self._actions(encoded, stated, parent)}},
            {"label": DISCLOSURE, "kind": "Json", "data": disclosure},
        ]
        assertions += [_soft_binding(binding) for binding in encoded.bindings]
        if self._training is not None:
            assertions.append(_training(self._training, self._constraints))
        if metadata := _metadata(stated.claims):
            assertions.append({"label": "cawg.metadata", "kind": "Json", "data": metadata})
        unsigned = [] if parent else [entry for source, entry in _ingredients(stated) if not source.data]
        manifest = {
            "label": label,
            "title": stated.claims.title or f"{stated.gen_id}.{encoded.extension}",
            "claim_generator_info": [self._system],
            "ingredients": unsigned,
            "assertions": assertions,
        }
        # Half a surrogate pair, which JSON from outside may hold, has no UTF-8 form: it becomes a question mark.
        return json.dumps(manifest, ensure_ascii=False).encode("utf-8", "replace").decode()

    def _actions(self, encoded: Encoded, stated: Provenance, parent: Signed | None) -> list[dict[str, Any]]:
        """How the picture began, then what was done to it, in this order."""
        actions = _opened(parent, stated.source_type) if parent else _drawn(stated)
        actions += [{"action": edit.action, "description": edit.description} for edit in encoded.edits]
        if any(binding.alg == self._pixel_mark for binding in encoded.bindings):
            # The soft binding that it speaks of is an assertion of this manifest (C2PA 2.2, "Watermarking").
            actions.append({"action": "c2pa.watermarked.bound", "description": "An id in the pixels, not to be seen"})
        before = parent.mime if parent else "image/png"
        if encoded.mime != before:
            what = f"{_NAMES[before]} to {_NAMES[encoded.mime]}"
            lossless = ", without loss" if encoded.lossless else ""
            actions.append({"action": "c2pa.converted", "description": f"{what}{lossless}"})
        return [action | {"when": stated.when, "softwareAgent": self._system} for action in actions]


class _Native:
    """The SDK's objects of one process: a signer, one that asks for time stamps where there are any, and a context."""

    def __init__(self, credentials: Credentials, timestamps: TimestampAuthority | None) -> None:
        self._credentials = credentials
        #: What the key said to each thread: the SDK swallows what a callback raises.
        self._failed = threading.local()
        self._context = new_context(credentials.anchors_pem, builder=_BUILDER)
        self._plain = self._signer(None)
        self._relay = TimestampRelay(timestamps) if timestamps else None
        self._stamping = self._signer(self._relay.url) if self._relay else None

    def run(self, sign: Callable[[c2pa.Signer, c2pa.Context], tuple[bytes, bytes]]) -> tuple[bytes, bytes, bool]:
        """What `sign` gives, and whether it is stamped. Raises SigningUnavailable."""
        if self._relay is not None and self._relay.willing():
            try:
                stamped = self._signed(self._stamping, sign)
            except SigningUnavailable:
                if self._failed.error is not None:
                    raise
                # The key has signed, so it was the stamp or, as the second try tells, the picture.
                self._relay.report(stamped=False)
            else:
                self._relay.report(stamped=True)
                return *stamped, True
        return *self._signed(self._plain, sign), False

    def _signed(
        self, signer: c2pa.Signer, sign: Callable[[c2pa.Signer, c2pa.Context], tuple[bytes, bytes]]
    ) -> tuple[bytes, bytes]:
        self._failed.error = None
        try:
            return sign(signer, self._context)
        except c2pa.C2paError as exc:
            raise self._failed.error or _translated(exc) from exc

    def _signer(self, tsa_url: str | None) -> c2pa.Signer:
        own = self._credentials
        if own.remote is None:
            info = c2pa.C2paSignerInfo(own.algorithm.encode(), own.chain_pem, own.key_pem, tsa_url and tsa_url.encode())
            return c2pa.Signer.from_info(info)
        algorithm = c2pa.C2paSigningAlg[own.algorithm.upper()]
        return c2pa.Signer.from_callback(
            self._sign_remotely, algorithm, own.chain_pem.decode("ascii", "replace"), tsa_url
        )

    def _sign_remotely(self, data: bytes) -> bytes:
        assert self._credentials.remote is not None
        try:
            return self._credentials.remote.sign(data, self._credentials.algorithm)
        except SigningUnavailable as exc:
            self._failed.error = exc
            return b""


_BUILDER = {
    # Off: the thumbnail would add up to three times the bytes of the picture and most of the time.
    "thumbnail": {"enabled": False},
    # What we state ourselves; everything else was gathered from the requester.
    "created_assertion_labels": [
        "c2pa.actions",
        "c2pa.soft-binding",
        "c2pa.ingredient",
        "cawg.training-mining",
        DISCLOSURE,
    ],
}
_NAMES = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WebP", "image/avif": "AVIF"}


def _opened(parent: Signed, source_type: str) -> list[dict[str, Any]]:
    return [
        {"action": "c2pa.opened", "digitalSourceType": source_type, "parameters": {"ingredientIds": [parent.label]}}
    ]


def _drawn(stated: Provenance) -> list[dict[str, Any]]:
    """By the model: from nothing, or over what was there."""
    looked_at = [source.name for source in stated.sources if source is not stated.parent]
    # The same file twice is one ingredient, and never an input beside being the parent.
    looked_at = [name for name in dict.fromkeys(looked_at) if stated.parent is None or name != stated.parent.name]
    inputs = {"parameters": {"ingredientIds": looked_at}} if looked_at else {}
    model: dict[str, Any] = {"digitalSourceType": stated.source_type, **inputs}
    if stated.parent is None:
        return [{"action": "c2pa.created", "description": f"Drawn by the model {stated.model}", **model}]
    return [
        {"action": "c2pa.opened", "parameters": {"ingredientIds": [stated.parent.name]}},
        {"action": "c2pa.edited", "description": f"Drawn over by the model {stated.model}", **model},
    ]


def _ingredients(stated: Provenance) -> list[tuple[Source, dict[str, Any]]]:
    """Each source once, with its ingredient. One without credentials is known by its hash alone."""
    entries: dict[str, tuple[Source, dict[str, Any]]] = {}
    for number, source in enumerate(sorted(stated.sources, key=lambda source: source is not stated.parent), 1):
        entry = {
            "title": f"Reference picture {number}",
            "relationship": "parentOf" if source is stated.parent else "inputTo",
            "instance_id": source.name,
            "description": f"SHA-256 of the file as it was sent: {source.sha256}",
        }
        entries.setdefault(source.name, (source, entry))
    return list(entries.values())


def _soft_binding(binding: SoftBinding) -> dict[str, Any]:
    """One assertion per algorithm, over the whole picture (C2PA 2.2, "Soft binding")."""
    return {
        "label": "c2pa.soft-binding",
        "data": {"alg": binding.alg, "blocks": [{"scope": {}, "value": binding.value}]},
    }


def _training(use: Training, constraints: str) -> dict[str, Any]:
    entry = {"use": use} | ({"constraint_info": constraints} if constraints else {})
    return {"label": "cawg.training-mining", "data": {"entries": dict.fromkeys(_USES, entry)}}


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
