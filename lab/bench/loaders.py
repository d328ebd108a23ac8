"""The same reload by other loaders, next to the variants of `bench reload`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lab.agent.agent import Agent
from lab.agent.loading import KINDS_OF_SUBJECTS
from lab.bench.rounds import Measurement, Variant
from lab.bench.setting import Setting
from lab.bench.steps import seconds_of
from lab.loaders import protocol
from lab.loaders.command import BUILTIN


@dataclass(frozen=True, slots=True)
class LoaderReload:
    """The reload of a subject by one loader. What the lab does before, such as compiling, does not count."""

    name: str
    agent: Agent
    subject: str

    def run(self) -> float:
        return seconds_of(self.agent.reload(self.subject), external=True)


def loader_variants(setting: Setting) -> Iterator[Variant | Measurement]:
    """Yield a variant for each loader, on a node of its own; what it does not support is a refused measurement."""
    for number, loader in enumerate(setting.options.loaders, 1):
        agent = setting.agent(setting.node(f"loader-{number}"), verifiers=None, loader=loader)
        external, subject = agent.external, setting.options.subject.of(agent.node)
        name = f"loader {number}: {BUILTIN if external is None else external.name}"
        kind = KINDS_OF_SUBJECTS.get(subject, protocol.POD)
        if external is not None and not external.supports(kind):
            yield Measurement(name, refusal=f"loader {external.name} does not support {kind}")
            continue
        try:
            agent.start()
        except protocol.NotSupported as error:
            yield Measurement(name, refusal=str(error))
            continue
        yield LoaderReload(name, agent, subject)
