"""The generated headers, and the words that turn a template's object into an endpoint's.

node_config.h and netdev_config.h say what holds for the whole node, ep_config.h what holds for one template; names
and values follow pkg/datapath/linux/config/config.go and pkg/datapath/loader/template.go of the reference commit.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from datapath.base.mapnames import (
    CIDR4_DYN,
    CIDR4_FIX,
    CIDR6_DYN,
    CIDR6_FIX,
    OVERLAY_CALLS_MAP,
    POLICY,
    POLICY_V2,
    calls_map,
    policy_map,
)
from datapath.build.configwords import (
    SECCTX_FROM_IPCACHE_DISABLED,
    SECCTX_FROM_IPCACHE_ENABLED,
    config_words,
    data_words,
    has_config,
)
from datapath.build.nodemacros import GLOBAL_CT_MACROS, c_list, mac_bytes, node_macros
from datapath.endpoint import LABEL_HOST, WORLD_ID, Endpoint, Interface, NodeConfig
from datapath.errors import InvalidName
from datapath.object.spec import CollectionSpec, Substitution

TEMPLATE_ID = 65535
"""Does not fit into cilium_call_policy: a template that was not substituted cannot be loaded by accident."""

TEMPLATE_IDENTITY = WORLD_ID
TEMPLATE_IPV4 = IPv4Address("192.0.2.3")
TEMPLATE_IPV6 = IPv6Address("2001:db8:bad:cafe:600d:bee2:bad:cafe")
TEMPLATE_MAC = "02:00:60:0d:f0:0d"
TEMPLATE_GENERATION = 1
POLICY_VERDICT_LOG_FILTER = 0xFFFF

_IDENTITY_LENGTH = 16
"""Bits of an identity without its cluster, whose number has the other 8 of 24 (GetClusterIDShift): a mark has both."""

_MAX_CALLS_ID = 99999
_MACRO = re.compile(r"[A-Za-z_]\w*(\([\w, ]*\))?")
# Options that are on or off. Off is #undef, as in pkg/option (IntOptions.GetFmtList): the C asks #ifdef.
_SWITCH = re.compile(r"(ENABLE|USE)_\w+|\w*DEBUG|\w+_NOTIFY|TUNNEL_MODE|PREALLOCATE_MAPS|MONITOR_AGGREGATION")

_NODE_GUARD = "__NODE_CONFIG__"


def node_header(node: NodeConfig, devices: Collection[str] = ()) -> str:
    """Return node_config.h of a node with these native devices.

    Macros of `node.options` replace ours, an endpoint's and -D options win over both. An option that only switches
    something is off with the value "0".
    """
    macros = node_macros(node, devices) | dict(node.options)
    text = f'#ifndef {_NODE_GUARD}\n#define {_NODE_GUARD}\n\n#include "lib/utils.h"\n\n'
    text += f"/*\n cilium.v4.internal.str {node.router_ipv4}\n cilium.v6.internal.str {node.router_ipv6}\n */\n\n"
    text += _if("DEFINE_IPV6", _define_ipv6("ROUTER_IP", node.router_ipv6)) + "\n" + _guarded(macros)
    text += "\n" + _if("DECLARE_CONFIG", _assign_u32("identity_length", _IDENTITY_LENGTH))
    # Elsewhere these stand in ep_config.h alone: a tunnel's programs need no connection tracking without NodePort.
    # In 1.19 all programs have these maps; that C no longer has DEFINE_U32 either.
    wanted = "defined(ENABLE_NODEPORT) || !defined(DEFINE_U32)"
    text += f"\n#if {wanted}\n{_guarded(GLOBAL_CT_MACROS)}#endif /* {wanted} */\n"
    return f"{text}\n#endif /* {_NODE_GUARD} */\n"


def netdev_header(node: NodeConfig) -> str:
    """Return netdev_config.h, which the programs of devices without an endpoint include (overlay, network, XDP)."""
    text = '#include "node_config.h"\n\n' + _if("DEFINE_U32", _define_u32("GENERATION", TEMPLATE_GENERATION))
    return text + (_macro("USE_BPF_PROG_FOR_INGRESS_POLICY", "1") if node.endpoint_routes else "")


def filter_header() -> str:
    """Return filter_config.h, which only bpf_xdp.c includes: the maps of the prefilter (PreFilter.WriteConfig).

    It has the MAC of the template as well, which the reference gives as a -D option for each device, under the name
    that it has since 1.16 too.
    """
    macros = {
        "ENABLE_PREFILTER": "1",
        "CIDR4_FILTER": "1",
        "CIDR4_LPM_PREFILTER": "1",
        "CIDR6_FILTER": "1",
        "CIDR6_LPM_PREFILTER": "1",
        "CIDR4_HMAP_NAME": CIDR4_FIX,
        "CIDR4_LMAP_NAME": CIDR4_DYN,
        "CIDR6_HMAP_NAME": CIDR6_FIX,
        "CIDR6_LMAP_NAME": CIDR6_DYN,
        # Upstream the hashes have 20971520, whose buckets alone would cost every lab 1 GB.
        "CIDR4_HMAP_ELEMS": "65536",
        "CIDR4_LMAP_ELEMS": "65536",
    }
    later = _if("DECLARE_CONFIG", _define_mac("THIS_INTERFACE_MAC", TEMPLATE_MAC))
    return _if("DEFINE_MAC", _define_mac("NODE_MAC", TEMPLATE_MAC) + later) + _guarded(macros)


def template_endpoint(endpoint: Endpoint) -> Endpoint:
    """Return `endpoint` with everything that is substituted later set to the template's constants (templateCfg)."""
    return replace(
        endpoint,
        id=TEMPLATE_ID,
        ifname="",
        mac=TEMPLATE_MAC,
        node_mac=TEMPLATE_MAC,
        ipv4=TEMPLATE_IPV4,
        ipv6=TEMPLATE_IPV6,
        identity=TEMPLATE_IDENTITY,
        # Which other labels an endpoint has is the identity's affair.
        labels=endpoint.labels & {LABEL_HOST},
        generation=TEMPLATE_GENERATION,
        ifindex=None,
    )


def template_header(endpoint: Endpoint, *, policies: str = POLICY) -> str:
    """Return ep_config.h of the template that `endpoint` needs: equal for all endpoints that can share an object.

    `policies` is how the names of policy maps begin.
    """
    return endpoint_header(template_endpoint(endpoint), policies=policies)


def endpoint_header(endpoint: Endpoint, *, policies: str = POLICY) -> str:
    """Return ep_config.h of one endpoint, for people to read in its state directory (and for the template's writer)."""
    # bpf_lxc.c reads this file before node_config.h, bpf_host.c after it: so the order is one and the same in both.
    include = '#include "node_config.h"\n\n'
    data = _if("DEFINE_U32", _static_data(endpoint) + _if("DECLARE_CONFIG", _later_data(endpoint)))
    return include + _comment(endpoint) + data + _map_names(endpoint, policies) + _template_config(endpoint)


def substitution(endpoint: Endpoint, *, host_firewall: bool = False, l7: bool = False) -> Substitution:
    """Return what turns the template's object into this endpoint's (ELFSubstitutions).

    The host's object has a policy program only with `host_firewall`; a pod's has one for egress as well with `l7`
    (Envoy configuration). An address that the endpoint lacks stays as the template has it.
    """
    names = _calls_and_policy(endpoint, "hostns_" if endpoint.is_host else "", endpoint.id)
    if host_firewall or not endpoint.is_host:
        names[policy_section(TEMPLATE_ID)] = policy_section(endpoint.id)
    if l7 and not endpoint.is_host:
        names[policy_section(TEMPLATE_ID, egress=True)] = policy_section(endpoint.id, egress=True)
    return Substitution(constants=_constants(endpoint), names=names)


def device_substitution(
    endpoint: Endpoint,
    ifname: str,
    ifindex: int,
    mac: str | None,
    *,
    host_firewall: bool = False,
    secctx_from_ipcache: bool = True,
    masquerade_ipv4: IPv4Address | None = None,
) -> Substitution:
    """Return what turns the host's template into the object of one device (patchHostNetdevDatapath).

    `mac` is the device's own, None for a device without link layer. Each device has a calls map of its own, named
    by its ifindex. `secctx_from_ipcache` is off only with legacy host routing.
    """
    if not endpoint.is_host:
        raise InvalidName("host endpoint", str(endpoint.id), "only the host's object is copied for devices")
    whole = substitution(endpoint, host_firewall=host_firewall)
    constants = {
        **whole.constants,
        **_mac_words("NODE_MAC", mac or "00:00:00:00:00:00"),
        "SECCTX_FROM_IPCACHE": SECCTX_FROM_IPCACHE_ENABLED if secctx_from_ipcache else SECCTX_FROM_IPCACHE_DISABLED,
        "NATIVE_DEV_IFINDEX": ifindex,
        "IPV4_MASQUERADE": _network_word(masquerade_ipv4.packed) if masquerade_ipv4 else 0,
    }
    names = {**whole.names, **_calls_and_policy(endpoint, "hostns_", endpoint.id)}
    names[calls_map(TEMPLATE_ID, "hostns_")] = _device_calls_map(ifname, ifindex, "netdev_")
    return Substitution(constants=constants, names=names)


def fitting(
    sub: Substitution, spec: CollectionSpec, *, ifindex: int = 0, node: NodeConfig | None = None
) -> Substitution:
    """Return `sub` without the names that depend on the node's options and that this object does not have.

    So nobody has to know before the compilation which policy programs and maps there will be. The calls map is no
    such name: an object without it is an error, and stays one.

    Constants are in the form that the object has (configwords.py); `ifindex` is the interface's.
    """
    there = {program.section for program in spec.programs.values()} | spec.maps.keys()
    always = {calls_map(TEMPLATE_ID, infix) for infix in ("", "hostns_", "xdp_")}
    pairs = [(old, new) for old, new in sub.names.items() if old in there | always]
    # A policy map may have the other of its two names.
    second = [tuple(name.replace(POLICY, POLICY_V2, 1) for name in pair) for pair in sub.names.items()]
    names = dict(pairs) | {old: new for old, new in second if old in there - sub.names.keys()}
    if has_config(spec):
        return Substitution(config_words(sub.constants, ifindex, node, spec), names)
    return Substitution(data_words(sub.constants, spec), names)


def overlay_substitution(generation: int) -> Substitution:
    """Return the one word of bpf_overlay.o that changes from load to load; all the rest is compiled in."""
    return Substitution(constants={"GENERATION": generation}, names={})


def overlay_defines(node: NodeConfig) -> dict[str, str]:
    """Return the -D options of bpf_overlay.c (pkg/datapath/loader/base.go, reinitializeOverlay)."""
    if node.encap_ifindex is None or node.encap_mac is None:
        raise InvalidName("tunnel device", "none", "the node has no tunnel, so there is no overlay program")
    mac = f"{{.addr={{{c_list(mac_bytes(node.encap_mac))}}}}}"
    # The second name is the one that the MAC has since 1.16.
    return {"SECLABEL": str(WORLD_ID), "NODE_MAC": mac, "THIS_INTERFACE_MAC": mac} | dict.fromkeys(
        ("CALLS_MAP", "cilium_calls"), OVERLAY_CALLS_MAP
    )


def xdp_defines(*, frags: bool) -> dict[str, str]:
    """Return the -D options of bpf_xdp.c (pkg/datapath/loader/xdp.go, xdpCompileArgs), the same for all devices.

    `frags` is ours: the programs take frames in several pieces as well, as kernel/xdp.py says that the kernel has them.
    """
    defines = {"SECLABEL": str(WORLD_ID)} | dict.fromkeys(("CALLS_MAP", "cilium_calls"), calls_map(TEMPLATE_ID, "xdp_"))
    return defines | ({"HAVE_XDP_FRAGS": "1"} if frags else {})


def xdp_substitution(generation: int, device: Interface) -> Substitution:
    """Return what turns the object of bpf_xdp.c into that of one device, whose calls map is its own.

    The reference compiles the source anew for each device.
    """
    names = {calls_map(TEMPLATE_ID, "xdp_"): _device_calls_map(device.name, device.ifindex, "xdp_")}
    mac = _mac_words("NODE_MAC", device.mac or "00:00:00:00:00:00")
    return Substitution(constants={"GENERATION": generation, **mac}, names=names)


def _device_calls_map(ifname: str, ifindex: int, infix: str) -> str:
    # Upstream cuts the ifindex to 16 bits, so that two devices could share a map; a name that does not fit is an error.
    if not 0 < ifindex <= _MAX_CALLS_ID:
        raise InvalidName("calls map of device", ifname, f"ifindex {ifindex} has more than five digits")
    return calls_map(ifindex, infix)


def policy_section(endpoint_id: int, *, egress: bool = False) -> str:
    """Return the section of an endpoint's policy program: <map id>/<slot> (policymap.CallString)."""
    return f"{4 if egress else 1}/0x{endpoint_id:04x}"


def _comment(endpoint: Endpoint) -> str:
    lines = [
        f"Endpoint ID: {endpoint.id}",
        f"Interface: {endpoint.ifname or '-'}",
        f"MAC: {endpoint.mac}",
        f"NodeMAC: {endpoint.node_mac}",
        f"IPv6 address: {endpoint.ipv6 or '-'}",
        f"IPv4 address: {endpoint.ipv4 or '-'}",
        f"Identity: {endpoint.identity}",
        f"Labels: {' '.join(sorted(endpoint.labels)) or '-'}",
        f"Generation: {endpoint.generation}",
    ]
    # A label could end the comment and say anything to the compiler.
    return "/*\n" + "".join(f" * {line.replace('*/', '* /')}\n" for line in lines) + " */\n\n"


def _static_data(endpoint: Endpoint) -> str:
    """Return the definitions of everything that is substituted: keep in step with `substitution`."""
    text = ""
    if endpoint.is_host:
        # Replaced by 0 for the host device and by actual values for native devices.
        text += _define_u32("NATIVE_DEV_IFINDEX", 1)
        text += _define_u32("IPV4_MASQUERADE", _network_word(bytes((1, 1, 1, 1))))
        text += _define_u32("SECCTX_FROM_IPCACHE", SECCTX_FROM_IPCACHE_DISABLED)
    else:
        if endpoint.ipv6 is not None:
            text += _define_ipv6("LXC_IP", endpoint.ipv6)
        if endpoint.ipv4 is not None:
            text += _define_u32("LXC_IPV4", _network_word(endpoint.ipv4.packed))
        text += _define_u16("LXC_ID", endpoint.id)
    text += _define_mac("NODE_MAC", endpoint.node_mac)
    text += _define_u32("SECLABEL", endpoint.identity)
    text += _define_u32("SECLABEL_NB", _network_word(endpoint.identity.to_bytes(4, "big")))
    text += _define_u32("POLICY_VERDICT_LOG_FILTER", POLICY_VERDICT_LOG_FILTER)
    return text + _define_u32("GENERATION", endpoint.generation)


def _later_data(endpoint: Endpoint) -> str:
    """Return what programs want besides that have their constants in .rodata.config; configwords.py fills it in."""
    text = _define_mac("THIS_INTERFACE_MAC", endpoint.node_mac)
    for name, value in (("SECLABEL_IPV4", endpoint.identity), ("SECLABEL_IPV6", endpoint.identity)):
        text += _define_u32(name, value)
    text += _if("DEFINE_U64", "DEFINE_U64(ENDPOINT_NETNS_COOKIE, 0);\n")
    text += "#define ENDPOINT_NETNS_COOKIE fetch_u64(ENDPOINT_NETNS_COOKIE)\n"
    # Where the C declares it itself, under another name, this one is no constant that anybody reads.
    return text + _define_u32("THIS_INTERFACE_IFINDEX", endpoint.ifindex or 1)


def _map_names(endpoint: Endpoint, policies: str) -> str:
    text = _macro("POLICY_MAP", f"{policies}{endpoint.id:05d}")
    calls = calls_map(endpoint.id, "hostns_" if endpoint.is_host else "")
    # In 1.19 the C has fixed names, and the loader renames the maps.
    text += _macro("cilium_policy_v2", f"{POLICY_V2}{endpoint.id:05d}") + _macro("cilium_calls", calls)
    return text + _macro("CALLS_MAP", calls)


def _template_config(endpoint: Endpoint) -> str:
    """Return what the compiler must know: a different text means a different template (writeTemplateConfig)."""
    switches = {
        "USE_BPF_PROG_FOR_INGRESS_POLICY": endpoint.require_egress_prog,
        "ENABLE_ROUTING": endpoint.require_routing,
        "ENABLE_SIP_VERIFICATION": True,
        "HOST_ENDPOINT": endpoint.is_host,
        "ENABLE_ARP_RESPONDER": True,
        "LOCAL_DELIVERY_METRICS": True,
    }
    text = "".join(_macro(name, "1") for name, on in switches.items() if on) + _guarded(GLOBAL_CT_MACROS)
    return text + "".join(_overriding(name, value) for name, value in sorted(dict(endpoint.options).items()))


def _constants(endpoint: Endpoint) -> dict[str, int]:
    words = _mac_words("NODE_MAC", endpoint.node_mac)
    words["SECLABEL"] = endpoint.identity
    words["SECLABEL_NB"] = _network_word(endpoint.identity.to_bytes(4, "big"))
    words["POLICY_VERDICT_LOG_FILTER"] = POLICY_VERDICT_LOG_FILTER
    words["GENERATION"] = endpoint.generation
    if endpoint.is_host:
        words.update(NATIVE_DEV_IFINDEX=0, IPV4_MASQUERADE=0, SECCTX_FROM_IPCACHE=SECCTX_FROM_IPCACHE_DISABLED)
        return words
    words["LXC_ID"] = endpoint.id
    if endpoint.ipv4 is not None:
        words["LXC_IPV4"] = _network_word(endpoint.ipv4.packed)
    if endpoint.ipv6 is not None:
        packed = endpoint.ipv6.packed
        words.update({f"LXC_IP_{i + 1}": _network_word(packed[4 * i : 4 * i + 4]) for i in range(4)})
    return words


def _calls_and_policy(endpoint: Endpoint, infix: str, number: int) -> dict[str, str]:
    return {
        calls_map(TEMPLATE_ID, infix): calls_map(number, infix),
        policy_map(TEMPLATE_ID): policy_map(endpoint.id),
    }


def _mac_words(name: str, mac: str) -> dict[str, int]:
    packed = mac_bytes(mac)
    return {f"{name}_1": _network_word(packed[:4]), f"{name}_2": _network_word(packed[4:])}


def _network_word(packed: bytes) -> int:
    """Return the number that a little-endian program reads where these bytes lie as they go over the wire."""
    return int.from_bytes(packed, "little")


def _define_u16(name: str, value: int) -> str:
    return f"DEFINE_U16({name}, {value:#06x});\t/* {value} */\n#define {name} fetch_u16({name})\n"


def _define_u32(name: str, value: int) -> str:
    return f"DEFINE_U32({name}, {value:#010x});\t/* {value} */\n#define {name} fetch_u32({name})\n"


def _define_mac(name: str, mac: str) -> str:
    return f"DEFINE_MAC({name}, {c_list(mac_bytes(mac))});\n#define {name} fetch_mac({name})\n"


def _define_ipv6(name: str, address: IPv6Address) -> str:
    return f"DEFINE_IPV6({name}, {c_list(address.packed)});\n#define {name}_V\n"


def _assign_u32(name: str, value: int) -> str:
    """Return a constant of .rodata.config that is the same in all objects of the node."""
    return f'DECLARE_CONFIG(__u32, {name}, "{name}")\nASSIGN_CONFIG(__u32, {name}, {value})\n'


def _if(macro: str, text: str) -> str:
    """Return text that the compiler reads only if the sources have a macro."""
    return f"#ifdef {macro}\n{text}#endif /* {macro} */\n"


def _macro(name: str, value: str) -> str:
    if not _MACRO.fullmatch(name):
        raise InvalidName("macro", name, "a C identifier, with parameters in parentheses at most")
    if "\n" in value:
        raise InvalidName(f"value of macro {name}", value, "one line")
    return f"#define {name} {value}".rstrip() + "\n"


def _is_off(name: str, value: str) -> bool:
    return value == "0" and _SWITCH.fullmatch(name) is not None


def _guarded(macros: Mapping[str, str]) -> str:
    """Return definitions that give way to what was defined before, sorted: equal macros make equal text."""
    on = sorted((name, value) for name, value in macros.items() if not _is_off(name, value))
    return "".join(f"#ifndef {name.partition('(')[0]}\n{_macro(name, value)}#endif\n" for name, value in on)


def _overriding(name: str, value: str) -> str:
    undefined = f"#undef {name.partition('(')[0]}\n"
    return undefined if _is_off(name, value) else undefined + _macro(name, value)
