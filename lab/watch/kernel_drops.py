"""The packets that the kernel drops in a lab's namespaces, with its reason and the place in the kernel.

A program of our own at the tracepoint skb:kfree_skb tells of each (kernel_drops.c). It needs no tracefs, no headers and
no other tool than the compiler that the lab has anyway: the layouts of the kernel's structs come from its BTF.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from bpf import LIBRARY
from datapath.build.compile import compile_source, probe_compiler
from datapath.build.objectcache import ObjectCache, key_of
from datapath.build.sources import SourceTree
from datapath.errors import BpfError, CompileError, ReloadlabError, ToolMissing
from datapath.kernel import bpf
from datapath.load.collection import Collection
from datapath.object.btf import Btf, BtfError, TypeKind, parse
from datapath.object.reader import read_object
from datapath.object.spec import CollectionSpec
from lab.system.cache import cache_directory
from lab.system.perfring import PerfReader
from lab.system.scratch import scratch
from lab.system.symbols import extent
from lab.watch.packet import Packet, decode

RECORD = struct.Struct("<QQIIIHH16s144s")
"""struct drop of kernel_drops.c."""

_SOURCE = Path(__file__).with_name("kernel_drops.c")
VMLINUX = Path("/sys/kernel/btf/vmlinux")

NOT_SPECIFIED, QUEUE_PURGE = "NOT_SPECIFIED", "QUEUE_PURGE"
NETKIT = "NETKIT"
"""What a drop by a netkit device is called here, which its program has decided: the kernel gives no reason for it."""
"""Reasons: none is given; a queue is emptied, of a socket say (Linux 6.7)."""

_PREFIX = "SKB_DROP_REASON_"
_WITH_RX_SK = 5
"""Parameters of btf_trace_kfree_skb since Linux 6.11: its private data, then the arguments of the tracepoint."""


class DropsUnavailable(ReloadlabError):
    """The kernel's drops cannot be watched on this machine; str() says why."""


@dataclass(frozen=True, slots=True)
class KernelDrop:
    """A packet that the kernel dropped.

    `time_ns` is CLOCK_MONOTONIC. `location` is the address of the code that dropped it; see lab.system.symbols.
    `netns` is the namespace's inode number, `ifname` the interface to which the packet belonged, empty if none.
    `packet` is None if it was no IP packet.
    """

    time_ns: int
    location: int
    netns: int
    reason: str
    ifindex: int
    ifname: str
    packet: Packet | None


@dataclass(frozen=True, slots=True)
class Tracing:
    """The program, made for the running kernel, and that kernel's names of its drop reasons."""

    spec: CollectionSpec
    reasons: Mapping[int, str]


@cache
def tracing() -> Tracing:
    """Make the program for the running kernel; once in a process.

    DropsUnavailable if that is impossible.
    """
    directory = cache_directory()
    cache = None if directory is None else ObjectCache(directory)
    try:
        kernel = _kernel(cache)
    except FileNotFoundError as error:
        raise DropsUnavailable("the kernel has no BTF: CONFIG_DEBUG_INFO_BTF is not set") from error
    except (BtfError, KeyError) as error:
        raise DropsUnavailable(f"the kernel's types are not those that are known: {error}") from error
    try:
        spec = read_object(_compiled(kernel.macros, cache)).spec
    except (CompileError, ToolMissing) as error:
        raise DropsUnavailable(str(error)) from error
    # What the reader has against it: a reload attaches no program of this kind.
    programs = {name: replace(program, problem="") for name, program in spec.programs.items()}
    return Tracing(replace(spec, programs=programs), kernel.reasons)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """What the program has to know of a kernel: macros with offsets, and the names of its drop reasons."""

    macros: dict[str, str]
    reasons: dict[int, str]


def _kernel(cache: ObjectCache | None) -> _Kernel:
    """Read the running kernel's types, which takes 0.2 s; or what was read from the same types before."""
    types = VMLINUX.read_bytes()
    key = key_of(__name__, Path(__file__).read_text(), hashlib.sha256(types).hexdigest())
    known = None if cache is None else cache.get(key)
    if known is not None:
        document = json.loads(known)
        return _Kernel(document["macros"], {int(number): name for number, name in document["reasons"].items()})
    kernel = parse(types)
    ident = kernel.find("skb_drop_reason", TypeKind.ENUM, TypeKind.ENUM64)
    reasons = {number: name.removeprefix(_PREFIX) for name, number in kernel.enumerators(kernel[ident])}
    found = _Kernel(_layout(kernel), reasons)
    if cache is not None:
        cache.put(key, json.dumps(asdict(found)).encode())
    return found


def _compiled(macros: Mapping[str, str], cache: ObjectCache | None) -> bytes:
    """Return the program's object."""
    compiler, includes = probe_compiler(), LIBRARY / "include"
    program, sources = _SOURCE.read_text(), SourceTree(includes).read()
    made_of = program, sources.digest, repr(sorted(macros.items()))
    key = key_of(*made_of, *compiler.flags(), compiler.identity(), os.uname().machine)
    content = None if cache is None else cache.get(key)
    if content is None:
        with scratch() as directory:
            made = directory / "kernel_drops.o"
            compile_source(_SOURCE, made, includes=[includes], defines=macros, compiler=compiler)
            content = made.read_bytes()
        # What changed while the compiler read it is not what the key says.
        if cache is not None and sources.is_current() and _SOURCE.read_text() == program:
            cache.put(key, content)
    return content


def _layout(kernel: Btf) -> dict[str, str]:
    """Return the macros that kernel_drops.c wants: offsets in bytes of the running kernel's structs."""
    skb, dev = kernel.struct_layout("sk_buff"), kernel.struct_layout("net_device")
    sock, common = kernel.struct_layout("sock")["__sk_common"], kernel.struct_layout("sock_common")
    namespace, inode = kernel.struct_layout("net")["ns"], kernel.struct_layout("ns_common")["inum"]
    offsets = {
        **{f"SKB_{field.upper()}": skb[field][0] for field in ("dev", "sk", "head", "network_header", "protocol")},
        "DEV_NET": dev["nd_net"][0],
        "DEV_IFINDEX": dev["ifindex"][0],
        "DEV_NAME": dev["name"][0],
        "SOCK_NET": sock[0] + common["skc_net"][0],
        "NET_INODE": namespace[0] + inode[0],
    }
    macros = {f"OFFSET_{name}": str(offset) for name, offset in offsets.items()}
    pointer = kernel[kernel.find("btf_trace_kfree_skb", TypeKind.TYPEDEF)].value
    if kernel[kernel[pointer].value].vlen >= _WITH_RX_SK:
        macros["HAS_RX_SK"] = ""
    return macros


def by_netkit(drops: Sequence[KernelDrop]) -> Sequence[KernelDrop]:
    """Return the drops with their reason NETKIT where a netkit device did what its program said."""
    if not any(drop.reason == NOT_SPECIFIED for drop in drops):
        return drops
    code = extent("netkit_xmit")
    found = [drop.reason == NOT_SPECIFIED and drop.location in code for drop in drops]
    return [replace(drop, reason=NETKIT) if yes else drop for drop, yes in zip(drops, found, strict=True)]


class KernelDrops:
    """Collects the kernel's drops in the namespaces that `watch` names; call `drain` ten times a second.

    A context manager. Entering it raises DropsUnavailable.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._records: list[bytes] = []
        self._decoded: list[KernelDrop] = []
        self._reasons: Mapping[int, str] = {}
        self._namespaces: frozenset[int] = frozenset()
        self._watched: int
        self._reader: PerfReader

    def __enter__(self) -> Self:
        made = tracing()
        self._reasons = made.reasons
        with ExitStack() as stack:
            try:
                loaded = stack.enter_context(Collection.load(made.spec, pin_dir=None))
                self._reader = stack.enter_context(PerfReader(loaded.maps["kernel_drops"], wakes=False))
                self._watched = loaded.maps["watched"].fd
                stack.callback(os.close, bpf.raw_tracepoint_open("kfree_skb", loaded.programs["tell_drop"].fd))
            except BpfError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP):
                    raise DropsUnavailable(str(error)) from error
                raise
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def watch(self, namespaces: Iterable[int]) -> None:
        """Watch these namespaces, by their inode numbers, and no others from now on; call it inside the context."""
        wanted = frozenset(namespaces)
        for netns in wanted - self._namespaces:
            bpf.map_update(self._watched, struct.pack("=I", netns), struct.pack("=I", 1))
        for netns in self._namespaces - wanted:
            bpf.map_delete(self._watched, struct.pack("=I", netns))
        self._namespaces = wanted

    @property
    def precise(self) -> bool:
        """Whether the kernel tells drops from packets that have arrived, or that a closed socket had not read.

        Linux before 6.7 frees these without a reason, like many drops.
        """
        return QUEUE_PURGE in self._reasons.values()

    @property
    def lost(self) -> int:
        """Drops that did not fit the rings between two calls of `drain` until now, and are in no event."""
        return self._reader.lost

    @property
    def events(self) -> tuple[KernelDrop, ...]:
        """The drops up to the last `drain`, in the order of their times."""
        self._decoded += by_netkit(list(map(self._decode, self._records)))
        self._records.clear()
        return tuple(sorted(self._decoded, key=lambda drop: drop.time_ns))

    def drain(self) -> None:
        """Read what the kernel has dropped since the last time. The rings hold about 1,000 drops for each CPU."""
        for sample in self._reader.read(0.0):
            if sample.data:
                self._records.append(sample.data)

    def _decode(self, record: bytes) -> KernelDrop:
        time_ns, location, netns, number, ifindex, kind, length, name, packet = RECORD.unpack_from(record)
        # A subsystem may add reasons of its own, which are numbers above 65535.
        reason = self._reasons.get(number, f"reason {number}")
        ifname = name.split(b"\0", 1)[0].decode(errors="replace")
        found = decode(socket.ntohs(kind), packet[:length])
        return KernelDrop(time_ns, location, netns, reason, ifindex, ifname, found)
