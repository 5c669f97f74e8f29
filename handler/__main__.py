"""``python -m handler``: RunPod's unmodified SDK worker around `handler.worker`. The same in the cloud and on a desk.

The worker's own variables:

====================  ==================================================================================
IMGEN_MODELS          a ``models.toml`` instead of the one that comes with the worker
IMGEN_WORKER_THREADS  threads that torch computes with on a CPU; 1, more were slower for the built-in model
IMGEN_LOG_LEVEL       DEBUG, INFO, WARNING or ERROR; prompts are in the log at DEBUG alone
IMGEN_PARENT_FD       a pipe that a supervisor holds open; at its end the worker and its children end too
====================  ==================================================================================

``RUNPOD_*`` belongs to the SDK. The cloud sets it; a desk with an endpoint at ``B=http://127.0.0.1:PORT/v2/local`` sets
(the ``?`` is needed: the SDK appends ``&…``)::

    RUNPOD_WEBHOOK_GET_JOB=$B/job-take/$ID?gpu=local
    RUNPOD_WEBHOOK_POST_OUTPUT=$B/job-done/$RUNPOD_POD_ID/$ID?gpu=local
    RUNPOD_WEBHOOK_POST_STREAM=$B/job-stream/$RUNPOD_POD_ID/$ID?gpu=local
    RUNPOD_WEBHOOK_PING=$B/ping/$RUNPOD_POD_ID?gpu=local
    RUNPOD_POD_ID=a-new-one-per-start  RUNPOD_AI_API_KEY=the-endpoint's-worker-key  RUNPOD_PING_INTERVAL=2000
    RUNPOD_SKIP_AUTO_SYSTEM_CHECKS=true  RUNPOD_SKIP_GPU_CHECK=true  HOME=a-folder-without-.runpod

with ``$ID`` and ``$RUNPOD_POD_ID`` left as they are, for the SDK to fill in. The skips are for machines without a
network: the SDK's own checks connect to 8.8.8.8. Without ``RUNPOD_WEBHOOK_GET_JOB`` the SDK runs one job and ends: the
one of ``--test_input '{"input": …}'``, or of ``test_input.json``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from handler import parent
from handler.log import fields, log, start_logging
from handler.models import ModelsError, read_models
from handler.pace import Pace
from handler.settings import Settings, SettingsError


def main() -> int:
    try:
        settings = Settings.from_environ(os.environ)
        models = read_models(settings.models)
    except (SettingsError, ModelsError) as exc:
        start_logging("INFO")
        log.error("the worker can't start", extra=fields(reason=str(exc)))
        return 2
    start_logging(settings.log_level)
    if settings.parent_fd is not None:
        _end_with_parent(settings.parent_fd)
    # Torch and the SDK read these while they are imported, so they are imported after this line and not above.
    os.environ.update(settings.libraries)

    started = time.perf_counter()
    with _no_cpu_survey():
        import runpod
    sdk = time.perf_counter()
    from handler.renderer import DiffusersRenderer
    from handler.worker import Worker

    torch = time.perf_counter()
    worker = Worker(
        models,
        lambda model: DiffusersRenderer.load(model, threads=settings.threads),
        report=runpod.serverless.progress_update if settings.reports_progress else None,
    )
    try:
        worker.warm()
    except ModelsError as exc:
        log.error("the worker can't start", extra=fields(reason=str(exc)))
        return 2
    log.info(
        "worker ready",
        extra=fields(
            models=list(models.by_name),
            warm=list(models.warm),
            threads=settings.threads,
            seconds={
                "import_sdk": round(sdk - started, 3),
                "import_torch": round(torch - sdk, 3),
                "load": round(time.perf_counter() - torch, 3),
            },
        ),
    )
    runpod.serverless.start({"handler": worker.handle, "concurrency_modifier": Pace()})
    return 0


def _end_with_parent(fd: int) -> None:
    if os.getpgrp() != os.getpid():
        # What ends with the parent is this process's group, so it must be its own and not the shell's.
        os.setpgid(0, 0)
    parent.watch(fd)


@contextmanager
def _no_cpu_survey() -> Iterator[None]:
    """While it is imported the SDK asks ``cpuinfo`` for the processor's name, for a debugger that we don't use.

    That starts half a dozen programs and takes longer than all the rest of the import. Without an answer the SDK writes
    "Unable to get processor info."; the real package is back afterwards.
    """
    silent = ModuleType("cpuinfo")
    silent.get_cpu_info = dict  # type: ignore[attr-defined]
    sys.modules["cpuinfo"] = silent
    try:
        yield
    finally:
        del sys.modules["cpuinfo"]


if __name__ == "__main__":
    sys.exit(main())
