"""Traffic while reloads happen: numbered UDP packets and open TCP connections between namespaces, with exact accounts.

    with Traffic(flows, rate=1000) as traffic:
        ...                                   # reload
        traffic.burst("pod-1 to pod-2", 20)   # at a gate: packets now, answered before the reload goes on
        report = traffic.stop()
    assert not report.findings()

The engine is a process of its own (lab.traffic.engine): neither it nor the reload waits for the other's interpreter
lock.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from lab.system.companion import Child
from lab.system.pace import slowness
from lab.traffic.flows import Flow, TrafficError, check_flows
from lab.traffic.report import TrafficReport
from lab.traffic.sendlog import unpack

_ANSWER = 10.0
"""Seconds that the engine has for an answer beyond what it was told to wait: it shares the cores with reloads.

On an ordinary machine (lab.system.pace).
"""

BURST_TIMEOUT = 1.0
"""Seconds in which a burst must be answered, on an ordinary machine (lab.system.pace)."""

MOMENT = 0.02
"""Seconds in which a flow that was silent is answered if it works again, on an ordinary machine (lab.system.pace)."""

LARGEST_BURST = 4000
"""Packets of all flows: twice as many fit the buffer of one receiving socket, which would drop the rest by itself."""


@dataclass(frozen=True, slots=True)
class Burst:
    """How many packets (or records) a burst sent, and how many were answered in time; of a denied flow, arrived."""

    flow: str
    sent: int
    answered: int
    denied: bool = False

    @property
    def complete(self) -> bool:
        """Whether all is as it should be: every packet answered, or, of a denied flow, none arrived."""
        return self.sent > 0 and self.answered == (0 if self.denied else self.sent)


class Traffic:
    """Runs flows from start() to stop(). A context manager: leaving it ends the engine, whatever happened.

    `sent_at` says, once it has stopped, when the packets of each flow were sent (CLOCK_MONOTONIC, nanoseconds).
    """

    def __init__(
        self,
        flows: Sequence[Flow],
        *,
        rate: float = 1000.0,
        size: int = 64,
        stall_after: float = 1.0,
        late_after: float = 0.5,
        forget_every: float = 0.1,
        start_timeout: float = 10.0,
        warm_up: bool = True,
        muted: Sequence[str] = (),
    ) -> None:
        """Describe the traffic; nothing is started or opened yet.

        `rate` is in packets (and TCP records) a second over all flows in turn, 0 for bursts only; `size` in bytes of
        payload; a connection that makes no progress for `stall_after` seconds is stalled, a packet that is under way
        for `late_after` seconds is late, or for longer if the undisturbed path is slow (lab.traffic.delays.late_bound).
        Every `forget_every` seconds one neighbour is to be found anew (0: never; lab.traffic.neighbours).
        Unless `warm_up` is false, start() waits until each UDP flow was answered: paths that must not work need it
        false. The flows in `muted` send nothing until `mute` says otherwise.
        """
        self._flows = tuple(flows)
        self._settings = {
            "rate": rate,
            "size": size,
            "stall_after": stall_after,
            "late_after": late_after,
            "forget_every": forget_every,
            "start_timeout": start_timeout,
            "warm_up": warm_up,
            "muted": list(muted),
        }
        self._rate = rate
        self._start_timeout = start_timeout
        self._late_after = late_after
        self._child = Child("lab.traffic.engine")
        self._report: TrafficReport | None = None
        self.sent_at: Mapping[str, Sequence[int]] = {}
        self._started = False

    @property
    def flows(self) -> tuple[Flow, ...]:
        return self._flows

    @property
    def pid(self) -> int:
        """The engine's process id; 0 while it does not run."""
        return self._child.pid

    def start(self) -> None:
        """Start the engine; return when every connection is open and every UDP flow answered. TrafficError if not.

        Entering the context starts it as well: do one of the two, once.
        """
        if self._started:
            raise TrafficError("traffic was started already: enter its context or call start(), once")
        if not (math.isfinite(self._rate) and self._rate >= 0):
            raise TrafficError(f"the rate is packets a second, 0 for bursts only, not {self._rate}")
        check_flows(self._flows)
        self._started = True
        self._child.start()
        settings = {**self._settings, "token": secrets.randbits(64)}
        message = {"settings": settings, "flows": [dataclasses.asdict(flow) for flow in self._flows]}
        try:
            answer, _ = self._child.request(message, timeout=self._start_timeout + _answer())
            if "error" in answer:
                raise TrafficError(f"traffic cannot start: {answer['error']}")
        except BaseException:
            self._child.close()
            raise

    def snapshot(self) -> TrafficReport:
        """Return the account so far; nothing counts as lost yet, what has no answer is `in_flight`."""
        answer, _ = self._child.request({"do": "snapshot"}, timeout=_answer())
        return TrafficReport.from_json(answer)

    def burst(self, flow: str, count: int, *, timeout: float | None = None) -> Burst:
        """Send `count` packets of one flow at once and wait until all are answered, at most `timeout` seconds.

        None: one second, longer on a slow machine by the factor that is known of it (lab.system.pace).
        The packets are numbered and accounted for like all others. A broken connection sends none.
        """
        return self.burst_all(count, [flow], timeout=timeout)[0]

    def burst_all(
        self,
        count: int,
        flows: Sequence[str] | None = None,
        *,
        timeout: float | None = None,
        silent: Sequence[str] = (),
    ) -> list[Burst]:
        """Do the same for several flows at a time (all, if none are named), `count` packets each.

        Muted flows send none, and have no part in the answer. Those that are `silent`, as is known, are waited for as
        long as the others, or for MOMENT if these are done before.
        """
        wanted = [flow.name for flow in self._flows] if flows is None else list(flows)
        self._check_names([*wanted, *silent])
        if not 0 < count * len(wanted) <= LARGEST_BURST:
            raise TrafficError(f"a burst has 1 to {LARGEST_BURST} packets, not {count} of {len(wanted)} flows")
        seconds = BURST_TIMEOUT * slowness() if timeout is None else timeout
        message = {"do": "burst", "flows": wanted, "count": count, "timeout": seconds}
        message |= {"silent": list(silent), "moment": min(MOMENT * slowness(), seconds)}
        answer, _ = self._child.request(message, timeout=seconds + _answer())
        denied = {flow.name for flow in self._flows if flow.denied}
        bursts = answer["bursts"]
        found = {name: bursts[name] for name in wanted if name in bursts}
        return [Burst(name, sent, done, name in denied) for name, (sent, done) in found.items()]

    def focus(self, flows: Sequence[str]) -> None:
        """From now on send every other packet over these flows, the rest over all in turn; none: over all alike."""
        self._check_names(flows)
        self._child.request({"do": "focus", "flows": list(flows)}, timeout=_answer())

    def mute(self, flows: Sequence[str]) -> None:
        """Let these flows send nothing from now on, and all others go on; none: let all of them send."""
        self._check_names(flows)
        self._child.request({"do": "mute", "flows": list(flows)}, timeout=_answer())

    def _check_names(self, flows: Sequence[str]) -> None:
        names = [flow.name for flow in self._flows]
        unknown = sorted(set(flows) - set(names))
        if unknown:
            raise TrafficError(f"no flow {unknown[0]}: there are {', '.join(names)}")

    def stop(self, *, drain: float | None = None) -> TrafficReport:
        """Stop sending, wait for what is under way (at most `drain` seconds), end the engine, return the account.

        None: as long as a packet may take without being late; what comes still later is a finding in any case. A second
        call returns the same report.
        """
        if self._report is None:
            longest = (self._late_after if drain is None else drain) + _answer()
            answer, log = self._child.request({"do": "stop", "drain": drain}, timeout=longest)
            self._report = TrafficReport.from_json(answer)
            self.sent_at = unpack(log, [flow.name for flow in self._flows])
            self._child.close()
        return self._report

    def __enter__(self) -> Traffic:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()


def _answer() -> float:
    return _ANSWER * slowness()
