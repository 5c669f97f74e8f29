"""``python -m handler``: RunPod's unmodified SDK worker around `handler.worker`. The same in the cloud and on a desk.

The worker's own variables:

=======================  ===============================================================================
IMGEN_MODELS             a ``models.toml`` instead of the one that comes with the worker
IMGEN_WORKER_THREADS     threads that torch computes with on a CPU; 1, more were slower for the built-in model
IMGEN_WARM_PICTURE       a size such as 1024x1024: each warm model draws one such picture before the first job
IMGEN_REQUIRE_GPU        true: a worker that finds no GPU ends instead of drawing on the CPU
IMGEN_MIN_GPU_MEMORY_GB  ends also where less of the GPU's memory is free; 0
IMGEN_MIN_DISK_GB        ends where less is free on the disk of the hub's cache; 0
IMGEN_GATEWAY_URL        the gateway; a worker that can't reach it within 20 seconds ends
IMGEN_LOG_LEVEL          DEBUG, INFO, WARNING or ERROR; prompts are in the log at DEBUG alone
IMGEN_PARENT_FD          a pipe that a supervisor holds open; at its end the worker and its children end too
=======================  ===============================================================================

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

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from handler import parent
from handler.drawing import LoraUnfit
from handler.fitness import Unfit
from handler.log import fields, log, start_logging
from handler.models import Models, ModelsError, read_models
from handler.pace import Pace
from handler.settings import Settings, SettingsError
from handler.start import Engine, Start
from handler.worker import Worker

_CANNOT_START = 2
_GPU_LOST = 3


def main(import_engine: Callable[[Settings, Models], Engine] | None = None) -> int:
    """``import_engine`` takes the place of diffusers, for a test."""
    try:
        settings = Settings.from_environ(os.environ)
        models = read_models(settings.models)
    except (SettingsError, ModelsError) as exc:
        start_logging("INFO")
        return _cannot_start(exc)
    start_logging(settings.log_level)
    if settings.parent_fd is not None:
        _end_with_parent(settings.parent_fd)
    # Torch and the SDK read these while they are imported, so they are imported after this line and not above.
    os.environ.update(settings.libraries)
    start = Start(settings, models, import_engine or _diffusers)
    with start.timed("import_sdk"), _no_cpu_survey():
        import runpod
        from runpod.serverless.modules.worker_state import JobsProgress
    report = runpod.serverless.progress_update if settings.serves else None
    worker = Worker(models, start.load, report=report)
    if settings.serves:
        # Process 1 of a container ignores signals that it has no handler for. The SDK sets its own, later.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        for check in start.checks(worker):
            runpod.serverless.register_fitness_check(check)
    else:
        try:
            for check in start.checks(worker):
                check()
        except (Unfit, ModelsError, LoraUnfit) as exc:
            return _cannot_start(exc)
    pace = Pace(ended=lambda: worker.lost and not JobsProgress().get_job_count(), end=_end_lost)
    runpod.serverless.start({"handler": worker.handle, "concurrency_modifier": pace})
    return 0


def _diffusers(settings: Settings, models: Models) -> Engine:
    from handler.engine import DiffusersEngine

    return DiffusersEngine(settings, models)


def _cannot_start(exc: Exception) -> int:
    log.error("the worker can't start", extra=fields(reason=str(exc)))
    return _CANNOT_START


def _end_lost() -> None:
    """The answer that says so is posted. A broken GPU context can hang an orderly end, so this one is not."""
    log.error("the worker ends", extra=fields(reason="its GPU is lost; a new process gets a new context"))
    for child in multiprocessing.active_children():
        # The SDK's pings, which would go on for a worker that is no more.
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_GPU_LOST)


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
