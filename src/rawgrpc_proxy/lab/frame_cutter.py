"""The bytes of one direction, cut into whole frames and what is none, nothing of them lost: for recordings.

`http2/frames.py` reads frames for a connection, which is over when a peer speaks something else. Here nothing is ever
wrong: the pieces joined are the bytes that were fed, whatever they are.
"""

from collections.abc import Iterator

from rawgrpc_proxy.http2.frames import HEADER, HEADER_BYTES, PREFACE, Data

MAX_FRAME_BYTES = 1 << 20
"""Nobody advertises frames of such a size; what says it is one is mostly no HTTP/2, and is not waited for."""


class FrameCutter:
    """Holds back no more than a frame, and no more than `MAX_FRAME_BYTES`."""

    def __init__(self, *, expect_preface: bool) -> None:
        self._held = bytearray()
        self._preface = expect_preface
        self._is_http2 = True

    def cut(self, data: Data) -> Iterator[tuple[bool, bytes]]:
        """What `data` completes, each with whether it is a frame."""
        held = self._held
        held += data
        if self._preface and self._is_http2:
            start = bytes(held[: len(PREFACE)])
            if start == PREFACE:
                self._preface = False
                del held[: len(PREFACE)]
                yield False, start
            elif PREFACE.startswith(start):
                return
            else:
                self._is_http2 = False
        offset = 0
        while self._is_http2 and len(held) - offset >= HEADER_BYTES:
            length = HEADER_BYTES + (HEADER.unpack_from(held, offset)[0] >> 8)
            if length > MAX_FRAME_BYTES:
                self._is_http2 = False
            elif len(held) - offset < length:
                break
            else:
                yield True, bytes(held[offset : offset + length])
                offset += length
        del held[:offset]
        if not self._is_http2:
            yield from self.rest()

    def rest(self) -> Iterator[tuple[bool, bytes]]:
        """What is held back, at the end."""
        if self._held:
            rest = bytes(self._held)
            self._held.clear()
            yield False, rest
