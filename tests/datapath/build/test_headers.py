"""headers.py: what the compiler is told, and what is substituted afterwards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from bpf import LIBRARY
from datapath.build import headers
from datapath.build.compile import Compiler, compile_source, probe_compiler
from datapath.endpoint import Endpoint, NodeConfig, Vlan
from datapath.errors import InvalidName
from datapath.object.reader import read_object
from datapath.object.spec import CollectionSpec, Substitution
from tests.datapath.values import HOST, NODE, POD

REFERENCE = "RELOADLAB_CILIUM_BPF"
REFERENCE_OPTIONS = (
    ("ENABLE_HOST_FIREWALL", "1"),
    ("ENABLE_IPV4_FRAGMENTS", "1"),
    ("ENABLE_HOST_ROUTING", "1"),
    ("CT_REPORT_FLAGS", "0x0002"),
)


def defined(text: str) -> dict[str, str]:
    return dict(re.findall(r"^#define (\w+(?:\([^)]*\))?) ?(.*)$", text, re.MULTILINE))


class TestNodeHeader:
    def test_to_host_is_the_other_end_of_the_pair(self) -> None:
        macros = defined(headers.node_header(NODE))
        assert macros["HOST_IFINDEX"] == "2"
        assert macros["CILIUM_IFINDEX"] == "3"
        assert macros["HOST_IFINDEX_MAC"] == "{ .addr = { 0x2, 0x0, 0x0, 0x0, 0x0, 0x3 } }"
        assert macros["CILIUM_NET_MAC"] == "{ .addr = { 0x2, 0x0, 0x0, 0x0, 0x0, 0x2 } }"

    @pytest.mark.parametrize(
        ("macro", "value"),
        [
            ("ENDPOINTS_MAP", "cilium_lxc"),
            ("METRICS_MAP", "cilium_metrics"),
            ("IPCACHE_MAP", "cilium_ipcache"),
            ("TUNNEL_MAP", "cilium_tunnel_map"),
            ("EVENTS_MAP", "cilium_events"),
            ("POLICY_CALL_MAP", "cilium_call_policy"),
            ("POLICY_PROG_MAP_SIZE", "65535"),
            ("LB4_SERVICES_MAP_V2", "cilium_lb4_services_v2"),
            ("LOCAL_NODE_ID", "6"),
            ("KUBE_APISERVER_NODE_ID", "7"),
            ("MTU", "1500"),
            ("TUNNEL_PORT", "8472"),
            ("IPV4_GATEWAY", "0x6e02f40a"),
            ("ENABLE_IPV4", "1"),
            ("ENABLE_IPV6", "1"),
        ],
    )
    def test_value(self, macro: str, value: str) -> None:
        assert defined(headers.node_header(NODE))[macro] == value

    def test_an_identity_and_its_cluster_have_24_bits(self) -> None:
        text = headers.node_header(NODE)
        (length,) = re.findall(r"ASSIGN_CONFIG\(__u32, identity_length, (\d+)\)", text)
        assert int(length) + int(defined(text)["CLUSTER_ID_MAX"]).bit_length() == 24

    def test_tunnel(self) -> None:
        with_tunnel = defined(headers.node_header(NODE))
        without = defined(headers.node_header(replace(NODE, encap_ifindex=None, encap_mac=None)))
        assert with_tunnel["ENCAP_IFINDEX"] == "5"
        assert "TUNNEL_MODE" in with_tunnel
        assert not {"ENCAP_IFINDEX", "TUNNEL_MODE"} & without.keys()

    def test_frames_of_vlans_pass_whose_devices_are_native_devices(self) -> None:
        """Whatever their order: the same devices are the same text, so the same template."""
        node = replace(NODE, vlans=(Vlan("eth0.200", 32, 200), Vlan("eth0.100", 32, 100), Vlan("eth1.5", 33, 5)))

        def vlan_filter(*devices: str) -> str:
            return defined(headers.node_header(node, devices))["VLAN_FILTER(ifindex, vlan_id)"]

        assert vlan_filter() == vlan_filter("eth0", "eth1") == "return false;"
        assert vlan_filter("eth0", "eth0.100") == "return (ifindex == 32 && vlan_id == 100);"
        both = "return (ifindex == 32 && vlan_id == 100) || (ifindex == 33 && vlan_id == 5);"
        assert vlan_filter("eth0.100", "eth1.5") == vlan_filter("eth1.5", "eth0.100") == both

    def test_options_replace_switch_off_and_do_not_depend_on_their_order(self) -> None:
        options = (("MTU", "1400"), ("ENABLE_IPV6", "0"), ("CLUSTER_ID", "0"), ("ENABLE_NODEPORT", "1"))
        text = headers.node_header(replace(NODE, options=options))
        macros = defined(text)
        assert macros["MTU"] == "1400"
        assert macros["CLUSTER_ID"] == "0"
        assert macros["ENABLE_NODEPORT"] == "1"
        assert "ENABLE_IPV6" not in macros
        assert text == headers.node_header(replace(NODE, options=options[::-1]))

    @pytest.mark.parametrize(
        "option", [("A B", "1"), ("1A", "1"), ("A", "1\n#include </etc/passwd>")], ids=["space", "digit", "newline"]
    )
    def test_bad_option(self, option: tuple[str, str]) -> None:
        with pytest.raises(InvalidName):
            headers.node_header(replace(NODE, options=(option,)))

    @pytest.mark.parametrize("mac", ["", "02:00:00:00:00", "02:00:00:00:00:0g", "020000000003", "02:00:00:00:00:03:04"])
    def test_bad_mac(self, mac: str) -> None:
        with pytest.raises(InvalidName, match="MAC address"):
            headers.node_header(replace(NODE, cilium_host_mac=mac))


def test_netdev_header_follows_endpoint_routes() -> None:
    assert "USE_BPF_PROG_FOR_INGRESS_POLICY" not in headers.netdev_header(NODE)
    assert "#define USE_BPF_PROG_FOR_INGRESS_POLICY 1\n" in headers.netdev_header(replace(NODE, endpoint_routes=True))


class TestEndpointHeader:
    def test_reads_like_the_real_one(self) -> None:
        text = headers.endpoint_header(POD)
        assert " * IPv4 address: 10.244.2.149\n" in text
        assert "DEFINE_U32(LXC_IPV4, 0x9502f40a);\t/* 2499998730 */\n#define LXC_IPV4 fetch_u32(LXC_IPV4)\n" in text
        assert "DEFINE_U16(LXC_ID, 0x0534);\t/* 1332 */\n#define LXC_ID fetch_u16(LXC_ID)\n" in text
        assert "DEFINE_MAC(NODE_MAC, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf);\n" in text
        assert "#define POLICY_MAP cilium_policy_01332\n" in text
        assert "#define CALLS_MAP cilium_calls_01332\n" in text

    def test_a_label_cannot_leave_the_comment(self) -> None:
        text = headers.endpoint_header(replace(POD, labels=frozenset({"*/ #error /*"})))
        assert text.index("*/") > text.index("#error")

    def test_host(self) -> None:
        text = headers.endpoint_header(HOST)
        assert "#define HOST_ENDPOINT 1\n" in text
        assert "#define CALLS_MAP cilium_calls_hostns_00007\n" in text
        assert "SECCTX_FROM_IPCACHE" in text
        assert "LXC_" not in text

    def test_endpoint_routes_are_two_macros(self) -> None:
        off, on = (headers.template_header(POD.with_endpoint_routes(routes)) for routes in (False, True))
        assert defined(off).keys() - defined(on).keys() == {"ENABLE_ROUTING"}
        assert defined(on).keys() - defined(off).keys() == {"USE_BPF_PROG_FOR_INGRESS_POLICY"}
        assert "LOCAL_DELIVERY_METRICS" in defined(off).keys() & defined(on).keys()

    def test_options_override(self) -> None:
        text = headers.template_header(replace(POD, options=(("MONITOR_AGGREGATION", "5"), ("DROP_NOTIFY", "0"))))
        assert "#undef MONITOR_AGGREGATION\n#define MONITOR_AGGREGATION 5\n" in text
        assert "#undef DROP_NOTIFY\n" in text
        assert "#define DROP_NOTIFY" not in text


SUBSTITUTED = {
    "id": replace(POD, id=1),
    "interface": replace(POD, ifname="lxcother"),
    "mac": replace(POD, mac="0a:00:00:00:00:ff"),
    "node_mac": replace(POD, node_mac="0a:00:00:00:00:ff"),
    "ipv4": replace(POD, ipv4=IPv4Address("10.0.0.1")),
    "no-ipv4": replace(POD, ipv4=None),
    "no-ipv6": replace(POD, ipv6=None),
    "identity": replace(POD, identity=77777),
    "labels": replace(POD, labels=frozenset({"k8s:app=y"})),
    "generation": replace(POD, generation=10),
    "endpoint-route": replace(POD, require_endpoint_route=True),
}


@pytest.mark.parametrize("other", SUBSTITUTED.values(), ids=SUBSTITUTED)
def test_wrap(other: Endpoint) -> None:
    """What is substituted differs in the endpoint's header, where the rest is only told, and not in the template's."""
    assert headers.template_header(other) == headers.template_header(POD)
    if other.require_endpoint_route == POD.require_endpoint_route:
        assert headers.endpoint_header(other) != headers.endpoint_header(POD)


def test_the_interface_index_makes_no_template_of_its_own() -> None:
    assert headers.template_endpoint(replace(POD, ifindex=77)) == headers.template_endpoint(POD)


def test_template_constants_have_no_zero_word() -> None:
    """A word of zero would go to .bss, where nothing can be substituted."""
    for endpoint in (POD, HOST):
        template = headers.template_endpoint(endpoint)
        for name, value in headers.substitution(template).constants.items():
            if name not in ("NATIVE_DEV_IFINDEX", "IPV4_MASQUERADE"):
                assert value != 0, name
        assert not re.search(r"DEFINE_U\d+\(\w+, 0x0+\)", headers.template_header(endpoint))


class TestSubstitution:
    def test_pod(self) -> None:
        sub = headers.substitution(POD)
        assert sub.constants == {
            "LXC_ID": 1332,
            "LXC_IPV4": 0x9502F40A,
            "LXC_IP_1": 0x100000FD,
            "LXC_IP_2": 0x02004402,
            "LXC_IP_3": 0,
            "LXC_IP_4": 0x95000000,
            "NODE_MAC_1": 0x0D0C0B0A,
            "NODE_MAC_2": 0x0F0E,
            "SECLABEL": 0x1234,
            "SECLABEL_NB": 0x34120000,
            "POLICY_VERDICT_LOG_FILTER": 0xFFFF,
            "GENERATION": 9,
        }
        assert sub.names == {
            "cilium_policy_65535": "cilium_policy_01332",
            "cilium_calls_65535": "cilium_calls_01332",
            "1/0xffff": "1/0x0534",
        }

    def test_address_that_is_not_there_is_not_substituted(self) -> None:
        constants = headers.substitution(replace(POD, ipv4=None, ipv6=None)).constants
        assert not any(name.startswith("LXC_IP") for name in constants)

    def test_l7_has_a_policy_program_for_egress(self) -> None:
        assert headers.substitution(POD, l7=True).names["4/0xffff"] == "4/0x0534"

    def test_host(self) -> None:
        sub = headers.substitution(HOST)
        assert sub.names == {
            "cilium_policy_65535": "cilium_policy_00007",
            "cilium_calls_hostns_65535": "cilium_calls_hostns_00007",
        }
        assert sub.constants["SECCTX_FROM_IPCACHE"] == 1
        assert "LXC_ID" not in sub.constants
        assert headers.substitution(HOST, host_firewall=True).names["1/0xffff"] == "1/0x0007"

    def test_device(self) -> None:
        sub = headers.device_substitution(
            HOST, "eth0", 12, "0a:0b:0c:0d:0e:01", host_firewall=True, masquerade_ipv4=IPv4Address("192.0.2.1")
        )
        assert sub.names == {
            "cilium_policy_65535": "cilium_policy_00007",
            "cilium_calls_hostns_65535": "cilium_calls_netdev_00012",
            "1/0xffff": "1/0x0007",
        }
        assert sub.constants["NODE_MAC_2"] == 0x010E
        assert sub.constants["NATIVE_DEV_IFINDEX"] == 12
        assert sub.constants["IPV4_MASQUERADE"] == 0x010200C0
        assert sub.constants["SECCTX_FROM_IPCACHE"] == 2
        assert sub.constants["GENERATION"] == 9

    def test_device_without_link_layer_and_with_legacy_routing(self) -> None:
        sub = headers.device_substitution(HOST, "tun0", 12, None, secctx_from_ipcache=False)
        assert (sub.constants["NODE_MAC_1"], sub.constants["NODE_MAC_2"]) == (0, 0)
        assert sub.constants["SECCTX_FROM_IPCACHE"] == 1

    def test_device_whose_ifindex_has_no_name_of_its_own(self) -> None:
        assert (
            headers.device_substitution(HOST, "eth0", 99999, None).names["cilium_calls_hostns_65535"].endswith("99999")
        )
        with pytest.raises(InvalidName, match="ifindex 100000"):
            headers.device_substitution(HOST, "eth0", 100000, None)

    def test_device_of_a_pod(self) -> None:
        with pytest.raises(InvalidName, match="host endpoint"):
            headers.device_substitution(POD, "eth0", 1, None)

    @pytest.mark.parametrize("endpoint", [POD, replace(POD, id=1), replace(POD, id=65534), HOST])
    def test_names_keep_their_length(self, endpoint: Endpoint) -> None:
        for old, new in headers.substitution(endpoint, host_firewall=True, l7=True).names.items():
            assert len(old) == len(new)


def test_overlay_defines() -> None:
    mac = "{.addr={0x2, 0x0, 0x0, 0x0, 0x0, 0x5}}"
    assert headers.overlay_defines(NODE) == {
        "SECLABEL": "2",
        **dict.fromkeys(("NODE_MAC", "THIS_INTERFACE_MAC"), mac),
        **dict.fromkeys(("CALLS_MAP", "cilium_calls"), "cilium_calls_overlay_2"),
    }
    with pytest.raises(InvalidName, match="no tunnel"):
        headers.overlay_defines(replace(NODE, encap_ifindex=None))


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return probe_compiler()


@pytest.fixture(params=["ours", "reference"])
def tree(request: pytest.FixtureRequest) -> Iterator[tuple[Path, NodeConfig]]:
    """A tree of sources and a node for it: our own, and Cilium's where a checkout is named."""
    if request.param == "ours":
        yield LIBRARY, NODE
        return
    named = os.environ.get(REFERENCE)
    if not named:
        pytest.skip(f"{REFERENCE} does not name a checkout's bpf/")
    yield Path(named), replace(NODE, options=REFERENCE_OPTIONS)


class TestCompiled:
    """The generated headers shadow the shipped ones, and the objects carry the names that are substituted."""

    @staticmethod
    def build(
        tree: tuple[Path, NodeConfig], source: str, endpoint: Endpoint | None, directory: Path, compiler: Compiler
    ) -> CollectionSpec:
        library, node = tree
        (directory / "node_config.h").write_text(headers.node_header(node))
        (directory / "netdev_config.h").write_text(headers.netdev_header(node))
        if endpoint is not None:
            (directory / "ep_config.h").write_text(headers.template_header(endpoint))
        return read_object(
            compile_source(
                library / source,
                directory / "object.o",
                includes=(directory, library, library / "include"),
                defines={} if endpoint is not None else headers.overlay_defines(node),
                compiler=compiler,
                werror=True,
            )
        ).spec

    @pytest.mark.parametrize("routes", [False, True], ids=["routes-off", "routes-on"])
    def test_lxc(self, tree: tuple[Path, NodeConfig], tmp_path: Path, compiler: Compiler, routes: bool) -> None:
        spec = self.build(tree, "bpf_lxc.c", POD.with_endpoint_routes(routes), tmp_path, compiler)
        assert {"cil_from_container", "cil_to_container"} <= spec.programs.keys()
        assert {"cilium_lxc", "cilium_metrics", "cilium_call_policy", "cilium_policy_65535"} <= spec.maps.keys()
        changed = spec.substitute(headers.substitution(POD))
        assert {"cilium_calls_01332", "cilium_policy_01332"} <= changed.maps.keys()
        assert not any("65535" in name for name in changed.maps)
        assert changed.maps["cilium_call_policy"].contents.keys() == {POD.id}
        # What the compiler stored is what would be substituted. Not so the MAC: DEFINE_MAC of the reference keeps it
        # in the other byte order, which nobody notices, since it never runs unsubstituted.
        words = headers.substitution(headers.template_endpoint(POD)).constants
        same = {name: word for name, word in words.items() if not name.startswith("NODE_MAC")}
        assert spec.substitute(Substitution(constants=same)) == spec

    def test_host(self, tree: tuple[Path, NodeConfig], tmp_path: Path, compiler: Compiler) -> None:
        spec = self.build(tree, "bpf_host.c", HOST, tmp_path, compiler)
        assert {"cil_to_host", "cil_from_host", "cil_from_netdev", "cil_to_netdev"} <= spec.programs.keys()
        sub = headers.fitting(headers.substitution(HOST, host_firewall=True, l7=True), spec)
        assert "cilium_calls_hostns_00007" in spec.substitute(sub).maps
        device = headers.device_substitution(HOST, "eth0", 4, POD.node_mac, host_firewall=True)
        changed = spec.substitute(headers.fitting(device, spec))
        assert "cilium_calls_netdev_00004" in changed.maps
        assert not any("65535" in name for name in changed.maps)
        firewall = dict(tree[1].options).get("ENABLE_HOST_FIREWALL", "0") != "0"
        assert ("1/0x0007" in {program.section for program in changed.programs.values()}) == firewall

    def test_overlay(self, tree: tuple[Path, NodeConfig], tmp_path: Path, compiler: Compiler) -> None:
        spec = self.build(tree, "bpf_overlay.c", None, tmp_path, compiler)
        assert {"cil_from_overlay", "cil_to_overlay"} <= spec.programs.keys()
        assert "cilium_calls_overlay_2" in spec.maps
        assert spec.substitute(headers.overlay_substitution(3)) != spec

    @pytest.mark.parametrize("tree", ["reference"], indirect=True)
    def test_overlay_with_nodeport_tracks_connections(
        self, tree: tuple[Path, NodeConfig], tmp_path: Path, compiler: Compiler
    ) -> None:
        """It includes no ep_config.h, so the names of these maps have to come from the node's headers."""
        library, node = tree
        node = replace(node, options=(*node.options, ("ENABLE_NODEPORT", "1")))
        without = self.build(tree, "bpf_overlay.c", None, tmp_path, compiler)
        with_nodeport = self.build((library, node), "bpf_overlay.c", None, tmp_path, compiler)
        tables = {"cilium_ct4_global", "cilium_ct_any4_global", "cilium_ct6_global", "cilium_ct_any6_global"}
        assert not tables & without.maps.keys()
        assert tables <= with_nodeport.maps.keys()
