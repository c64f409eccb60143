"""A DNS server in trio, on a loopback port, by UDP and TCP: it answers what the test says, or not at all."""

import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio


class DnsServer:
    """Records by name and type, as zone files have them; `ttl_s` for all of them.

    What has no records is NXDOMAIN, unless the name has others. `rcode`, where it is set, is all that it answers.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.ttl_s = 60
        self.negative_ttl_s = 0
        """How long it holds that a name has no records of a type (RFC 2308)."""
        self.rcode: dns.rcode.Rcode | None = None
        self.silent_for: set[str] = set()
        """Questions of these types are not answered."""
        self.truncates = False
        """By UDP it says only that it has more to say."""
        self.asked: Counter[str] = Counter()
        """Questions by type, and "tcp" for those that came so."""
        self.heard = trio.Condition()
        self.address = ""

    def set(self, name: str, kind: str, *records: str) -> None:
        self.records[f"{name}.".lower(), kind] = list(records)

    async def until_asked(self, kind: str, times: int) -> None:
        async with self.heard:
            while self.asked[kind] < times:
                await self.heard.wait()

    def answer(self, query: dns.message.Message) -> dns.message.Message | None:
        [question] = query.question
        kind = dns.rdatatype.to_text(question.rdtype)
        if kind in self.silent_for:
            return None
        response = dns.message.make_response(query, recursion_available=True)
        if self.rcode is not None:
            response.set_rcode(self.rcode)
            return response
        name = question.name
        while True:
            known = {
                of_kind: data
                for (of_name, of_kind), data in self.records.items()
                if of_name == str(name).lower()
            }
            if known.get(kind):
                response.answer.append(dns.rrset.from_text(name, self.ttl_s, "IN", kind, *known[kind]))
            if kind in known or "CNAME" not in known or len(response.answer) > 20:
                break
            response.answer.append(dns.rrset.from_text(name, self.ttl_s, "IN", "CNAME", *known["CNAME"]))
            name = dns.name.from_text(known["CNAME"][0])
        if not response.answer:
            start = f"ns.internal. root.internal. 1 60 60 60 {self.negative_ttl_s}"
            response.authority.append(
                dns.rrset.from_text("internal.", self.negative_ttl_s, "IN", "SOA", start)
            )
        if not known:
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response

    async def serve_udp(self, sock: trio.socket.SocketType) -> None:
        while True:
            data, peer = await sock.recvfrom(65535)
            query = dns.message.from_wire(data)
            await self.note(query)
            response = self.answer(query)
            if response is not None and self.truncates:
                response.answer.clear()
                response.flags |= dns.flags.TC
            if response is not None:
                await sock.sendto(response.to_wire(), peer)

    async def serve_tcp(self, stream: trio.SocketStream) -> None:
        async with stream:
            data = bytearray()
            async for part in stream:
                data += part
                while len(data) >= 2 and len(data) >= 2 + int.from_bytes(data[:2]):
                    query = dns.message.from_wire(bytes(data[2 : 2 + int.from_bytes(data[:2])]))
                    del data[: 2 + int.from_bytes(data[:2])]
                    self.asked["tcp"] += 1
                    await self.note(query)
                    response = self.answer(query)
                    if response is not None:
                        wire = response.to_wire(max_size=65535)
                        await stream.send_all(len(wire).to_bytes(2) + wire)

    async def note(self, query: dns.message.Message) -> None:
        self.asked[dns.rdatatype.to_text(query.question[0].rdtype)] += 1
        async with self.heard:
            self.heard.notify_all()


@asynccontextmanager
async def dns_server() -> AsyncIterator[DnsServer]:
    """One that runs."""
    server = DnsServer()
    while True:
        with trio.socket.socket(type=socket.SOCK_DGRAM) as udp:
            await udp.bind(("127.0.0.1", 0))
            port = udp.getsockname()[1]
            try:
                listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
            except OSError:  # another program has it
                continue
            server.address = f"127.0.0.1:{port}"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.serve_udp, udp)
                await nursery.start(trio.serve_listeners, server.serve_tcp, listeners)
                yield server
                nursery.cancel_scope.cancel()
            return
