"""A template: an object that is compiled once for all endpoints whose programs differ in constants and names only."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from datapath.base.mapnames import POLICY, POLICY_V2
from datapath.base.timing import VerifyTimes
from datapath.build import headers
from datapath.endpoint import Endpoint, Interface, NodeConfig
from datapath.object.reachability import pruned
from datapath.object.reader import ObjectImage
from datapath.object.spec import CollectionSpec, Substitution

_ENDPOINTS = 1024
"""Endpoints whose names a template remembers; each takes some kilobytes."""


class Kind(enum.Enum):
    """The sources that are compiled; the value is the source's name without suffix."""

    LXC = "bpf_lxc"
    HOST = "bpf_host"
    OVERLAY = "bpf_overlay"
    XDP = "bpf_xdp"

    @property
    def source(self) -> str:
        return f"{self.value}.c"

    @property
    def object(self) -> str:
        return f"{self.value}.o"


class Origin(enum.Enum):
    """Where a fetched template came from."""

    COMPILED = "compiled"
    WAITED = "waited"
    """Somebody else compiled it (or read it) while this caller waited."""
    HIT = "hit"
    """It was there, in the node's directory or among the objects that are kept for all nodes."""


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled and parsed template. `verify_times` remembers how long the kernel took for its programs."""

    hash: str
    kind: Kind
    path: Path
    image: ObjectImage
    verify_times: VerifyTimes = field(compare=False)
    node: NodeConfig | None = field(default=None, compare=False)
    _parts: dict[tuple[str, ...], CollectionSpec] = field(default_factory=dict, init=False, compare=False, repr=False)
    _renamed: dict[object, CollectionSpec] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def policies(self) -> str:
        """How the names of policy maps begin: as that of the object's own, if it has one."""
        return POLICY_V2 if any(name.startswith(POLICY_V2) for name in self.image.spec.maps) else POLICY

    def reached(self, entries: tuple[str, ...]) -> CollectionSpec:
        """Return what has to be loaded if these programs are attached: them, and all that is reached from them."""
        if entries not in self._parts:
            self._parts[entries] = pruned(self.image.spec, entries)
        return self._parts[entries]

    def own_spec(self, wanted: CollectionSpec, substitution: Substitution) -> CollectionSpec:
        """Return an endpoint's own form of what is loaded, which is the whole of the template or a part of it.

        From load to load only constants change: what has the endpoint's names is kept for the next.
        """
        key = tuple(wanted.programs), *substitution.names.items()
        renamed = self._renamed.get(key)
        if renamed is None:
            if len(self._renamed) >= _ENDPOINTS:
                self._renamed.clear()
            renamed = self._renamed[key] = wanted.substitute(Substitution(names=substitution.names))
        return renamed.substitute(Substitution(substitution.constants), strict=False)

    def substitution(self, endpoint: Endpoint) -> Substitution:
        """Return what makes this template's object the endpoint's, with the policy programs that it really has."""
        sub = headers.substitution(endpoint, host_firewall=True, l7=True)
        ifindex = self.node.cilium_host_ifindex if endpoint.is_host and self.node is not None else endpoint.ifindex
        return headers.fitting(sub, self.image.spec, ifindex=ifindex or 0, node=self.node)

    def overlay_substitution(self, generation: int) -> Substitution:
        """Return what makes the overlay's template the object of one load."""
        sub = headers.overlay_substitution(generation)
        ifindex = 0 if self.node is None else self.node.encap_ifindex or 0
        return headers.fitting(sub, self.image.spec, ifindex=ifindex, node=self.node)

    def xdp_substitution(self, generation: int, device: Interface) -> Substitution:
        """Return what makes the template of XDP the object of one device (headers.xdp_substitution)."""
        sub = headers.xdp_substitution(generation, device)
        return headers.fitting(sub, self.image.spec, ifindex=device.ifindex, node=self.node)

    def device_substitution(
        self, endpoint: Endpoint, ifname: str, ifindex: int, mac: str | None, *, secctx_from_ipcache: bool = True
    ) -> Substitution:
        """Return what makes the host's template the object of one device (headers.device_substitution)."""
        sub = headers.device_substitution(
            endpoint, ifname, ifindex, mac, host_firewall=True, secctx_from_ipcache=secctx_from_ipcache
        )
        return headers.fitting(sub, self.image.spec, ifindex=ifindex, node=self.node)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A template, and the seconds spent on it (spans bpfCompilation and bpfWaitForELF, and the parsing)."""

    template: Template
    origin: Origin
    compile_seconds: float = 0.0
    wait_seconds: float = 0.0
    parse_seconds: float = 0.0
