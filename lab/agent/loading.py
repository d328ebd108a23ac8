"""A node whose programs another loader may load: what that does, and what is left to our own pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn, Unpack

from datapath.endpoint import Attachment, DatapathConfig, Endpoint
from datapath.reload.plans import OVERLAY_SUBJECT, XDP_SUBJECT
from datapath.reload.step import Plan
from lab.agent.exclusion import ExclusiveNode
from lab.agent.managed import NodeOptions
from lab.loaders import protocol
from lab.loaders.client import LoaderClient
from lab.loaders.command import BUILTIN, LoaderCommand
from lab.loaders.plan import loader_plan
from lab.loaders.requests import describe_node, unload_request
from lab.node.node import Node
from lab.node.topology import HOST

ENABLE_HOST_FIREWALL = "ENABLE_HOST_FIREWALL"
"""The macro with which the host's programs ask its policy."""

KINDS_OF_SUBJECTS = {HOST: protocol.HOST, OVERLAY_SUBJECT: protocol.OVERLAY, XDP_SUBJECT: XDP_SUBJECT}
"""What a subject is to a loader, if it is no pod. XDP is for ours alone."""


class LoadedOptions(NodeOptions, total=False):
    """The options of a LoadedNode, for those that hand them on."""

    loader: LoaderCommand | None


class LoadedNode(ExclusiveNode):
    """A node and who loads its programs.

    With `loader`, that command loads them, not our own pipeline (`external` is its client then); what kinds it does
    not support are loaded by ours, and counted in `not_supported`, as reloads with macros that it does not know; what
    nobody else can do for it is NotSupported, and stays in `refused`.
    """

    def __init__(self, node: Node, *, loader: LoaderCommand | None = None, **options: Unpack[NodeOptions]) -> None:
        super().__init__(node, **options)
        self.external = None if loader is None else LoaderClient(loader, self._describe)
        self.not_supported = Counter[str]()
        self.refused: list[protocol.NotSupported] = []
        self._on_start: Callable[[int], object] | None = None

    def check_abilities(self) -> None:
        """Raise NotSupported if the loader cannot do what the node is to have."""
        if self.external is None:
            return
        if self.config.datapath_mode != "veth":
            self.refuse("pods with netkit devices")
        if self.config.attach is Attachment.TCX:
            self.require(protocol.TCX, "tcx")
        if ENABLE_HOST_FIREWALL in self.unreached_macros:
            self.refuse(f"the host's firewall ({ENABLE_HOST_FIREWALL})")

    @property
    def unreached_macros(self) -> frozenset[str]:
        """The names of the macros that do not reach the loader's programs: those of one that compiles by itself."""
        if self.external is None or not self.external.greeting.compiles:
            return frozenset()
        known = {ENABLE_HOST_FIREWALL} if self.external.supports(protocol.HOST_FIREWALL) else set()
        return frozenset(dict(self.config.defines)) - known

    def require_macros(self) -> None:
        """Raise NotSupported if the macros of the lab do not reach the loader's programs."""
        if self.external is not None and self.external.greeting.compiles:
            self.refuse("other macros: it compiles by itself")

    def require_reached(self, macros: Iterable[str]) -> None:
        """Raise NotSupported if one of these macros is among those that do not reach the loader's programs."""
        missing = sorted(self.unreached_macros.intersection(macros))
        if missing:
            self.refuse(f"{', '.join(missing)}: it compiles by itself")

    def by_loader(self, plan: Plan) -> Plan:
        """Return the plan of the loader that does it: ours, unless another one supports it."""
        external, kind = self.external, KINDS_OF_SUBJECTS.get(plan.subject, protocol.POD)
        if external is None or not external.supports(kind):
            return plan
        self.check_abilities()
        if self.endpoint_routes and kind == protocol.POD:
            self.require(protocol.ENDPOINT_ROUTES, "endpoint routes")
        return loader_plan(plan, external, self.config)

    def loads_itself(self, subjects: Iterable[str] = ()) -> bool:
        """Tell whether our own pipeline loads some of these, or of all, and not another loader."""
        external, names = self.external, tuple(subjects) or self.subjects
        kinds = {KINDS_OF_SUBJECTS.get(name, protocol.POD) for name in names}
        return external is None or not all(external.supports(kind) for kind in kinds)

    def unload(self, name: str, *, forget: Callable[[], object], discard: Callable[[], object]) -> None:
        """Take a pod out of the datapath; `forget` is where the control plane drops its own entries.

        `discard` removes the pod, before somebody else can have its lock, which the caller holds.
        """
        endpoint = self.endpoint(name)
        self.loader.unload_locked(endpoint, forget=forget, detach=self._detach(endpoint, name), discard=discard)

    def unload_endpoint(self, endpoint: Endpoint, name: str, *, forget: Callable[[], object]) -> None:
        """Do the same with an endpoint that the node has no more; `name` is what a loader is told. Takes the lock."""
        self.loader.unload(endpoint, forget=forget, detach=self._detach(endpoint, name))

    def require_unload(self) -> None:
        """Raise NotSupported if the loader cannot remove a pod's programs."""
        self.require(protocol.UNLOAD, "the removal of a pod's programs")

    def _detach(self, endpoint: Endpoint, name: str) -> Callable[[], object] | None:
        """Return what removes an endpoint's routes and programs if another loader does that."""
        external = self.external
        if external is None:
            return None
        self.require_unload()
        request = unload_request(self.config, name, endpoint)
        return lambda: external.ask(request)

    def require(self, ability: str, what: str) -> None:
        """Raise NotSupported for what needs an ability that the loader has not declared; ours has all of them."""
        if self.external is not None and not self.external.supports(ability):
            self.refuse(what)

    def refuse(self, what: str) -> NoReturn:
        """Raise NotSupported for something that the loader does not do."""
        error = protocol.NotSupported(BUILTIN if self.external is None else self.external.name, what)
        self.refused.append(error)
        raise error

    def _describe(self) -> tuple[DatapathConfig, dict[str, Any]]:
        """Return what a loader that is not ours is told of the node."""
        return self.config, describe_node(self.node, self.config)

    @contextmanager
    def as_worker(
        self, *, verifiers: int | None, patience: float = 1.0, on_start: Callable[[int], object] | None = None
    ) -> Iterator[None]:
        """Be the copy of a reloader in a forked process, with a loader of its own (LoaderClient.inherited)."""
        with ExitStack() as stack:
            self.loader = stack.enter_context(self.loader.inherited(verifiers=verifiers))
            self._on_start = on_start
            if self.external is not None:
                self.external = stack.enter_context(self.external.inherited(patience=patience, on_start=on_start))
            yield

    @contextmanager
    def loading_with(self, loader: LoaderCommand | None) -> Iterator[None]:
        """Have another loader load meanwhile, in a process of its own; None: our own pipeline.

        For the copy of a reloader in a forked process, where nobody else reloads.
        """
        with ExitStack() as stack:
            stack.callback(setattr, self, "external", self.external)
            self.external = None
            if loader is not None:
                client = LoaderClient(loader, self._describe, on_start=self._on_start)
                self.external = stack.enter_context(client)
            self.check_abilities()
            yield
