"""The traffic engine: a process of its own, in which one thread is woken by timer and sockets.

A packet is sent, reflected and taken back by the same thread, so the account needs no locks and is exact; a second one
forgets neighbours, and has no part in it (lab.traffic.neighbours). With one packet a tick this costs three wake-ups a
packet; the time between packets is the resolution with which a gap in the path is seen, which is why they are spread
evenly and not sent in bulk.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from lab.system.companion import Control
from lab.system.sockets import periodic_timer
from lab.traffic.delays import Pauses, late_bound
from lab.traffic.flows import Flow, TrafficError
from lab.traffic.neighbours import Neighbours
from lab.traffic.poller import Poller
from lab.traffic.report import TrafficReport
from lab.traffic.sendlog import SendLog
from lab.traffic.streams import Settings, Stream, Streams

SHORTEST_TICK_NS = 1_000_000
"""Waking up more often than this costs more than it shows: higher rates send several packets a tick."""

NICENESS = -10
"""The probe must run while all cores verify programs, or it does not see the gaps that it is there to see."""

SWITCH_INTERVAL = 0.0005
"""Seconds for which the thread that forgets neighbours may keep the interpreter from the one that sends."""

AUTOGROUP = Path("/proc/self/autogroup")
"""The niceness of this process's session (sched(7), "The autogroup feature"); missing in kernels without."""

CALM_ROUNDS = 5
"""Packets of each flow that show how long an undisturbed path takes."""


@dataclass(slots=True)
class Burst:
    """Packets sent on request at `sent_ns`, as (stream, first number, end), waited for as long as `timeout_ns`.

    If those of `silent` flows alone are not answered, they are waited for as long as `moment_ns`.
    """

    parts: list[tuple[Stream, int, int]]
    sent_ns: int
    timeout_ns: int
    silent: frozenset[str] = frozenset()
    moment_ns: int = 0

    def is_over(self, now_ns: int, pauses: Pauses) -> bool:
        """Tell whether the time is over, without that in which the engine did not run."""
        lasted_ns = now_ns - self.sent_ns - pauses.within(self.sent_ns, now_ns)
        return lasted_ns >= self.timeout_ns or bool(
            self.silent and lasted_ns >= self.moment_ns and not self._waits(self.silent)
        )

    @property
    def waiting(self) -> bool:
        return self._waits(frozenset())

    def _waits(self, besides: frozenset[str]) -> bool:
        """Tell whether a packet is not answered, of another flow than these."""
        return any(
            stream.unanswered(first, end) for stream, first, end in self.parts if stream.flow.name not in besides
        )

    def results(self) -> dict[str, tuple[int, int]]:
        """Return by flow how many packets were sent, and how many answered (of a denied flow, how many arrived)."""
        return {stream.flow.name: (end - first, stream.arrivals(first, end)) for stream, first, end in self.parts}


class _Turn:
    """Whose turn it is to send: everyone's, one after the other, or every other time that of the flows in focus."""

    def __init__(self, streams: list[Stream], muted: Collection[str] = ()) -> None:
        self._streams = streams
        self._names: Collection[str] = ()
        self._focused = False
        self.mute(muted)

    def mute(self, names: Collection[str]) -> None:
        """Let these flows send nothing until they are not among the muted ones any more."""
        self.muted = frozenset(names)
        self._all = cycle(stream for stream in self._streams if stream.flow.name not in self.muted)
        self.focus(self._names)

    def focus(self, names: Collection[str]) -> None:
        """Give these flows every other packet; none of them: treat all alike."""
        self._names = names
        wanted = [s for s in self._streams if s.flow.name in names and s.flow.name not in self.muted]
        self._focus: Iterator[Stream] | None = cycle(wanted) if wanted else None

    def next(self) -> Stream | None:
        """Return who sends the next packet; None if all are muted."""
        self._focused = not self._focused and self._focus is not None
        return next(self._focus if self._focused and self._focus is not None else self._all, None)


class Engine:
    """The timer, the commands, and the loop that serves them and the streams."""

    def __init__(self, control: Control, settings: Settings) -> None:
        self._control = control
        self._settings = settings
        self._poller = Poller()
        self._pauses = Pauses()
        self._streams = Streams(settings, self._pauses, self._poller)
        self._neighbours = Neighbours()
        self._late_after_ns = 0
        self._turn = _Turn([])
        self._numbers: dict[str, int] = {}
        self._sent = SendLog()
        self._per_tick = 1
        self._tick_ns = 0
        self._timer = -1
        self._burst: Burst | None = None
        self._stopped_ns: int | None = None
        self._drain_ns = 0
        self._started_ns = 0
        self._last_tick_ns = 0
        self._ran_ns = 0
        self._longest_pause_ns = 0

    def open(self, flows: list[Flow]) -> None:
        """Open every socket, connect every connection, wait for every UDP path to answer, or TrafficError."""
        deadline = time.monotonic() + self._settings.start_timeout
        self._streams.open(flows, deadline)
        self._numbers = {flow.name: number for number, flow in enumerate(flows)}
        self._turn = _Turn(self._streams.all, self._settings.muted)
        if self._settings.forget_every:
            self._neighbours.open(path for flow in flows for path in (flow.source_ns, flow.target_ns))
        if self._settings.warm_up:
            self._warm_up(deadline)
        calm = [sample for stream in self._streams.answering for sample in stream.calm_ns]
        self._late_after_ns = late_bound(round(self._settings.late_after * 1e9), calm)

    def _warm_up(self, deadline: float) -> None:
        """Wait for the first answer of every path, then take samples of how long an answer takes."""
        for wanted in range(1, CALM_ROUNDS + 2):
            cold = self._streams.answering
            while cold:
                if time.monotonic() > deadline:
                    raise TrafficError(f"flow {cold[0].flow.name}: {cold[0].flow.target_ip} does not answer")
                for stream in cold:
                    stream.warm_up()
                again = time.monotonic() + 0.2
                while cold and time.monotonic() < again:
                    self._serve(0.05)
                    cold = [stream for stream in cold if len(stream.calm_ns) < wanted]
        for stream in self._streams.answering:
            # The first had its neighbours to find.
            del stream.calm_ns[0]

    def _serve(self, timeout: float) -> None:
        ready = self._poller.wait(timeout)
        woke_ns, used_ns = time.monotonic_ns(), time.thread_time_ns()
        if self._tick_ns or self._burst is not None:
            # The timer ends the wait, or its timeout: whatever is longer, the engine has wanted to run and did not.
            wanted = self._tick_ns or round(timeout * 1e9)
            self._pauses.note(self._ran_ns + wanted, woke_ns)
        self._poller.handle(ready)
        self._ran_ns = time.monotonic_ns()
        # It can lose the CPU while it works as well: whatever is longer than the work.
        self._pauses.note(woke_ns + time.thread_time_ns() - used_ns, self._ran_ns)

    def run(self) -> None:
        """Serve until the parent says stop, or is gone."""
        messages, parent = self._control.descriptors
        self._poller.watch(messages, self._command)
        self._poller.watch(parent, self._leave)
        self._started_ns = self._last_tick_ns = self._ran_ns = time.monotonic_ns()
        if self._settings.rate > 0 and self._streams.all:
            interval = 1e9 / self._settings.rate
            self._per_tick = max(1, round(SHORTEST_TICK_NS / interval))
            self._tick_ns = round(interval * self._per_tick)
            self._timer = periodic_timer(self._tick_ns)
            self._poller.watch(self._timer, self._tick)
            if self._settings.forget_every:
                self._neighbours.start(self._settings.forget_every)
        while True:
            self._serve(-1 if self._burst is None and self._stopped_ns is None else 0.01)
            if self._burst is not None:
                self._check_burst(self._burst)
            if self._stopped_ns is not None and self._drained(self._stopped_ns):
                return

    def _tick(self) -> None:
        # Rounds that were missed are not made up for: what they would have seen is over.
        os.read(self._timer, 8)
        now = time.monotonic_ns()
        self._longest_pause_ns = max(self._longest_pause_ns, now - self._last_tick_ns)
        self._last_tick_ns = now
        for _ in range(self._per_tick):
            stream = self._turn.next()
            if stream is not None:
                self._send(stream)
        self._neighbours.check()

    def _send(self, stream: Stream, count: int = 1) -> None:
        """Send packets, and note when; a connection that is broken or waits for too many answers sends none."""
        now, before = time.monotonic_ns(), stream.sent
        stream.send(count)
        if stream.sent > before:
            self._sent.note(now, self._numbers[stream.flow.name])

    def _command(self) -> None:
        message = self._control.receive()
        match message:
            case None:
                self._leave()
            case {"do": "snapshot"}:
                self._control.send(self._report(final=False).to_json())
            case {"do": "burst"}:
                self._send_burst(message)
            case {"do": "focus", "flows": names}:
                self._turn.focus(names)
                self._control.send({"focus": names})
            case {"do": "mute", "flows": names}:
                self._turn.mute(names)
                self._control.send({"mute": names})
            case {"do": "stop", "drain": drain}:
                self._stop(drain)
            case other:
                raise ValueError(f"unknown command {other}")

    def _send_burst(self, message: Mapping[str, Any]) -> None:
        names, count = frozenset(message["flows"]), message["count"]
        parts: list[tuple[Stream, int, int]] = []
        for stream in self._streams.all:
            if stream.flow.name in names and stream.flow.name not in self._turn.muted:
                first = stream.sent
                self._send(stream, count)
                parts.append((stream, first, stream.sent))
        timeout_ns, moment_ns = round(message["timeout"] * 1e9), round(message["moment"] * 1e9)
        self._burst = Burst(parts, time.monotonic_ns(), timeout_ns, frozenset(message["silent"]), moment_ns)

    def _check_burst(self, burst: Burst) -> None:
        if burst.waiting:
            if not burst.is_over(time.monotonic_ns(), self._pauses):
                return
            # Whoever was kept from reading for a while finds the answers now.
            self._poller.read_all()
        self._burst = None
        self._control.send({"bursts": burst.results()})

    def _stop(self, drain: float | None) -> None:
        self._neighbours.stop()
        self._neighbours.check()
        if self._timer >= 0:
            self._poller.forget(self._timer)
            os.close(self._timer)
            self._timer = -1
            self._tick_ns = 0
        self._drain_ns = self._late_after_ns if drain is None else round(drain * 1e9)
        self._stopped_ns = time.monotonic_ns()

    def _drained(self, stopped_ns: int) -> bool:
        if not self._is_waited_enough(stopped_ns):
            return False
        # An engine that did not run for a while has old packets unread in its sockets, and their answers still to send.
        self._poller.read_all()
        if not self._is_waited_enough(stopped_ns):
            return False
        self._control.send(self._report(final=True).to_json(), self._sent.pack())
        return True

    def _is_waited_enough(self, stopped_ns: int) -> bool:
        """Tell whether nothing is under way, or all of it for so long that it is lost.

        Time in which the engine did not run does not count. What is sent again and again by TCP is not waited for anew.
        """
        now = time.monotonic_ns()
        since = now - self._drain_ns - self._pauses.within(now - self._drain_ns, now)
        is_over = now - stopped_ns - self._pauses.within(stopped_ns, now) >= self._drain_ns
        return is_over or self._streams.idle(since)

    def _report(self, *, final: bool) -> TrafficReport:
        return TrafficReport(
            started_ns=self._started_ns,
            stopped_ns=time.monotonic_ns(),
            longest_pause_ns=self._longest_pause_ns,
            cpu_ns=time.process_time_ns(),
            late_after_ns=self._late_after_ns,
            starved=tuple(self._pauses.all),
            flows=self._streams.report(self._late_after_ns, final=final),
        )

    def _leave(self) -> None:
        raise ParentGone

    def close(self) -> None:
        """Close everything that open() and run() opened."""
        self._neighbours.close()
        self._streams.close()
        self._poller.close()


class ParentGone(Exception):
    """The parent has died or closed its end: nobody is there to report to."""


def run_before_others() -> None:
    """Raise the priority of this process and of its session, in which it is alone.

    Where the kernel groups processes by session, niceness counts only within one: the probe would share the CPUs with
    every other session as an equal, however many programs that one verifies.
    """
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    with suppress(FileNotFoundError):
        AUTOGROUP.write_text(str(NICENESS))


def main(descriptor: int) -> int:
    """Run the engine on the control socket `descriptor`: the first message says what to do."""
    control = Control(descriptor)
    message: dict[str, Any] | None = control.receive()
    if message is None:
        return 1
    run_before_others()
    sys.setswitchinterval(SWITCH_INTERVAL)
    engine = Engine(control, Settings(**message["settings"]))
    try:
        engine.open([Flow(**flow) for flow in message["flows"]])
    except TrafficError as error:
        control.send({"error": str(error)})
        engine.close()
        return 1
    try:
        control.send({"ready": True})
        engine.run()
    except (ParentGone, BrokenPipeError):
        return 1
    finally:
        engine.close()
    return 0
