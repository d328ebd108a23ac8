"""A pytest plugin for the process that spreads scenarios: xdist's session, where machines can be lost.

xdist runs everything here without a word if `--dist` is missing, restarts workers for ever, and breaks off if one
cannot be started again. This session is there whenever the plugin is, gives up machines instead, and lets no report
pass that does not say that it was made where it should have been. What machines say is text to it and nothing else:
xdist would call here, for a warning, whatever function the other side names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import execnet
import pytest
from execnet.gateway_bootstrap import HostNotFound
from xdist.dsession import DSession
from xdist.workermanage import Marker, NodeManager, WorkerController

from lab.machines.place import LOST, Spread, check_place
from lab.machines.worker import IDENTITY
from lab.system.plain import plain

OPTION = "--reloadlab-machines"
"""Names a file of JSON: what `Spread.to_json` returns."""

RESTARTS = 3
"""For each worker of a machine: how many are started in place of workers that died, together."""

_CANNOT_START = (HostNotFound, OSError, EOFError, AssertionError, execnet.RemoteError)
"""What execnet raises where no worker can be started; the assertion is its own, on the first byte that comes back."""

_CLOSED = "cannot send to <Channel"
"""What execnet says if a worker has ended before it could be told what to do; its own words are lost then."""

ANOTHER = "it is not the machine that was examined: it has been started anew since, or another one answers"

ENDED_AT_ONCE = "its worker did not come up: it ended before it could be told what to do"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option that this process is told by."""
    parser.getgroup("reloadlab").addoption(OPTION, metavar="FILE", help="machines that tests are spread over")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Raise UsageError for options that would run something here, before one of them does."""
    option = config.option
    where = option.numprocesses or option.tx or option.px or option.dist != "no" or option.looponfail
    if option.collectonly or option.usepdb or option.trace or where:
        raise pytest.UsageError("with --on, pytest takes no options that debug, only collect, or say where tests run")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Take the place of xdist's own session."""
    path = Path(config.getoption(OPTION))
    spread = Spread.from_json(path.read_text())
    config.pluginmanager.register(Machines(config, spread, path.with_name(LOST)), "dsession")


class Machines(DSession):  # type: ignore[misc]
    """A session over machines. A machine whose workers cannot be started (again) is lost, and its name is kept."""

    def __init__(self, config: pytest.Config, spread: Spread, lost: Path) -> None:
        super().__init__(config)
        self._places = {place.label: place for place in spread.places}
        self._reschedule = spread.reschedule
        self._file = lost
        self._lost: dict[str, str] = {}
        self._ran_again: set[str] = set()
        self._restarts: Counter[str] = Counter()
        self._was_ready: set[WorkerController] = set()
        self._undecided: dict[WorkerController, list[tuple[str, WorkerController]]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Start a worker for each description; those of a machine that is lost are left out."""
        self._session = session
        # Not before: xdist would make a session of its own.
        self.config.option.tx = [place.spec for place in self._places.values() for _ in range(place.workers)]
        self.config.option.dist = "worksteal"
        self.nodemanager = NodeManager(self.config)
        # It would copy our pytest to each machine, to be used instead of the one that was set up there.
        self.nodemanager.roots = []
        self._write_lost()
        self.config.hook.pytest_xdist_setupnodes(config=self.config, specs=self.nodemanager.specs)
        for spec in self.nodemanager.specs:
            if spec.machine not in self._lost:
                self._start(spec)
        if not self._active_nodes:
            pytest.exit(f"no machine is left: {self._words()}", pytest.ExitCode.INTERNAL_ERROR)

    @pytest.hookimpl
    def pytest_configure_node(self, node: WorkerController) -> None:
        """Have what a worker says made harmless before xdist hears it."""
        place = self._places[node.gateway.spec.machine]
        node.process_from_remote = Hearing(node, place.identity).hear

    @pytest.hookimpl
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Return xdist's scheduler, which waits for as many workers as there are."""
        scheduler = super().pytest_xdist_make_scheduler(config, log)
        scheduler.numnodes = len(self._active_nodes)
        return scheduler

    def worker_workerready(self, node: WorkerController, workerinfo: Any) -> None:
        """Note that a worker came up: its machine is there, so that what died before was a worker alone."""
        self._was_ready.add(node)
        for ran, dead in self._undecided.pop(node, ()):
            self.handle_crashitem(ran, dead)
        super().worker_workerready(node, workerinfo)

    def worker_errordown(self, node: WorkerController, error: object | None) -> None:
        """Give what a dead worker had to others, and start one in its place; what it ran is an error or runs again.

        Which of the two is not known before that one is up, or its machine is lost: until then it is undecided.
        """
        self.config.hook.pytest_testnodedown(node=node, error=error)
        assert self.sched is not None
        self._active_nodes.discard(node)
        label = node.gateway.spec.machine
        ran = self._forget(node)
        undecided = self._undecided.pop(node, [])
        undecided += [] if ran is None else [(ran, node)]
        replacement = self._replace(node, error)
        self._spread_if_all_have_collected()
        if replacement is not None:
            self._undecided[replacement] = undecided
            return
        for ran, dead in undecided:
            if self._runs_again(ran, label):
                self.sched.mark_test_pending(ran)
            else:
                self.handle_crashitem(ran, dead)
        if self.sched.pending and all(each.shutting_down for each in self._active_nodes):
            # Those that are left have been told that there is nothing more to do.
            self._start_elsewhere()
        if not self._active_nodes and (self.sched.collection is None or self.sched.pending):
            self.shouldstop = f"no machine is left: {self._words()}"

    def handle_crashitem(self, nodeid: str, worker: WorkerController) -> None:
        """Report an error of the scenario that a dead worker ran."""
        label = worker.gateway.spec.machine
        reason = self._lost.get(label)
        said = f"a worker on {label} died" if reason is None else f"{label} was lost ({reason})"
        report = pytest.TestReport(nodeid, (nodeid, None, nodeid), {}, "failed", f"{said} while it ran {nodeid}", "???")  # type: ignore[arg-type]
        report.node = worker  # type: ignore[attr-defined]
        self.config.hook.pytest_runtest_logreport(report=report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Say in a report where it was made; it is a failure if that is not the machine whose worker has sent it."""
        node: WorkerController | None = getattr(report, "node", None)
        check_place(report, None if node is None else self._places[node.gateway.spec.machine])

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        """End all workers."""
        super().pytest_sessionfinish()

    def _forget(self, node: WorkerController) -> str | None:
        """Take a dead worker out of the scheduler; return the scenario that it ran, None if it ran none."""
        sched = self.sched
        assert sched is not None
        if sched.collection is not None:
            ran: str | None = sched.remove_node(node) if node in sched.nodes else None
            return ran
        # Nothing is spread yet. The scheduler's own way would send the others home, as there is nothing to do for them.
        sched.node2pending.pop(node, None)
        sched.node2collection.pop(node, None)
        sched.numnodes -= 1
        return None

    def _spread_if_all_have_collected(self) -> None:
        """Begin if the dead worker was the last that the others waited for: nothing else would."""
        assert self.sched is not None
        if self.sched.collection is None and self._active_nodes and self.sched.collection_is_completed:
            self.sched.schedule()

    def _replace(self, node: WorkerController, error: object | None) -> WorkerController | None:
        """Start a worker in place of a dead one, on the same machine, and return it; None if the machine is lost."""
        assert self.sched is not None
        label = node.gateway.spec.machine
        if label in self._lost:
            return None
        self._restarts[label] += 1
        if error == ANOTHER:
            self._lose(label, ANOTHER)
        elif node not in self._was_ready:
            self._lose(label, f"its worker did not come up: {_last_line(error)}")
        elif self._restarts[label] > RESTARTS * self._places[label].workers:
            self._lose(label, f"{self._restarts[label]} of its workers died")
        else:
            replacement = self._start_on(label)
            if replacement is not None and self.sched.collection is None:
                # Nothing is spread before it has collected: else there might be nobody to spread it to.
                self.sched.numnodes += 1
            return replacement
        return None

    def _start_elsewhere(self) -> None:
        """Start a worker on any machine that is there."""
        for label in self._places:
            if label not in self._lost and self._start_on(label) is not None:
                return

    def _start_on(self, label: str) -> WorkerController | None:
        assert self.nodemanager is not None
        spec = execnet.XSpec(f"execmodel=main_thread_only//{self._places[label].spec}")
        self.nodemanager.group.allocate_id(spec)
        self.shuttingdown = False
        return self._start(spec)

    def _start(self, spec: execnet.XSpec) -> WorkerController | None:
        """Start a worker and return it; None if that fails, and the machine is lost."""
        assert self.nodemanager is not None
        try:
            node = self.nodemanager.setup_node(spec, self.queue.put)
        except _CANNOT_START as error:
            self._lose(str(spec.machine), _reason(error))
            return None
        self._active_nodes.add(node)
        return node

    def _runs_again(self, ran: str, label: str) -> bool:
        """Whether a scenario that was lost with a machine runs on another: once, as it may be what ends machines."""
        if not self._reschedule or label not in self._lost or ran in self._ran_again:
            return False
        self._ran_again.add(ran)
        return any(each not in self._lost for each in self._places)

    def _lose(self, label: str, reason: str) -> None:
        self._lost[label] = reason
        self._write_lost()
        self.report_line(f"{label} is lost: {reason}")

    def _write_lost(self) -> None:
        """Write down what was lost by now: this process may come to no end of its own."""
        upcoming = self._file.with_suffix(".new")
        upcoming.write_text(json.dumps(self._lost))
        upcoming.replace(self._file)

    def _words(self) -> str:
        return ", ".join(f"{label}: {reason}" for label, reason in self._lost.items())


class Hearing:
    """What a worker says, on its way to xdist. Nothing of one that is not where it should be comes through.

    A machine that has been started anew answers as if nothing had happened: its workers would run all the rest, each
    of it for nothing. Such a worker has died, for xdist, and is sent home.
    """

    def __init__(self, node: WorkerController, identity: Mapping[str, str | int]) -> None:
        self._node = node
        self._process = node.process_from_remote
        self._identity = identity
        self._told: object = None
        self._dismissed = False

    def hear(self, event: Any) -> None:
        """Hand on an event, from execnet's thread."""
        if self._dismissed:
            return
        if event is Marker.END:
            self._process(event)
            return
        name, content = event
        if name == IDENTITY:
            self._told = content.get("identity")
        elif name == "workerready" and self._told != self._identity:
            self._dismissed = True
            self._node.shutdown()
            self._node.notify_inproc("errordown", node=self._node, error=ANOTHER)
        else:
            self._process((name, _harmless(content) if name == "warning_recorded" else content))


def _harmless(warned: dict[str, Any]) -> dict[str, Any]:
    """Return a warning with its text alone: xdist would import and call what it is said to be."""
    plain = {"message_module": None, "category_module": "builtins", "category_class_name": "UserWarning"}
    return {**warned, "warning_message_data": {**warned["warning_message_data"], **plain}}


def _reason(error: BaseException) -> str:
    if isinstance(error, HostNotFound | EOFError | BrokenPipeError):
        return "it cannot be reached any more"
    if str(error).startswith(_CLOSED):
        return ENDED_AT_ONCE
    return f"no worker can be started there: {_last_line(error)}"


def _last_line(error: object) -> str:
    lines: Sequence[str] = str(error or "it ended").strip().splitlines()
    last = lines[-1] if lines else type(error).__name__
    return plain(last)
