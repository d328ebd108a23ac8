"""What is around a node's programs and maps: its network, that of its pods, and what else it has of the machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import BpfError
from datapath.kernel import links
from datapath.kernel.hooks import Direction
from datapath.kernel.links import AttachType
from datapath.kernel.netns import enter
from lab.node.node import Node
from lab.node.registry import NAMESPACES
from lab.node.topology import HEALTH, NODE, NodeFacts, NodeSpec
from lab.watch.network import Link, Network, read_network

_TCX = {Direction.INGRESS: AttachType.TCX_INGRESS, Direction.EGRESS: AttachType.TCX_EGRESS}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The node's network and, by name, those of its pods and of health; the rest as names and ids.

    `tcx` are the ids of programs at tcx hooks, `links` those of BPF links of the node's programs, `pins` the paths of
    what is in the node's bpffs besides its maps. `namespaces` and `mounts` are paths below the node's
    directory. `spec` and `facts` say what was declared of the node at that moment.
    """

    spec: NodeSpec
    facts: NodeFacts
    network: Network
    inside: Mapping[str, Network]
    tcx: Mapping[tuple[str, Direction], tuple[int, ...]]
    links: frozenset[int]
    pins: frozenset[str]
    namespaces: frozenset[str]
    mounts: frozenset[str]


def read_surroundings(node: Node, programs: Container[int], maps: Container[str]) -> Surroundings:
    """Read what is around a node; `programs` are the ids of its own programs, `maps` the names of its pinned maps."""
    network = read_network(node.netns(NODE))
    pods = (HEALTH, *(pod.name for pod in node.pods))
    config = node.datapath_config()
    return Surroundings(
        spec=node.spec,
        facts=node.facts,
        network=network,
        inside={name: read_network(node.netns(name), settings=False) for name in pods},
        tcx=_tcx(node.netns(NODE), network.links),
        links=frozenset(_links(programs)),
        pins=frozenset(_pins(config.bpffs, config.globals, maps)),
        namespaces=frozenset(entry.name for entry in os.scandir(node.root / NAMESPACES)),
        mounts=frozenset(_mounts(node.root)),
    )


def _tcx(netns: Path, interfaces: Mapping[str, Link]) -> dict[tuple[str, Direction], tuple[int, ...]]:
    found = {}
    with enter(netns):
        for name, link in interfaces.items():
            for direction, attach_type in _TCX.items():
                try:
                    entries = links.query(link.ifindex, attach_type)
                except BpfError as error:
                    if error.errno == errno.EINVAL:  # before Linux 6.6
                        return {}
                    if error.errno == errno.ENODEV:
                        continue
                    raise
                if entries:
                    found[name, direction] = tuple(entry.program_id for entry in entries)
    return found


def _links(programs: Container[int]) -> Iterator[int]:
    ident = links.next_id(0)
    while ident is not None:
        try:
            if links.info_by_id(ident).program_id in programs:
                yield ident
        except BpfError as error:
            if error.errno not in (errno.ENOENT, errno.EAGAIN):  # gone between the two calls, or not yet attached
                raise
        ident = links.next_id(ident)


def _pins(bpffs: Path, own: Path, maps: Container[str]) -> Iterator[str]:
    """Yield what is in a bpffs, directories too, but for the pinned maps in the directory `own` and the way to it."""
    way = {own, *own.parents}
    for directory, names, files in os.walk(bpffs):
        at = Path(directory)
        found = (at / name for name in (*names, *files) if at != own or name not in maps)
        yield from (str(path.relative_to(bpffs)) for path in found if path not in way)


def _mounts(root: Path) -> Iterator[str]:
    prefix = f"{root}/"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        path = line.split(" ", 5)[4]
        if path.startswith(prefix):
            yield path.removeprefix(prefix)
