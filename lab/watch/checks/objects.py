"""The object files that a node's programs are loaded from, read once for all checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datapath.object.reader import ObjectImage, read_object
from datapath.object.spec import CollectionSpec
from datapath.reload.connections import NOTE
from datapath.reload.plans import CILIUM_HOST, CILIUM_NET, CILIUM_VXLAN, XDP_SUBJECT
from lab.agent.agent import Agent
from lab.loaders.libbpf import with_slots
from lab.loaders.protocol import HOST, NONE, OVERLAY, POD
from lab.node.topology import HEALTH, HOST_ENDPOINT


@dataclass(frozen=True, slots=True)
class InterfaceObject:
    """The object file of an interface's programs; `spec` is None if there is no such file."""

    ifname: str
    path: Path
    spec: CollectionSpec | None

    @property
    def is_xdp(self) -> bool:
        return self.path.parent.name == XDP_SUBJECT


def read_objects(agent: Agent) -> tuple[InterfaceObject, ...]:
    """Read the object file of each interface that may have programs of ours, but for those whose loader writes none.

    The templates are known; what differs from one in constants and names only, as it should, is not read as a whole.
    """
    images = list(agent.loader.templates.images)
    return tuple(InterfaceObject(ifname, path, _spec(path, images)) for ifname, path in _object_files(agent))


def _spec(path: Path, images: list[ObjectImage]) -> CollectionSpec | None:
    """Read an object file; `images` are those that are known, and this one if none of them helps."""
    if not path.exists():
        return None
    data, directory = path.read_bytes(), path.parent.name
    found = (image.reread(str(path), data) for image in images)
    spec = next((spec for spec in found if spec is not None), None)
    if spec is None:
        images.append(read_object(path))
        spec = images[-1].spec
    # A loader around libbpf has objects whose slots only the sections name.
    return with_slots(spec, int(directory)) if directory.isdecimal() else spec


def object_files(agent: Agent) -> dict[Path, bytes]:
    """Return the content of the object files that exist, unread, by path."""
    return {path: path.read_bytes() for _, path in _object_files(agent) if path.exists()}


def endpoint_files(agent: Agent) -> dict[Path, bytes]:
    """Return the content of the files that say what runs, and that the next reload goes by, by path.

    Not of an endpoint's header: it says what the endpoint is to be, and stays if a load fails. Of another loader the
    object files alone: what it keeps beside them is its own.
    """
    ours = {path.parent for _, path in _object_files(agent)} if agent.external is None else set()
    notes = [directory / NOTE for directory in ours]
    return object_files(agent) | {path: path.read_bytes() for path in notes if path.exists()}


def _object_files(agent: Agent) -> Iterator[tuple[str, Path]]:
    """Yield the interfaces that have programs of ours, and the object file that each is loaded from."""
    node, state = agent.node, agent.config.state
    if not _loads_without_file(agent, HOST):
        host = state / str(HOST_ENDPOINT)
        yield CILIUM_HOST, host / "bpf_host.o"
        yield CILIUM_NET, host / f"bpf_host_{CILIUM_NET}.o"
        yield from ((device, host / f"bpf_netdev_{device}.o") for device in agent.config.devices)
    if agent.config.xdp is not None:
        yield from ((device, state / XDP_SUBJECT / f"bpf_xdp_{device}.o") for device in agent.config.devices)
    if node.spec.tunnel and not _loads_without_file(agent, OVERLAY):
        yield CILIUM_VXLAN, state / "bpf_overlay.o"
    for name in () if _loads_without_file(agent, POD) else (HEALTH, *(pod.name for pod in node.pods)):
        pod = node.pod(name)
        yield pod.ifname, state / str(pod.endpoint_id) / "bpf_lxc.o"


def _loads_without_file(agent: Agent, kind: str) -> bool:
    """Tell whether endpoints of a kind are loaded by somebody who writes no object files; a stale one may be there."""
    loader = agent.external
    return loader is not None and loader.greeting.objects == NONE and loader.supports(kind)
