"""Policies on a node: where they are kept, and how the policy maps follow them without a packet noticing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.base.statefile import DamagedFile, read_json, write_json
from datapath.endpoint import LABEL_HOST
from datapath.errors import ReloadlabError
from datapath.kernel.inventory import reach, read_slots
from datapath.kernel.map import Map
from lab.abi import tables
from lab.abi.policymap import PolicyEntry, PolicyKey
from lab.agent.policy import Labels, Policy, PolicyError, changes, resolve
from lab.agent.policyfile import parse
from lab.agent.policymaps import open_policy, pinned_policies
from lab.node import registry
from lab.node.maps import MapNotLoaded, open_if_pinned
from lab.node.node import Node, UnknownTarget
from lab.node.topology import HOST, HOST_ENDPOINT, PodFacts

_FILE = "policies.json"
_HOST_CALLS = "cilium_calls_hostns_"


class PolicyMapFull(ReloadlabError):
    """A policy map that cannot hold what the policies need; nothing was changed."""

    def __init__(self, endpoint: str, needed: int, size: int) -> None:
        super().__init__(f"policy map of {endpoint} is too small: {needed} entries needed, it holds {size}")
        self.endpoint = endpoint
        self.needed = needed
        self.size = size


def stored(node: Node) -> tuple[Policy, ...] | None:
    """Return the policies that hold for a node, None if it was never given any."""
    document = document_of(node)
    try:
        return None if document is None else parse(document)
    except PolicyError as error:
        raise DamagedFile(_path(node), str(error)) from error


def document_of(node: Node) -> object:
    """Return the document that `store` was given, None if there is none."""
    try:
        return read_json(_path(node))
    except FileNotFoundError:
        return None


def store(node: Node, document: object) -> None:
    """Store the policy document atomically; None deletes the stored one."""
    path = _path(node)
    if document is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(path, document)


def _path(node: Node) -> Path:
    return node.root / registry.STATE / _FILE


def check(node: Node, policies: Sequence[Policy]) -> None:
    """Refuse a policy for a missing endpoint: UnknownTarget for a name, PolicyError for labels."""
    here = [name for name, _ in endpoints(node)]
    everywhere = [*endpoints(node), *(end for peer in node.peers for end in endpoints(peer))]
    for policy in policies:
        if not any(policy.is_for(name, labels) for name, labels in everywhere):
            if policy.endpoint is not None:
                raise UnknownTarget(node.name, f"endpoint {policy.endpoint} (of policy {policy.name})", tuple(here))
            raise PolicyError(policy.name, "endpointSelector selects no endpoint")


def endpoints(node: Node) -> Iterator[tuple[str, Labels]]:
    """Yield the name and the labels of every endpoint of a node."""
    yield HOST, frozenset({LABEL_HOST})
    for pod in (node.facts.health, *node.pods):
        yield pod.name, labels_of(pod)


def labels_of(pod: PodFacts) -> Labels:
    """Return a pod's labels. One without any has its name for a label: its identity is its own as well."""
    return pod.labels or frozenset({f"name={pod.name}"})


def identities_of(node: Node) -> dict[int, list[Labels]]:
    """Return which identities pods have in the whole cluster, and the labels for which each of them stands."""
    known: dict[int, list[Labels]] = {}
    for each in (node, *node.peers):
        for pod in (each.facts.health, *each.pods):
            known.setdefault(pod.identity, []).append(labels_of(pod))
    return known


def wanted(node: Node, endpoint_id: int, policies: Sequence[Policy]) -> dict[PolicyKey, bool]:
    """Return the policy map of one endpoint: for every key whether it denies."""
    found = next((end for end in endpoints(node) if _endpoint_id(node, end[0]) == endpoint_id), None)
    if found is None:
        raise UnknownTarget(node.name, f"endpoint with id {endpoint_id}", tuple(name for name, _ in endpoints(node)))
    name, labels = found
    return resolve(policies, name, labels, identities_of(node))


def _endpoint_id(node: Node, name: str) -> int:
    return HOST_ENDPOINT if name == HOST else node.pod(name).endpoint_id


def host_has_firewall(node: Node) -> bool:
    """Tell whether the host's programs ask its policy: those that were built with ENABLE_HOST_FIREWALL do."""
    try:
        with open_policy(node, HOST_ENDPOINT) as rules:
            ident = rules.info.id
    except MapNotLoaded:
        return False
    for path in node.globals.glob(f"{_HOST_CALLS}*"):
        opened = open_if_pinned(path)
        if opened is None:  # a reload is replacing it
            continue
        with opened as calls:
            if ident in reach((read_slots(calls.fd) or {}).values()).maps:
                return True
    return False


@dataclass(frozen=True, slots=True)
class _Change:
    """What is to be written to one endpoint's map."""

    map: Map
    table: tables.Table[PolicyKey, PolicyEntry]
    writes: tuple[tuple[PolicyKey, bool | None], ...]


class PolicyUpdate:
    """Policy maps on their way to other policies: a context manager, that undoes everything if its block fails.

    Entering reads the maps and raises PolicyMapFull before anything is written; with `partly` a map that is too small
    stays as it is, and `fits` is False then. `add` and then `remove` are two steps, because what the identities are
    that the entries speak of changes in between.
    """

    def __init__(self, node: Node, pins: Path, policies: Sequence[Policy], *, partly: bool = False) -> None:
        self._node, self._pins, self._policies, self._partly = node, pins, policies, partly
        self.fits = True
        self._stack = ExitStack()
        self._undo = ExitStack()
        self._changes: list[_Change] = []

    def __enter__(self) -> Self:
        identities = identities_of(self._node)
        with ExitStack() as stack:
            for name, labels in endpoints(self._node):
                target = resolve(self._policies, name, labels, identities)
                # While the map is migrated programs still use the old one, and again if the reload fails.
                for pin in pinned_policies(self._pins, _endpoint_id(self._node, name)):
                    opened = open_if_pinned(pin)
                    if opened is not None:  # a map that is not loaded yet is filled when it is created
                        self._plan(stack.enter_context(opened), name, target)
            self._stack = stack.pop_all()
        return self

    def _plan(self, opened: Map, name: str, target: dict[PolicyKey, bool]) -> None:
        table = tables.POLICY.of(opened)
        present = {key: entry.deny for key, entry in table.items(opened)}
        both = len(present.keys() | target.keys())
        if both > opened.info.max_entries:
            if not self._partly:
                raise PolicyMapFull(name, both, opened.info.max_entries)
            self.fits = False
            return
        self._changes.append(_Change(opened, table, tuple(changes(present, target))))

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._undo.pop_all()
        with self._stack:
            self._undo.close()

    def add(self) -> None:
        """Write what is new, in all maps, before anything goes."""
        self._write(deleting=False)

    def remove(self) -> None:
        """Delete what is not wanted any more."""
        self._write(deleting=True)

    def _write(self, *, deleting: bool) -> None:
        for change in self._changes:
            for key, deny in change.writes:
                if (deny is None) == deleting:
                    self._set(change, key, deny)

    def _set(self, change: _Change, key: PolicyKey, deny: bool | None) -> None:
        target, table = change.map, change.table
        packed = table.key.pack(key)
        # Before the write: a signal may come right after it.
        self._undo.callback(_restore, target, packed, target.lookup(packed))
        if deny is None:
            target.delete(packed)
        else:
            target.update(packed, table.value.pack(key.entry(deny=deny)))


def _restore(target: Map, key: bytes, value: bytes | None) -> None:
    if value is None:
        target.delete(key)
    else:
        target.update(key, value)
