"""Whether what we sign holds: two readers that share no code, every format and size, and bytes flipped one at a time.

The first reader is the SDK that signs (c2pa-python), the second is c2pa-ts, run in node from tests/compliance/c2pa_ts.
A flip changes one bit of one byte. In a manifest only bytes that the signature covers are flipped: the labels and
lengths of the boxes around, and the padding of the signature, say nothing, and both readers pass over them. The second
reader does not look into the manifests that a reference picture brought along.
"""

from __future__ import annotations

import gc
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import psutil

from compliance.authority import load_or_create
from compliance.encode import FORMATS, EncodeOptions, encode
from compliance.fingerprint import fingerprint
from compliance.logo import badge
from compliance.picture import Marked, Reviewed, Signed
from compliance.sign import Claims, Provenance, Signer, Source
from compliance.verdict import Verdict
from compliance.verify import verify
from compliance.watermark import Placement, VisibleMark, mark
from gateway.dialects.imgen.request import SIZES
from tests.compliance.flips import covered, flipped
from tests.compliance.samples import scene

SECOND = Path(__file__).parents[1] / "tests/compliance/c2pa_ts"
KINDS = ("plain", "watermarked", "with reference", "cs_* set")
FLIPS = 4  # of the picture and of the manifest each, per file
SIGNINGS, THREADS = 1000, 8
_SAFE = Verdict(safe=True, ruleset="bench", ruleset_version="0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamped:
    """A signed file on the disk, and where its bytes may be flipped."""

    path: Path
    picture: Signed
    format: str
    kind: str


def run(folder: Path) -> None:
    """Print the three tables. Needs node, and ``npm ci`` in tests/compliance/c2pa_ts."""
    folder.mkdir(parents=True)
    credentials = load_or_create(folder / "authority")
    signer = Signer(credentials, name="imgen", version="bench", training="notAllowed", pixel_mark="bench")
    files = list(_sign_all(signer, folder))
    _print_states(files, credentials.anchors_pem)
    _print_flips(files, credentials.anchors_pem, folder)
    _print_threads(signer, credentials.anchors_pem)


def _stated(number: int, kind: str, reference: Signed) -> Provenance:
    stated = Provenance(gen_id=f"{number:020d}", model="eros", created=datetime.now(UTC))
    if kind == "with reference":
        source = Source(role="init", sha256=fingerprint(reference.data), data=reference.data)
        return replace(stated, sources=(source,))
    if kind == "cs_* set":
        told = Claims(author="Ann", title="A hill", description="Fog & mist", organization="Hill & Co", vendor="Shop")
        return replace(stated, claims=told)
    return stated


def _sign_all(signer: Signer, folder: Path) -> Iterator[Stamped]:
    stated = Provenance(gen_id="reference", model="eros", created=datetime.now(UTC))
    reference = signer.sign(encode(Marked(pixels=scene(64, 64)), EncodeOptions()), stated)
    place = Placement(scale=8)
    for number, size in enumerate(SIZES):
        pixels = scene(*size, seed=number)
        for kind in KINDS:
            marks = [VisibleMark(logo=badge(), placement=place, what="The badge")] if kind == "watermarked" else []
            marked = mark(Reviewed(pixels=pixels, verdict=_SAFE), marks)
            stated = _stated(number, kind, reference)
            for format in FORMATS:
                encoded = encode(marked, EncodeOptions(format=format), signer.xmp(stated))
                picture = signer.sign(encoded, stated)
                path = folder / f"{format}-{size[0]}x{size[1]}-{KINDS.index(kind)}.{picture.extension}"
                path.write_bytes(picture.data)
                yield Stamped(path=path, picture=picture, format=format, kind=kind)


def second_reader(asked: Sequence[str]) -> list[bool]:
    """Whether each file is valid; ``path@offset`` is the file with a bit of that byte flipped."""
    answers: list[bool] = []
    for start in range(0, len(asked), 500):
        command = ["node", "verify.mjs", *asked[start : start + 500]]
        done = subprocess.run(command, cwd=SECOND, check=True, capture_output=True, encoding="utf-8")
        answers += [json.loads(line)["valid"] for line in done.stdout.splitlines()]
    return answers


def _print_states(files: list[Stamped], anchors: bytes) -> None:
    first = [verify(file.picture.data, anchors).state == "trusted" for file in files]
    second = second_reader([str(file.path) for file in files])
    print(f"\nsigned files: {len(FORMATS)} formats x {len(SIZES)} sizes x {len(KINDS)} kinds = {len(files)}")
    print(f"{'':<8}{'':<17}{'trusted, c2pa-python':>22}{'valid, c2pa-ts':>18}")
    for format in FORMATS:
        for kind in KINDS:
            rows = [at for at, file in enumerate(files) if (file.format, file.kind) == (format, kind)]
            good, also = sum(first[at] for at in rows), sum(second[at] for at in rows)
            print(f"{format:<8}{kind:<17}{f'{good} of {len(rows)}':>22}{f'{also} of {len(rows)}':>18}")


def _print_flips(files: list[Stamped], anchors: bytes, folder: Path) -> None:
    chance = Random(5)
    flips = [
        (file, part, at)
        for file in files
        for part, regions in covered(file.picture).items()
        for at in _sampled(regions, chance)
    ]
    first = [verify(flipped(file.picture.data, at), anchors).state not in ("trusted", "valid") for file, _, at in flips]
    second = [not valid for valid in second_reader([f"{file.path}@{at}" for file, _, at in flips])]
    print(f"\none flipped byte: {len(flips)} of them, {FLIPS} in each part of each file")
    print(f"{'':<8}{'':<12}{'caught, c2pa-python':>22}{'caught, c2pa-ts':>18}")
    for format in FORMATS:
        for part in ("picture", "manifest", "brought"):
            rows = [at for at, (file, where, _) in enumerate(flips) if (file.format, where) == (format, part)]
            seen, also = sum(first[at] for at in rows), sum(second[at] for at in rows)
            print(f"{format:<8}{part:<12}{f'{seen} of {len(rows)}':>22}{f'{also} of {len(rows)}':>18}")
            for at in rows:
                if not (first[at] and (second[at] or part == "brought")):
                    print(f"    missed: {flips[at][0].path.name} at {flips[at][2]}: {first[at]} {second[at]}")


def _sampled(regions: list[range], chance: Random) -> list[int]:
    return [
        chance.choice(chance.choices(regions, weights=[len(region) for region in regions])[0]) for _ in range(FLIPS)
    ]


def _print_threads(signer: Signer, anchors: bytes) -> None:
    """Many signings by several threads at once: what they weigh, and whether each holds."""
    process = psutil.Process()
    pictures = [
        encode(Marked(pixels=scene(seed=number)), EncodeOptions(format=format)) for number, format in enumerate(FORMATS)
    ]

    def one(number: int) -> bool:
        stated = Provenance(gen_id=f"{number:020d}", model="eros", created=datetime.now(UTC))
        signed = signer.sign(pictures[number % len(pictures)], stated)
        report = verify(signed.data, anchors)
        return report.state == "trusted" and f"{number:020d}" in str(report.claims)

    print(f"\n{SIGNINGS} signings, {THREADS} threads, 4 formats, each read back")
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, range(100)))
        gc.collect()
        before, began, good = process.memory_info().rss, time.perf_counter(), 0
        for part in range(4):
            good += sum(pool.map(one, range(part * SIGNINGS // 4, (part + 1) * SIGNINGS // 4)))
            gc.collect()
            grown = (process.memory_info().rss - before) / 2**20
            print(f"after {(part + 1) * SIGNINGS // 4:>5}: {good} trusted, memory {grown:+.1f} MiB")
    print(f"{(time.perf_counter() - began) / SIGNINGS * 1000:.1f} ms each, signing and reading")
