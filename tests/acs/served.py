"""The service over the tests' panel, served as the command serves it: `python -m tests.acs.served FOLDER KEY PORT`."""

import sys
from pathlib import Path

from gateway import log
from gateway.commands.acs import serve
from tests.acs.rig import make_panel

if __name__ == "__main__":
    folder, key, port = sys.argv[1:]
    log.configure("info", "json")
    serve(make_panel(Path(folder)), key=key, threads=2, host="127.0.0.1", port=int(port))
