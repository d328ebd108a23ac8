"""Loaders side by side: the same reload of a pod by each, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from datapath.endpoint import Attachment
from datapath.reload.outcome import Outcome
from lab.agent.agent import Agent
from lab.bench.rounds import BackgroundLoad, Measurement, Progress, run_in_turns
from lab.loaders.command import BUILTIN, LoaderCommand
from lab.loaders.plan import PREPARATIONS
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.results.result import Series


@dataclass(frozen=True, slots=True)
class LoadersOptions:
    """Which loaders reload a pod (None: the built-in one), how often, and of which sources."""

    loaders: tuple[LoaderCommand | None, ...]
    library: Path | None = None
    defines: tuple[tuple[str, str], ...] = ()
    endpoint_routes: bool = True
    rounds: int = 20
    attach: Attachment = Attachment.TC


@dataclass(frozen=True, slots=True)
class LoadersReport:
    """A row for each loader, in their order; `others` is the share of the CPUs that other processes had meanwhile."""

    rows: Sequence[Measurement]
    others: float

    def series(self) -> list[Series]:
        """Return the series of the result."""
        return [row.series("reload") for row in self.rows]


@dataclass(slots=True)
class _Reload:
    """The reload of a pod by one loader. What the lab does before, such as compiling, does not count."""

    name: str
    agent: Agent
    outcomes: list[Outcome] = field(default_factory=list)

    def run(self) -> float:
        outcome = self.agent.reload(self.agent.node.pods[0].name)
        work = [span.work for span in outcome.spans if span.step not in PREPARATIONS]
        return (work[-1].end_ns - work[0].start_ns) / 1e9


def measure_loaders(options: LoadersOptions, progress: Progress) -> LoadersReport:
    """Measure everything, each loader on a node of its own. The caller has left the mounts of the machine."""
    with ExitStack() as stack:
        variants = [_variant(stack, options, number, loader) for number, loader in enumerate(options.loaders, 1)]
        background = BackgroundLoad()
        rows = run_in_turns(variants, options.rounds, progress)
        return LoadersReport(rows, background.share())


def _variant(stack: ExitStack, options: LoadersOptions, number: int, loader: LoaderCommand | None) -> _Reload:
    spec = NodeSpec(f"bench-loader-{number}", pods=1, endpoint_routes=options.endpoint_routes)
    node = stack.enter_context(Node(spec))
    agent = stack.enter_context(
        Agent(node, library=options.library, defines=options.defines, loader=loader, attach=options.attach)
    )
    agent.start()
    name = BUILTIN if agent.external is None else agent.external.name
    return _Reload(f"{number}: {name}", agent)
