"""Maps that became incompatible: each property by itself, on a map of one endpoint and on one that all share."""

from __future__ import annotations

import pytest

from reloadlab import (
    CT_MAPS,
    Flow,
    Gate,
    MapInfo,
    MapType,
    Node,
    ReloadlabError,
    Scenario,
    Step,
    Workspace,
    default_flows,
    open_pin,
    take_snapshot,
)

ENDPOINT_MAP, SHARED_MAP = "cilium_policy_00101", "cilium_ipcache"

CHANGES = {
    "type": ("MAP_TYPE", "BPF_MAP_TYPE_HASH"),
    "key_size": ("KEY_PAD", "1"),
    "value_size": ("VALUE_PAD", "1"),
    "max_entries": ("MAP_SIZE", "4096"),
    "flags": ("MAP_FLAGS", "(BPF_F_NO_PREALLOC|BPF_F_NUMA_NODE)"),
}
"""What a build is changed by, per property: the ending of the macro (see bpf/lib/config.h) and its value."""
FIELDS = [
    field if field == "max_entries" else pytest.param(field, marks=pytest.mark.own_sources, id=field)
    for field in CHANGES
]

FILLED_BEFORE_USE = pytest.mark.own_loader("a map that others replace is filled by the lab when they have ended")


def _info(scenario: Scenario, name: str) -> tuple[MapInfo, dict[bytes, bytes]]:
    with open_pin(scenario.agent.config.globals / name) as pinned:
        return pinned.info, {key: value[:8] for key, value in pinned.items()}


def _wanted(field: str, old: MapInfo) -> int:
    return {
        "type": MapType.HASH,
        "key_size": old.key_size + 4,
        "value_size": old.value_size + (8 if old.value_size == 24 else 4),
        "max_entries": 4096,
        "flags": old.flags | 1 << 2,
    }[field]


@FILLED_BEFORE_USE
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.node(pods=2)
def test_endpoint_map(scenario: Scenario, field: str) -> None:
    """The policy map of each pod is replaced, filled before the first packet reads it; all other maps stay."""
    ending, value = CHANGES[field]
    old, content = _info(scenario, ENDPOINT_MAP)
    policies = frozenset(name for name in take_snapshot(scenario.node).pins if name.startswith("cilium_policy_"))
    scenario.expect(migrated=policies)
    scenario.define(**{f"POLICY_{ending}": value})
    scenario.reload()
    new, kept = _info(scenario, ENDPOINT_MAP)
    assert getattr(new, field) == _wanted(field, old)
    assert len(kept) == len(content)
    if field in ("max_entries", "flags"):
        assert kept.keys() == content.keys()
    again = scenario.reload("pod-1")[0]
    assert again.migrated == (), "a map that fits was migrated"


@FILLED_BEFORE_USE
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.node(pods=2)
def test_shared_map(scenario: Scenario, field: str) -> None:
    """The first object that needs it replaces the map, the others find it; pods in parallel do not race for it."""
    ending, value = CHANGES[field]
    old, content = _info(scenario, SHARED_MAP)
    scenario.expect(migrated=frozenset({SHARED_MAP}))
    scenario.define(**{f"IPCACHE_{ending}": value})
    outcomes = scenario.reload_parallel(scenario.agent.subjects, workers=4)
    new, kept = _info(scenario, SHARED_MAP)
    assert getattr(new, field) == _wanted(field, old)
    assert len(kept) == len(content)
    assert [o.migrated for o in outcomes if o.migrated] == [(SHARED_MAP,)], "replaced once, by whoever came first"


class Injected(ReloadlabError):
    """What makes a reload fail here."""


@FILLED_BEFORE_USE
@pytest.mark.node(pods=2, tunnel=True)
def test_shared_map_that_the_tunnel_replaces_first(scenario: Scenario) -> None:
    """Whoever is reloaded first replaces it. Once, the reload fails after that, and the map comes back."""

    def fail(step: Step, work: Workspace) -> None:
        raise Injected(f"before {step.name}")

    old, content = _info(scenario, SHARED_MAP)
    scenario.expect(migrated=frozenset({SHARED_MAP}))
    scenario.define(IPCACHE_MAP_SIZE="4096")
    scenario.reload_fails("overlay", Injected, gate=Gate(fail, before="load programs"))
    assert _info(scenario, SHARED_MAP) == (old, content)
    (outcome,) = scenario.reload("overlay")
    assert outcome.migrated == (SHARED_MAP,)
    new, kept = _info(scenario, SHARED_MAP)
    assert (new.max_entries, kept) == (4096, content)
    assert [name for each in scenario.reload() for name in each.migrated] == []


@pytest.mark.node(pods=2)
def test_both_ways(scenario: Scenario) -> None:
    """An upgrade and its downgrade: the map comes back in its old shape, with its content."""
    scenario.expect(migrated=frozenset({SHARED_MAP}))
    before, content = _info(scenario, SHARED_MAP)
    for macros in ({"IPCACHE_MAP_SIZE": "4096"}, {}):
        scenario.define(**macros)
        scenario.reload()
    after, kept = _info(scenario, SHARED_MAP)
    assert (after.max_entries, kept) == (before.max_entries, content)


CONNECTIONS: dict[str, dict[str, str]] = {
    "max_entries": {"CT_MAP_SIZE_TCP": "4096", "CT_MAP_SIZE_ANY": "4096"},
    "type": {"CT_MAP_TYPE": "BPF_MAP_TYPE_HASH"},
    "nothing": {},
}
ONE_WAY = {"name": "one way", "endpoint": "pod-1", "ingress": [{"fromEntities": ["host", "world"]}]}
"""Answers of other pods and of health reach pod-1 because it has asked, and only then."""


def open_connections(node: Node) -> list[Flow]:
    """Return the usual flows without those that begin new connections."""
    return [flow for flow in default_flows(node) if not flow.fresh]


CARRIED_OVER = pytest.mark.own_loader("connections in tables that are replaced are carried over by our own pipeline")
REPLACED = pytest.mark.node(flows=open_connections)
"""While programs of both loads are attached, a connection that begins is in one of the two tables only."""


@pytest.mark.parametrize(
    ("change", "network"),
    [
        pytest.param("max_entries", "node", marks=REPLACED),
        pytest.param("max_entries", "endpoint-routes", marks=REPLACED),
        pytest.param("type", "node", marks=[REPLACED, pytest.mark.own_sources]),
        ("nothing", "node"),
        ("nothing", "endpoint-routes"),
    ],
)
@CARRIED_OVER
@pytest.mark.node(pods=2, policy=None)
def test_connections(scenario: Scenario, change: str, network: str) -> None:
    """Open connections go on although the answers depend on tables that are replaced, there and back, or just stay."""
    if network == "endpoint-routes":
        scenario.set_endpoint_routes(True)
    macros = CONNECTIONS[change]
    scenario.agent.apply_policies(ONE_WAY)
    scenario.expect(changed=frozenset({ENDPOINT_MAP}), migrated=frozenset(CT_MAPS if macros else ()))
    for wanted in (macros, {}):
        scenario.define(**wanted)
        migrated = [name for outcome in scenario.reload() for name in outcome.migrated]
        assert sorted(migrated) == (sorted(CT_MAPS) if macros else [])


@pytest.mark.parametrize(
    "network", [pytest.param("node"), pytest.param("endpoint-routes", marks=pytest.mark.node(endpoint_routes=True))]
)
@CARRIED_OVER
@pytest.mark.node(pods=2, policy=None, flows=open_connections)
def test_connections_of_a_former_release(scenario: Scenario, network: str) -> None:
    """Nobody has noted which tables the running programs use: what these hold comes along with the tables."""
    scenario.agent.apply_policies(ONE_WAY)
    scenario.expect(changed=frozenset({ENDPOINT_MAP}), migrated=frozenset(CT_MAPS))
    notes = list(scenario.agent.config.state.glob("*/connections"))
    assert notes
    for note in notes:
        note.unlink()
    scenario.define(**CONNECTIONS["max_entries"])
    scenario.reload()
