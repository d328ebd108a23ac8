"""A packet that meets programs of two loads is counted; one that crosses from an object to another is not."""

from __future__ import annotations

import pytest

from lab.abi.layouts import HIT_MIXED_LOADS, Program
from tests.bpf.loaded import PEER4, PEER6, POD, REDIRECT, Datapath, loaded
from tests.bpf.pod import ARP_REQUEST, OFF, programs, to_peer

pytestmark = pytest.mark.privileged

NEXT = POD.generation + 1
"""The generation of the other load."""


def hand_over(old: Datapath, new: Datapath, *names: str) -> None:
    """Put tail programs of one load into the calls map of another, as a loader does that uses the pinned map again."""
    for name in names:
        program = new.collection.programs[name]
        slot = new.collection.spec.programs[name].slot
        assert slot is not None
        old.calls.update(slot[1].to_bytes(4, "little"), program.fd.to_bytes(4, "little"))


@pytest.mark.parametrize("version", [4, 6])
def test_tail_programs_of_another_load_count_that_they_are(off: Datapath, version: int) -> None:
    with loaded(OFF, generation=NEXT) as new:
        hand_over(off, new, f"tail_handle_ipv{version}")
        off.run("cil_from_container", to_peer(version))
        assert programs(off) == {Program.FROM_CONTAINER: 1}
        chain = [Program[f"IPV{version}_{name}"] for name in ("FROM_LXC", "CT_EGRESS", "FROM_LXC_CONT")]
        assert new.hits() == {(NEXT, POD.id, program | HIT_MIXED_LOADS): 1 for program in chain}


def test_only_the_program_of_the_other_load_counts(off: Datapath) -> None:
    with loaded(OFF, generation=NEXT) as new:
        hand_over(off, new, "tail_handle_ipv4")
        off.run("cil_from_container", ARP_REQUEST)
        assert programs(off) == {Program.FROM_CONTAINER: 1, Program.LXC_ARP: 1}
        assert not new.hits()


@pytest.mark.parametrize("version", [4, 6])
def test_the_policy_program_of_another_pod_begins_a_chain(off: Datapath, version: int) -> None:
    """The pod that receives the packet has been loaded at another time than the one that sends it."""
    with loaded(OFF, generation=NEXT) as new:
        policy = new.collection.programs["handle_policy"]
        off.map("cilium_call_policy").update(POD.id.to_bytes(4, "little"), policy.fd.to_bytes(4, "little"))
        off.add_endpoint(PEER4 if version == 4 else PEER6)
        assert off.run("cil_from_container", to_peer(version)).retval == REDIRECT
        sent = [Program[f"IPV{version}_{name}"] for name in ("FROM_LXC", "CT_EGRESS", "FROM_LXC_CONT")]
        assert programs(off) == dict.fromkeys((Program.FROM_CONTAINER, *sent), 1)
        received = [Program[f"IPV{version}_{name}"] for name in ("CT_INGRESS_POLICY_ONLY", "POLICY")]
        assert new.hits() == {(NEXT, POD.id, program): 1 for program in (Program.HANDLE_POLICY, *received)}
