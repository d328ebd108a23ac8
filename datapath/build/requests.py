"""What a template is made of: the request for one compilation, under a hash of all that the compiler sees.

The hash follows pkg/datapath/loader/hash.go: it covers nothing that is substituted afterwards.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

from datapath.build import headers
from datapath.build.compile import Compiler, probe_compiler
from datapath.build.objectcache import key_of
from datapath.build.sources import Sources, SourceTree, policy_map_prefix
from datapath.build.template import Kind
from datapath.endpoint import DatapathConfig, Endpoint, NodeConfig
from datapath.kernel import xdp


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that one compilation depends on; `files` are the generated headers by name.

    `node` has the -D options, which win over its own.
    """

    kind: Kind
    hash: str
    sources: Sources
    library: Path
    directory: Path
    files: Mapping[str, str]
    defines: tuple[tuple[str, str], ...]
    compiler: Compiler
    werror: bool
    node: NodeConfig

    @property
    def path(self) -> Path:
        return self.directory / self.kind.object

    @property
    def key(self) -> str:
        """The name of the object among those of all nodes: what it is made of, and by what, and where."""
        return key_of(self.hash, self.compiler.identity(), os.uname().machine)


@dataclass(frozen=True, slots=True)
class _Base:
    """What the requests of one node configuration have in common (objectCache.baseHash)."""

    node: NodeConfig
    devices: tuple[str, ...]
    compiler: Compiler
    files: Mapping[str, str]
    digest: hashlib._Hash


class Requests:
    """Makes the requests of a node. Safe for many threads."""

    def __init__(self, config: DatapathConfig, compiler: Compiler | None, *, werror: bool) -> None:
        self._config = config
        self._compiler = compiler
        self._werror = werror
        self._sources = SourceTree(config.library)
        self._lock = threading.Lock()
        self._base: _Base | None = None
        self._made: dict[tuple[Endpoint, Sources], Request] = {}

    def update(self, config: DatapathConfig) -> None:
        """Take another configuration: from now on hashes are those of its node and its defines."""
        # In this order: a request that is made meanwhile must not be remembered for the new configuration.
        self._config = config
        self._made = {}

    def inherited(self) -> Requests:
        """Return the same for a forked process, whoever held the locks at the fork."""
        requests = copy(self)
        requests._lock = threading.Lock()
        requests._sources = self._sources.inherited()
        return requests

    def endpoint(self, endpoint: Endpoint) -> Request:
        """Return the request for an endpoint's template; those of a node's endpoints are few, and are remembered."""
        known = self._made
        sources = self._sources.read()
        key = headers.template_endpoint(endpoint), sources
        request = known.get(key)
        if request is None:
            kind = Kind.HOST if endpoint.is_host else Kind.LXC
            policies = policy_map_prefix(self._config.library)
            files = {"ep_config.h": headers.template_header(endpoint, policies=policies)}
            request = known[key] = self._make(kind, sources, files, {})
        return request

    def overlay(self) -> Request:
        """Return the request for the object of the tunnel device."""
        return self._make(Kind.OVERLAY, self._sources.read(), {}, headers.overlay_defines(self._config.node))

    def xdp(self) -> Request:
        """Return the request for the template of the objects that devices have at XDP."""
        files, defines = {"filter_config.h": headers.filter_header()}, headers.xdp_defines(frags=xdp.takes_frags())
        return self._make(Kind.XDP, self._sources.read(), files, defines)

    def is_current(self, request: Request) -> bool:
        """Tell whether the sources are still those of a request."""
        return self._sources.read().files == request.sources.files

    def _make(self, kind: Kind, sources: Sources, files: Mapping[str, str], defines: Mapping[str, str]) -> Request:
        config = self._config
        base = self._node_base(config)
        options = tuple(sorted({**dict(config.defines), **defines}.items()))
        digest = base.digest.copy()
        for word in (
            kind.value,
            repr(options),
            sources.digest,
            *(part for item in files.items() for part in item),
        ):
            _add(digest, word)
        name = digest.hexdigest()
        return Request(
            kind=kind,
            hash=name,
            sources=sources,
            library=config.library,
            directory=config.templates.absolute() / name,
            files={**base.files, **files},
            defines=options,
            compiler=base.compiler,
            werror=self._werror,
            node=replace(config.node, options=(*config.node.options, *config.defines)),
        )

    def _node_base(self, config: DatapathConfig) -> _Base:
        """Return the part of all requests that changes with the node only: a fetch is to cost less than a step."""
        node, devices, base = config.node, config.devices, self._base
        if base is not None and base.node is node and base.devices == devices:
            return base
        compiler = self._probe(config.clang)
        files = {"node_config.h": headers.node_header(node, devices), "netdev_config.h": headers.netdev_header(node)}
        digest = hashlib.sha256()
        for word in (compiler.version, *compiler.flags(werror=self._werror), *files.values()):
            _add(digest, word)
        self._base = made = _Base(node, devices, compiler, files, digest)
        return made

    def _probe(self, clang: str | None) -> Compiler:
        with self._lock:
            if self._compiler is None:
                self._compiler = probe_compiler(clang)
            return self._compiler


def _add(digest: hashlib._Hash, word: str) -> None:
    """Add a word with its length: two different lists of words give two different digests."""
    digest.update(f"{len(word)}\0{word}".encode())
