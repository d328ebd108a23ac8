"""plans.py: which steps, in which order. Nothing here needs the kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from datapath.endpoint import LABEL_HOST, Attachment, DatapathConfig, Endpoint, Interface, NodeConfig
from datapath.errors import InvalidName, LinkNotFound
from datapath.reload.plans import LinksShared, host_plan, overlay_plan, pod_plan, xdp_plan
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Commit

LXC = "lxc0123456789ab"
POD = Endpoint(
    id=1332,
    ifname=LXC,
    mac="0a:00:00:00:00:01",
    node_mac="0a:0b:0c:0d:0e:0f",
    ipv4=IPv4Address("10.0.0.2"),
    ipv6=IPv6Address("fd00::2"),
    identity=4711,
    generation=7,
)
HOST = replace(POD, id=1, ifname="cilium_host", labels=frozenset({LABEL_HOST}))
CONFIG = DatapathConfig(
    library=Path("/library"),
    state=Path("/state"),
    bpffs=Path("/bpf"),
    netns=Path("/netns"),
    node=NodeConfig(
        router_ipv4=IPv4Address("10.0.0.1"),
        router_ipv6=IPv6Address("fd00::1"),
        cilium_host_ifindex=3,
        cilium_host_mac="02:00:00:00:00:03",
        cilium_net_ifindex=2,
        cilium_net_mac="02:00:00:00:00:02",
        encap_ifindex=None,
        encap_mac=None,
        mtu=1500,
    ),
)
XDP = replace(CONFIG, xdp="native", devices=("eth0",))
NAMES = ("cilium_host", "cilium_net", "cilium_vxlan", "cilium_wg0", "eth0", "eth1", "lo", LXC, "docker0", "cni0", "br0")
LINKS = {name: Interface(name, number, "02:00:00:00:00:aa") for number, name in enumerate(NAMES, 1)}
LOAD = ["write object", "repin maps", "open maps", "migrate maps", "load programs", "fill arrays"]


def keys(plan: Plan) -> list[tuple[str, str]]:
    return [step.key for step in plan.steps]


def load(name: str) -> list[tuple[str, str]]:
    return [(step, name) for step in LOAD]


def test_pod_with_endpoint_routes_off() -> None:
    plan = pod_plan(CONFIG, POD, subject="pod-1")
    assert keys(plan) == [
        ("compile", "bpf_lxc.c"),
        *load("bpf_lxc.o"),
        ("insert policy", "bpf_lxc.o"),
        ("attach ingress", LXC),
        ("remove routes", LXC),
        ("detach egress", LXC),
        ("commit", "pod-1"),
    ]
    assert (plan.subject, plan.endpoint_id, plan.generation, plan.warnings) == ("pod-1", 1332, 7, ())


def test_pod_with_endpoint_routes_on() -> None:
    plan = pod_plan(CONFIG, POD.with_endpoint_routes(True), subject="pod-1")
    assert keys(plan) == [
        ("compile", "bpf_lxc.c"),
        *load("bpf_lxc.o"),
        ("attach egress", LXC),
        ("insert policy", "bpf_lxc.o"),
        ("attach ingress", LXC),
        ("install routes", LXC),
        ("commit", "pod-1"),
    ]


@pytest.mark.parametrize("routes", [False, True])
def test_what_can_fail_comes_before_what_packets_notice(routes: bool) -> None:
    """The reference takes the egress filters away before it loads: a refused program then leaves the pod bare."""
    names = [name for name, _ in keys(pod_plan(CONFIG, POD.with_endpoint_routes(routes), subject="pod-1"))]
    noticed = [names.index(name) for name in names if name.split()[0] in ("attach", "detach", "install", "remove")]
    assert max(names.index(name) for name in LOAD) < min(noticed)
    assert names.index("insert policy") < names.index("attach ingress")
    assert names[-1] == "commit"
    assert names.count("commit") == 1
    if not routes:
        assert names.index("attach ingress") < names.index("detach egress")


@pytest.mark.parametrize("routes", [False, True])
def test_somebody_enforces_the_policy_at_any_moment(routes: bool) -> None:
    """With endpoint routes the policy program leaves it to the egress program, and no longer before it does again."""
    names = [name for name, _ in keys(pod_plan(CONFIG, POD.with_endpoint_routes(routes), subject="pod-1"))]
    assert ("attach egress" in names) == routes
    if routes:
        assert names.index("attach egress") < min(names.index("insert policy"), names.index("install routes"))
    else:
        assert max(names.index("insert policy"), names.index("remove routes")) < names.index("detach egress")


def test_host_with_devices() -> None:
    plan = host_plan(replace(CONFIG, devices=("eth0", "eth1")), HOST, LINKS, subject="host")
    assert keys(plan) == [
        ("compile", "bpf_host.c"),
        *load("bpf_host.o"),
        *load("bpf_host_cilium_net.o"),
        *load("bpf_netdev_eth0.o"),
        *load("bpf_netdev_eth1.o"),
        ("insert policy", "bpf_host.o"),
        ("attach ingress", "cilium_host"),
        ("attach egress", "cilium_host"),
        ("attach ingress", "cilium_net"),
        ("attach ingress", "eth0"),
        ("attach egress", "eth0"),
        ("attach ingress", "eth1"),
        ("attach egress", "eth1"),
        ("detach ingress", "br0"),
        ("detach egress", "br0"),
        ("commit", "host"),
    ]


def test_each_object_is_loaded_once() -> None:
    """The reference loads cilium_host's object once per hook, so every program of it is verified twice."""
    names = keys(host_plan(replace(CONFIG, devices=("eth0",)), HOST, LINKS, subject="host"))
    loads = [target for name, target in names if name == "load programs"]
    assert loads == ["bpf_host.o", "bpf_host_cilium_net.o", "bpf_netdev_eth0.o"]


def test_devices_without_egress_programs_lose_theirs() -> None:
    names = keys(host_plan(replace(CONFIG, devices=("eth0",), egress_devices=False), HOST, LINKS, subject="host"))
    assert ("attach ingress", "eth0") in names
    assert ("attach egress", "eth0") not in names
    assert names.index(("attach ingress", "eth0")) < names.index(("detach egress", "eth0"))


def test_wireguard_device_gets_no_egress_program() -> None:
    names = keys(host_plan(replace(CONFIG, devices=("cilium_wg0",)), HOST, LINKS, subject="host"))
    assert ("attach ingress", "cilium_wg0") in names
    assert ("attach egress", "cilium_wg0") not in names


def test_missing_device_is_a_warning() -> None:
    plan = host_plan(replace(CONFIG, devices=("eth0", "eth9")), HOST, LINKS, subject="host")
    assert plan.warnings == ("device eth9 does not exist: left out",)
    assert not [key for key in keys(plan) if "eth9" in key[1]]
    assert ("attach ingress", "eth0") in keys(plan)


@pytest.mark.parametrize("missing", ["cilium_host", "cilium_net"])
def test_host_without_its_own_interfaces(missing: str) -> None:
    links = {name: link for name, link in LINKS.items() if name != missing}
    with pytest.raises(LinkNotFound, match=f"interface {missing} does not exist"):
        host_plan(CONFIG, HOST, links, subject="host")


def test_obsolete_devices_are_all_but_the_excluded() -> None:
    """cilium_*, lo, lxc*, cni*, docker* never lose netdev programs; what is no device any more does."""
    names = keys(host_plan(CONFIG, HOST, LINKS, subject="host"))
    assert [target for name, target in names if name == "detach ingress"] == ["eth0", "eth1", "br0"]


def test_what_former_devices_left_is_removed_by_the_commit(tmp_path: Path) -> None:
    """The calls maps and objects of interfaces that are gone or no devices any more; not of those with programs."""
    config = replace(CONFIG, bpffs=tmp_path, state=tmp_path / "state", devices=("eth0",))
    numbers = (*(LINKS[name].ifindex for name in ("cilium_net", "eth0", "cilium_wg0", "eth1")), 4711)
    pins = [config.globals / f"cilium_calls_netdev_{number:05d}" for number in numbers]
    pins += [Path(f"{pins[-1]}:pending"), config.globals / "cilium_calls_hostns_00001"]
    objects = [config.state / "1" / f"bpf_netdev_{name}.o" for name in ("eth0", "cilium_wg0", "eth1", "gone")]
    # What killed reloads have left of those.
    objects += [config.state / "1" / f"bpf_netdev_{name}" for name in ("gone.o.new", "eth1.o.old", "eth0.o.new")]
    objects.append(config.state / "1" / "bpf_host.o")
    for path in (*pins, *objects):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    plan = host_plan(config, HOST, LINKS, subject="host")
    commit = plan.steps[-1]
    assert isinstance(commit, Commit)
    assert set(commit.obsolete) == {*pins[3:6], *objects[2:6]}
    assert "; remove cilium_calls_netdev_" in commit.describe()
    assert host_plan(CONFIG, HOST, LINKS, subject="host").steps[-1].describe().endswith("bpf_host_cilium_net.o")


def test_overlay() -> None:
    assert keys(overlay_plan(CONFIG, 3)) == [
        ("compile", "bpf_overlay.c"),
        *load("bpf_overlay.o"),
        ("attach ingress", "cilium_vxlan"),
        ("attach egress", "cilium_vxlan"),
        ("commit", "overlay"),
    ]


@pytest.mark.parametrize("ifname", ["../../etc/passwd", "lxc/1", "", "x" * 16])
def test_names_that_cannot_be_interfaces(ifname: str) -> None:
    with pytest.raises(InvalidName):
        pod_plan(CONFIG, replace(POD, ifname=ifname), subject="pod-1")
    with pytest.raises(InvalidName):
        host_plan(
            replace(CONFIG, devices=(ifname,)), HOST, LINKS | {ifname: Interface(ifname, 99, None)}, subject="host"
        )


def test_two_devices_that_would_share_their_pins_are_refused() -> None:
    """A dot in a name is a hyphen in the directory of its links, as with Cilium; filters have no directory."""
    names = ("eth0.1", "eth0-1")
    there = LINKS | {name: Interface(name, number, None) for number, name in enumerate(names, 98)}
    said = "the links of eth0.1 and eth0-1 have the same pins: rename one, or do without tcx and XDP"
    with pytest.raises(LinksShared, match=f"^{said}$"):
        host_plan(replace(CONFIG, devices=names, attach=Attachment.TCX), HOST, there, subject="host")
    with pytest.raises(LinksShared, match=f"^{said}$"):
        xdp_plan(replace(XDP, devices=names), 7, there)
    assert host_plan(replace(CONFIG, devices=names), HOST, there, subject="host").warnings == ()


@pytest.mark.parametrize(("given", "used"), [(0, 1), (1, 1), (50, 50)])
def test_filter_priority(given: int, used: int) -> None:
    """Option bpf-filter-priority; 0 means 1."""
    plan = pod_plan(replace(CONFIG, filter_priority=given), POD, subject="pod-1")
    (described,) = (what for name, _, what in plan.describe() if name == "attach ingress")
    assert described == f"attach cil_from_container of bpf_lxc.o to {LXC} ingress, priority {used}"


def test_every_step_has_one_line_of_its_own() -> None:
    plans = [
        pod_plan(CONFIG, POD, subject="pod-1"),
        pod_plan(CONFIG, POD.with_endpoint_routes(True), subject="pod-1"),
        host_plan(replace(CONFIG, devices=("eth0",)), HOST, LINKS, subject="host"),
        overlay_plan(CONFIG, 1),
    ]
    for plan in plans:
        assert len(set(keys(plan))) == len(plan.steps), "two steps have one key: the undo of one would be lost"
        for name, target, what in plan.describe():
            assert what, f"{name} {target}"
            assert "\n" not in what


def test_a_foreign_interface_may_have_any_name() -> None:
    """The kernel takes any bytes; os.fsdecode makes of them what cannot be printed as it is."""
    named = {**LINKS, "bad\udcff": Interface("bad\udcff", 77, None)}
    described = host_plan(CONFIG, HOST, named, subject="host").describe()
    "\n".join(word for words in described for word in words).encode()
    assert ("detach ingress", "bad\ufffd") in [words[:2] for words in described]


def test_change_drops_and_replaces_steps() -> None:
    plan = pod_plan(CONFIG, POD, subject="pod-1")

    def change(step: Step) -> Step | None:
        if step.name == "detach egress":
            return None
        return replace(step, target="other") if step.name == "commit" else step

    changed = plan.change(change)
    assert keys(changed) == [k for k in keys(plan)[:-1] if k[0] != "detach egress"] + [("commit", "other")]
    assert keys(plan)[-1] == ("commit", "pod-1"), "the original changed"


# --- XDP ---


def test_xdp_is_attached_to_the_devices_and_removed_from_all_others() -> None:
    plan = xdp_plan(replace(XDP, devices=("eth0", "cilium_wg0")), 7, LINKS)
    assert (plan.subject, plan.generation, plan.warnings) == ("xdp", 7, ())
    assert keys(plan) == [
        ("compile", "bpf_xdp.c"),
        *load("bpf_xdp_eth0.o"),
        ("attach xdp", "eth0"),
        ("detach xdp", "eth1"),
        ("detach xdp", "br0"),
        ("commit", "xdp"),
    ]


def test_each_device_has_an_object_of_its_own_and_all_are_loaded_before_one_is_attached() -> None:
    names = keys(xdp_plan(replace(XDP, devices=("eth0", "eth1")), 7, LINKS))
    assert names[1:13] == [*load("bpf_xdp_eth0.o"), *load("bpf_xdp_eth1.o")]
    assert names[13:15] == [("attach xdp", "eth0"), ("attach xdp", "eth1")]


def test_a_device_that_does_not_exist_gets_no_xdp_program() -> None:
    plan = xdp_plan(replace(XDP, devices=("eth7",)), 7, LINKS)
    assert plan.warnings == ("device eth7 does not exist: left out",)
    assert "attach xdp" not in {name for name, _ in keys(plan)}


def test_without_xdp_every_device_loses_its_program() -> None:
    plan = xdp_plan(replace(XDP, xdp=None), 7, LINKS)
    assert keys(plan) == [("detach xdp", name) for name in ("eth0", "eth1", "br0")] + [("commit", "xdp")]
    assert plan.describe()[-1][2] == "nothing is left to do"


def test_what_a_device_had_goes_when_it_leaves_the_list_or_is_gone(tmp_path: Path) -> None:
    config = replace(XDP, bpffs=tmp_path, state=tmp_path)
    config.globals.mkdir(parents=True)
    eth0, eth1 = LINKS["eth0"].ifindex, LINKS["eth1"].ifindex
    for ifindex in (eth0, eth1, 4711):
        (config.globals / f"cilium_calls_xdp_{ifindex:05d}").touch()
    (config.globals / f"cilium_calls_netdev_{eth1:05d}").touch()
    for name in ("eth0", "eth7-100"):
        (tmp_path / "cilium/devices" / name / "links").mkdir(parents=True)
    (tmp_path / "xdp").mkdir()
    for name in ("bpf_xdp_eth0.o", "bpf_xdp_eth1.o", "bpf_xdp_eth1.o.new", "lock"):
        (tmp_path / "xdp" / name).touch()
    plan = xdp_plan(config, 7, LINKS)
    assert [target for name, target in keys(plan) if name == "detach xdp"] == ["eth1", "br0", "eth7-100"]
    commit = plan.steps[-1]
    assert isinstance(commit, Commit)
    gone = {f"cilium_calls_xdp_{eth1:05d}", "cilium_calls_xdp_04711", "bpf_xdp_eth1.o", "bpf_xdp_eth1.o.new"}
    assert {path.name for path in commit.obsolete} == gone
