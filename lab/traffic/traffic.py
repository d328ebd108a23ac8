"""Traffic while reloads happen: numbered UDP packets and open TCP connections between namespaces, with exact accounts.

    with Traffic(flows, rate=1000) as traffic:
        ...                                   # reload
        traffic.burst("pod-1 to pod-2", 20)   # at a gate: packets now, answered before the reload goes on
        report = traffic.stop()
    assert not report.problems()

The engine is a process of its own (lab.traffic.engine): neither it nor the reload waits for the other's interpreter
lock.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from lab.system.companion import Child
from lab.traffic.flows import (
    Break,
    Flow,
    LostPacket,
    Stall,
    TcpReport,
    TrafficError,
    TrafficReport,
    UdpReport,
    check_flows,
)

__all__ = [
    "Break",
    "Burst",
    "Flow",
    "LostPacket",
    "Stall",
    "TcpReport",
    "Traffic",
    "TrafficError",
    "TrafficReport",
    "UdpReport",
]

_ANSWER = 10.0
"""Seconds that the engine has for an answer beyond what it was told to wait: it shares the cores with reloads."""

LARGEST_BURST = 4000
"""Packets of all flows: twice as many fit the buffer of one receiving socket, which would drop the rest by itself."""


@dataclass(frozen=True, slots=True)
class Burst:
    """How many packets (or records) a burst sent, and how many were answered in time."""

    flow: str
    sent: int
    answered: int

    @property
    def complete(self) -> bool:
        return self.sent == self.answered > 0


class Traffic:
    """Runs flows from start() to stop(). A context manager: leaving it ends the engine, whatever happened."""

    def __init__(
        self,
        flows: Sequence[Flow],
        *,
        rate: float = 1000.0,
        size: int = 64,
        stall_after: float = 1.0,
        start_timeout: float = 10.0,
        warm_up: bool = True,
    ) -> None:
        """Describe the traffic; nothing is started or opened yet.

        `rate` is in packets (and TCP records) a second over all flows in turn, 0 for bursts only; `size` in bytes of
        payload; a connection that makes no progress for `stall_after` seconds is stalled. Unless `warm_up` is false,
        start() waits until each UDP flow was answered once: paths that must not work need it false.
        """
        self._flows = tuple(flows)
        self._settings = {
            "rate": rate,
            "size": size,
            "stall_after": stall_after,
            "start_timeout": start_timeout,
            "warm_up": warm_up,
        }
        self._start_timeout = start_timeout
        self._child = Child("lab.traffic.engine")
        self._report: TrafficReport | None = None
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
        rate = self._settings["rate"]
        if not (math.isfinite(rate) and rate >= 0):
            raise TrafficError(f"the rate is packets a second, 0 for bursts only, not {rate}")
        check_flows(self._flows)
        self._started = True
        self._child.start()
        settings = {**self._settings, "token": secrets.randbits(64)}
        message = {"settings": settings, "flows": [dataclasses.asdict(flow) for flow in self._flows]}
        try:
            answer, _ = self._child.request(message, timeout=self._start_timeout + _ANSWER)
            if "error" in answer:
                raise TrafficError(f"traffic cannot start: {answer['error']}")
        except BaseException:
            self._child.close()
            raise

    def snapshot(self) -> TrafficReport:
        """Return the account so far; nothing counts as lost yet, what has no answer is `in_flight`."""
        answer, _ = self._child.request({"do": "snapshot"}, timeout=_ANSWER)
        return TrafficReport.from_json(answer)

    def burst(self, flow: str, count: int, *, timeout: float = 1.0) -> Burst:
        """Send `count` packets of one flow at once and wait until all are answered, at most `timeout` seconds.

        The packets are numbered and accounted for like all others. A broken connection sends none.
        """
        return self.burst_all(count, [flow], timeout=timeout)[0]

    def burst_all(self, count: int, flows: Sequence[str] | None = None, *, timeout: float = 1.0) -> list[Burst]:
        """Do the same for several flows at a time (all, if none are named), `count` packets each."""
        names = [flow.name for flow in self._flows]
        wanted = names if flows is None else list(flows)
        unknown = sorted(set(wanted) - set(names))
        if unknown:
            raise TrafficError(f"no flow {unknown[0]}: there are {', '.join(names)}")
        if not 0 < count * len(wanted) <= LARGEST_BURST:
            raise TrafficError(f"a burst has 1 to {LARGEST_BURST} packets, not {count} of {len(wanted)} flows")
        message = {"do": "burst", "flows": wanted, "count": count, "timeout": timeout}
        answer, _ = self._child.request(message, timeout=timeout + _ANSWER)
        return [Burst(name, *answer["bursts"][name]) for name in wanted]

    def stop(self, *, drain: float = 1.0) -> TrafficReport:
        """Stop sending, wait for what is under way (at most `drain` seconds), end the engine, return the account.

        A second call returns the same report.
        """
        if self._report is None:
            answer, _ = self._child.request({"do": "stop", "drain": drain}, timeout=drain + _ANSWER)
            self._report = TrafficReport.from_json(answer)
            self._child.close()
        return self._report

    def __enter__(self) -> Traffic:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()
