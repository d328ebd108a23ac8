"""Constants in .rodata.config: the same facts as in the words of the reference, under the names that an object has."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from datapath.base.timing import VerifyTimes
from datapath.build import headers
from datapath.build.configwords import config_words, has_config, node_words
from datapath.build.objectfile import ObjectFile
from datapath.build.sources import policy_map_prefix
from datapath.build.template import Kind, Template
from datapath.endpoint import LABEL_HOST, Endpoint, Interface, NodeConfig
from datapath.errors import InvalidName
from datapath.object import elffile
from datapath.object.reader import ObjectImage
from datapath.object.spec import CollectionSpec, Constant, DataSection, MapSpec, Substitution

if TYPE_CHECKING:
    from tests.datapath.conftest import Compile

V6 = IPv6Address("fd00:10:244::3")
POD = Endpoint(101, "lxc1", "0a:0b:0c:0d:0e:0f", "02:03:04:05:06:07", IPv4Address("10.244.0.3"), V6, 0x1234, ifindex=17)
NODE = NodeConfig(IPv4Address("10.244.0.1"), IPv6Address("fd00::1"), 3, "", 4, "", None, None, 1500)
SIZES = {
    "LXC_IP_1": 8,
    "LXC_IP_2": 8,
    "endpoint_ipv6": 16,
    "interface_mac": 8,
    "THIS_INTERFACE_MAC_1": 4,
    "THIS_INTERFACE_IFINDEX": 4,
    "endpoint_id": 2,
    "security_label": 4,
    "SECLABEL_IPV6": 4,
    "router_ipv6": 16,
}


def spec_of(*names: str) -> CollectionSpec:
    constants = {f"__config_{n}": Constant(f"__config_{n}", 16 * i, SIZES[n]) for i, n in enumerate(names)}
    section = DataSection(".rodata.config", 16 * len(names))
    maps = {"cilium_policy_v2_65535": MapSpec("cilium_policy_v2_65535", 11, 12, 24, 1)}
    maps["cilium_calls_65535"] = MapSpec("cilium_calls_65535", 3, 4, 4, 50)
    return CollectionSpec("o", maps, {}, constants, bytes(section.size), "", {".rodata.config": section})


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("LXC_IP_1", V6.packed[:8]),
        ("LXC_IP_2", V6.packed[8:]),
        ("endpoint_ipv6", V6.packed),
        ("interface_mac", bytes((2, 3, 4, 5, 6, 7, 0, 0))),
        ("THIS_INTERFACE_MAC_1", bytes((2, 3, 4, 5))),
        ("THIS_INTERFACE_IFINDEX", bytes((17, 0, 0, 0))),
        ("endpoint_id", bytes((101, 0))),
        ("security_label", bytes((0x34, 0x12, 0, 0))),
        ("SECLABEL_IPV6", bytes((0x34, 0x12, 0, 0))),
        ("router_ipv6", NODE.router_ipv6.packed),
    ],
)
def test_every_form_of_a_constant_lies_in_memory_as_the_program_reads_it(name: str, packed: bytes) -> None:
    words = config_words(headers.substitution(POD).constants, 17, NODE, spec_of(name))
    assert list(words) == [f"__config_{name}"]
    assert words[f"__config_{name}"].to_bytes(SIZES[name], "little") == packed


def test_the_policy_map_may_have_its_second_name() -> None:
    fitted = headers.fitting(headers.substitution(POD), spec_of("endpoint_id"), ifindex=17, node=NODE)
    assert fitted.names["cilium_policy_v2_65535"] == "cilium_policy_v2_00101"
    assert "cilium_policy_65535" not in fitted.names
    assert fitted.constants == {"__config_endpoint_id": 101}


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("#define POLICY_MAP test_cilium_policy_65535\n", "cilium_policy_"),
        ("#define POLICY_MAP test_cilium_policy_v2_65535\n", "cilium_policy_v2_"),
        (None, "cilium_policy_"),
    ],
)
def test_the_sources_say_what_policy_maps_are_called(text: str | None, prefix: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "ep_config.h").write_text(text)
    assert policy_map_prefix(tmp_path) == prefix
    assert f"#define POLICY_MAP {prefix}65535\n" in headers.template_header(POD, policies=prefix)


def test_objects_without_that_section_have_the_words_of_the_reference() -> None:
    spec = replace(spec_of(), sections={})
    assert not has_config(spec)
    assert headers.fitting(headers.substitution(POD), spec).constants == headers.substitution(POD).constants


def test_an_address_of_two_words_is_whole() -> None:
    """Cilium 1.14.18: the words stand in .data, as at the reference commit, but are of 8 bytes."""
    constants = {f"LXC_IP_{i}": Constant(f"LXC_IP_{i}", 8 * i, 8) for i in (1, 2)}
    spec = replace(spec_of(), sections={}, constants=constants, data=bytes(24))
    words = headers.fitting(headers.substitution(POD), spec).constants
    written = spec.substitute(Substitution(words), strict=False)
    assert written.data[8:] == V6.packed
    assert words.keys() >= {"LXC_ID", "LXC_IPV4", "SECLABEL"}


def test_a_host_takes_identities_from_the_ipcache_where_its_devices_do() -> None:
    host = replace(POD, id=1, labels=frozenset({LABEL_HOST}))
    spec = spec_of("endpoint_id")
    spec = replace(spec, constants={"__config_secctx_from_ipcache": Constant("__config_secctx_from_ipcache", 0, 1)})
    device = headers.device_substitution(host, "eth0", 5, None)
    for sub, expected in ((headers.substitution(host), 0), (device, 1)):
        assert config_words(sub.constants, 5, NODE, spec) == {"__config_secctx_from_ipcache": expected}


def test_the_index_of_an_interface_is_that_of_the_programs_hook() -> None:
    image = ObjectImage(b"", spec_of("THIS_INTERFACE_IFINDEX"), {}, {})
    template = Template("", Kind.HOST, Path(), image, VerifyTimes(), NODE)
    host = replace(POD, id=1, ifindex=None, labels=frozenset({LABEL_HOST}))
    assert template.substitution(host).constants == {"__config_THIS_INTERFACE_IFINDEX": NODE.cilium_host_ifindex}
    assert template.substitution(POD).constants == {"__config_THIS_INTERFACE_IFINDEX": POD.ifindex}


def test_what_holds_for_the_node_is_the_same_for_all() -> None:
    assert node_words(NODE, {"device_mtu", "colour"}) == {"device_mtu": 1500}


@pytest.mark.parametrize(
    ("word", "option", "value"),
    [
        ("device_mtu", ("MTU", "1400"), 1400),
        ("host_ep_id", ("HOST_EP_ID", "7"), 7),
        ("trace_payload_len", ("TRACE_PAYLOAD_LEN", "0x40ULL"), 64),
        ("service_loopback_ipv4", ("IPV4_LOOPBACK", "0x12afea9"), 0x12AFEA9),
    ],
)
def test_an_option_sets_the_word_that_its_macro_was(word: str, option: tuple[str, str], value: int) -> None:
    node = replace(NODE, options=((option[0], "5"), option))
    assert node_words(node, {word}) == {word: value}
    assert node_words(node, {"router_ipv6"}) == node_words(NODE, {"router_ipv6"})


def test_an_option_that_is_no_number_is_refused_where_it_would_be_a_constant() -> None:
    node = replace(NODE, options=(("MTU", "1500 - 50"),))
    assert node_words(node, {"host_ep_id"}) == {"host_ep_id": 1}
    with pytest.raises(InvalidName, match=r"invalid value of macro MTU '1500 - 50': a number: these sources have it"):
        node_words(node, {"device_mtu"})


def test_the_programs_of_a_device_at_xdp_have_its_index_and_mac() -> None:
    device, name = Interface("eth0", 17, "02:03:04:05:06:07"), "cilium_calls_xdp_65535"
    spec = replace(spec_of("interface_mac", "THIS_INTERFACE_IFINDEX"), maps={name: MapSpec(name, 3, 4, 4, 50)})
    template = Template("", Kind.XDP, Path(), ObjectImage(b"", spec, {}, {}), VerifyTimes(), NODE)
    found = ObjectFile(Kind.XDP, Path("bpf_xdp_eth0.o"), 5, device=device).substitution(template)
    assert found.constants == {"__config_THIS_INTERFACE_IFINDEX": 17, "__config_interface_mac": 0x070605040302}
    assert found.names == {name: "cilium_calls_xdp_00017"}
    assert spec.substitute(found).maps.keys() == {"cilium_calls_xdp_00017"}


@pytest.mark.parametrize(
    ("macros", "constants"),
    [
        ("", set()),
        ("#define DEFINE_MAC(n, ...) volatile char n[] = {__VA_ARGS__}\n", {"NODE_MAC"}),
        (
            "#define DEFINE_MAC(n, ...) volatile char n[] = {__VA_ARGS__}\n#define DECLARE_CONFIG\n",
            {"NODE_MAC", "THIS_INTERFACE_MAC"},
        ),
    ],
    ids=["1.19", "1.14", "1.16"],
)
def test_the_header_of_xdp_defines_what_the_sources_have_a_form_for(
    macros: str, constants: set[str], compile_c: Compile
) -> None:
    elf = elffile.read("o", compile_c(macros + headers.filter_header()).read_bytes())
    assert {symbol.name for symbol in elf.symbols if symbol.name.endswith("_MAC")} == constants
