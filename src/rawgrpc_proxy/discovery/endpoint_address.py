"""`EndpointAddress`: where an endpoint of a cluster is, as a source has found it."""

import attrs

from rawgrpc_proxy.validators import at_least


@attrs.frozen
class EndpointAddress:
    """One endpoint of a cluster, as its source tells it.

    Of several priorities the lowest number is used that has an endpoint that works (RFC 2782); of calls to those of one
    priority each gets a share by its weight. `server_name` is what the certificate must be for where the address is but
    a number.
    """

    address: str
    weight: int = attrs.field(default=1, validator=at_least(1))
    priority: int = 0
    server_name: str | None = None
