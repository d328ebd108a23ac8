"""Object files that are not those of the programs that run."""

from __future__ import annotations

import pytest

from datapath.base.mapnames import calls_map
from datapath.object.elffile import read
from datapath.object.spec import INSN_SIZE
from lab.agent.agent import Agent
from lab.watch.invariants import baseline
from tests.lab.watch.faults import violations

pytestmark = pytest.mark.privileged

MOV_IMMEDIATE = 0xB7


@pytest.mark.parametrize(
    ("subject", "file", "calls"),
    [
        ("pod-1", "101/bpf_lxc.o", calls_map(101)),
        ("host", "1/bpf_host.o", calls_map(1, "hostns_")),
    ],
)
def test_the_object_of_the_load_before_is_found(agent: Agent, subject: str, file: str, calls: str) -> None:
    """The same C and the same constants but for the number of the load: the slots and the names are the same."""
    path = agent.config.state / file
    former = path.read_bytes()
    before = baseline(agent)
    outcome = agent.reload(subject)
    published = path.read_bytes()
    assert violations(agent, before, outcome) == []
    path.write_bytes(former)
    found = violations(agent, before, outcome)
    path.write_bytes(published)
    assert found
    assert all(line.startswith("invariant 4: ") and line.endswith(f"as it is in {file}") for line in found)
    places = {line.removeprefix("invariant 4: ").partition(":")[0] for line in found}
    assert any(place.startswith(f"{calls} slot ") for place in places)
    assert any(place.endswith(" ingress") for place in places)


def test_another_instruction_in_the_object_is_found(agent: Agent) -> None:
    """The file differs from the template in more than constants and names: it is read as it is."""
    path = agent.config.state / "101" / "bpf_lxc.o"
    published = path.read_bytes()
    section = read(str(path), published).section("from-container")
    assert section is not None
    mov = next(
        at for at in range(section.offset, section.offset + section.size, INSN_SIZE) if published[at] == MOV_IMMEDIATE
    )
    before = baseline(agent)
    path.write_bytes(published[: mov + 4] + bytes((published[mov + 4] ^ 1,)) + published[mov + 5 :])
    found = violations(agent, before)
    path.write_bytes(published)
    assert any(line.endswith("is not cil_from_container as it is in 101/bpf_lxc.o") for line in found)
