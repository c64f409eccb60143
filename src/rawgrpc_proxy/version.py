"""Which version of the proxy this is, and of what runs it: for whoever reports a fault."""

import functools
import platform
from importlib import metadata

_DISTRIBUTION = "rawgrpc-proxy"


@functools.cache
def version() -> str:
    """The proxy's; "not-installed" where it is run from its source only."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "not-installed"


@functools.cache
def python() -> str:
    """The interpreter and its version: `CPython 3.11.7`."""
    return f"{platform.python_implementation()} {platform.python_version()}"
