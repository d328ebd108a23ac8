"""What a reload is compared with, each on a node of its own: the bare system calls, and tc."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bpf import LIBRARY
from lab.agent.agent import Agent
from lab.bench.floor import Floor, Hook
from lab.bench.planned import PlannedObject, planned_objects
from lab.bench.rounds import TimedCall
from lab.bench.setting import Setting, Subject
from lab.bench.tc import BPFFS, Tc
from lab.loaders.libbpf import compile_for_libbpf
from lab.node.topology import NODE
from lab.system import mounts
from lab.system.scratch import scratch

FLOOR, TC = "floor: the bare system calls", "tc filter replace, same object"
GRAFT = "tc -batch: graft, filter replace (built for libbpf)"


@dataclass(frozen=True, slots=True)
class TcVariants:
    """The variants that tc can run, and its message if it refuses the objects as a whole."""

    variants: Sequence[TimedCall]
    refusal: str = ""


def floor(setting: Setting, *, all_programs: bool = False) -> TimedCall:
    """Return the system calls that the subject's reload needs, one object after the other."""
    agent, objects = _loaded(setting, "whole" if all_programs else "floor")
    floors = []
    for item in objects:
        hooks = tuple(Hook(program, direction) for direction, program in item.hooks.items())
        spec, netns = item.spec(all_programs=all_programs), agent.node.netns(NODE)
        floors.append(setting.stack.enter_context(Floor(spec, agent.config.globals, netns, item.ifname, hooks)))

    def run() -> None:
        for each in floors:
            each.run()

    return TimedCall(FLOOR + (", all programs" if all_programs else ""), run)


def tc(setting: Setting) -> TcVariants:
    """Return the subject's reload by tc; it loads all programs of an object."""
    agent, objects = _loaded(setting, "tc")
    mounts.bind_mount(str(agent.config.bpffs), BPFFS)
    setting.stack.callback(mounts.umount, BPFFS)
    own = [_tc(agent, item) for item in objects]
    refusal = next((said for each in own if (said := each.refusal()) is not None), "")

    def replace() -> None:
        for each in own:
            each.replace()

    variants = [] if refusal else [TimedCall(TC, replace)]
    if _can_graft(setting):
        (item,) = objects
        endpoint = agent.endpoint(Subject.POD.of(agent.node))
        path = compile_for_libbpf(agent.config, endpoint, "bpf_lxc.c", setting.stack.enter_context(scratch()))
        sections = {name: program.section for name, program in item.template.image.spec.programs.items()}
        spec = item.spec(all_programs=True)
        grafted = Tc(path, sections, spec, agent.node.netns(NODE), item.ifname, item.hooks)
        variants.append(TimedCall(GRAFT, grafted.graft))
    return TcVariants(variants, refusal)


def _can_graft(setting: Setting) -> bool:
    """Tell whether there is a source for libbpf: ours has one, for pods."""
    options = setting.options
    ours = options.library is None or options.library.resolve() == LIBRARY
    return ours and options.subject is Subject.POD and options.object is None


def _tc(agent: Agent, item: PlannedObject) -> Tc:
    spec = item.spec(all_programs=True)
    sections = {name: program.section for name, program in spec.programs.items()}
    return Tc(item.file.path, sections, spec, agent.node.netns(NODE), item.ifname, item.hooks)


def _loaded(setting: Setting, name: str) -> tuple[Agent, Sequence[PlannedObject]]:
    """Load the subject of a new node; return the node's agent, and the objects of the next reload."""
    agent = setting.agent(setting.node(name))
    subject = setting.options.subject.of(agent.node)
    with agent.reloading_subject(subject):
        agent.loader.apply_locked(agent.plan(subject, generation=1))
    return agent, planned_objects(agent.plan(subject, generation=2), setting.template(agent))
