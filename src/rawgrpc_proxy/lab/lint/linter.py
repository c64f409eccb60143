"""The linter: holds the events of links against the rules, and names the end that breaks one.

    findings = Findings(print)                      # or without a callable: `findings.counted` at the end
    server = Server(..., tap=Views(Linter(findings).tell))
    pool = Pool(tap=the same)
    linter.tell(event)                              # or by hand: of a recording

It looks at every link by itself, downstream and upstream. A proxy stands in the middle: what it only passes on (a bad
header, a message that is cut) would be found on both of its links, so with `proxy_passes_on` (the default) it answers
for the rules that are its own (`Rule.hop`) and the peer for the others. What it does not do: read messages, or change
anything. Time is that of the events.
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
)
from rawgrpc_proxy.lab.lint import call_rules
from rawgrpc_proxy.lab.lint.findings import Finding, Findings
from rawgrpc_proxy.lab.lint.frame_rules import judge_frame, judge_length, judge_silence
from rawgrpc_proxy.lab.lint.state import LinkState
from rawgrpc_proxy.net.tapped import Link


class Linter:
    """Takes events (`tell`), gives findings. Rules whose ids are in `ignore` are not told of."""

    def __init__(
        self, findings: Findings, *, ignore: Container[str] = (), proxy_passes_on: bool = True
    ) -> None:
        self._findings = findings
        self._ignore = ignore
        self._proxy_passes_on = proxy_passes_on
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
                self._state(event.link)
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
            state = self._links[link.number] = LinkState(link, self._add)
            self.links_seen += 1
        return state

    def _close(self, event: LinkClosed) -> None:
        state = self._links.pop(event.link.number, None)
        if state is not None:
            for sender in Sender:
                judge_silence(state, sender, event.at)

    def _add(self, finding: Finding) -> None:
        if finding.rule.id in self._ignore:
            return
        if self._proxy_passes_on and finding.who == "proxy" and not finding.rule.hop:
            return
        self._findings.add(finding)

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
