"""Who makes the statuses that callers get, and what they come of: the words of the log and the labels of metrics.

Of an `RpcError` they are its `origin` and its `cause`, of a record the fields of these names.
What it does not do: find them (whoever makes a status says them). The invariant: whatever peers send, there are no
others, so both can be labels; only a director or a handler may have words of its own.
"""

from rawgrpc_proxy.codes import ErrorCode

ORIGINS = {
    "upstream": "The upstream: it is the status that it has sent.",
    "reset": "The proxy, for the upstream has ended the stream without a status, or said that it will not process it.",
    "http": "The HTTP status of the upstream's response, which has no `grpc-status`.",
    "lost": "The proxy, for the connection to the upstream was lost with the call on it.",
    "director": "The director, which has refused the call, or lets the error of a call of its own through.",
    "proxy": "The proxy itself, for a limit, a deadline, a fault.",
    "served": "A method that the proxy serves.",
    "handler": "A handler of the program that the proxy is part of.",
    "downstream": "Nobody: the caller has given the call up, or is lost, and gets no status.",
}
"""By origin: who that is."""

CAUSES = {
    "RST_STREAM …": "The frame that has ended the stream, and its error code; `unknown` is one that RFC 9113 has not.",
    "GOAWAY …": "The frame after which the connection ended, or by which the call was left out, and its error code.",
    "FIN": "The peer has closed the connection.",
    "RST": "The peer has reset the TCP connection.",
    "socket_error": "The connection is lost for another reason of the system's.",
    "HTTP …": "The HTTP status; `unknown` is one that nobody has registered.",
    "stream error …": "A peer broke a rule of HTTP/2 on the call's stream, and the proxy reset it with this code.",
    "connection error …": "A peer broke a rule of HTTP/2, and the proxy ended the connection with this code.",
    "not_http2": "The upstream speaks another protocol.",
    "keepalive_timeout": "The peer did not answer a PING in time.",
    "handshake_timeout": "The peer did not send SETTINGS, or acknowledge ours, in time.",
    "closed_by_proxy": "The proxy has closed the connection.",
    "proxy_fault": "A fault of the proxy's own. The log has it with a traceback.",
    "exception": "A director or a handler has raised something. The log has it with a traceback.",
    "stopping": "The proxy stops.",
    "deadline": "The deadline has passed.",
    "per_attempt_timeout": "The last attempt at the call has taken longer than an attempt may.",
    "idle_timeout": "Nothing of the call has passed for too long.",
    "rate_limit": "There were more calls than the rate limit lets through.",
    "concurrency": "As many calls of the route were under way as may be.",
    "max_requests": "As many calls of the cluster were under way as may be.",
    "max_pending": "As many calls of the cluster waited for a connection as may.",
    "no_route": "Nobody here serves the method, and no route leads on.",
    "malformed_path": "The path of the request names no method.",
    "not_grpc": "The request is no gRPC call.",
    "connect": "The upstream cannot be connected to.",
    "dial_timeout": "A connection to the upstream was not there in time.",
    "TLS": "The upstream and the proxy did not agree on TLS.",
    "loop": "The upstream is this proxy itself.",
    "system_limit": "The system has nothing left for another connection: files, ports, memory.",
    "max_waiting": "As many calls wait for a connection as may.",
    "max_connections": "There are as many connections as may be.",
    "max_connection_age": "The caller's connection was older than it may be, and the call did not end in the grace.",
    "max_connection_idle": "The caller's connection has had no call for too long.",
    "max_buffered_bytes": "Too much waited in the process, and the call, or its connection, had stalled.",
    "max_header_list_bytes": "Headers of a peer are longer than may be.",
    "max_header_fields": "Headers of a peer have more fields than may be.",
    "max_continuation_frames": "Headers of a peer come in more frames than may be.",
    "max_message_bytes": "A message for a method that is served here is longer than may be.",
    "message_flag": "A message for a method that is served here begins with a flag that gRPC has not.",
    "codec": "A message cannot be encoded or decoded here.",
    "hop_limit": "The call has passed as many proxies as it may.",
    "handshake_timeout_s": "A header block of a peer did not end in time.",
    "send_timeout_s": "A peer has taken nothing from its socket for too long.",
    "min_ping_interval_s": "A peer sends PING more often than it may.",
    "abuse_budget": "A peer had the proxy work for nothing.",
    "unread_answers": "A peer asks for answers and does not read them.",
    "empty_data": "A peer sends empty DATA again and again.",
    "SETTINGS_MAX_HEADER_LIST_SIZE": "Headers are longer than the peer takes for which they are.",
    "SETTINGS_MAX_CONCURRENT_STREAMS": "The upstream allows no streams.",
}
"""By cause: what that means. `…` stands for a code by its name, or a number."""

_CODES = frozenset({"unknown", *(code.name for code in ErrorCode)})


def is_known(cause: str) -> bool:
    """Whether it is one of these."""
    if cause in CAUSES:
        return True
    what, _, code = cause.rpartition(" ")
    return f"{what} …" in CAUSES and (code in _CODES or what == "HTTP")
