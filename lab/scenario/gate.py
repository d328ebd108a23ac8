"""Gates: stop a reload before or after a step, and do something there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from datapath.errors import ReloadlabError
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace


class BadGate(ReloadlabError):
    """A gate that names no step."""


class GateNeverFired(ReloadlabError):
    """A reload that never called the function of its gate; `gate` says which, `steps` are those that it passed."""

    def __init__(self, gate: Gate, names: Sequence[str], cause: ReloadlabError | None = None) -> None:
        end = "" if cause is None else f", then it failed: {cause}"
        passed = ", ".join(gate.steps) or "none"
        super().__init__(f"{gate} never fired; the steps of the reload of {', '.join(names)} were {passed}{end}")
        self.gate = gate
        self.steps = tuple(gate.steps)


class Gate:
    """Stops a reload before or after a step, and does something there: `Gate(do, before="commit")`.

    `do` gets the step and the reload's workspace; what it raises makes the reload fail. "*" stands for every step;
    `target` narrows the gate to one interface or object, `nth` to one of the times that it is passed, from 0 on.
    A scenario's reload raises GateNeverFired if `do` was never called, unless the gate is `optional`.
    """

    def __init__(
        self,
        do: Callable[[Step, Workspace], object],
        *,
        before: str | None = None,
        after: str | None = None,
        target: str | None = None,
        nth: int | None = None,
        optional: bool = False,
    ) -> None:
        if before is None and after is None:
            raise BadGate('a gate names a step: give before="commit", after="commit" or both; "*" is every step')
        self.passed = 0
        self.steps: dict[str, None] = {}
        self._fired = False
        self._optional = optional
        self._do = do
        self._before, self._after, self._target, self._nth = before, after, target, nth

    def __str__(self) -> str:
        options = {"before": self._before, "after": self._after, "target": self._target, "nth": self._nth}
        return f"Gate({', '.join(f'{name}={value!r}' for name, value in options.items() if value is not None)})"

    def check_fired(self, names: Sequence[str], cause: ReloadlabError | None = None) -> None:
        """Raise GateNeverFired if it should have; `cause` is why the reload of `names` failed."""
        if not self._fired and not self._optional:
            raise GateNeverFired(self, names, cause) from cause

    def before(self, step: Step, work: Workspace) -> None:
        self.steps[" ".join(step.key)] = None
        self._pass(self._before, step, work)

    def after(self, step: Step, work: Workspace) -> None:
        self._pass(self._after, step, work)

    def _pass(self, name: str | None, step: Step, work: Workspace) -> None:
        if name in (step.name, "*") and self._target in (None, step.target):
            self.passed += 1
            if self._nth in (None, self.passed - 1):
                self._fired = True
                self._do(step, work)
