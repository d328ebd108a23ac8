"""Gates: stop a reload before or after a step, or before a system call, and do something there."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

from datapath.base.timing import Interval
from datapath.errors import ReloadlabError
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from lab.gates.call import Call

MOST_CALLS = 12
"""Calls that the message of a gate names which has never fired."""


class BadGate(ReloadlabError):
    """A gate that names no step and no call, or both, or no number from 1 on."""


class GateNeverFired(ReloadlabError):
    """A reload that never called the function of its gate.

    `gate` says which; `steps` and `calls` are those that it passed, of calls the texts.
    """

    def __init__(self, gate: Gate, names: Sequence[str], cause: ReloadlabError | None = None) -> None:
        end = "" if cause is None else f", then it failed: {cause}"
        kind, passed = ("calls", gate.passed_calls) if gate.at_calls else ("steps", ", ".join(gate.steps) or "none")
        super().__init__(f"{gate} never fired; the {kind} of the reload of {', '.join(names)} were {passed}{end}")
        self.gate = gate
        self.steps = tuple(gate.steps)
        self.calls = tuple(gate.calls)


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a gate has stopped a reload, in words, and the thread and the time of what was done there."""

    where: str
    work: Interval


class Gate:
    """Stops a reload, and does something there.

    `Gate(do, before="commit")` stops it before or after a step: `do` gets the step and the reload's workspace. "*"
    stands for every step; `target` narrows the gate to one interface or object.

    `Gate(do, call="MAP_UPDATE cilium_calls_*")` stops it before each system call that fits (lab.gates.call.Call.fits):
    `do` gets the call, which has not happened yet. The reload is done by a process of its own then.

    `nth` narrows the gate to one of the times that it is passed, from 1 on. What `do` raises makes the reload fail. A
    scenario's reload raises GateNeverFired if `do` was never called, unless the gate is `optional`. `stops` are the
    times at which it was called.
    """

    @overload
    def __init__(
        self,
        do: Callable[[Step, Workspace], object],
        *,
        before: str | None = None,
        after: str | None = None,
        target: str | None = None,
        nth: int | None = None,
        optional: bool = False,
    ) -> None: ...

    @overload
    def __init__(
        self, do: Callable[[Call], object], *, call: str, nth: int | None = None, optional: bool = False
    ) -> None: ...

    def __init__(
        self,
        do: Callable[..., object],
        *,
        before: str | None = None,
        after: str | None = None,
        target: str | None = None,
        call: str | None = None,
        nth: int | None = None,
        optional: bool = False,
    ) -> None:
        at_steps = (before, after) != (None, None)
        if call is None and not at_steps:
            raise BadGate(
                'a gate names a step or a call: give before="commit", after="commit" or both, or '
                'call="RTM_NEWTFILTER *"; "*" is every one'
            )
        if call is not None and (at_steps or target is not None):
            raise BadGate("a gate at a call has no step and no target")
        if nth is not None and nth < 1:
            raise BadGate(f"nth counts from 1: there is no number {nth}")
        self.passed = 0
        self.steps: dict[str, None] = {}
        self.calls: Counter[str] = Counter()
        self.stops: list[Stop] = []
        self._fired = False
        self._optional = optional
        self._do = do
        self._before, self._after, self._target, self._call, self._nth = before, after, target, call, nth

    def __str__(self) -> str:
        options = {"before": self._before, "after": self._after, "target": self._target, "call": self._call}
        given = {name: value for name, value in (*options.items(), ("nth", self._nth)) if value is not None}
        return f"Gate({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    @property
    def at_calls(self) -> bool:
        """Whether the gate is at system calls, not at steps."""
        return self._call is not None

    @property
    def passed_calls(self) -> str:
        """The calls that came, as a text: those of the name that was waited for if there are any, a few of them."""
        name = (self._call or "").partition(" ")[0]
        alike = [text for text in self.calls if text.partition(" ")[0] == name] or list(self.calls)
        more = f", and {len(alike) - MOST_CALLS} more" if len(alike) > MOST_CALLS else ""
        return (", ".join(alike[:MOST_CALLS]) or "none") + more

    def check_fired(self, names: Sequence[str], cause: ReloadlabError | None = None) -> None:
        """Raise GateNeverFired if it should have; `cause` is why the reload of `names` failed."""
        if not self._fired and not self._optional:
            raise GateNeverFired(self, names, cause) from cause

    def before(self, step: Step, work: Workspace) -> None:
        self.steps[" ".join(step.key)] = None
        self._pass_step("before", self._before, step, work)

    def after(self, step: Step, work: Workspace) -> None:
        self._pass_step("after", self._after, step, work)

    def before_call(self, call: Call) -> None:
        self.calls[call.text] += 1
        if self._call is not None and call.fits(self._call):
            self._pass(f"before {call.text}", call)

    def _pass_step(self, moment: str, name: str | None, step: Step, work: Workspace) -> None:
        if name in (step.name, "*") and self._target in (None, step.target):
            self._pass(f"{moment} {' '.join(step.key)}", step, work)

    def _pass(self, where: str, *what: Any) -> None:
        self.passed += 1
        if self._nth not in (None, self.passed):
            return
        self._fired = True
        begin = time.monotonic_ns()
        try:
            self._do(*what)
        finally:
            self.stops.append(Stop(where, Interval(threading.get_native_id(), begin, time.monotonic_ns())))
