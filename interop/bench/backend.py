"""The backend: nghttpd, which answers with files."""

from __future__ import annotations

import random
from pathlib import Path

import trustme

from interop.bench.child import Child, Cpus
from interop.shared import proc
from interop.shared.ports import free_port

SERVICE = "bench.Bench"
UNARY, CHECK, BULK, WARM_BULK = "Unary.grpc", "Check.grpc", "Bulk.grpc", "WarmBulk.grpc"
MESSAGE_BYTES = 32
BULK_MESSAGE_BYTES = 64 * 1024
CHECK_BYTES = 300_000
WARM_SHARE = 8
"""The file for the warm-up of bulk is so many times shorter."""
MIB = 1024 * 1024


class Files:
    """What the backend answers and what the calls carry: gRPC messages of which nothing is compressed."""

    def __init__(self, folder: Path, bulk_bytes: int) -> None:
        self.folder = folder
        self.service = folder / SERVICE
        self.service.mkdir()
        self.types = folder / "mime.types"
        self.types.write_text("application/grpc grpc\n")
        bulk_message = _message(BULK_MESSAGE_BYTES)
        count = max(bulk_bytes // BULK_MESSAGE_BYTES, WARM_SHARE)
        self._write(UNARY, _message(MESSAGE_BYTES))
        self._write(CHECK, _message(CHECK_BYTES))
        self._write(BULK, bulk_message, count)
        self._write(WARM_BULK, bulk_message, count // WARM_SHARE)
        self.certificate = folder / "certificate.pem"
        trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            str(self.certificate)
        )

    def path(self, name: str) -> Path:
        return self.service / name

    def size(self, name: str) -> int:
        return self.path(name).stat().st_size

    def _write(self, name: str, message: bytes, count: int = 1) -> None:
        with self.path(name).open("wb") as file:
            for _ in range(count):
                file.write(message)


def _message(size: int) -> bytes:
    return b"\0" + size.to_bytes(4) + random.Random(size).randbytes(size)


class Backend(Child):
    """nghttpd, which answers a call with the file of its path and the status 0."""

    port: int

    def __init__(self, program: str, files: Files, cpus: Cpus) -> None:
        port = free_port()
        command = [
            program, "--no-tls", "--address=127.0.0.1", f"--htdocs={files.folder}", "--trailer=grpc-status: 0",
            f"--mime-types-file={files.types}", "--max-concurrent-streams=1000000", "--window-bits=30",
            "--connection-window-bits=30", str(port),
        ]  # fmt: skip
        super().__init__("the backend", command, cpus, port)

    def bytes_read(self) -> int:
        """What it has read so far, from sockets and files."""
        return proc.bytes_read(self.pid)
