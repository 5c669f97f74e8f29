"""A load generator on bare sockets: it costs little beside what it measures. CPU is read from the server's process."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Sample:
    """One slice: CPU microseconds of the server per request, and the wall milliseconds of the median request."""

    cpu_us: float
    p50_ms: float
    requests: int


async def measure(
    process: psutil.Process, port: int, body: bytes, key: str, *, connections: int, seconds: float
) -> Sample:
    """Keep ``connections`` requests in flight for ``seconds``. Raises when an answer is not 200."""
    request = (
        b"POST /api/v2 HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        + f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    until = time.perf_counter() + seconds
    before = _cpu(process)
    taken = await asyncio.gather(*(_connection(port, request, until) for _ in range(connections)))
    latencies = sorted(latency for connection in taken for latency in connection)
    spent = _cpu(process) - before
    return Sample(
        cpu_us=spent / len(latencies) * 1e6, p50_ms=latencies[len(latencies) // 2] * 1e3, requests=len(latencies)
    )


async def _connection(port: int, request: bytes, until: float) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    latencies = []
    while (began := time.perf_counter()) < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode(errors="replace"))
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        latencies.append(time.perf_counter() - began)
    writer.close()
    await writer.wait_closed()
    return latencies


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
