"""Templates: one compilation for all endpoints whose programs differ in constants and names only.

The cache follows pkg/datapath/loader/cache.go and hash.go: the hash covers everything that the compiler sees and
nothing that is substituted afterwards; N callers of one hash make one clang, between threads and between processes.

What is compiled here may have been compiled for another node before: `DatapathConfig.object_cache`.
"""

from __future__ import annotations

import enum
import hashlib
import platform
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

from bpf import LIBRARY
from datapath.base.locks import DirectoryLock, acquire_thread_lock
from datapath.base.mapnames import POLICY, POLICY_V2
from datapath.base.timing import VerifyTimes
from datapath.build import headers
from datapath.build.compile import DEFAULT_TIMEOUT, Compiler, compile_source, place, probe_compiler, scratch_prefix
from datapath.build.objectcache import ObjectCache, key_of
from datapath.build.sources import Sources, SourceTree, policy_map_prefix
from datapath.endpoint import DatapathConfig, Endpoint, Interface, NodeConfig
from datapath.errors import CompileError, ObjectError
from datapath.kernel import xdp
from datapath.object.reachability import pruned
from datapath.object.reader import ObjectImage, read_object
from datapath.object.spec import CollectionSpec, Substitution

_ATTEMPTS = 3
"""How often a template's directory may vanish, or the sources change, under a compilation before that is an error."""

_REMEMBERED = 16
"""Objects that a process keeps parsed for caches that it makes later, of other nodes say; one takes some megabytes."""

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


@dataclass(frozen=True, slots=True)
class _Base:
    """What the requests of one node configuration have in common (objectCache.baseHash)."""

    node: NodeConfig
    devices: tuple[str, ...]
    compiler: Compiler
    files: Mapping[str, str]
    digest: hashlib._Hash


@dataclass(frozen=True, slots=True)
class _Request:
    """Everything that one compilation depends on; `files` are the generated headers by name."""

    kind: Kind
    hash: str
    sources: Sources
    library: Path
    directory: Path
    files: Mapping[str, str]
    defines: tuple[tuple[str, str], ...]
    compiler: Compiler
    werror: bool

    @property
    def path(self) -> Path:
        return self.directory / self.kind.object


class _SourcesChanged(Exception):
    """The compiler may have read other sources than those of the hash: its object, or its verdict, is of no use."""


@dataclass(slots=True)
class _Slot:
    """What this process knows about one hash. All but `lock` is read and written under `lock`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    template: Template | None = None
    stamp: tuple[int, ...] = ()
    failures: int = 0
    failure: CompileError | None = None


class TemplateCache:
    """Fetches templates, compiling what is missing. Safe for many threads and for many processes on one directory.

    `werror` makes warnings errors; by default that is so for our own sources only. `on_compile` is called, in the
    compiling thread, before each clang.
    """

    def __init__(
        self,
        config: DatapathConfig,
        *,
        compiler: Compiler | None = None,
        werror: bool | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        on_compile: Callable[[Kind, str], None] | None = None,
    ) -> None:
        self._config = config
        self._compiler = compiler
        self._werror = config.library == LIBRARY if werror is None else werror
        self._timeout = timeout
        self._on_compile = on_compile
        self._sources = SourceTree(config.library)
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot] = {}
        self._base: _Base | None = None
        self._requests: dict[tuple[Endpoint, Sources], _Request] = {}

    @property
    def directory(self) -> Path:
        return self._config.templates

    @property
    def images(self) -> tuple[ObjectImage, ...]:
        """The objects of the templates that this process has read."""
        templates = [slot.template for slot in list(self._slots.values())]
        return tuple(template.image for template in templates if template is not None)

    def update(self, config: DatapathConfig) -> None:
        """Take another configuration: from now on hashes are those of its node and its defines (objectCache.Update)."""
        # In this order: a request that is made meanwhile must not be remembered for the new configuration.
        self._config = config
        self._requests = {}

    def inherited(self) -> TemplateCache:
        """Return a cache for a forked process that knows these templates, whoever held their locks at the fork."""
        cache = copy(self)
        cache._lock = threading.Lock()
        cache._sources = self._sources.inherited()
        cache._slots = {
            name: _Slot(template=slot.template, stamp=slot.stamp) for name, slot in list(self._slots.items())
        }
        return cache

    def clear(self) -> None:
        """Remove all templates, as an agent does when it starts (RestoreTemplates). No reload may be under way."""
        with self._lock:
            self._slots.clear()
        with suppress(FileNotFoundError):
            shutil.rmtree(self.directory)

    def hash(self, endpoint: Endpoint) -> str:
        """Return the hash of the template that `endpoint` needs; nothing is compiled."""
        return self._request(endpoint).hash

    def fetch(self, endpoint: Endpoint, *, cancel: threading.Event | None = None) -> Template:
        """Return the template of `endpoint`, compiled if it is not there.

        Raises CompileError, Cancelled (once `cancel` is set, while waiting too), ToolMissing, ObjectError. A caller
        that waited for a compilation that failed gets the same error and does not compile again.
        """
        return self.fetch_timed(endpoint, cancel=cancel).template

    def fetch_overlay(self, *, cancel: threading.Event | None = None) -> Template:
        """Return the object of the tunnel device: compiled like a template, its calls map named at compile time."""
        return self.fetch_overlay_timed(cancel=cancel).template

    def fetch_xdp(self, *, cancel: threading.Event | None = None) -> Template:
        """Return the template of the objects that devices have at XDP."""
        return self._fetch(self._xdp_request, cancel).template

    def fetch_timed(self, endpoint: Endpoint, *, cancel: threading.Event | None = None) -> Fetched:
        """Return the template of `endpoint`, where it came from, and the seconds that it took."""
        return self._fetch(partial(self._request, endpoint), cancel)

    def fetch_overlay_timed(self, *, cancel: threading.Event | None = None) -> Fetched:
        """Return the tunnel device's object, where it came from, and the seconds that it took."""
        return self._fetch(self._overlay_request, cancel)

    def _request(self, endpoint: Endpoint) -> _Request:
        """Return the request for an endpoint's template; those of a node's endpoints are few, and are remembered."""
        known = self._requests
        sources = self._sources.read()
        key = headers.template_endpoint(endpoint), sources
        request = known.get(key)
        if request is None:
            kind = Kind.HOST if endpoint.is_host else Kind.LXC
            policies = policy_map_prefix(self._config.library)
            files = {"ep_config.h": headers.template_header(endpoint, policies=policies)}
            request = known[key] = self._make_request(kind, sources, files, {})
        return request

    def _overlay_request(self) -> _Request:
        return self._make_request(Kind.OVERLAY, self._sources.read(), {}, headers.overlay_defines(self._config.node))

    def _xdp_request(self) -> _Request:
        files, defines = {"filter_config.h": headers.filter_header()}, headers.xdp_defines(frags=xdp.takes_frags())
        return self._make_request(Kind.XDP, self._sources.read(), files, defines)

    def _make_request(
        self, kind: Kind, sources: Sources, files: Mapping[str, str], defines: Mapping[str, str]
    ) -> _Request:
        base, library = self._node_base(), self._config.library
        options = tuple(sorted({**dict(self._config.defines), **defines}.items()))
        digest = base.digest.copy()
        for word in (
            kind.value,
            repr(options),
            sources.digest,
            *(part for item in files.items() for part in item),
        ):
            _add(digest, word)
        name = digest.hexdigest()
        return _Request(
            kind=kind,
            hash=name,
            sources=sources,
            library=library,
            directory=self.directory.absolute() / name,
            files={**base.files, **files},
            defines=options,
            compiler=base.compiler,
            werror=self._werror,
        )

    def _node_base(self) -> _Base:
        """Return the part of all requests that changes with the node only: a fetch is to cost less than a step."""
        node, devices, base = self._config.node, self._config.devices, self._base
        if base is not None and base.node is node and base.devices == devices:
            return base
        compiler = self._probe()
        files = {"node_config.h": headers.node_header(node, devices), "netdev_config.h": headers.netdev_header(node)}
        digest = hashlib.sha256()
        for word in (compiler.version, *compiler.flags(werror=self._werror), *files.values()):
            _add(digest, word)
        self._base = _Base(node, devices, compiler, files, digest)
        return self._base

    def _node(self) -> NodeConfig:
        """Return the node with the -D options, which win over its own."""
        node = self._config.node
        return replace(node, options=(*node.options, *self._config.defines)) if self._config.defines else node

    def _probe(self) -> Compiler:
        with self._lock:
            if self._compiler is None:
                self._compiler = probe_compiler(self._config.clang)
            return self._compiler

    def _fetch(self, ask: Callable[[], _Request], cancel: threading.Event | None) -> Fetched:
        """Fetch what `ask` requests, and ask again if the sources have changed while the compiler read them."""
        for _ in range(_ATTEMPTS):
            request = ask()
            try:
                return self._fetch_request(request, cancel)
            except _SourcesChanged:
                continue
        reason = f"error: {request.library} changed during each of {_ATTEMPTS} compilations: reload when it is complete"
        raise CompileError(request.kind.object, (), reason)

    def _fetch_request(self, request: _Request, cancel: threading.Event | None) -> Fetched:
        with self._lock:
            slot = self._slots.setdefault(request.hash, _Slot())
        failures, started = slot.failures, time.monotonic()
        waited = not slot.lock.acquire(blocking=False)
        if waited:
            acquire_thread_lock(slot.lock, cancel)
        try:
            wait = time.monotonic() - started if waited else 0.0
            if slot.template is not None and slot.stamp == _stamp(request.path):
                return Fetched(slot.template, Origin.WAITED if waited else Origin.HIT, wait_seconds=wait)
            if slot.failure is not None and slot.failures != failures:
                raise CompileError(slot.failure.output, slot.failure.argv, slot.failure.stderr) from slot.failure
            slot.failure = slot.template = None
            try:
                fetched = self._produce(request, slot, cancel)
            except CompileError as error:
                slot.failure, slot.failures = error, slot.failures + 1
                raise
            return replace(fetched, wait_seconds=fetched.wait_seconds + wait)
        finally:
            slot.lock.release()

    def _produce(self, request: _Request, slot: _Slot, cancel: threading.Event | None) -> Fetched:
        """Find or compile the object and parse it; the caller holds the slot's lock."""
        for attempts_left in reversed(range(_ATTEMPTS)):
            with DirectoryLock(request.directory, cancel) as lock:
                found = request.path.is_file()
                try:
                    compiled = 0.0 if found else self._find_or_compile(request, cancel)
                    stamp, started = _stamp(request.path), time.monotonic()
                    image = _parsed(request.path, stamp)
                except (CompileError, ObjectError):
                    # No verdict on the source: an object from the disk was damaged, or the directory went under us.
                    if not attempts_left or (not found and lock.intact()):
                        raise
                    request.path.unlink(missing_ok=True)
                    continue
            parsed = time.monotonic() - started
            origin = Origin.COMPILED if compiled else Origin.WAITED if lock.waited else Origin.HIT
            slot.template = Template(request.hash, request.kind, request.path, image, VerifyTimes(), self._node())
            slot.stamp = stamp
            return Fetched(slot.template, origin, compiled, lock.waited, parsed)
        raise CompileError(request.kind.object, (), f"error: {request.directory} is removed again and again")

    def _find_or_compile(self, request: _Request, cancel: threading.Event | None) -> float:
        """Take the object that another node has compiled, or compile it; return the seconds that the compiler took."""
        cache = None if self._config.object_cache is None else ObjectCache(self._config.object_cache)
        self._write_headers(request)
        key = _key(request)
        content = None if cache is None else cache.get(key)
        if content is not None:
            place(request.path, content)
            return 0.0
        read: set[Path] = set()
        seconds = self._compile(request, read, cancel)
        generated = {path for path in read if path.parent == request.directory}
        # An object of a source that the hash does not cover is nobody else's.
        if cache is not None and request.sources.covers(read - generated):
            cache.put(key, request.path.read_bytes())
        return seconds

    def _write_headers(self, request: _Request) -> None:
        """Write the generated headers under the directory's lock."""
        try:
            # What a killed process left; nobody else works here while we hold the lock.
            for scratch in request.directory.glob(f"{scratch_prefix(request.path)}*"):
                shutil.rmtree(scratch, ignore_errors=True)
            for name, text in request.files.items():
                (request.directory / name).write_text(text)
        except OSError as error:
            reason = f"error: failed to write template header: {error.filename or request.directory}: {error.strerror}"
            raise CompileError(request.kind.object, (), reason) from error

    def _compile(self, request: _Request, read: set[Path], cancel: threading.Event | None) -> float:
        """Compile under the directory's lock and return the seconds that it took; add what was read to `read`."""
        if self._on_compile is not None:
            self._on_compile(request.kind, request.hash)
        started = time.monotonic()
        try:
            compile_source(
                request.library / request.kind.source,
                request.path,
                # The node's headers lie beside ep_config.h, not in one place for all: another process may compile
                # another configuration of the same node at this moment.
                includes=(request.directory, request.library, request.library / "include"),
                defines=request.defines,
                compiler=request.compiler,
                werror=request.werror,
                timeout=self._timeout,
                cancel=cancel,
                names={request.directory: "template", request.library: "bpf"},
                read=read,
                confirm=partial(self._confirm, request),
            )
        except CompileError:
            self._confirm(request)
            raise
        return time.monotonic() - started

    def _confirm(self, request: _Request) -> None:
        """Raise _SourcesChanged unless the compiler has read what the request's hash says."""
        if self._sources.read().files != request.sources.files:
            raise _SourcesChanged


def _add(digest: hashlib._Hash, word: str) -> None:
    """Add a word with its length: two different lists of words give two different digests."""
    digest.update(f"{len(word)}\0{word}".encode())


def _key(request: _Request) -> str:
    """Return the name of a request's object among those of all nodes: what it is made of, and by what, and where."""
    return key_of(request.hash, request.compiler.identity(), platform.machine())


@lru_cache(maxsize=_REMEMBERED)
def _parsed(path: Path, stamp: tuple[int, ...]) -> ObjectImage:
    """Read the object at `path`; once in a process, as long as its stamp says that it is the same file."""
    image = read_object(path)
    image.spec.check()
    return image


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what tells one file from another of the same name; () if there is none."""
    try:
        info = path.stat()
    except OSError:
        return ()
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns
