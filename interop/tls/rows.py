"""The faults: of each, who is set up wrongly, and what caller and log have to say then.

A row's caller makes one call, which goes to the row's backend, and somebody else makes others beside it. What stands in
`caller` and `backend` are names of files of `files.py`, as the programs' options take them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pem:
    """What a program of the peers has of TLS; nothing: it speaks plaintext."""

    ca: str | None = None
    """The authorities it trusts; for a server those whose certificates it wants."""
    pair: str | None = None

    def options(self) -> list[str]:
        """On its command line, in the folder of the files."""
        found = [] if self.ca is None else ["--tls-ca", f"{self.ca}.ca"]
        pair = (
            []
            if self.pair is None
            else ["--tls-certificate", f"{self.pair}.pem", "--tls-key", f"{self.pair}.pem"]
        )
        return found + pair


PLAIN = Pem()
TRUSTS = Pem(ca="ours")
MUTUAL = Pem(ca="ours", pair="client")
SECURE_BACKEND = Pem(pair="server")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault."""

    name: str
    listener: str = ""
    """The proxy's listener: its `tls`, in TOML."""
    caller: Pem | None = PLAIN
    """None: a client of Python's `ssl` without ALPN."""
    beside: Pem | None = PLAIN
    """Who calls at the same listener; None: nobody can, so it is at another one, in plaintext."""
    cluster: str = ""
    """The proxy towards the call's backend: its `tls`, in TOML."""
    backend: Pem | None = PLAIN
    """None: a server of Python's `ssl` without ALPN."""
    of_backend: bool = False
    """The fault is behind the proxy: the caller gets a status of the proxy's making."""
    told: str
    """What the log's line says, as a regular expression: what is wrong, and who has to do something. Where the fault is
    behind the proxy the caller is told the same."""
    lines: int = 1
    """How many of these lines there may be, each another one, beside those of calls."""


_TLS = 'certificate = "server.pem", key = "server.pem"'
_MTLS = f'{_TLS}, client_ca = "ours.ca"'
_TRUST = 'ca = "ours.ca"'
# Whether a server's alert arrives is chance: with TLS 1.3 we have sent more by then, and a socket that is closed with
# bytes unread is reset, which overtakes it. So it may be either, on one dial and the next.
_WANTS_ANOTHER = (
    "wants a certificate of us|the peer does not know the authority of our certificate|"
    "our certificate has expired"
)

ROWS = (
    Row(
        name="caller trusts another CA",
        listener=_TLS,
        caller=Pem(ca="stranger"),
        beside=TRUSTS,
        told=r"no TLS: .*(does not trust our certificate|does not know the authority of our certificate)",
    ),
    Row(
        name="proxy's certificate expired",
        listener='certificate = "server-expired.pem", key = "server-expired.pem"',
        caller=TRUSTS,
        beside=None,
        told=r"no TLS: .*(does not trust our certificate|our certificate has expired)",
    ),
    Row(
        name="proxy's certificate is for another name",
        listener='certificate = "server-elsewhere.pem", key = "server-elsewhere.pem"',
        caller=TRUSTS,
        beside=None,
        told=r"the peer .*our certificate.* name",
    ),
    Row(
        name="caller without certificate",
        listener=_MTLS,
        caller=TRUSTS,
        beside=MUTUAL,
        told=r"no TLS: the peer has no certificate, and needs one",
    ),
    Row(
        name="caller's certificate of a stranger",
        listener=_MTLS,
        caller=Pem(ca="ours", pair="client-stranger"),
        beside=MUTUAL,
        told=r"no TLS: the authority of the peer.s certificate is not trusted here.*client_ca for callers",
    ),
    Row(
        name="caller's certificate expired",
        listener=_MTLS,
        caller=Pem(ca="ours", pair="client-expired"),
        beside=MUTUAL,
        told=r"no TLS: the peer.s certificate has expired: it needs a new one",
    ),
    Row(
        name="caller without ALPN",
        listener=_TLS,
        caller=None,
        beside=TRUSTS,
        told=r"no TLS: the peer does not offer 'h2' by ALPN",
    ),
    Row(
        name="plaintext to a TLS listener",
        listener=_TLS,
        caller=PLAIN,
        beside=TRUSTS,
        told=r"no TLS: the peer speaks no TLS here; plaintext, perhaps",
    ),
    Row(
        name="TLS to a plaintext listener",
        caller=TRUSTS,
        beside=PLAIN,
        told=r"this listener speaks plaintext; have the client do so too",
    ),
    Row(
        name="proxy trusts another CA than the backend's",
        cluster='ca = "stranger.ca"',
        backend=SECURE_BACKEND,
        of_backend=True,
        told=r"no TLS with .*: the authority of the peer.s certificate is not trusted here.*ca for upstreams",
    ),
    Row(
        name="backend's certificate expired",
        cluster=_TRUST,
        backend=Pem(pair="server-expired"),
        of_backend=True,
        told=r"no TLS with .*: the peer.s certificate has expired: it needs a new one",
    ),
    Row(
        name="backend's certificate is for another name",
        cluster=_TRUST,
        backend=Pem(pair="server-elsewhere"),
        of_backend=True,
        told=r"no TLS with .*: the peer.s certificate is for another name.*server_name",
    ),
    Row(
        name="backend wants a certificate, proxy has none",
        cluster=_TRUST,
        backend=Pem(ca="ours", pair="server"),
        of_backend=True,
        told=_WANTS_ANOTHER,
        lines=2,
    ),
    Row(
        name="proxy's certificate is strange to the backend",
        cluster=f'{_TRUST}, certificate = "client-stranger.pem", key = "client-stranger.pem"',
        backend=Pem(ca="ours", pair="server"),
        of_backend=True,
        told=_WANTS_ANOTHER,
        lines=2,
    ),
    Row(
        name="proxy's certificate for the backend expired",
        cluster=f'{_TRUST}, certificate = "client-expired.pem", key = "client-expired.pem"',
        backend=Pem(ca="ours", pair="server"),
        of_backend=True,
        told=_WANTS_ANOTHER,
        lines=2,
    ),
    Row(
        name="backend without ALPN",
        cluster=_TRUST,
        backend=None,
        of_backend=True,
        told=r"the peer did not choose 'h2' by ALPN: it must offer HTTP/2",
    ),
    Row(
        name="TLS to a plaintext backend",
        cluster=_TRUST,
        backend=PLAIN,
        of_backend=True,
        told=r"no TLS with .*: the peer speaks no TLS here; plaintext, perhaps",
    ),
    Row(
        name="plaintext to a TLS backend",
        backend=SECURE_BACKEND,
        of_backend=True,
        told=r"speaks TLS, (perhaps \(|and is dialled in plaintext: use )--upstream-tls",
    ),
)
