"""The backend that soak and lifecycle share, as a process."""

from __future__ import annotations

import sys

from interop.shared.processes import Listener


def backend(port: int = 0) -> Listener:
    """The process of bytes_server.py."""
    return Listener("the backend", [sys.executable, "-m", "interop.promises.bytes_server", f"--port={port}"])
