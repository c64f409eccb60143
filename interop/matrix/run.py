"""One run: which pairs are played, in which order, and what came of each."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from interop.matrix import etcd_cases
from interop.matrix.cell import CANNOT, Cell, compare
from interop.matrix.outcome import problems
from interop.matrix.programs import proxy, run_client
from interop.peers.cases import CASES
from interop.peers.catalogue import CLIENTS, PEERS, TLS_PEERS, known_failure, left_out, peer_command
from interop.shared.etcd import EtcdPorts, etcd_server
from interop.shared.processes import Listener, Trouble
from interop.shared.progress import Progress
from interop.shared.security import PLAINTEXT, Security


@dataclass
class Options:
    """What is to be played, and through which proxy."""

    proxy_command: str | None
    """A template, see `--proxy-command`; None: two runs without a proxy are compared."""
    engine: str | None
    only: str
    """A pattern for pairs, CLIENT->SERVER, and for `etcd`."""
    cases: list[str]
    rounds: int
    securities: Sequence[Security] = (PLAINTEXT,)
    """How they speak; each pair is played with each of these, with TLS only by those that can, and without etcd."""


class Run:
    """One run of the suite: its cells by pair and case, and what went wrong beside them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.cells: dict[str, dict[str, Cell]] = {}
        self.troubles: list[str] = []
        in_plaintext = PLAINTEXT in options.securities
        asked = PEERS if in_plaintext else TLS_PEERS
        self.left_out = [reason for name in asked if (reason := left_out(name))]
        self._pairs = [
            (
                security,
                server,
                [client for client in (*peers, *CLIENTS) if self._wanted(f"{client}->{server}")],
            )
            for security in options.securities
            for peers in [_peers(security)]
            for server in peers
        ]
        self._with_etcd = in_plaintext and self._wanted("etcd")
        self.pairs = sum(len(clients) for _, _, clients in self._pairs) + self._with_etcd
        """How many there are to play in each round."""
        self._progress = Progress(options.rounds * self.pairs)
        self._played = 0

    def play(self) -> None:
        """Play all rounds."""
        for _ in range(self.options.rounds):
            for security, server, clients in self._pairs:
                if clients:
                    self._guarded(partial(self._play_server, security, server, clients))
            if self._with_etcd:
                self._guarded(self._play_etcd)
        self._progress.end()

    @property
    def good(self) -> bool:
        """Everything was equal, and nothing failed."""
        cells = [cell for row in self.cells.values() for cell in row.values()]
        return bool(cells) and not self.troubles and all(cell.good for cell in cells)

    def _wanted(self, pair: str) -> bool:
        return fnmatch.fnmatch(pair, self.options.only)

    def _guarded(self, part: Callable[[], None]) -> None:
        try:
            part()
        except Trouble as error:
            self.troubles.append(str(error))

    def _play_server(self, security: Security, name: str, clients: list[str]) -> None:
        command = [*peer_command(name, "server"), *security.server]
        with (
            Listener(f"{name} server", command) as server,
            self._proxy(server.target, security.proxy) as front,
        ):
            for client in clients:
                pair = f"{security.name} {client}->{name}".lstrip()
                self._progress.show(self._played, pair)
                self._keep(pair, self._play_pair(client, name, server, front, security.client))
                server.check()
                self._check_proxy(front)

    def _play_pair(
        self,
        client: str,
        server_name: str,
        server: Listener,
        front: Listener | None,
        options: Sequence[str],
    ) -> dict[str, Cell]:
        cases = [case for case in self.options.cases if case in CASES]
        playable = [case for case in cases if case not in server.cannot]
        direct = run_client(client, server.target, playable, options)
        proxied = run_client(client, (front or server).target, playable, options)
        cells: dict[str, Cell] = {}
        for case in cases:
            if case in server.cannot:
                cells[case] = Cell(CANNOT, notes=[f"{server_name} server: {server.cannot[case]}"])
            elif "cannot" in direct[case]:
                cells[case] = Cell(CANNOT, notes=[f"{client} client: {direct[case]['cannot']}"])
            else:
                known = known_failure(client, server_name, case)
                found = problems(case, direct[case], records="records" not in server.cannot)
                cells[case] = compare(direct[case], proxied[case], found, known)
        return cells

    def _play_etcd(self) -> None:
        self._progress.show(self._played, "etcd")
        cases = [case for case in self.options.cases if case in etcd_cases.CASES]
        ports = EtcdPorts()
        with etcd_server(ports) as target:
            direct = {case: etcd_cases.play(case, target) for case in cases}
        with etcd_server(ports) as target, self._proxy(target) as front:
            proxied = {case: etcd_cases.play(case, front.target if front else target) for case in cases}
            self._check_proxy(front)
        found = {case: etcd_cases.problems(case, direct[case]) for case in cases}
        self._keep("etcd", {case: compare(direct[case], proxied[case], found[case]) for case in cases})

    def _proxy(self, upstream: str, options: Sequence[str] = ()) -> AbstractContextManager[Listener | None]:
        return proxy(self.options.proxy_command, self.options.engine, upstream, options)

    def _check_proxy(self, front: Listener | None) -> None:
        if front is not None:
            front.check_tracebacks()

    def _keep(self, pair: str, cells: dict[str, Cell]) -> None:
        """Keep the cells of a round; of several rounds the first bad one counts."""
        row = self.cells.setdefault(pair, {})
        for case, cell in cells.items():
            if case not in row or row[case].good:
                row[case] = cell
        self._played += 1
        signs = " ".join(cell.sign for cell in cells.values())
        self._progress.show(self._played, f"{pair:24} {signs}")


def _peers(security: Security) -> list[str]:
    """Those that can take part on this machine."""
    return [name for name in (PEERS if security is PLAINTEXT else TLS_PEERS) if not left_out(name)]
