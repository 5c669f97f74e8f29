"""The service over a panel of tests, served as the command serves it: `… served FOLDER KEY PORT PANEL`."""

import sys
from pathlib import Path

from gateway import log, serving
from gateway.commands.acs import serve
from tests import reviewers
from tests.acs.rig import make_panel

PANELS = {"rig": make_panel, "colours": lambda folder: reviewers.panel(reviewers.SeesColours(), folder=folder)}

if __name__ == "__main__":
    folder, key, port, panel = sys.argv[1:]
    log.configure("info", "json")
    # So long a stop waits for a reviewer that hangs, and the test with it.
    serving.GRACE = 1
    serve(PANELS[panel](Path(folder)), key=key, threads=2, host="127.0.0.1", port=int(port))
