"""`DnsResolver`: asks DNS itself, by dnspython, and so knows for how long an answer holds. Knows SRV records.

    a name ──► localhost? ──► hosts file? ──► .local of this link? ──► DNS, with the search domains of resolv.conf

As the system does it by default (nsswitch.conf: "files dns"), but for what other modules of its own it may have. Names
of multicast DNS it leaves to the system.
"""

from collections.abc import Iterable

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.rdatatype
import dns.resolver
import trio

from rawgrpc_proxy.discovery.hosts_file import HostsFile, stamp_of
from rawgrpc_proxy.discovery.names import server_of
from rawgrpc_proxy.discovery.resolver import Addresses, Family, LookUpFailed, OneFamily, Service, Services
from rawgrpc_proxy.discovery.system_resolver import SystemResolver
from rawgrpc_proxy.observe.words import cut, printable

dns.asyncbackend.get_backend("trio")  # ImportError where dnspython does not take this trio

_TRY_S = 1.0
"""For one question to one server: then the next one is asked, or the same again. resolv.conf may say otherwise."""
_GIVE_UP_S = 4.5
"""Before those who wait do: the error tells then which server said what."""
_OTHER_FAMILY_S = 1.0
"""How long one family's addresses wait for those of the other. There are servers that never answer for IPv6."""
_DOUBT_S = 30.0
"""How long an answer of one family holds at the most, where there is none of the other."""
_RECORDS: dict[OneFamily, dns.rdatatype.RdataType] = {"ipv4": dns.rdatatype.A, "ipv6": dns.rdatatype.AAAA}
_ERROR_CHARACTERS = 300


class DnsResolver:
    """Asks the servers of resolv.conf, or those given: `ADDRESS` or `ADDRESS:PORT` each.

    Files that change are read again.
    """

    finds_services = True

    def __init__(
        self,
        servers: Iterable[str] = (),
        *,
        resolv_conf: str = "/etc/resolv.conf",
        hosts_file: str = "/etc/hosts",
    ) -> None:
        """Raise `ConfigError` for servers that are no addresses."""
        self._servers: list[str | dns.nameserver.Nameserver] = [
            dns.nameserver.Do53Nameserver(*server_of(text)) for text in servers
        ]
        self._resolv_conf = resolv_conf
        self._hosts = HostsFile(hosts_file)
        self._system = SystemResolver()
        self._stamp: tuple[int, int, int] | None = None
        self._resolver: dns.asyncresolver.Resolver | None = None

    async def addresses(self, host: str, family: Family) -> Addresses:
        """Those of both families are asked for at once. Raises `LookUpFailed`."""
        name = host.lower().removesuffix(".")
        known = self._hosts.addresses(name)
        if not known and (name == "localhost" or name.endswith(".localhost")):
            known = ["127.0.0.1", "::1"]  # RFC 6761 §6.3
        if known:
            return Addresses(found=[each for each in known if family in {"all", _family(each)}])
        if name.endswith(".local") and name.count(".") == 1:
            return await self._system.addresses(host, family)
        if family != "all":
            return await self._ask_for(host, family)
        return await self._both(host)

    async def services(self, name: str) -> Services:
        """Raise `LookUpFailed`."""
        answer = await self._ask(name, dns.rdatatype.SRV)
        records = answer.rrset or ()
        return Services(
            found=[
                Service(
                    host=record.target.to_text().lower(),
                    port=record.port,
                    priority=record.priority,
                    weight=record.weight,
                )
                for record in records
            ],
            ttl_s=answer.chaining_result.minimum_ttl,
        )

    async def _both(self, host: str) -> Addresses:
        answers: dict[str, Addresses] = {}
        failures: dict[str, LookUpFailed] = {}

        async def ask(family: OneFamily, scope: trio.CancelScope) -> None:
            try:
                answers[family] = await self._ask_for(host, family)
            except LookUpFailed as error:
                failures[family] = error
            else:
                if answers[family].found:
                    scope.deadline = min(scope.deadline, trio.current_time() + _OTHER_FAMILY_S)

        async with trio.open_nursery() as nursery:
            for each in _RECORDS:
                nursery.start_soon(ask, each, nursery.cancel_scope)
        in_doubt = next(
            (
                each
                for each in _RECORDS
                if each not in answers and not isinstance(failures.get(each), _NoSuchName)
            ),
            None,
        )
        with_addresses = [answer for answer in answers.values() if answer.found]
        if failures and not with_addresses:
            raise failures.get(str(in_doubt)) or next(iter(failures.values()))
        # How long a family has no addresses counts only where there are none at all.
        ttls = [answer.ttl_s for answer in with_addresses or answers.values() if answer.ttl_s is not None]
        found = [address for answer in with_addresses for address in answer.found]
        if in_doubt is None:
            return Addresses(found=found, ttl_s=min(ttls))
        return Addresses(
            found=found,
            ttl_s=min(*ttls, _DOUBT_S),
            unanswered=in_doubt,
            problem=f"nobody says whether there are {in_doubt} addresses: {failures.get(in_doubt, 'no answer')}",
        )

    async def _ask_for(self, host: str, family: OneFamily) -> Addresses:
        answer = await self._ask(host, _RECORDS[family])
        return Addresses(
            found=[record.address for record in answer.rrset or ()],
            ttl_s=answer.chaining_result.minimum_ttl,
        )

    async def _ask(self, name: str, record: dns.rdatatype.RdataType) -> dns.resolver.Answer:
        try:
            return await self._configured().resolve(name, record, search=True, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN as error:
            raise _NoSuchName("there is no such name (NXDOMAIN)") from error
        except dns.exception.DNSException as error:
            raise LookUpFailed(printable(cut(str(error), _ERROR_CHARACTERS))) from error
        except OSError as error:
            raise LookUpFailed(f"no question can be asked: {error.strerror}") from error

    def _configured(self) -> dns.asyncresolver.Resolver:
        stamp = stamp_of(self._resolv_conf)
        if self._resolver is None or stamp != self._stamp:
            resolver = dns.asyncresolver.Resolver(configure=False)
            resolver.timeout, resolver.lifetime = _TRY_S, _GIVE_UP_S
            try:
                resolver.read_resolv_conf(self._resolv_conf)
            except dns.resolver.NoResolverConfiguration:
                if not self._servers:
                    raise
            if self._servers:
                resolver.nameservers = self._servers
            self._resolver, self._stamp = resolver, stamp
        return self._resolver


class _NoSuchName(LookUpFailed):
    """The name is not there, not even without addresses."""


def _family(address: str) -> str:
    return "ipv6" if ":" in address else "ipv4"
