"""``python -m bench [calls] [pipeline]``: everything without arguments."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench import gateway_calls, pipeline


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["calls", "pipeline", []], help="calls, pipeline")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one slice")
    parser.add_argument("--pictures", type=int, default=8)
    given = parser.parse_args()
    parts = given.parts or ["calls", "pipeline"]
    with tempfile.TemporaryDirectory() as folder:
        if "calls" in parts:
            gateway_calls.run(Path(folder) / "calls", rounds=given.rounds, seconds=given.seconds, connections=(1, 32))
        if "pipeline" in parts:
            pipeline.run(Path(folder) / "pipeline", pictures=given.pictures)


if __name__ == "__main__":
    main()
