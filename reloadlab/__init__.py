"""Everything that a suite of your own imports: `from reloadlab import Gate, NodeSpec, Scenario`.

Importing this module loads nothing; a name is loaded when it is first used. The modules behind the names may move, the
names stay. docs/suite.md of the project shows how to use them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpf import is_ours
    from datapath.base.bpftypes import MapType, ProgType
    from datapath.base.mapnames import CT_MAPS, map_names
    from datapath.endpoint import HOST_ID, REMOTE_NODE_ID, WORLD_ID, Attachment, XdpMode
    from datapath.errors import Cancelled, LinkNotFound, ReloadlabError, VerifierError
    from datapath.kernel.bpf import prog_load
    from datapath.kernel.hooks import Direction, Filter, HookTaken, attach, detach, filters
    from datapath.kernel.inventory import program_by_id
    from datapath.kernel.links import AttachType
    from datapath.kernel.links import create as create_link
    from datapath.kernel.links import pinned as pinned_link
    from datapath.kernel.map import open_pin
    from datapath.kernel.netkit import is_supported as netkit_is_supported
    from datapath.kernel.netlink import NLM_F_REQUEST, NetlinkSocket
    from datapath.kernel.tcx import is_supported as tcx_is_supported
    from datapath.kernel.uapi import MapInfo
    from datapath.kernel.xdp import Mode as XdpAttachMode
    from datapath.kernel.xdp import attach as attach_xdp
    from datapath.kernel.xdp import detach as detach_xdp
    from datapath.kernel.xdp import takes_frags as xdp_takes_frags
    from datapath.reload.outcome import Outcome
    from datapath.reload.plans import host_plan
    from datapath.reload.step import Plan, Step
    from datapath.reload.workspace import Workspace
    from datapath.reload.xdp import XdpTaken
    from lab.abi.layouts import Program, ipcache_key
    from lab.abi.policymap import POLICY_ENTRY_ALLOW, PolicyEntry, PolicyKey, policy_key_any
    from lab.agent.agent import Agent, Failure
    from lab.agent.cluster import Cluster, cluster_specs
    from lab.agent.policy import PROTOCOLS, cidrs
    from lab.agent.policyfile import parse as parse_policies
    from lab.agent.releasefile import Release, read_releases
    from lab.corpus.loaders import finalize_too_early, keep_old_egress, keep_old_routes, never_finalize, skip_revert
    from lab.gates.call import Call
    from lab.node.masquerade import NoMasquerading, masquerading
    from lab.node.node import Node
    from lab.node.topology import (
        HEALTH,
        HOST,
        NODE,
        OUTSIDE,
        VXLAN_OVERHEAD,
        InvalidSpec,
        NodeSpec,
        PodFacts,
        PodSpec,
    )
    from lab.scenario.gate import BadGate, Gate, GateNeverFired
    from lab.scenario.scenario import ClusterScenario, Scenario
    from lab.scenario.verdict import InvariantsViolated
    from lab.system.netns import enter as enter_netns
    from lab.system.pace import slowness
    from lab.system.sockets import Address, allow_fragments, bound_socket
    from lab.system.tools import run as run_tool
    from lab.traffic.defaults import End, cluster_flows, default_flows, ends, flows_of_each
    from lab.traffic.exchange import DROPPED, IPV4, IPV6, UDP_OR_ECHO, Probe, Result, exchange
    from lab.traffic.flows import Flow
    from lab.traffic.framesocket import FrameSocket
    from lab.traffic.report import Finding, FlowReport, TrafficReport
    from lab.traffic.traffic import Burst, Traffic
    from lab.watch.capture import TunnelCapture
    from lab.watch.invariants import Expected
    from lab.watch.mapview import conntrack as conntrack_rows
    from lab.watch.metrics import EGRESS as METRIC_EGRESS
    from lab.watch.metrics import INGRESS as METRIC_INGRESS
    from lab.watch.metrics import Counters
    from lab.watch.metrics import packets as packet_counters
    from lab.watch.metrics import read as read_counters
    from lab.watch.metrics import rules as rule_counters
    from lab.watch.snapshot import calls_maps
    from lab.watch.snapshot import take as take_snapshot
    from lab.watch.violation import Violation

_NAMES = {
    # Scenarios: nodes under traffic whose invariants are checked.
    "lab.scenario.gate": "BadGate Gate GateNeverFired",
    "lab.gates.call": "Call",
    "lab.scenario.scenario": "ClusterScenario Scenario",
    "lab.scenario.verdict": "InvariantsViolated",
    "lab.watch.invariants": "Expected",
    # Nodes, and what lives on them.
    "lab.agent.agent": "Agent Failure",
    "lab.agent.cluster": "Cluster cluster_specs",
    "lab.node.node": "Node",
    "lab.node.topology": "HEALTH HOST InvalidSpec NODE NodeSpec OUTSIDE PodFacts PodSpec VXLAN_OVERHEAD",
    "lab.agent.releasefile": "Release read_releases",
    "datapath.endpoint": "Attachment HOST_ID REMOTE_NODE_ID WORLD_ID XdpMode",
    # Reloads: their plans and results, and loaders with a fault.
    "datapath.reload.outcome": "Outcome",
    "datapath.reload.plans": "host_plan",
    "datapath.reload.step": "Plan Step",
    "datapath.reload.workspace": "Workspace",
    "datapath.reload.xdp": "XdpTaken",
    "lab.corpus.loaders": "finalize_too_early keep_old_egress keep_old_routes never_finalize skip_revert",
    # Traffic that runs all the time, and single questions.
    "lab.traffic.defaults": "End cluster_flows default_flows ends flows_of_each",
    "lab.traffic.exchange": "DROPPED IPV4 IPV6 Probe Result UDP_OR_ECHO exchange",
    "lab.traffic.flows": "Flow",
    "lab.traffic.framesocket": "FrameSocket",
    "lab.traffic.report": "Finding FlowReport TrafficReport",
    "lab.traffic.traffic": "Burst Traffic",
    "lab.system.pace": "slowness",
    "lab.system.sockets": "Address allow_fragments bound_socket",
    # Policies.
    "lab.agent.policy": "PROTOCOLS cidrs",
    "lab.agent.policyfile": "parse_policies",
    "lab.abi.policymap": "POLICY_ENTRY_ALLOW PolicyEntry PolicyKey policy_key_any",
    # Looking at a node: a snapshot, its maps, its counters, the tunnel's packets.
    "lab.watch.snapshot": "calls_maps take_snapshot",
    "lab.watch.violation": "Violation",
    "lab.watch.metrics": "Counters METRIC_EGRESS METRIC_INGRESS packet_counters read_counters rule_counters",
    "lab.watch.mapview": "conntrack_rows",
    "lab.watch.capture": "TunnelCapture",
    "bpf": "is_ours",
    "datapath.base.mapnames": "CT_MAPS map_names",
    "lab.abi.layouts": "Program ipcache_key",
    # The kernel: hooks, pinned maps, netlink.
    "datapath.base.bpftypes": "MapType ProgType",
    "datapath.kernel.uapi": "MapInfo",
    "datapath.kernel.xdp": "XdpAttachMode attach_xdp detach_xdp xdp_takes_frags",
    "datapath.kernel.hooks": "Direction Filter HookTaken attach detach filters",
    "datapath.kernel.bpf": "prog_load",
    "datapath.kernel.inventory": "program_by_id",
    "datapath.kernel.links": "AttachType create_link pinned_link",
    "datapath.kernel.netkit": "netkit_is_supported",
    "datapath.kernel.tcx": "tcx_is_supported",
    "datapath.kernel.netlink": "NLM_F_REQUEST NetlinkSocket",
    "datapath.kernel.map": "open_pin",
    # What others do on a node.
    "lab.node.masquerade": "NoMasquerading masquerading",
    "lab.system.netns": "enter_netns",
    "lab.system.tools": "run_tool",
    # Errors.
    "datapath.errors": "Cancelled LinkNotFound ReloadlabError VerifierError",
}
"""The public names, by the module that defines them."""

_ORIGINALS = {
    "create_link": "create",
    "pinned_link": "pinned",
    "netkit_is_supported": "is_supported",
    "tcx_is_supported": "is_supported",
    "METRIC_EGRESS": "EGRESS",
    "METRIC_INGRESS": "INGRESS",
    "conntrack_rows": "conntrack",
    "enter_netns": "enter",
    "packet_counters": "packets",
    "read_counters": "read",
    "parse_policies": "parse",
    "rule_counters": "rules",
    "run_tool": "run",
    "XdpAttachMode": "Mode",
    "attach_xdp": "attach",
    "detach_xdp": "detach",
    "xdp_takes_frags": "takes_frags",
    "take_snapshot": "take",
}
"""What those are called in their modules that have another name here."""

_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "CT_MAPS",
    "DROPPED",
    "HEALTH",
    "HOST",
    "HOST_ID",
    "IPV4",
    "IPV6",
    "METRIC_EGRESS",
    "METRIC_INGRESS",
    "NLM_F_REQUEST",
    "NODE",
    "OUTSIDE",
    "POLICY_ENTRY_ALLOW",
    "PROTOCOLS",
    "REMOTE_NODE_ID",
    "UDP_OR_ECHO",
    "VXLAN_OVERHEAD",
    "WORLD_ID",
    "Address",
    "Agent",
    "AttachType",
    "Attachment",
    "BadGate",
    "Burst",
    "Call",
    "Cancelled",
    "Cluster",
    "ClusterScenario",
    "Counters",
    "Direction",
    "End",
    "Expected",
    "Failure",
    "Filter",
    "Finding",
    "Flow",
    "FlowReport",
    "FrameSocket",
    "Gate",
    "GateNeverFired",
    "HookTaken",
    "InvalidSpec",
    "InvariantsViolated",
    "LinkNotFound",
    "MapInfo",
    "MapType",
    "NetlinkSocket",
    "NoMasquerading",
    "Node",
    "NodeSpec",
    "Outcome",
    "Plan",
    "PodFacts",
    "PodSpec",
    "PolicyEntry",
    "PolicyKey",
    "Probe",
    "ProgType",
    "Program",
    "Release",
    "ReloadlabError",
    "Result",
    "Scenario",
    "Step",
    "Traffic",
    "TrafficReport",
    "TunnelCapture",
    "VerifierError",
    "Violation",
    "Workspace",
    "XdpAttachMode",
    "XdpMode",
    "XdpTaken",
    "allow_fragments",
    "attach",
    "attach_xdp",
    "bound_socket",
    "calls_maps",
    "cidrs",
    "cluster_flows",
    "cluster_specs",
    "conntrack_rows",
    "create_link",
    "default_flows",
    "detach",
    "detach_xdp",
    "ends",
    "enter_netns",
    "exchange",
    "filters",
    "finalize_too_early",
    "flows_of_each",
    "host_plan",
    "ipcache_key",
    "is_ours",
    "keep_old_egress",
    "keep_old_routes",
    "map_names",
    "masquerading",
    "netkit_is_supported",
    "never_finalize",
    "open_pin",
    "packet_counters",
    "parse_policies",
    "pinned_link",
    "policy_key_any",
    "prog_load",
    "program_by_id",
    "read_counters",
    "read_releases",
    "rule_counters",
    "run_tool",
    "skip_revert",
    "slowness",
    "take_snapshot",
    "tcx_is_supported",
    "xdp_takes_frags",
]


if not TYPE_CHECKING:  # With it every misspelled name would be right.

    def __getattr__(name: str) -> object:
        """Load a public name when it is first used."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from reloadlab.home import enter

        enter()
        value = getattr(importlib.import_module(_MODULES[name]), _ORIGINALS.get(name, name))
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
