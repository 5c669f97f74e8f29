"""XMP with the IPTC fields about pictures that a model drew, for programs that know nothing of C2PA.

It goes into the file before the signature, which covers it: added afterwards, it would break it. The fields are those
of the IPTC Photo Metadata Standard 2025.1; the packet is ISO 16684-1. Pillow writes it into what it encodes itself;
`into_png` and `into_avif` are for files of another encoder.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from compliance.errors import EncodingFailed

# A JPEG segment holds no more (Adobe XMP Specification part 3, 1.1.3), and no other format has a reason to.
MAX_BYTES = 65_504
_NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
}
_HEAD = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    + f'xmlns:rdf="{_NAMESPACES["rdf"]}"><rdf:Description rdf:about="" '
    + " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in _NAMESPACES.items() if prefix != "rdf")
    + ">"
)
_TAIL = '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
# Characters that no XML 1.0 document may hold, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """What the packet says; what is empty is left out. `created` is ISO 8601, `source_type` a URI of the IPTC's."""

    source_type: str
    system: str
    version: str
    created: str
    prompt: str = ""
    author: str = ""
    title: str = ""
    description: str = ""
    organization: str = ""
    credit: str = ""


def packet(fields: Fields) -> bytes:
    """The packet as UTF-8, at most MAX_BYTES. A prompt that does not fit is left out."""
    data = _packet(fields, fields.prompt)
    return data if len(data) <= MAX_BYTES else _packet(fields, "")


def _packet(fields: Fields, prompt: str) -> bytes:
    body = (
        _simple("Iptc4xmpExt:DigitalSourceType", fields.source_type)
        + _simple("Iptc4xmpExt:AISystemUsed", fields.system)
        + _simple("Iptc4xmpExt:AISystemVersionUsed", fields.version)
        + _simple("Iptc4xmpExt:AIPromptInformation", prompt)
        + _simple("xmp:CreateDate", fields.created)
        + _array("dc:creator", "Seq", fields.author)
        + _array("dc:title", "Alt", fields.title)
        + _array("dc:description", "Alt", fields.description)
        + _array("dc:publisher", "Bag", fields.organization)
        + _simple("photoshop:Credit", fields.credit)
    )
    return (_HEAD + body + _TAIL).encode()


def _simple(name: str, text: str) -> str:
    return f"<{name}>{_text(text)}</{name}>" if text else ""


def _array(name: str, kind: str, text: str) -> str:
    language = ' xml:lang="x-default"' if kind == "Alt" else ""
    return f"<{name}><rdf:{kind}><rdf:li{language}>{_text(text)}</rdf:li></rdf:{kind}></{name}>" if text else ""


def _text(text: str) -> str:
    """What XML can't hold, half a surrogate pair for one, becomes U+FFFD. A reader makes \\n of a bare \\r."""
    return escape(_FORBIDDEN.sub("\ufffd", text), {"\r": "&#13;"})


def into_png(data: bytes, xmp: bytes) -> bytes:
    """The PNG file with the packet in an uncompressed iTXt chunk behind the header (PNG, third edition, 11.3.3.4)."""
    content = b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + xmp
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    end = 8 + 25  # the signature, and IHDR, which is always the first chunk and always as long
    return data[:end] + chunk + data[end:]


# AVIF (ISO 14496-12, the boxes; ISO 23008-12 A.3, XMP as an item)


def into_avif(data: bytes, xmp: bytes) -> bytes:
    """The AVIF file with the packet as one more item, which describes the primary one. The pixels are not touched.

    For still pictures as libavif writes them: one meta box, whose items lie in the file by their offset. Raises
    EncodingFailed for any other layout.
    """
    try:
        return _with_item(data, xmp)
    except (KeyError, ValueError, struct.error) as exc:
        raise EncodingFailed("The AVIF file has a layout that metadata can't be put into.") from exc


def _with_item(data: bytes, xmp: bytes) -> bytes:
    boxes = list(_boxes(data))
    (at,) = (index for index, (kind, _) in enumerate(boxes) if kind == b"meta")
    version, inner = boxes[at][1][:4], dict(_boxes(boxes[at][1][4:]))
    (primary,) = struct.unpack(">4xH", inner[b"pitm"])
    known = _places(inner[b"iloc"])
    new = max(known) + 1
    inner[b"iinf"] = _iinf(inner[b"iinf"], new)
    inner[b"iref"] = inner.get(b"iref", b"\0\0\0\0") + _box(b"cdsc", struct.pack(">HHH", new, 1, primary))
    inner[b"iloc"] = _iloc({**known, new: (0, len(xmp))})

    def whole() -> bytes:
        boxes[at] = (b"meta", version + b"".join(_box(*box) for box in inner.items()))
        return b"".join(_box(*box) for box in boxes)

    # The places are of a fixed width, so the length of all that is before the packet is known before they are.
    before = len(whole())
    grown = before - len(data)
    moved = {item: (start + grown, length) for item, (start, length) in known.items()}
    inner[b"iloc"] = _iloc({**moved, new: (before + 8, len(xmp))})
    return whole() + _box(b"mdat", xmp)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each box of a sequence. ValueError where one has no plain 32-bit size."""
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8 or at + size > len(data):
            raise ValueError("a box of another kind of size")
        yield kind, data[at + 8 : at + size]
        at += size


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def _places(iloc: bytes) -> dict[int, tuple[int, int]]:
    """Offset in the file and length of each item. ValueError unless each lies there in one piece."""
    version, sizes, base, count = struct.unpack_from(">B3xBBH", iloc)
    if (version, sizes, base) != (0, 0x44, 0):
        raise ValueError("another kind of iloc")
    places = {}
    for at in range(8, 8 + count * 14, 14):
        item, source, pieces, start, length = struct.unpack_from(">HHHII", iloc, at)
        if source or pieces != 1:
            raise ValueError("an item elsewhere, or in pieces")
        places[item] = (start, length)
    return places


def _iloc(places: dict[int, tuple[int, int]]) -> bytes:
    entries = [struct.pack(">HHHII", item, 0, 1, start, length) for item, (start, length) in places.items()]
    return struct.pack(">B3xBBH", 0, 0x44, 0, len(entries)) + b"".join(entries)


def _iinf(iinf: bytes, new: int) -> bytes:
    """The list of items with one more, of XMP."""
    version, count = struct.unpack_from(">B3xH", iinf)
    if version:
        raise ValueError("another kind of iinf")
    entry = struct.pack(">B3xHH4s", 2, new, 0, b"mime") + b"XMP\0application/rdf+xml\0"
    return struct.pack(">IH", 0, count + 1) + iinf[6:] + _box(b"infe", entry)
