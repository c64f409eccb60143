"""The proxy of this project, with each engine on each interpreter."""

from __future__ import annotations

import shutil
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from interop.bench.contenders.contender import Contender, Site
from interop.shared.processes import Trouble, proxy_command
from interop.shared.programs import output_of

ROOT = Path(__file__).resolve().parents[3]
PYPY_VENV = ROOT / ".venv-bench-pypy"
#: Where two workers are measured beside one. h2 takes so long for a call that the load hardly needs the CPU it shares.
COMPARED_WITH_WORKERS = {("h2", "cpython"), ("relay", "cpython"), ("relay", "pypy")}
BEFORE = "-before"
"""How the names end of those that run another checkout of the project, to tell what a change costs."""
LIBRARIES = ("rawgrpc-proxy", "trio", "h2", "hpack", "attrs")


@dataclass(frozen=True)
class Interpreter:
    """What runs this project's proxy."""

    name: str
    title: str
    find: Callable[[], Path]
    """Its executable, with the project installed. Raises `Trouble`."""
    warms_up: bool = False

    def version(self) -> str:
        """What it is, and the versions of the project and of what that runs on."""
        script = (
            "import platform; from importlib.metadata import version\n"
            "print(platform.python_implementation(), end=' ')\n"
            "print('.'.join(map(str, __import__('sys').implementation.version[:3])), end=' ')\n"
            "print('(Python ' + platform.python_version() + ')', end='')\n"
            f"for name in {LIBRARIES}: print(',', name, version(name), end='')"
        )
        return output_of(str(self.find()), "-c", script)


CPYTHON = Interpreter("cpython", "CPython", lambda: Path(sys.executable))
"""The one that runs the benchmark."""


@dataclass
class PyPy:
    """The interpreter of the user, with a virtual environment made of it when it is first asked for."""

    given: str | None
    _python: Path | None = field(default=None, init=False)

    def find(self) -> Path:
        """Its executable. Raises `Trouble` if there is none, or the environment cannot be made."""
        if self._python is None:
            self._python = self._made()
        return self._python

    def _made(self) -> Path:
        if not self.given:
            raise Trouble("no PyPy was given: --pypy PATH, or PYPY in the environment")
        pypy = shutil.which(self.given)
        if pypy is None:
            raise Trouble(f"there is no program {self.given}")
        python, stamp = PYPY_VENV / "bin" / "python", PYPY_VENV / ".made-from"
        wanted = f"{pypy} {zlib.crc32((ROOT / 'pyproject.toml').read_bytes())}\n"
        if not stamp.exists() or stamp.read_text() != wanted:
            print(f"making {PYPY_VENV.name}", file=sys.stderr, flush=True)
            output_of(pypy, "-m", "venv", "--clear", str(PYPY_VENV))
            (PYPY_VENV / ".gitignore").write_text("*\n")
            output_of(
                str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", str(ROOT)
            )
            stamp.write_text(wanted)
        return python


def _serve(
    interpreter: Interpreter,
    engine: str,
    workers: int,
    before: Path | None,
    tls: bool,
    watched: bool,
    site: Site,
) -> list[str]:
    options = [f"--upstream=127.0.0.1:{site.upstream}"]
    options += ["--admin=127.0.0.1:0"] if watched else ["--log-format=none"]
    if tls:
        options += [f"--tls-cert={site.certificate}", f"--tls-key={site.certificate}"]
    if site.many_calls:
        options.append("--ms=1000")
    if workers > 1:
        options.append(f"--workers={workers}")
    command = proxy_command(*options, engine=engine, python=str(interpreter.find()), port=site.listen)
    return command if before is None else ["env", f"PYTHONPATH={before / 'src'}", *command]


def ours(
    interpreter: Interpreter,
    engine: str,
    workers: int = 1,
    before: Path | None = None,
    *,
    tls: bool = False,
    watched: bool = False,
) -> Contender:
    """The proxy of this project, or as it is in the checkout `before`; `watched` with its log of calls and metrics."""
    name, title = f"{engine}-{interpreter.name}", f"{engine}, {interpreter.title}"
    if workers > 1:
        name, title = f"{name}-{workers}w", f"{title}, {workers} workers"
    if tls:
        name, title = f"{name}-tls", f"{title}, TLS"
    if watched:
        name, title = f"{name}-watched", f"{title}, log and metrics"
    if before is not None:
        name, title = name + BEFORE, f"{title}, before"
    return Contender(
        name=name,
        title=title,
        group="rawgrpc_proxy",
        command=partial(_serve, interpreter, engine, workers, before, tls, watched),
        version=interpreter.version,
        workers=workers,
        tls=tls,
        only_calls=tls or watched,
        in_comparison_of_workers=not (tls or watched) and (engine, interpreter.name) in COMPARED_WITH_WORKERS,
        warms_up=interpreter.warms_up,
    )


def all_ours(pypy: str | None, before: Path | None) -> list[Contender]:
    """One worker with each engine on each interpreter, two where that is compared, and the older ones of `before`."""
    interpreters = (CPYTHON, Interpreter("pypy", "PyPy", PyPy(pypy).find, warms_up=True))
    pairs = [(interpreter, engine) for interpreter in interpreters for engine in ("h2", "relay")]
    return [
        *(ours(interpreter, engine) for interpreter, engine in pairs),
        *(
            ours(interpreter, engine, workers=2)
            for interpreter, engine in pairs
            if (engine, interpreter.name) in COMPARED_WITH_WORKERS
        ),
        *(ours(interpreter, "relay", tls=True) for interpreter in interpreters),
        *(ours(interpreter, "relay", watched=True) for interpreter in interpreters),
        *(ours(interpreter, engine, before=before) for interpreter, engine in pairs if before is not None),
    ]
