"""The plans that the systematic faults are made from, and how a step of any plan is found again in them.

A plan is one of four: of a pod without and with endpoint routes, of the host, of the overlay. A step is known by its
name and, in the host's plan, by the object or interface that it is for.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from datapath.endpoint import HOST_ID, LABEL_HOST, DatapathConfig, Endpoint, Interface, NodeConfig
from datapath.reload.plans import (
    CILIUM_HOST,
    CILIUM_NET,
    CILIUM_WG,
    OVERLAY_SUBJECT,
    XDP_SUBJECT,
    host_plan,
    overlay_plan,
    pod_plan,
)
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Detach, InstallRoutes

POD, POD_ROUTES, HOST, OVERLAY = "pod", "pod-routes", "host", "overlay"
DEVICE, OBSOLETE = "device", "obsolete"
"""Steps of the host's plan for a native device, and for an interface that is none any more."""

_MAC = "02:00:00:00:00:01"
_NOWHERE = Path("/nonexistent")


def models() -> dict[str, Plan]:
    """Return one plan of each shape, as the pipeline makes it; nothing of them can be applied."""
    names = (CILIUM_HOST, CILIUM_NET, "eth0", CILIUM_WG, "old")
    links = {name: Interface(name, index, _MAC) for index, name in enumerate(names)}
    config = DatapathConfig(
        library=_NOWHERE,
        state=_NOWHERE,
        bpffs=_NOWHERE,
        netns=_NOWHERE,
        node=NodeConfig(IPv4Address("10.0.0.1"), IPv6Address("fd00::1"), 1, _MAC, 2, _MAC, 3, _MAC, 1500),
        # The second never has an egress program, as any device whose egress program is not required.
        devices=("eth0", CILIUM_WG),
    )
    pod = Endpoint(1, "lxc1", _MAC, _MAC, IPv4Address("10.0.0.2"), IPv6Address("fd00::2"), 1000)
    host = Endpoint(
        2, CILIUM_HOST, _MAC, _MAC, IPv4Address("10.0.0.1"), IPv6Address("fd00::1"), HOST_ID, frozenset({LABEL_HOST})
    )
    return {
        POD: pod_plan(config, pod, subject="pod-1"),
        POD_ROUTES: pod_plan(config, pod.with_endpoint_routes(True), subject="pod-1"),
        HOST: host_plan(config, host, links, subject="host"),
        OVERLAY: overlay_plan(config, 1),
    }


def shape_of(plan: Plan) -> str:
    """Return which of the four a plan is; the corpus has no systematic faults for that of XDP."""
    if plan.subject in (OVERLAY_SUBJECT, XDP_SUBJECT):
        return OVERLAY if plan.subject == OVERLAY_SUBJECT else XDP_SUBJECT
    if any(CILIUM_NET in step.target for step in plan.steps):
        return HOST
    return POD_ROUTES if any(isinstance(step, InstallRoutes) for step in plan.steps) else POD


def place_of(plan: Plan, step: Step) -> str:
    """Return what a step is for, where a plan has several of its name: only the host's has."""
    if shape_of(plan) != HOST or step.name in ("compile", "insert policy", "commit"):
        return ""
    if isinstance(step, Detach) and not step.required:
        return OBSOLETE
    if CILIUM_NET in step.target:
        return CILIUM_NET
    return CILIUM_HOST if step.target in (CILIUM_HOST, "bpf_host.o") else DEVICE
