"""Our objects as the pipeline makes them: generated headers, one compilation, constants substituted."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from datapath.base.bpftypes import ProgType
from datapath.build.compile import compile_source, probe_compiler
from datapath.build.headers import (
    filter_header,
    netdev_header,
    node_header,
    overlay_defines,
    overlay_substitution,
    substitution,
    template_header,
    xdp_defines,
    xdp_substitution,
)
from datapath.build.nodemacros import HOST_ENDPOINT_ID
from datapath.build.objectcache import ObjectCache, key_of
from datapath.build.sources import SourceTree
from datapath.endpoint import HOST_ID, LABEL_HOST, Endpoint, Interface, NodeConfig
from datapath.kernel.bpf import prog_test_run
from datapath.kernel.map import Map
from datapath.kernel.uapi import TestRun
from datapath.kernel.xdp import takes_frags
from datapath.load.collection import Collection
from datapath.load.programs import Program
from datapath.object.reachability import pruned
from datapath.object.reader import ObjectImage, read_object
from datapath.object.spec import CollectionSpec
from lab.abi import layouts, policymap
from lab.system.cache import cache_directory

LIBRARY = Path(__file__).parents[2] / "bpf"

ROUTER4, ROUTER6 = IPv4Address("10.1.0.1"), IPv6Address("fd00:1::1")
GATEWAY4, GATEWAY6 = IPv4Address("10.1.0.254"), IPv6Address("fd00:1::fe")
PEER4, PEER6 = IPv4Address("10.1.0.9"), IPv6Address("fd00:1::9")
WORLD4, WORLD6 = IPv4Address("198.51.100.7"), IPv6Address("2001:db8::7")

CILIUM_HOST_MAC, CILIUM_NET_MAC = "02:aa:00:00:00:01", "02:aa:00:00:00:02"

NODE = NodeConfig(
    router_ipv4=ROUTER4,
    router_ipv6=ROUTER6,
    cilium_host_ifindex=2,
    cilium_host_mac=CILIUM_HOST_MAC,
    cilium_net_ifindex=3,
    cilium_net_mac=CILIUM_NET_MAC,
    encap_ifindex=None,
    encap_mac=None,
    mtu=1500,
)
POD = Endpoint(
    id=123,
    ifname="lxc0123456789ab",
    mac="02:bb:00:00:00:01",
    node_mac="02:bb:00:00:00:02",
    ipv4=IPv4Address("10.1.0.5"),
    ipv6=IPv6Address("fd00:1::5"),
    identity=0x0023_4567,
    generation=77,
)
HOST = replace(POD, id=HOST_ENDPOINT_ID, labels=frozenset({LABEL_HOST}), identity=HOST_ID)

TABLES = ("cilium_ct", "cilium_ipv4_frag", "cilium_ipv6_frag", "reloadlab_hits")
"""Beginnings of the names of maps that only grow."""

PASS, DROP, REDIRECT = 0, 2, 7
"""Verdicts of a direct-action classifier."""
XDP_DROP, XDP_PASS = 1, 2

DEVICE = 32
"""The interface whose XDP program bpf_xdp.c is loaded for."""

_CONTEXT = struct.Struct("<8xI24xII4x5I108xI")
_MARK = slice(8, 12)


@dataclass(frozen=True, slots=True)
class Build:
    """What is compiled: a source, the mode, -D options, options of the node, and whose sources."""

    source: str
    endpoint_routes: bool = False
    tunnel: bool = False
    defines: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    library: Path = LIBRARY


@cache
def compiled(build: Build) -> ObjectImage:
    """Compile once, for all processes of the tests."""
    node = replace(NODE, endpoint_routes=build.endpoint_routes, options=build.options)
    overlay, xdp = build.source == "bpf_overlay.c", build.source == "bpf_xdp.c"
    if build.tunnel or overlay:
        node = replace(node, encap_ifindex=4, encap_mac="02:aa:00:00:00:03")
    headers = {"node_config.h": node_header(node), "netdev_config.h": netdev_header(node)}
    if xdp:
        headers["filter_config.h"] = filter_header()
    elif not overlay:
        endpoint = (HOST if build.source == "bpf_host.c" else POD).with_endpoint_routes(build.endpoint_routes)
        headers["ep_config.h"] = template_header(endpoint)
    defines = {
        **(overlay_defines(node) if overlay else xdp_defines(frags=takes_frags()) if xdp else {}),
        **dict(build.defines),
    }
    return read_object(_object(build.library, build.source, headers, defines))


def _object(library: Path, source: str, headers: Mapping[str, str], defines: Mapping[str, str]) -> bytes:
    """Return an object that was compiled with these headers and -D options, or compile it."""
    directory, compiler = cache_directory(), probe_compiler()
    assert directory is not None
    made, sources = ObjectCache(directory), SourceTree(library).read()
    options = repr((sorted(headers.items()), sorted(defines.items()), compiler.flags(werror=True)))
    key = key_of(__name__, str(library), sources.digest, source, options, compiler.identity())
    content = made.get(key)
    if content is None:
        with tempfile.TemporaryDirectory(prefix="reloadlab-test-") as name:
            scratch = Path(name)
            for header, text in headers.items():
                (scratch / header).write_text(text)
            content = compile_source(
                library / source,
                scratch / "object.o",
                includes=(scratch, library, library / "include"),
                defines=defines,
                compiler=compiler,
                werror=True,
            ).read_bytes()
        if sources.is_current():
            made.put(key, content)
    return content


def spec_of(build: Build, generation: int = POD.generation) -> CollectionSpec:
    """Return the object as it would be loaded for POD, for HOST, for the tunnel device, or for DEVICE."""
    spec = compiled(build).spec
    if build.source == "bpf_overlay.c":
        return spec.substitute(overlay_substitution(generation))
    if build.source == "bpf_xdp.c":
        return spec.substitute(xdp_substitution(generation, Interface("eth0", DEVICE, POD.mac)))
    if build.source == "bpf_host.c":
        firewall = any(name == "ENABLE_HOST_FIREWALL" for name, _ in build.defines)
        return spec.substitute(substitution(replace(HOST, generation=generation), host_firewall=firewall))
    return spec.substitute(substitution(replace(POD, generation=generation)))


@dataclass(frozen=True, slots=True)
class Datapath:
    """A loaded object, usually with maps of its own: nothing is pinned then, and nothing attached."""

    collection: Collection

    def run(
        self,
        program: str | Program,
        frame: bytes,
        *,
        mark: int = 0,
        ingress_ifindex: int = 1,
        cb: tuple[int, ...] = (0,) * 5,
        gso_size: int = 0,
    ) -> TestRun:
        """Run a program on a frame that came in by a device of that index (0: sent by the host itself)."""
        loaded = self.collection.programs[program] if isinstance(program, str) else program
        if loaded.info().type == ProgType.XDP:
            return prog_test_run(loaded.fd, frame)
        context = _CONTEXT.pack(mark, ingress_ifindex, 1, *cb, gso_size)
        return prog_test_run(loaded.fd, frame, context=context)

    def map(self, name: str) -> Map:
        return self.collection.maps[name]

    @property
    def calls(self) -> Map:
        return next(m for name, m in self.collection.maps.items() if name.startswith("cilium_calls_"))

    @property
    def policy(self) -> Map:
        return self.map(f"cilium_policy_{POD.id:05d}")

    def empty(self, slot: int) -> None:
        """Empty a slot of the calls map."""
        assert self.calls.delete(slot.to_bytes(4, "little"))

    def metrics(self) -> Mapping[tuple[int, int], int]:
        """Return packets by (reason, direction)."""
        counters = self.map("cilium_metrics")
        found = {}
        for key, values in counters.items_percpu():
            why = layouts.MetricsKey.unpack(key)
            found[why.reason, why.dir] = sum(layouts.MetricsValue.unpack(value).count for value in values)
        return found

    def drops(self) -> Mapping[tuple[int, int], int]:
        """Return packets by (reason, direction), drops only."""
        return {key: count for key, count in self.metrics().items() if key[0] > 127}

    def hits(self) -> Mapping[tuple[int, int, int], int]:
        """Return packets by (generation, source, program)."""
        counters = self.map("reloadlab_hits")
        found = {}
        for key, values in counters.items_percpu():
            hit = layouts.HitsKey.unpack(key)
            found[hit.generation, hit.source, hit.program] = sum(int.from_bytes(value, "little") for value in values)
        return found

    def add_endpoint(
        self, address: IPv4Address | IPv6Address, *, lxc_id: int = POD.id, ifindex: int = 1, host: bool = False
    ) -> None:
        info = layouts.EndpointInfo(
            ifindex=ifindex,
            lxc_id=lxc_id,
            flags=layouts.ENDPOINT_F_HOST if host else 0,
            mac=None if host else "02:cc:00:00:00:01",
            node_mac=None if host else "02:cc:00:00:00:02",
        )
        self.map("cilium_lxc").update(layouts.endpoint_key(address), info.pack())

    def add_identity(self, address: IPv4Address | IPv6Address, identity: int, *, node: str = "0.0.0.0") -> None:
        info = layouts.RemoteEndpointInfo(sec_identity=identity, tunnel_endpoint=IPv4Address(node))
        self.map("cilium_ipcache").update(layouts.ipcache_key(address, address.max_prefixlen), info.pack())

    def allow(self, identity: int) -> None:
        self.policy.update(policymap.policy_key_any(egress=False, identity=identity), policymap.POLICY_ENTRY_ALLOW)

    def allowed(self, identity: int) -> int:
        """Return how many packets the rule for an identity has counted."""
        value = self.policy.lookup(policymap.policy_key_any(egress=False, identity=identity))
        assert value is not None
        return policymap.PolicyEntry.unpack(value).packets


def mark_of(result: TestRun) -> int:
    """Return the mark that a program left on the packet."""
    return int.from_bytes(result.context[_MARK], "little")


@contextmanager
def loaded(
    build: Build,
    *,
    allow: bool = True,
    pin_dir: Path | None = None,
    generation: int = POD.generation,
    entries: tuple[str, ...] = (),
) -> Iterator[Datapath]:
    """Load an object, all of its tail calls in place, with a policy that allows everything or nothing.

    Objects with the same `pin_dir` share their pinned maps, and so reach each other's policy programs. With `entries`
    nothing is loaded that is not reached from them.
    """
    spec = spec_of(build, generation)
    with loaded_spec(pruned(spec, entries) if entries else spec, allow=allow, pin_dir=pin_dir) as datapath:
        yield datapath


@contextmanager
def loaded_spec(spec: CollectionSpec, *, allow: bool = True, pin_dir: Path | None = None) -> Iterator[Datapath]:
    """Load an object as `loaded` does."""
    with Collection.load(_small(spec), pin_dir=pin_dir) as collection:
        datapath = Datapath(collection)
        for name in collection.maps if allow else ():
            if name.startswith("cilium_policy_"):
                for egress in (False, True):
                    key = policymap.policy_key_any(egress=egress)
                    datapath.map(name).update(key, policymap.POLICY_ENTRY_ALLOW)
        yield datapath


def _small(spec: CollectionSpec) -> CollectionSpec:
    """Make the tables of connections small: the kernel allocates all of their entries at once."""
    tables = {n: replace(m, max_entries=min(m.max_entries, 256)) for n, m in spec.maps.items() if n.startswith(TABLES)}
    return replace(spec, maps={**spec.maps, **tables})
