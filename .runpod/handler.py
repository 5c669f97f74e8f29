"""RunPod's hub asks for a file of this name. The worker is the package ``handler`` at the root of the repository."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    # In the place of this file's own folder, in which "handler" would be this file.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    runpy.run_module("handler", run_name="__main__", alter_sys=True)
