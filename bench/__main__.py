"""``python -m bench [PART …]``: everything without arguments."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

PARTS = (
    *("calls", "pipeline", "finishing", "worker", "compliance", "words"),
    *("provenance", "pixelmark", "recognition", "guard", "embedding", "cache", "index", "gpu"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one slice")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--marked", type=int, default=500, help="pictures that pixelmark marks")
    parser.add_argument("--drawn", type=int, default=70, help="how many of them the model draws, once; they are kept")
    parser.add_argument("--million", action="store_true", help="index also searches among a million points")
    parser.add_argument("--gallery", type=Path, help="a folder of pictures at art size for pixelmark to take instead")
    given = parser.parse_args()
    parts = given.parts or PARTS
    # Each part is imported when it is wanted: the gateway's need no torch, the worker's no web framework.
    with tempfile.TemporaryDirectory() as folder:
        if "calls" in parts:
            from bench import gateway_calls

            gateway_calls.run(Path(folder) / "calls", rounds=given.rounds, seconds=given.seconds, connections=(1, 32))
        if "pipeline" in parts:
            from bench import pipeline

            pipeline.run(Path(folder) / "pipeline", pictures=given.pictures)
        if "finishing" in parts:
            from bench import finishing

            finishing.run(Path(folder) / "finishing", rounds=given.rounds)
        if "worker" in parts:
            from bench import worker

            worker.run(rounds=given.pictures)
        if "compliance" in parts:
            from bench import compliance

            compliance.run()
        if "pixelmark" in parts:
            from bench import pixelmark

            pixelmark.run(marked=given.marked, unmarked=4 * given.marked, drawn=given.drawn, pictures=given.gallery)
        if "recognition" in parts:
            from bench import recognition

            recognition.run(pictures=2 * given.marked)
        if "provenance" in parts:
            from bench import provenance

            provenance.run(Path(folder) / "provenance")
        if "embedding" in parts:
            from bench import embedding

            embedding.run(rounds=given.rounds)
        if "cache" in parts:
            from bench import cache

            cache.run(Path(folder) / "cache", rounds=given.rounds)
        if "index" in parts:
            from bench import cache_index

            cache_index.run(million=given.million)
        if "guard" in parts:
            from bench import guard

            guard.run(Path(folder) / "guard")
        if "gpu" in parts:
            from bench import gpu

            gpu.run(rounds=given.rounds)
        if "words" in parts:
            from bench import words

            words.run()


if __name__ == "__main__":
    main()
