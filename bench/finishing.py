"""Finishing a picture against the fastest libraries that are here, and whether the gateway still answers meanwhile.

The first table has CPU milliseconds of one thread for decode, encode and sign: ours, with every check, and the floor's,
which is the fastest decoder and the fastest encoder of all at this quality, with the same signature. They take turns.
The second has what `/healthz` takes over HTTP while a gateway finishes a hundred pictures at once.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import httpx
import imagecodecs
import numpy as np
import orjson
from PIL import Image

from bench.gateway_calls import KEY, gateway, server
from bench.servers import photo
from compliance.authority import load_or_create
from compliance.encode import EXTENSIONS, MIMES, EncodeOptions, Format, encode
from compliance.picture import Encoded, Marked, decode
from compliance.sign import Provenance, Signer

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Encoder = Callable[[Pixels], bytes]

#: Each takes PNG bytes.
DECODERS: dict[str, Callable[[bytes], Pixels]] = {
    "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    "libspng": imagecodecs.spng_decode,
    "libpng": imagecodecs.png_decode,
    "OpenCV": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB),
}


@dataclass(frozen=True, slots=True)
class Row:
    """A delivery format, and what the libraries write it with."""

    name: str
    options: EncodeOptions
    encoders: dict[str, Encoder]


def run(data: Path, *, rounds: int) -> None:
    """Print both tables."""
    cv2.setNumThreads(1)
    pictures = (("a photograph", photo(1344, 768)), ("blocks of one colour", blocks(1344, 768)))
    for name, picture in pictures:
        _finishing(name, picture, rounds)
    asyncio.run(_alive(data))


def rows() -> list[Row]:
    return [
        Row("jpeg q95", EncodeOptions(), _jpeg()),
        Row("png", EncodeOptions(format="png"), _png()),
        Row("webp q95", EncodeOptions(format="webp"), _webp()),
        Row("webp lossless", EncodeOptions(format="webp", lossless=True), _webp_lossless()),
        Row("avif q95", EncodeOptions(format="avif"), _avif()),
        Row("avif lossless", EncodeOptions(format="avif", lossless=True), _avif_lossless()),
    ]


def blocks(width: int, height: int) -> Image.Image:
    """A picture of few colours with hard edges, like those of the built-in model."""
    colours = np.random.default_rng(3).integers(0, 256, (12, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(np.asarray(photo(width // 8, height // 8).convert("L"), dtype=np.float64), (0, 0), 3)
    levels = (smooth - smooth.min()) / np.ptp(smooth) * (len(colours) - 0.01)
    return Image.fromarray(colours[levels.astype(int)]).resize((width, height), Image.Resampling.NEAREST)


def ssim(one: Image.Image, other: Image.Image) -> float:
    """Mean structural similarity of the luminance (Wang et al. 2004: Gaussian window of sigma 1.5, K1 .01, K2 .03)."""
    x, y = (np.asarray(image.convert("L"), dtype=np.float64) for image in (one, other))
    mean_x, mean_y = _blurred(x), _blurred(y)
    varied_x, varied_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    both = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (varied_x + varied_y + c2))
    return float(index.mean())


def _finishing(name: str, picture: Image.Image, rounds: int) -> None:
    upload = _saved(picture, "PNG", compress_level=1)
    digest, pixels = hashlib.sha256(upload).hexdigest(), np.asarray(picture)
    decoder, _ = _fastest({name: lambda read=read: read(upload) for name, read in DECODERS.items()})
    with tempfile.TemporaryDirectory() as folder:
        signer = Signer(load_or_create(Path(folder)), name="imgen", version="bench")
        signer.probe()
        print(f"\n{name}, {picture.width}x{picture.height}, uploaded as a PNG of {len(upload)} bytes; CPU ms")
        print(
            f"{'format':<15}{'ours':>8}{'floor':>8}{'ratio':>7}  {'floor reads and writes with':<34}"
            f"{'bytes':>9}{'floor':>9}{'SSIM':>9}{'floor':>9}"
        )
        for row in rows():
            encoder, _ = _fastest({name: lambda write=write: write(pixels) for name, write in row.encoders.items()})
            write = row.encoders[encoder]

            def ours(row: Row = row) -> bytes:
                raw = decode(upload, digest)
                return signer.sign(encode(Marked(pixels=raw.pixels), row.options), _said()).data

            def floor(row: Row = row, write: Encoder = write) -> bytes:
                return signer.sign(_encoded(write(DECODERS[decoder](upload)), picture, row.options), _said()).data

            mine, theirs = _paired(ours, floor, max(3 * rounds, 5))
            results = [(len(data), ssim(picture, _opened(data))) for data in (ours(), floor())]
            if row.options.effective_lossless and not np.array_equal(np.asarray(_opened(ours())), pixels):
                raise RuntimeError(f"{row.name} is not exact")
            sizes, likeness = zip(*results, strict=True)
            print(
                f"{row.name:<15}{mine:>8.1f}{theirs:>8.1f}{mine / theirs:>6.2f}x  {f'{decoder}, {encoder}':<34}"
                f"{sizes[0]:>9}{sizes[1]:>9}{likeness[0]:>9.5f}{likeness[1]:>9.5f}",
                flush=True,
            )
    _default_avif(picture)


def _default_avif(picture: Image.Image) -> None:
    """The promise about AVIF is against Pillow's default speed."""
    options = EncodeOptions(format="avif")
    mine, theirs = _paired(
        lambda: encode(Marked(pixels=picture), options).data,
        lambda: _saved(picture, "AVIF", quality=95, max_threads=1),
        2,
    )
    ours, default = encode(Marked(pixels=picture), options).data, _saved(picture, "AVIF", quality=95, max_threads=1)
    likeness = ssim(picture, _opened(ours)) - ssim(picture, _opened(default))
    print(
        f"avif q95, encoding alone: {theirs / mine:.1f} times as fast as Pillow's default speed "
        f"({mine:.0f} and {theirs:.0f} ms), {len(ours) / len(default):.2f} times the bytes, SSIM {likeness:+.5f}"
    )


def _said() -> Provenance:
    return Provenance(gen_id="b" * 20, model="bench", created=datetime.now(UTC))


def _encoded(data: bytes, picture: Image.Image, options: EncodeOptions) -> Encoded:
    return Encoded(
        data=data,
        mime=MIMES[options.format],
        extension=EXTENSIONS[options.format],
        width=picture.width,
        height=picture.height,
        quality=options.effective_quality,
        lossless=options.effective_lossless,
    )


def _fastest(candidates: dict[str, Callable[[], object]]) -> tuple[str, float]:
    """The name of the fastest and its CPU milliseconds, the best of three each, in turns."""
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(3):
        for name, work in candidates.items():
            best[name] = min(best[name], _cpu_ms(work))
    return min(best.items(), key=lambda item: item[1])


def _paired(one: Callable[[], object], other: Callable[[], object], times: int) -> tuple[float, float]:
    """Median CPU milliseconds of both, taken in turns."""
    taken = [(_cpu_ms(one), _cpu_ms(other)) for _ in range(times)]
    return median(first for first, _ in taken), median(second for _, second in taken)


def _cpu_ms(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began)


def _saved(picture: Image.Image, kind: str, **settings: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **settings)
    return out.getvalue()


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _blurred(values: Any) -> Any:
    return cv2.GaussianBlur(values, (11, 11), 1.5)


# What the libraries write a format with, each as fast as it can without a loss that is seen.


def _pillow(kind: str, **settings: Any) -> Encoder:
    return lambda pixels: _saved(Image.fromarray(pixels), kind, **settings)


def _opencv(extension: str, *settings: int) -> Encoder:
    return lambda pixels: cv2.imencode(extension, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), settings)[1].tobytes()


def _jpeg() -> dict[str, Encoder]:
    return {
        "Pillow": _pillow("JPEG", quality=95),
        "libjpeg-turbo": lambda pixels: bytes(imagecodecs.jpeg8_encode(pixels, level=95, subsampling="420")),
        "OpenCV": _opencv(".jpg", cv2.IMWRITE_JPEG_QUALITY, 95),
    }


def _png() -> dict[str, Encoder]:
    filters, ways = imagecodecs.PNG.FILTER, imagecodecs.PNG.STRATEGY
    pairs = [(way, filter) for way in (ways.RLE, ways.FILTERED) for filter in (filters.SUB, filters.UP)]
    return {
        "Pillow RLE": _pillow("PNG", compress_level=1, compress_type=3),
        "libspng": lambda pixels: bytes(imagecodecs.spng_encode(pixels, level=1)),
        "OpenCV": _opencv(".png"),
        **{
            f"libpng {way.name} {filter.name}": lambda pixels, way=way, filter=filter: bytes(
                imagecodecs.png_encode(pixels, level=1, strategy=way, filter=filter)
            )
            for way, filter in pairs
        },
    }


def _webp() -> dict[str, Encoder]:
    return {
        "Pillow method 0": _pillow("WEBP", quality=95, method=0),
        "libwebp method 0": lambda pixels: bytes(imagecodecs.webp_encode(pixels, level=95, lossless=False, method=0)),
        "OpenCV": _opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 95),
    }


def _webp_lossless() -> dict[str, Encoder]:
    return {
        "Pillow method 0": _pillow("WEBP", lossless=True, quality=0, method=0),
        "libwebp method 0": lambda pixels: bytes(imagecodecs.webp_encode(pixels, level=0, lossless=True, method=0)),
        "OpenCV": _opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
    }


def _avif() -> dict[str, Encoder]:
    return {
        "Pillow speed 9": _pillow("AVIF", quality=95, speed=9, max_threads=1),
        "libavif speed 9": lambda pixels: bytes(
            imagecodecs.avif_encode(pixels, level=95, speed=9, pixelformat="420", numthreads=1)
        ),
        "OpenCV speed 9": _opencv(".avif", cv2.IMWRITE_AVIF_QUALITY, 95, cv2.IMWRITE_AVIF_SPEED, 9),
    }


def _avif_lossless() -> dict[str, Encoder]:
    return {
        f"libavif speed {speed}": lambda pixels, speed=speed: bytes(
            imagecodecs.avif_encode(pixels, level=100, speed=speed, numthreads=1)
        )
        for speed in (9, 10)
    }


# /healthz while pictures are finished

PICTURES = 100
MOST_SECONDS = 240.0


async def _alive(data: Path) -> None:
    """The endpoint has drawn all pictures, and says so at once for all of them."""
    with server("bench.servers:painter") as painter:
        environ = {
            "IMGEN_DATA": str(data),
            "IMGEN_API_KEY": KEY,
            "IMGEN_BACKEND_URL": f"http://127.0.0.1:{painter[1]}/v2/bench",
            "IMGEN_BACKEND_KEY": "bench",
            "IMGEN_LOG_LEVEL": "error",
        }
        with gateway(environ) as (process, port):
            limits = httpx.Limits(max_connections=8)
            async with httpx.AsyncClient(
                headers={"Authorization": f"Bearer {KEY}"}, timeout=60, limits=limits, trust_env=False
            ) as http:
                url = f"http://127.0.0.1:{port}/api/v2"
                formats: list[Format] = ["jpeg", "png", "webp", "avif"]
                asked = [
                    {"action": "generate", "prompt": "a red house", "seed": seed, "format": formats[seed % 4]}
                    for seed in range(PICTURES)
                ]
                ids: list[str] = [(await http.post(url, json=body)).json()["id"] for body in asked]
                (await http.get(f"http://127.0.0.1:{painter[1]}/uploaded")).raise_for_status()
                idle = await _pinged(port, asyncio.create_task(asyncio.sleep(3)))
                cpu, began = sum(process.cpu_times()[:2]), time.perf_counter()
                await http.post(f"http://127.0.0.1:{painter[1]}/go")
                busy = await _pinged(port, asyncio.create_task(_ended(http, url, ids)))
                took, spent = time.perf_counter() - began, sum(process.cpu_times()[:2]) - cpu
                large = await _pinged(port, asyncio.create_task(_large(http, url)))
    print(
        f"\n{PICTURES} pictures of 1344x768 in four formats finished in {took:.1f} s, {os.cpu_count()} cores; "
        f"{1000 * spent / PICTURES:.0f} ms of CPU each, with review, thumbnail and all that a job needs"
    )
    print(f"{'GET /healthz, ms':<31}{'p50':>8}{'p90':>8}{'p99':>8}{'most':>8}{'requests':>10}")
    for name, taken in (
        ("nothing to do", idle),
        ("while they are finished", busy),
        ("while 15 MB requests are read", large),
    ):
        marks = "".join(f"{taken[int(share * (len(taken) - 1))]:>8.1f}" for share in (0.5, 0.9, 0.99, 1.0))
        print(f"{name:<31}{marks}{len(taken):>10}")


async def _large(http: httpx.AsyncClient, url: str) -> None:
    """Requests as large as they may be: four references each, which are no pictures."""
    given = {"image": f"data:image/png;base64,{base64.b64encode(bytes(2_800_000)).decode()}"}
    body = orjson.dumps({"action": "generate", "prompt": "a red house", "references": [given] * 4})
    for _ in range(20):
        answer = await http.post(url, content=body)
        if answer.status_code != 400:
            raise RuntimeError(f"{answer.status_code} instead of 400: {answer.text}")


async def _ended(http: httpx.AsyncClient, url: str, ids: list[str]) -> None:
    """Returns when each job has a picture."""
    async with asyncio.timeout(MOST_SECONDS):
        for job in ids:
            status: dict[str, Any] = {"status": "IN_QUEUE"}
            while status["status"] in ("IN_QUEUE", "IN_PROGRESS"):
                await asyncio.sleep(0.2)  # it is another process that changes it
                status = (await http.post(url, json={"action": "status", "id": job})).json()
            if status.get("compliance") != "safe":
                raise RuntimeError(f"a job came to nothing: {status}")


async def _pinged(port: int, until: asyncio.Task[Any]) -> list[float]:
    """Sorted milliseconds of one request after the other, each due 10 ms after the one before."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    taken, due = [], time.perf_counter()
    while not until.done():
        # From when it was due: what waits behind a slow one is slow too.
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        now = time.perf_counter()
        taken.append(1000 * (now - due))
        due = max(due + 0.01, now)
        await asyncio.sleep(due - now)
    await until
    writer.close()
    await writer.wait_closed()
    return sorted(taken)
