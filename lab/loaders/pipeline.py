"""Our own pipeline as a loader like any other: a process in the node that speaks the protocol (`reloadlab loader`).

It loads the object files that the lab has written. Its locks lie in a directory of their own: the lab holds those of
the endpoint and of the maps while it waits for the answer.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from types import FrameType
from typing import Any

from datapath.base.mapnames import endpoint_maps, is_calls_map
from datapath.base.timing import VerifyTimes
from datapath.build.objectfile import ObjectFile
from datapath.build.template import Kind, Template
from datapath.endpoint import LABEL_HOST, Attachment, DatapathConfig, Endpoint, NodeConfig
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.netns import OWN
from datapath.loader import Loader
from datapath.object.reader import read_object
from datapath.reload.outcome import Outcome
from datapath.reload.prepare import Compile, WriteObject
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Commit
from datapath.reload.unload import detach_endpoint
from datapath.reload.workspace import LoadedObject, Workspace
from lab.loaders.protocol import ABILITIES, VERSION
from lab.loaders.serving import BadRequest, reading, serve
from lab.system.signals import SignalEvent

NAME = "pipeline"

_DIRECTORY = "loader"


@dataclass(frozen=True)
class GivenObject(ObjectFile):
    """An object file that the lab has put into its place: it is neither written nor published here."""

    def publish(self) -> None:
        """Do nothing: it is there."""

    def retract(self) -> None:
        """Do nothing: who has put it there takes it back."""

    def settle(self) -> None:
        """Do nothing: who has put it there has the former one."""


@dataclass(frozen=True)
class TakeObject(Step):
    """Read an object file as it is."""

    object: ObjectFile
    programs: tuple[str, ...]
    verify_times: dict[Kind, VerifyTimes]

    name = "take object"

    def describe(self) -> str:
        return f"read {self.object.path}"

    def apply(self, work: Workspace) -> None:
        image = read_object(self.object.path)
        image.spec.check()
        kind, endpoint = self.object.kind, self.object.endpoint
        times = self.verify_times.setdefault(kind, VerifyTimes())
        template = work.template[kind] = Template("given", kind, self.object.path, image, times)
        own = {name for name in image.spec.maps if is_calls_map(name)}
        own |= set() if endpoint is None else set(endpoint_maps(endpoint.id))
        work.objects[self.object.name] = LoadedObject(work.wanted(template, self.programs), own_maps=frozenset(own))


class Pipeline:
    """Answers requests about one node. A context manager, which keeps what the pipeline keeps between reloads."""

    supports: tuple[str, ...] = ABILITIES
    more: Mapping[str, Any] = {}
    """What else the answer to `hello` says."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._loader: Loader | None = None
        self._verify_times: dict[Kind, VerifyTimes] = {}
        self.cancel = SignalEvent()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what is asked, and return what there is to say of it; BadRequest, and what the pipeline raises."""
        match request["request"]:
            case "hello":
                return self._hello(request)
            case "reload":
                return self._reload(request)
            case "unload":
                return self._unload(request)
        raise BadRequest(f"unknown request {request['request']}")

    def _hello(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with reading():
            version, config = request["version"], _config(request["node"])
        if version != VERSION:
            raise BadRequest(f"version {version} of the protocol is not spoken here")
        self._stack.close()
        self._loader = self._stack.enter_context(Loader(config))
        return {"name": NAME, "version": VERSION, "supports": list(self.supports), **self.more}

    @property
    def loader(self) -> Loader:
        """The pipeline; BadRequest before `hello`."""
        if self._loader is None:
            raise BadRequest("the first request is hello")
        return self._loader

    def _reload(self, request: Mapping[str, Any]) -> dict[str, Any]:
        loader = self.loader
        with reading():
            node = replace(loader.config.node, endpoint_routes=request["endpoint_routes"])
            devices, egress = tuple(request["devices"]), request["egress_devices"]
            loader.configure(replace(loader.config, node=node, devices=devices, egress_devices=egress))
            number = 0 if request["endpoint"] is None else int(request["endpoint"]["id"])
        with loader.lock_endpoint(number, cancel=self.cancel):
            with reading():
                plan = self.plan(request)
            outcome = loader.apply_locked(plan, cancel=self.cancel)
        # The lab has warned of the plan itself.
        return {"spans": _spans(outcome), "warnings": list(outcome.warnings[len(plan.warnings) :])}

    def usual_plan(self, request: Mapping[str, Any]) -> Plan:
        """Return the plan that compiles, writes object files into a directory of its own, and loads them."""
        if request["endpoint"] is None:
            return self.loader.plan_overlay(request["generation"])
        endpoint = replace(_endpoint(request), generation=request["generation"])
        return self.loader.plan(endpoint, subject=request["subject"])

    def plan(self, request: Mapping[str, Any]) -> Plan:
        """Return the usual plan, with the given object files in place of those that it would make."""
        paths = _paths(request)

        def given(item: ObjectFile) -> GivenObject:
            path = Path(paths[item.name])
            return GivenObject(item.kind, path, item.generation, item.endpoint, item.device)

        def change(step: Step) -> Step | None:
            if isinstance(step, Compile):
                return None
            if isinstance(step, WriteObject):
                return TakeObject(step.target, given(step.object), step.programs, self._verify_times)
            if isinstance(step, Commit):
                return replace(step, objects=tuple(map(given, step.objects)))
            return step

        return self.usual_plan(request).change(change)

    def _unload(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with reading():
            endpoint = _endpoint(request)
        directory = self.loader.config.state / str(endpoint.id)
        with NetlinkSocket(OWN) as netlink:
            detach_endpoint(netlink, endpoint)
        with suppress(FileNotFoundError):
            shutil.rmtree(directory)
        return {}


def _config(node: Mapping[str, Any]) -> DatapathConfig:
    host, net, tunnel = node["cilium_host"], node["cilium_net"], node["tunnel"]
    return DatapathConfig(
        library=Path(node["library"]),
        state=Path(node["state"]) / _DIRECTORY,
        bpffs=Path(node["bpffs"]),
        netns=OWN,
        filter_priority=node["filter_priority"],
        attach=Attachment(node["attach"]),
        node=NodeConfig(
            router_ipv4=IPv4Address(node["router_ipv4"]),
            router_ipv6=IPv6Address(node["router_ipv6"]),
            cilium_host_ifindex=host["ifindex"],
            cilium_host_mac=host["mac"],
            cilium_net_ifindex=net["ifindex"],
            cilium_net_mac=net["mac"],
            encap_ifindex=None if tunnel is None else tunnel["ifindex"],
            encap_mac=None if tunnel is None else tunnel["mac"],
            mtu=node["mtu"],
            pod_prefix4=IPv4Network(node["pod_cidr_ipv4"]).prefixlen,
        ),
    )


def _endpoint(request: Mapping[str, Any]) -> Endpoint:
    said = request["endpoint"]
    host = LABEL_HOST in said["labels"]
    endpoint = Endpoint(
        # It names a directory.
        id=int(said["id"]),
        ifname=request["interface"],
        mac=said["mac"],
        node_mac=said["node_mac"],
        ipv4=None if said["ipv4"] is None else IPv4Address(said["ipv4"]),
        ipv6=None if said["ipv6"] is None else IPv6Address(said["ipv6"]),
        identity=said["identity"],
        labels=frozenset(said["labels"]),
        ifindex=None if host else request["ifindex"],
    )
    return endpoint if host else endpoint.with_endpoint_routes(request["endpoint_routes"])


def _paths(request: Mapping[str, Any]) -> dict[str, str]:
    """Return the object files of a request by the names of the files."""
    return {Path(path).name: path for path in (request["object"], *request["objects"].values())}


def _spans(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{span.step} {span.target}",
            "start_ns": span.work.start_ns,
            "end_ns": span.work.end_ns,
        }
        for span in outcome.spans
    ]


def _cancel(pipeline: Pipeline, _: int, __: FrameType | None) -> None:
    pipeline.cancel.set()


def main(kind: type[Pipeline] = Pipeline) -> None:
    """Serve on the standard streams. SIGTERM cancels the request that is being done, and all others."""
    with kind() as pipeline:
        signal.signal(signal.SIGTERM, partial(_cancel, pipeline))
        serve(pipeline.answer, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
