"""`HostsFile`: what /etc/hosts says of a name, for a resolver that asks DNS itself."""

import os


class HostsFile:
    """A file of lines `ADDRESS NAME…`, read again when it has changed. One that cannot be read has no names."""

    def __init__(self, path: str = "/etc/hosts") -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._lines: list[str] = []

    def addresses(self, name: str) -> list[str]:
        """The addresses of a name, as they stand there. Looks at the file, which is local: it does not wait."""
        wanted = name.lower()
        found = []
        for line in self._read():
            if wanted in line:
                address, *names = line.partition("#")[0].split()[:_MOST_NAMES] or [""]
                if wanted in names:
                    found.append(address)
        return found

    def _read(self) -> list[str]:
        stamp = stamp_of(self._path)
        if stamp != self._stamp:
            self._stamp, self._lines = stamp, []
            try:
                with open(self._path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123  # as the user wrote it
                    self._lines = file.read(_MOST_CHARACTERS).lower().splitlines()
            except OSError:
                pass
        return self._lines


_MOST_CHARACTERS = 16 * 1024 * 1024
_MOST_NAMES = 1000


def stamp_of(path: str) -> tuple[int, int, int] | None:
    """What changes when a file does; None if it is not there."""
    try:
        stat = os.stat(path)  # noqa: PTH116  # a path as the user wrote it
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
