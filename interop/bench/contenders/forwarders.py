"""The forwarders of `bench/forwarders`: how each is started, and the version of the library it is written with."""

from __future__ import annotations

import importlib.metadata
import sys
from functools import partial
from pathlib import Path

from interop.bench.contenders.contender import Contender, Site
from interop.shared.processes import Trouble
from interop.shared.programs import output_of

FOLDER = Path(__file__).resolve().parents[1] / "forwarders"


def _grpc_go(site: Site) -> list[str]:
    # The run-time would start as many threads as it sees CPUs, however few it may use.
    return ["env", "GOMAXPROCS=1", _grpc_go_binary(), str(site.listen), str(site.upstream)]


def _grpc_go_binary() -> str:
    binary = Path(sys.executable).with_name("grpc_go_proxy")
    if not binary.exists():
        raise Trouble(f"{binary.name} has not been built: setup.sh says why")
    return str(binary)


def _grpc_go_version() -> str:
    return f"grpc-go {output_of(_grpc_go_binary(), '--version')}"


def _python(library: str, site: Site) -> list[str]:
    return [
        sys.executable, str(FOLDER / f"{library}_proxy.py"), str(site.listen), str(site.upstream)
    ]  # fmt: skip


def _library_version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError as error:
        raise Trouble(f"the package {library} is not installed") from error


FORWARDERS = (
    Contender("grpc-go", "grpc-go", "Go", _grpc_go, _grpc_go_version),
    *(
        Contender(name, title, "other Python", partial(_python, library), partial(_library_version, library))
        for name, title, library in (
            ("grpcio-aio", "grpcio aio", "grpcio"),
            ("grpclib", "grpclib", "grpclib"),
        )
    ),
)
