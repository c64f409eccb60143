"""The linter: holds the events of links against the rules, and names the end that breaks one.

    findings = Findings(print)                      # or without a callable: `findings.counted` at the end
    server = Server(..., tap=Views(Linter(findings).tell))
    pool = Pool(tap=the same)
    linter.tell(event)                              # or by hand: of a recording

It looks at every link by itself, downstream and upstream. One that was open before (`LateViews`) is judged by what is
said from then on: nobody is blamed for what may have been said before. A proxy stands in the middle: what it only
passes on (a bad header, a message that is cut) would be found on both of its links, so with `proxy_passes_on` (the
default) it answers for the rules that are its own (`Rule.hop`) and the peer for the others. What it does not do: read
messages, or change anything. Time is that of the events.
"""

from collections.abc import Container

from rawgrpc_proxy.lab.events import (
    Event,
    FrameCut,
    FrameSeen,
    HalfClosed,
    HeadersSeen,
    LinkClosed,
    LinkOpened,
    MessageBegun,
    Sender,
    StreamBegun,
    StreamEnded,
    Unreadable,
    who,
)
from rawgrpc_proxy.lab.lint import call_rules
from rawgrpc_proxy.lab.lint.findings import Findings
from rawgrpc_proxy.lab.lint.frame_rules import judge_frame, judge_length, judge_silence
from rawgrpc_proxy.lab.lint.rules import RULES
from rawgrpc_proxy.lab.lint.state import MAX_CLOSED, LinkState
from rawgrpc_proxy.net.tapped import Link


class Linter:
    """Takes events (`tell`), gives findings. Rules whose ids are in `ignore` are not told of."""

    def __init__(
        self,
        findings: Findings,
        *,
        ignore: Container[str] = (),
        proxy_passes_on: bool = True,
        remembers: int = MAX_CLOSED,
    ) -> None:
        """`remembers`: so many of each link's streams that have ended, for what comes behind."""
        self._findings = findings
        ignored = {rule for rule in RULES if rule in ignore}
        passed_on = {rule.id for rule in RULES.values() if not rule.hop} if proxy_passes_on else set[str]()
        self._unsaid = {True: ignored | passed_on, False: ignored}
        """Of the proxy's own ends, and of its peers."""
        self._remembers = remembers
        self._links: dict[int, LinkState] = {}
        self.links_seen = 0
        self.streams_seen = 0
        """On all of them: a call that passes a proxy is two."""

    def tell(self, event: Event) -> None:
        """Hold this event against the rules."""
        match event:
            case LinkClosed():
                self._close(event)
            case FrameSeen():
                judge_frame(self._state(event.link), event)
            case FrameCut():
                judge_length(self._state(event.link), event)
            case LinkOpened():
                state = self._state(event.link)
                if event.joined:
                    state.join(event.last_stream)
            case StreamBegun():
                self.streams_seen += 1
                call_rules.stream_begun(self._state(event.link), event)
            case HeadersSeen():
                call_rules.headers_seen(self._state(event.link), event)
            case MessageBegun():
                call_rules.message_begun(self._state(event.link), event)
            case HalfClosed():
                call_rules.half_closed(self._state(event.link), event)
            case StreamEnded():
                call_rules.stream_ended(self._state(event.link), event)
            case Unreadable():
                self._unreadable(self._state(event.link), event)
            case _:
                pass

    def _state(self, link: Link) -> LinkState:
        state = self._links.get(link.number)
        if state is None:
            state = self._links[link.number] = self._new_state(link)
            self.links_seen += 1
        return state

    def _close(self, event: LinkClosed) -> None:
        state = self._links.pop(event.link.number, None)
        if state is not None:
            for sender in Sender:
                judge_silence(state, sender, event.at)

    def _new_state(self, link: Link) -> LinkState:
        unsaid = {sender: self._unsaid[who(link, sender) == "proxy"] for sender in Sender}
        return LinkState(link, self._findings, unsaid, remembers=self._remembers)

    def _unreadable(self, state: LinkState, event: Unreadable) -> None:
        match event.what:
            case "link":
                state.say("not-http2", event.sender, event.at, 0, event.reason)
            case "headers":
                state.end(event.sender).headers_lost = True
                if not state.frame_found:
                    state.say(
                        "header-block-undecodable", event.sender, event.at, event.stream_id, event.reason
                    )
            case "frame" if not state.frame_found:
                state.say("frame-size", event.sender, event.at, event.stream_id, event.reason)
            case "stream":
                state.streams.pop(event.stream_id, None)
            case _:
                pass
