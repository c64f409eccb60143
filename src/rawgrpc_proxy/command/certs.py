"""`rawgrpc-proxy certs`: a throw-away authority, and pairs of it, to try TLS with. Not for anything that matters."""

import argparse
from pathlib import Path

from rawgrpc_proxy.errors import ConfigError

_SERVER_NAMES = ("localhost", "127.0.0.1", "::1")


def add_certs(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `certs`."""
    parser.description = (
        "Make a throw-away certificate authority, and pairs for a server on this machine and for a client, to try TLS "
        "with. Files that are there already are left as they are."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to put them; made if it is not there")
    parser.set_defaults(command=lambda options: certs(options.folder))


def certs(folder: Path) -> int:
    """Make them, and say how to use them. Raises `ConfigError`."""
    made = write_certificates(folder)
    print(
        f"made in {folder}: {', '.join(made)}\n\n"
        f"rawgrpc-proxy serve --listen localhost:8443 --upstream HOST:PORT \\\n"
        f"    --tls-cert {folder}/server.pem --tls-key {folder}/server.key\n\n"
        f"Callers trust {folder}/ca.pem. With --tls-client-ca {folder}/ca.pem they need a certificate themselves, "
        "as client.pem is one."
    )
    return 0


def write_certificates(folder: Path) -> list[str]:
    """Make `ca.pem`, and a pair each for a server on this machine and for a client; answer the names of the files.

    Raises `ConfigError`; files that are there already are left as they are.
    """
    try:
        import trustme  # noqa: PLC0415  # an extra
    except ImportError:
        raise ConfigError("this needs the package trustme: pip install 'rawgrpc-proxy[certs]'") from None
    authority = trustme.CA(organization_name="rawgrpc-proxy, for trying out")
    pairs = {
        "server": authority.issue_cert(*_SERVER_NAMES),
        "client": authority.issue_cert("client@localhost"),
    }
    texts = {"ca.pem": authority.cert_pem.bytes()}
    for name, pair in pairs.items():
        texts[f"{name}.pem"] = b"".join(pem.bytes() for pem in pair.cert_chain_pems)
        texts[f"{name}.key"] = pair.private_key_pem.bytes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            file = folder / name
            if file.exists():
                raise ConfigError(f"{file} is there already, and is left as it is: give another folder")
            file.touch(mode=0o600 if name.endswith(".key") else 0o644)
            file.write_bytes(text)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from None
    return list(texts)
