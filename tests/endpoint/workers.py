"""Real SDK workers for the tests: `python workers.py KIND`. What a job does is said by its input."""

import asyncio
import sys
import time
import types
from pathlib import Path

# The SDK asks this package for the name of the CPU, which starts several processes; the tests can do without.
sys.modules["cpuinfo"] = types.ModuleType("cpuinfo")
sys.modules["cpuinfo"].get_cpu_info = lambda: {}

import runpod  # noqa: E402


async def play(job):
    """Does what the input says."""
    given = job["input"]
    if "note" in given:
        with Path(given["note"]).open("a", encoding="utf-8") as note:
            note.write("started\n")
    for step in range(given.get("steps", 0)):
        runpod.serverless.progress_update(job, {"sequence": step + 1, "step": step + 1})
        await asyncio.sleep(given.get("pause", 0.2))
    if given.get("burst"):
        for step in range(given["burst"]):
            runpod.serverless.progress_update(job, {"step": step})
    if "sleep" in given:
        try:
            await asyncio.sleep(given["sleep"])
        except asyncio.CancelledError:
            if "note" in given:
                with Path(given["note"]).open("a", encoding="utf-8") as note:
                    note.write("cancelled\n")
            raise
    if "block" in given:
        time.sleep(given["block"])
    if given.get("raise"):
        raise ValueError("as asked")
    if given.get("error"):
        return {"error": "no such model", "seen": True}
    if given.get("nan"):
        return {"value": float("nan")}
    if given.get("refresh"):
        return {"refresh_worker": True, "echo": given}
    return {"echo": given, "fill": "x" * given.get("fill", 0)}


def block(job):
    """A plain function: it holds the SDK's loop until it returns."""
    time.sleep(job["input"]["block"])
    return {"blocked": True}


async def parts(job):
    for number in range(job["input"]["parts"]):
        yield {"part": number}


KINDS = {
    "async": {"handler": play},
    "pair": {"handler": play, "concurrency_modifier": lambda current: 2},
    "sync": {"handler": block},
    "stream": {"handler": parts, "return_aggregate_stream": True},
    "refresh": {"handler": play, "refresh_worker": True},
}

if __name__ == "__main__":
    kind = sys.argv.pop()
    runpod.serverless.start(KINDS[kind])
