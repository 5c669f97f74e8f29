"""RunPod's serverless endpoint as documented, for what cannot run here: an `httpx` transport with a worker behind it.

The worker draws one plain PNG per picture and uploads it through the signed address of the job, as the real one does.
Faults are switched on by the test.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
from PIL import Image, ImageDraw

from handler import contract


def paint(job: contract.Job, index: int) -> bytes:
    """A PNG that depends on everything that decides a picture."""
    key = hashlib.sha256(f"{job.positive}|{job.negative}|{job.seed + index}".encode()).digest()
    image = Image.new("RGB", (job.width, job.height), tuple(key[:3]))
    ImageDraw.Draw(image).ellipse(
        (job.width // 4, job.height // 4, job.width // 2, job.height // 2), fill=tuple(key[3:6])
    )
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def failed(code: str, message: str) -> dict[str, Any]:
    return contract.failure_to_wire(contract.Failure(code=code, message=message))


PROGRESS = contract.Progress(sequence=1, phase="drawing", step=3, total_steps=14)
INVENTORY = contract.Inventory(models={"builtin": "sd15"}, loras={"aya": "sd15", "bella": "sd15"})


@dataclass
class FakeRunPod(httpx.AsyncBaseTransport):
    """One endpoint. ``uploads`` is a client that reaches the gateway under test.

    ``hold`` keeps all jobs in progress and ``held`` those with such a number, from 1; ``vanish`` so many lose their
    worker; ``brush`` paints picture ``index`` of a job as a PNG; ``answered`` may change the pictures of a result. A
    worker without ``inventory`` is too old to have one.
    """

    key: str
    uploads: httpx.AsyncClient | None = None
    refuse: int = 0
    down: bool = False
    hold: bool = False
    held: frozenset[int] = frozenset()
    progress: contract.Progress = PROGRESS
    vanish: int = 0
    brush: Callable[[contract.Job, int], bytes] = paint
    answered: Callable[[list[contract.Picture]], list[contract.Picture]] = list
    inventory: contract.Inventory | None = INVENTORY
    polls: int = 0
    failure: dict[str, Any] | None = None
    terminal: str = ""
    forget: int = 0
    corrupt: int = 0
    inline: bool = False
    warnings: tuple[str, ...] = ()
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    lent: list[bytes] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("refused", request=request)
        if request.headers.get("authorization") != f"Bearer {self.key}":
            return self._answer(401, {"error": "unauthorized"})
        operation, _, job_id = request.url.path.removeprefix("/v2/fake/").partition("/")
        match request.method, operation:
            case "POST", "run":
                return self._run(orjson.loads(await request.aread()))
            case "GET", "status":
                return await self._status(job_id)
            case "POST", "cancel":
                self.cancelled.append(job_id)
                if job_id in self.jobs:
                    self.jobs[job_id]["status"] = "CANCELLED"
                return self._answer(200, {"id": job_id, "status": "CANCELLED"})
            case "GET", "health":
                return self._answer(200, {"jobs": {}, "workers": {"idle": 1, "running": 0}})
        return self._answer(404, {"error": "not found"})

    def _run(self, body: dict[str, Any]) -> httpx.Response:
        if self.refuse:
            return self._answer(self.refuse, {"error": "refused"})
        self.submitted.append(body)
        job_id = f"{len(self.submitted):08d}-fake-e1"
        self.jobs[job_id] = {
            "id": job_id,
            "number": len(self.submitted),
            "status": "IN_QUEUE",
            "input": body["input"],
            "webhook": body.get("webhook"),
        }
        return self._answer(200, {"id": job_id, "status": "IN_QUEUE"})

    async def _status(self, job_id: str) -> httpx.Response:
        job = self.jobs.get(job_id)
        if job is None:
            return self._answer(404, {"error": "job not found"})
        if self.forget:
            self.forget -= 1
            del self.jobs[job_id]
            return self._answer(404, {"error": "job not found"})
        if self.hold or job["number"] in self.held:
            self.polls += 1
            return self._answer(
                200, {"id": job_id, "status": "IN_PROGRESS", "output": contract.progress_to_wire(self.progress)}
            )
        if job["status"] in {"IN_QUEUE", "IN_PROGRESS"}:
            await self._work(job)
        return self._answer(200, {k: job[k] for k in ("id", "status", "output", "error") if k in job})

    async def _work(self, job: dict[str, Any]) -> None:
        if self.terminal:
            job["status"] = self.terminal
            return
        if self.failure is not None:
            job.update(status="FAILED", error="the worker said no", output={"failure": self.failure})
            if self.failure.pop("once", False):
                self.failure = None
            return
        if self.vanish:
            self.vanish -= 1
            job.update(status="FAILED", error="job timed out after 1 retries")
            return
        if contract.asks_inventory(job["input"]):
            if self.inventory is None:
                job.update(status="FAILED", output={"failure": failed("bad_job", "'id' must be str, not NoneType")})
            else:
                job.update(status="COMPLETED", output=contract.inventory_to_wire(self.inventory))
            return
        order = contract.job_from_wire(job["input"])
        known = self.inventory.loras if self.inventory else {}
        if unknown := [lora.name for lora in order.loras if lora.name not in known]:
            job.update(status="FAILED", output={"failure": failed("unknown_lora", f"no LoRA named {unknown[0]!r}")})
            return
        for reference in order.references:
            assert self.uploads is not None
            lent = await self.uploads.get(reference.url)
            assert lent.status_code == 200, lent.text
            assert hashlib.sha256(lent.content).hexdigest() == reference.sha256
            self.lent.append(lent.content)
        pictures = []
        for index in range(order.n):
            data = self.brush(order, index)
            reported = hashlib.sha256(data).hexdigest()
            if self.corrupt:
                self.corrupt -= 1
                data = self.brush(order, index + 100)
            if not self.inline:
                assert self.uploads is not None
                slot = order.uploads[index]
                stored = await self.uploads.put(slot.url, content=data, headers=dict(slot.headers))
                assert stored.status_code in {200, 201}, stored.text
            pictures.append(
                contract.Picture(
                    index=index,
                    seed=order.seed + index,
                    sha256=reported,
                    width=order.width,
                    height=order.height,
                    bytes=len(data),
                    data=base64.b64encode(data).decode() if self.inline else None,
                )
            )
        result = contract.Result(
            pictures=tuple(self.answered(pictures)),
            steps=order.steps or 14,
            guidance=order.guidance or 4.0,
            sampler="Fake",
            family="fake",
            revision="0",
            loras=tuple(lora for lora in order.loras if lora.strength),
            references=min(len(order.references), 1),
            timings={"render": 0.01},
            warnings=self.warnings,
        )
        job.update(status="COMPLETED", output=contract.result_to_wire(result))

    @staticmethod
    def _answer(status: int, body: dict[str, Any]) -> httpx.Response:
        return httpx.Response(status, json=body)
