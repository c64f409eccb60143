"""Addresses as people write them: `HOST:PORT`, `[V6]:PORT` or `unix:PATH`."""

from typing import Self

import attrs

from rawgrpc_proxy.errors import ConfigError

_PORT_DIGITS = 5  # checked before int(), which refuses very long numbers with an error of its own
_HIGHEST_PORT = 65535


@attrs.frozen
class Address:
    """Where to listen or to connect: `path` for a Unix socket, else `host` and `port`."""

    host: str = ""
    port: int = 0
    path: str | None = None

    @classmethod
    def parse(cls, text: str, *, may_choose_port: bool = False) -> Self:
        """Read an address. Port 0 only where `may_choose_port`. Raises `ConfigError`."""
        if "\0" in text:
            raise ConfigError(f"{text!r} has a NUL in it")
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
        lowest = 0 if may_choose_port else 1
        if len(port_text) > _PORT_DIGITS or not lowest <= int(port_text) <= _HIGHEST_PORT:
            raise ConfigError(f"{text!r} has port {port_text[:20]}; a port is {lowest} to {_HIGHEST_PORT}")
        if not host or any(character.isspace() for character in host):
            raise ConfigError(f"{text!r} names no host; write HOST:PORT, for example 127.0.0.1:{port_text}")
        return cls(host=host, port=int(port_text))

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
