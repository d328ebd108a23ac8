"""What is around a node's programs and maps: its network, that of its pods, and what else it has of the machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from datapath.endpoint import DatapathConfig
from datapath.errors import BpfError
from datapath.kernel import links
from datapath.kernel.links import LinkType
from lab.node.node import Node
from lab.node.registry import NAMESPACES
from lab.node.topology import HEALTH, NODE, NodeFacts, NodeSpec
from lab.system.mounts import SYSFS_BPF
from lab.watch.network import Network, read_network


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The node's network and, by name, those of its pods and of health; the rest as names and ids.

    `links` are the ids of BPF links of the node's programs, but for those at tcx hooks, `pins` the paths of what is in
    the node's bpffs besides its maps. `namespaces` and `mounts` are paths below its directory. `spec` and `facts`
    say what was declared of the node at that moment.
    """

    spec: NodeSpec
    facts: NodeFacts
    network: Network
    inside: Mapping[str, Network]
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
        links=frozenset(_links(programs)),
        pins=frozenset(_pins(config, maps)),
        namespaces=frozenset(entry.name for entry in os.scandir(node.root / NAMESPACES)),
        mounts=frozenset(_mounts(node.root)),
    )


def _links(programs: Container[int]) -> Iterator[int]:
    ident = links.next_id(0)
    while ident is not None:
        try:
            found = links.info_by_id(ident)
            if found.program_id in programs and not (found.type == LinkType.TCX and found.ifindex):
                yield ident
        except BpfError as error:
            if error.errno not in (errno.ENOENT, errno.EAGAIN):  # gone between the two calls, or not yet attached
                raise
        ident = links.next_id(ident)


def _pins(config: DatapathConfig, maps: Container[str]) -> Iterator[str]:
    """Yield what is in a node's bpffs, directories too, but for its pinned maps and the way to them, and to links."""
    bpffs, own = config.bpffs, config.globals
    way = {own, *own.parents, config.devices_links, config.endpoints_links, config.links, *config.links.parents}
    for directory, names, files in os.walk(bpffs):
        at = Path(directory)
        found = (at / name for name in (*names, *files) if at != own or name not in maps)
        yield from (
            str(path.relative_to(bpffs)) for path in found if path not in way and _target(path, bpffs) not in way
        )


def _target(path: Path, bpffs: Path) -> Path | None:
    """Return where a symbolic link in a node's bpffs leads; None of anything else.

    iproute2 makes two, `ip` and `xdp`, when it first loads a program: other names of the directory above the pinned
    maps (lib/bpf_legacy.c). They hold nothing. A process in the node has made them, where the bpffs has another path.
    """
    if not path.is_symlink():
        return None
    target = path.parent / path.readlink()
    return bpffs / target.relative_to(SYSFS_BPF) if target.is_relative_to(SYSFS_BPF) else target


def _mounts(root: Path) -> Iterator[str]:
    prefix = f"{root}/"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        path = line.split(" ", 5)[4]
        if path.startswith(prefix):
            yield path.removeprefix(prefix)
