"""A node and its loader as an agent knows them: what the programs are built for, and what others have changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypedDict

from datapath.endpoint import Attachment, Endpoint
from datapath.kernel.map import Map
from datapath.kernel.tcx import chosen
from datapath.loader import Loader
from datapath.object.spec import CollectionSpec
from datapath.reload.plans import OVERLAY_SUBJECT, XDP_SUBJECT
from lab.agent import mapfill
from lab.agent.generations import next_generation
from lab.node.node import Node, UnknownTarget
from lab.node.topology import HEALTH, HOST
from lab.system.cache import cache_directory


class NodeOptions(TypedDict, total=False):
    """The options of a ManagedNode, for those that hand them on."""

    library: Path | None
    clang: str | None
    templates: Path | None
    defines: Sequence[tuple[str, str]]
    verifiers: int | None
    filter_priority: int
    on_compile: Callable[..., None] | None
    attach: Attachment
    all_programs: bool
    gated: Sequence[Path]


class ManagedNode:
    """The loader of one node, with its configuration.

    `all_programs` loads those that nothing reaches as well. Files below the directories `gated` are calls of the gates
    too.
    `defines` are further macros for every program, as -D options; `library` the C sources, ours by default, `clang` the
    compiler, `templates` a directory that nodes share, so that each template is compiled once for all of them.
    """

    def __init__(
        self,
        node: Node,
        *,
        library: Path | None = None,
        clang: str | None = None,
        templates: Path | None = None,
        defines: Sequence[tuple[str, str]] = (),
        verifiers: int | None = None,
        filter_priority: int = 1,
        on_compile: Callable[..., None] | None = None,
        attach: Attachment = Attachment.TC,
        all_programs: bool = False,
        gated: Sequence[Path] = (),
    ) -> None:
        self.node = node
        self.gated = tuple(gated)
        config = node.datapath_config(library=library, clang=clang)
        self.config = replace(
            config,
            defines=tuple(defines),
            filter_priority=filter_priority,
            shared_templates=templates,
            object_cache=cache_directory(),
            attach=chosen(attach),
            all_programs=all_programs,
        )
        self.loader = Loader(self.config, verifiers=verifiers, on_new_map=self._fill, on_compile=on_compile)
        self._seen, self._known = (node.spec, node.facts), (config.node, config.xdp)

    @property
    def subjects(self) -> tuple[str, ...]:
        """What can be reloaded, in the order of an agent's start: XDP, the host, the overlay, the pods."""
        return (*self.node_subjects, HEALTH, *(pod.name for pod in self.node.pods))

    @property
    def node_subjects(self) -> tuple[str, ...]:
        """The subjects that belong to the node itself; without a tunnel it has no overlay."""
        xdp = (XDP_SUBJECT,) if self.config.xdp is not None else ()
        return (*xdp, HOST, OVERLAY_SUBJECT) if self.node.spec.tunnel else (*xdp, HOST)

    def check(self, *names: str) -> None:
        """Raise UnknownTarget for a name that is none of `subjects`."""
        for name in names:
            if name not in self.subjects:
                raise UnknownTarget(self.node.name, f"endpoint {name}", self.subjects)

    @property
    def endpoint_routes(self) -> bool:
        return self.config.node.endpoint_routes

    def configure(self, **changes: Any) -> None:
        """Change fields of the datapath's configuration; they take effect with the next reload."""
        self.config = replace(self.config, **changes)
        self.loader.configure(self.config)

    def _refresh(self) -> None:
        """Know what others have changed of the node: its pods, and what its programs are built for."""
        self.node.refresh()
        seen = (self.node.spec, self.node.facts)
        if seen[0] is self._seen[0] and seen[1] is self._seen[1]:
            return
        (known, xdp), config = self._known, self.node.datapath_config()
        now = config.node
        self._seen, self._known = seen, (now, config.xdp)
        # Only those: the others may have been configured otherwise on purpose.
        changed = {f.name: getattr(now, f.name) for f in fields(now) if getattr(now, f.name) != getattr(known, f.name)}
        if changed:
            self.configure(node=replace(self.config.node, **changed))
        if config.xdp != xdp:
            self.configure(xdp=config.xdp)

    def host_spec(self, *, cancel: threading.Event | None = None) -> CollectionSpec:
        """Return what the host's object defines, compiled if it must be."""
        return self.loader.templates.fetch(self.endpoint(HOST), cancel=cancel).image.spec

    def endpoint(self, name: str) -> Endpoint:
        """Return the endpoint as it would be reloaded now."""
        found = self.node.endpoint(name)
        return found if found.is_host else found.with_endpoint_routes(self.endpoint_routes)

    def next_generation(self) -> int:
        """Return the number of the next load on this node; no two loads have the same, in whatever process."""
        return next_generation(self.config.state / "generation")

    def _fill(self, target: Map) -> None:
        mapfill.fill(self.node, target)
