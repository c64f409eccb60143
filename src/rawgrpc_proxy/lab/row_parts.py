"""What rows (`rows.py`) have in common, and what is said in them of frames."""

import base64
from typing import Any

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab.events import FrameSeen, MessageSeen, Sender, who
from rawgrpc_proxy.lab.frame_details import (
    GoAway,
    Malformed,
    Ping,
    Priority,
    PushPromise,
    RstStream,
    Settings,
    WindowUpdate,
    details,
)
from rawgrpc_proxy.lab.readable import Decoder, Message, said_in
from rawgrpc_proxy.net.tapped import Link


def about(link: Link, at: float, event: str, **more: object) -> dict[str, Any]:
    """What all rows begin with."""
    return {
        "time": round(at, 6), "event": event, "link": link.number, "side": link.side.value, "peer": link.peer, **more
    }  # fmt: skip


def from_one_end(link: Link, at: float, event: str, sender: Sender) -> dict[str, Any]:
    """The same of what one end has said to the other."""
    other = Sender.SERVER if sender is Sender.CLIENT else Sender.CLIENT
    return about(link, at, event) | {"from": who(link, sender), "to": who(link, other)}


def said(frame: FrameSeen) -> dict[str, Any]:
    """What the frame says beside its header."""
    match details(frame):
        case Settings(_, entries):
            return {"settings": {_setting(each): value for each, value in entries}}
        case Ping(_, opaque):
            return {"opaque": opaque.hex()}
        case GoAway(last, code, debug):
            return {
                "last_stream": last,
                "error_code": code_name(code),
                "debug": debug[:200].decode("latin-1"),
            }
        case WindowUpdate(increment):
            return {"increment": increment}
        case RstStream(code):
            return {"error_code": code_name(code)}
        case Priority(depends_on, weight):
            return {"depends_on": depends_on, "weight": weight}
        case PushPromise(promised):
            return {"promised_stream": promised}
        case Malformed(reason):
            return {"malformed": reason}
        case _:
            return {}


def _setting(number: int) -> str:
    try:
        return h2.Setting(number).name
    except ValueError:
        return f"{number:#x}"


def code_name(number: int) -> str:
    """An error code by name, or in hexadecimal digits."""
    try:
        return ErrorCode(number).name
    except ValueError:
        return f"{number:#x}"


def message_of(event: MessageSeen, payload: bytes) -> Message:
    """The message of this event, to be decoded."""
    return Message(
        method=event.stream.method,
        is_request=event.sender is Sender.CLIENT,
        flag=event.flag,
        encoding=event.stream.half(event.sender).encoding,
        payload=payload,
        is_whole=event.is_whole,
    )


def kept_payload(event: MessageSeen, payload: bytes) -> dict[str, Any]:
    """What a row has of it for `decoded`."""
    return {
        "flag": event.flag,
        "encoding": event.stream.half(event.sender).encoding,
        "payload": base64.b64encode(payload).decode(),
    }


def decoded(row: dict[str, Any], decode: Decoder) -> dict[str, Any]:
    """The row of a message that has its payload, with what that says in its place; any other as it is.

    Raises what Python raises for a row of somebody else's making.
    """
    if "payload" not in row:
        return row
    rest = {key: value for key, value in row.items() if key not in {"payload", "flag", "encoding"}}
    payload = base64.b64decode(row["payload"])
    message = Message(
        method=row.get("method", ""),
        is_request=row["from"] == "caller" or row["to"] == "upstream",
        flag=row["flag"],
        encoding=row["encoding"],
        payload=payload,
        is_whole=len(payload) == row["length"],
    )
    return {**rest, **said_in(message, decode)}
