"""A transparent gRPC reverse proxy that works on HTTP/2 frames, in pure Python.

A server terminates HTTP/2, asks a director (your code) where each call goes, and pipes DATA and trailers over pooled
upstream connections. Messages are opaque bytes; nothing is decoded, re-encoded or limited.

    def director(context, method):
        return context, pool.target("127.0.0.1:50051")

    server = Server(unknown_service_handler=transparent_handler(director))
"""

from rawgrpc_proxy.call import Call, CallContext, Handler
from rawgrpc_proxy.call_policy import CallLimit, CallPolicy
from rawgrpc_proxy.client.calls import (
    ClientCall,
    StreamStreamCall,
    StreamUnaryCall,
    UnaryStreamCall,
    UnaryUnaryCall,
)
from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.client.places import TakesCalls
from rawgrpc_proxy.cluster.balance import Balancer
from rawgrpc_proxy.cluster.balance_settings import Balance
from rawgrpc_proxy.cluster.cluster import Cluster
from rawgrpc_proxy.cluster.endpoint import Endpoint
from rawgrpc_proxy.cluster.health_settings import HealthCheck
from rawgrpc_proxy.cluster.outlier_settings import FailurePercentage, OutlierDetection, SuccessRate
from rawgrpc_proxy.cluster.slow_start import SlowStart
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.discovery.dns_source import DnsSource, SrvSource
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.discovery.source import Source
from rawgrpc_proxy.errors import ConfigError, ProxyError, RpcError
from rawgrpc_proxy.grpc.codec import Codec, codec, codec_with_parent, identity_codec
from rawgrpc_proxy.grpc.health import ServingStatus
from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.grpc.response_changes import ResponseChanges
from rawgrpc_proxy.grpc.retry_policy import HedgingPolicy, RetryPolicy, RetryThrottling
from rawgrpc_proxy.limits.concurrency import AdaptiveLimit, ConcurrencyLimit
from rawgrpc_proxy.net.loop_guard import LoopGuard
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.metrics import Metrics
from rawgrpc_proxy.observe.observer import PoolObserver, ServerObserver
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.observe.tell import Observers
from rawgrpc_proxy.observe.tracing import Tracing
from rawgrpc_proxy.peer_identity import PeerIdentity
from rawgrpc_proxy.proxy.director import Direction, StreamDirector
from rawgrpc_proxy.proxy.forwarded import tell_forwarded
from rawgrpc_proxy.proxy.hops import limit_hops
from rawgrpc_proxy.proxy.identity import tell_identity
from rawgrpc_proxy.proxy.mirror import Mirror
from rawgrpc_proxy.proxy.otlp_exporter import OtlpExporter
from rawgrpc_proxy.proxy.rate_limit import limit_rate
from rawgrpc_proxy.proxy.route_table import RouteTable
from rawgrpc_proxy.proxy.transparent import register_service, transparent_handler
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.services.health import Health
from rawgrpc_proxy.services.methods import ServedCall, stream_stream, stream_unary, unary_stream, unary_unary
from rawgrpc_proxy.upstream.lease import PoolConn
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.target import Target

__all__ = [
    "AdaptiveLimit",
    "Balance",
    "Balancer",
    "Call",
    "CallContext",
    "CallLimit",
    "CallLog",
    "CallPolicy",
    "CallRecord",
    "Client",
    "ClientCall",
    "Cluster",
    "Codec",
    "ConcurrencyLimit",
    "ConfigError",
    "Direction",
    "DnsSource",
    "Endpoint",
    "EndpointAddress",
    "FailurePercentage",
    "Handler",
    "Health",
    "HealthCheck",
    "HedgingPolicy",
    "Http2Settings",
    "LoopGuard",
    "Metadata",
    "Metrics",
    "Mirror",
    "Observers",
    "OtlpExporter",
    "OutlierDetection",
    "PeerIdentity",
    "Pool",
    "PoolConn",
    "PoolObserver",
    "ProxyError",
    "ResponseChanges",
    "RetryPolicy",
    "RetryThrottling",
    "RouteTable",
    "RpcError",
    "ServedCall",
    "Server",
    "ServerObserver",
    "ServingStatus",
    "SlowStart",
    "Source",
    "SrvSource",
    "Status",
    "StreamDirector",
    "StreamStreamCall",
    "StreamUnaryCall",
    "SuccessRate",
    "TakesCalls",
    "Target",
    "Tracing",
    "UnaryStreamCall",
    "UnaryUnaryCall",
    "codec",
    "codec_with_parent",
    "identity_codec",
    "limit_hops",
    "limit_rate",
    "register_service",
    "stream_stream",
    "stream_unary",
    "tell_forwarded",
    "tell_identity",
    "transparent_handler",
    "unary_stream",
    "unary_unary",
]
