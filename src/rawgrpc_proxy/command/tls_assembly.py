"""The TLS of listeners, clusters and the collector of spans, by the settings; their files are read here.

Files that change are read again where the contexts are used (`net/tls_files.py`).
"""

from collections.abc import Callable
from functools import partial

from rawgrpc_proxy.command.settings.clusters import ClusterTls
from rawgrpc_proxy.command.settings.model import ListenerTls, ServeSettings, TracingSettings
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.net.tls_files import ContextOfFiles, listener_context, upstream_context


def tls_contexts(
    serve: ServeSettings, tell: Callable[[str], None]
) -> tuple[list[TlsContext | None], dict[str, TlsContext | None]]:
    """The TLS of each listener, and of each cluster by its name. Raises `ConfigError` for what is wrong with a file.

    `tell` hears when files that have changed are read again, or cannot be.
    """
    listeners = [_listener_tls(listener.tls, tell) for listener in serve.listeners]
    clusters = {
        name: _cluster_tls(cluster.tls or ClusterTls(), tell) if cluster.speaks_tls else None
        for name, cluster in serve.clusters.items()
    }
    return listeners, clusters


def collector_tls(tracing: TracingSettings | None, tell: Callable[[str], None]) -> TlsContext | None:
    """The TLS towards the collector of spans. As `tls_contexts`."""
    if tracing is None or not tracing.speaks_tls:
        return None
    return _cluster_tls(tracing.tls or ClusterTls(), tell)


def _listener_tls(tls: ListenerTls | None, tell: Callable[[str], None]) -> TlsContext | None:
    if tls is None:
        return None
    make = partial(
        listener_context,
        tls.certificate,
        tls.key,
        client_ca=tls.client_ca,
        client_certificate=tls.client_certificate,
    )
    return ContextOfFiles(make, filter(None, (tls.certificate, tls.key, tls.client_ca)), tell)


def _cluster_tls(tls: ClusterTls, tell: Callable[[str], None]) -> TlsContext:
    make = partial(
        upstream_context, ca=tls.ca, server_name=tls.server_name, certificate=tls.certificate, key=tls.key
    )
    return ContextOfFiles(make, filter(None, (tls.certificate, tls.key, tls.ca)), tell)
