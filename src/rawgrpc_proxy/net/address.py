"""Addresses as people write them: `HOST:PORT`, `[V6]:PORT`, `unix:PATH`, or `unix:@NAME` for an abstract socket."""

import os
import socket
import sys
from typing import Self

import attrs

from rawgrpc_proxy.errors import ConfigError

_PORT_DIGITS = 5  # checked before int(), which refuses very long numbers with an error of its own
_HIGHEST_PORT = 65535
_ABSTRACT = "\0"  # what the system has in front of the name of a socket without a file: unix(7)
_ABSTRACT_PREFIXES = ("unix:@", "unix-abstract:")  # Go, Envoy, systemd; gRPC


@attrs.frozen
class Address:
    """Where to listen or to connect: `path` for a Unix socket, else `host` and `port`.

    The path of an abstract socket (Linux), which has a name and no file, begins with NUL, as the system wants it. An
    empty host, for listeners only, is every address of the machine.
    """

    host: str = ""
    port: int = 0
    path: str | None = None

    @classmethod
    def parse(cls, text: str, *, to_listen: bool = False) -> Self:
        """Read an address. Raises `ConfigError`.

        Port 0 (a free one) and `:PORT` (every address of the machine) only `to_listen`. A file whose name begins with @
        is `unix:./@NAME`.
        """
        if "\0" in text:
            raise ConfigError(f"{text!r} has a NUL in it")
        if text.startswith(_ABSTRACT_PREFIXES):
            name = text.partition(":")[2].removeprefix("@")
            if not name:
                raise ConfigError(f"{text!r} names no socket; write unix:@NAME")
            if sys.platform != "linux":
                raise ConfigError(f"{text!r} is an abstract socket, which only Linux has; write unix:PATH")
            return cls(path=_ABSTRACT + name)
        if text.startswith("unix:"):
            path = text[len("unix:") :].removeprefix("//")
            if not path:
                raise ConfigError(f"{text!r} names no path; write unix:PATH")
            return cls(path=path)
        if "://" in text:
            raise ConfigError(f"{text!r} is a URL; write HOST:PORT or unix:PATH")
        host, colon, port_text = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ConfigError(f"{text!r} is ambiguous; write IPv6 addresses as [ADDRESS]:PORT")
        if not colon or not port_text.isascii() or not port_text.isdigit():
            raise ConfigError(f"{text!r} is no address; write HOST:PORT or unix:PATH")
        lowest = 0 if to_listen else 1
        if len(port_text) > _PORT_DIGITS or not lowest <= int(port_text) <= _HIGHEST_PORT:
            raise ConfigError(f"{text!r} has port {port_text[:20]}; a port is {lowest} to {_HIGHEST_PORT}")
        if to_listen and not text[: -len(colon + port_text)]:
            return cls(port=int(port_text))
        if not host or any(character.isspace() or character in "[]" for character in host):
            raise ConfigError(f"{text!r} names no host; write HOST:PORT, for example 127.0.0.1:{port_text}")
        return cls(host=host, port=int(port_text))

    @property
    def is_abstract(self) -> bool:
        """Whether it is a Unix socket without a file."""
        return self.path is not None and self.path.startswith(_ABSTRACT)

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:@{self.path[1:]}" if self.is_abstract else f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def in_words(fault: BaseException) -> str:
    """Why an address cannot be connected to, or listened on."""
    if isinstance(fault, socket.gaierror):
        return f"the name cannot be resolved ({fault.strerror})"
    if isinstance(fault, UnicodeError):  # IDNA knows no such name; each Python has words of its own for it
        return f"no host can have this name ({fault})"
    if isinstance(fault, OSError) and fault.errno:
        return os.strerror(fault.errno)
    return str(fault)
