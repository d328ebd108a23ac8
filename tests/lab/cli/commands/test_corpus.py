"""`reloadlab corpus`: what it selects, what it refuses, what it prints, and the sample of the corpus."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.labs import ROOT, cli

SAMPLE = (
    *(
        "pod/compile/after-commit",
        "pod/write-object/swapped",
        "pod/open-maps/dropped",
        "pod/load-programs/after-commit",
    ),
    *("pod-routes/compile/dropped", "pod-routes/open-maps/after-commit", "pod-routes/load-programs/swapped"),
    *("pod-routes/insert-policy/dropped", "host/compile/dropped", "host/write-object:cilium_host/after-commit"),
    *("host/repin-maps:cilium_host/dropped", "host/open-maps:cilium_host/dropped"),
    *(
        "host/open-maps:cilium_host/swapped",
        "host/open-maps:cilium_net/dropped",
        "host/write-object:cilium_net/dropped",
    ),
    *("host/load-programs:cilium_host/after-commit", "host/repin-maps:cilium_net/swapped"),
    *("host/migrate-maps:cilium_net/dropped", "host/fill-arrays:cilium_net/without-v6"),
    *("host/attach-ingress:cilium_host/dropped", "host/attach-ingress:cilium_net/dropped"),
    *("overlay/compile/dropped", "overlay/write-object/dropped", "overlay/repin-maps/after-commit"),
    *("overlay/open-maps/after-commit", "overlay/load-programs/dropped", "overlay/attach-egress/dropped"),
    *("loader/arp-slot-empty", "loader/neighbour-slot-empty"),
    *("loader/to-host-never-attached", "loader/egress-never-attached", "loader/wrong-identity"),
    *("loader/policy-slots-kept", "loader/calls-map-reused", "loader/hook-emptied"),
    *("loader/old-maps-kept", "B11-load-unpatched-template", "skip-revert"),
    *("mutant/ct-flags-not-remembered", "mutant/policy-bytes-of-payload"),
)
"""Faults of every kind that are tried in every run of the tests: such as one of the first scenarios catches."""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def corpus(*words: str, timeout: float = 60) -> Result:
    done = subprocess.run(cli("corpus", *words), cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def test_the_list_names_what_is_selected() -> None:
    result = corpus("--list", "-k", "insert-policy and dropped")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "pod/insert-policy/dropped (plan): insert policy is left out",
        "pod-routes/insert-policy/dropped (plan): insert policy is left out",
        "host/insert-policy/dropped (plan): insert policy is left out",
    ]


def test_the_list_is_json_as_well() -> None:
    """With the keys that docs/corpus.md names."""
    result = corpus("--list", "--json", "-k", "B23-keep-old-routes")
    (fault,) = json.loads(result.out)
    sentence = (ROOT / "docs" / "corpus.md").read_text().partition("`--list --json` prints")[2].partition(".")[0]
    assert (result.code, result.err, fault["name"]) == (0, "", "B23-keep-old-routes")
    assert list(fault) == re.findall("`([a-z]+)`", sentence)


def test_the_list_says_why_a_fault_is_without_effect() -> None:
    result = corpus("--list", "-k", "pod/compile/twice")
    assert "; equivalent: the template cache returns the template that it has just returned" in result.out.replace(
        "\n", " "
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("-k", "no-such-fault"), 2, "no fault matches no-such-fault"),
        (("-k", "a and"), 2, "'a and' is no expression"),
        (("--sample", "0"), 2, "0"),
        (("no/such/suite.py",), 2, "no/such/suite.py: no such file or directory"),
    ],
    ids=["no fault", "no expression", "no number", "no suite"],
)
def test_bad_input_is_one_line(words: tuple[str, ...], code: int, said: str) -> None:
    result = corpus(*words)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("reloadlab: ")
    assert said in result.err
    assert result.err.count("\n") == 1


@pytest.mark.privileged
def test_the_verdict_names_scenario_invariant_and_packets() -> None:
    result = corpus("--json", "-k", "B23-keep-old-routes", timeout=150)
    document = json.loads(result.out)
    assert (result.code, document["complete"], document["caught"]) == (0, True, ["B23-keep-old-routes"])
    assert [document[name] for name in ("survived", "not_exercised", "equivalent", "false_alarm")] == [[], [], [], []]
    assert [document[name] for name in ("refuted", "flaky", "error")] == [[], [], []]
    (fault,) = document["faults"]
    assert fault["cites"]
    assert fault["trial"]["catch"]["scenario"] == "scenarios/test_endpoint_routes.py::test_switched_off"
    assert 5 in fault["trial"]["catch"]["invariants"]
    assert fault["trial"]["catch"]["tries"] == 2
    assert fault["trial"]["sent"] > 0
    assert document["control"][0]["passed"]
    assert "1 fault in" in result.err


SUITE = """
import time
import pytest
from reloadlab import Scenario

@pytest.mark.node(pods=2)
def test_reload(scenario: Scenario) -> None:
    scenario.reload("host")

def test_that_waits() -> None:
    time.sleep(600)
"""


@pytest.mark.privileged
def test_what_was_found_is_printed_when_it_is_interrupted(tmp_path: Path) -> None:
    """The second fault takes effect in no scenario, and the last one does not end."""
    (tmp_path / "test_small.py").write_text(SUITE)
    words = ("corpus", "--json", "--workers", "1", "-k", "commit/dropped and (host or overlay)", str(tmp_path))
    with subprocess.Popen(cli(*words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "caught   host/commit/dropped" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    document = json.loads(out)
    assert (process.returncode, document["complete"]) == (130, False)
    assert [each["fault"] for each in document["faults"]] == document["caught"] == ["host/commit/dropped"]
    assert "1 of 2 faults in" in err
    assert err.endswith("reloadlab: interrupted\n")


@pytest.mark.privileged
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sample_of_the_corpus_is_caught() -> None:
    """By one failure, and the control passes: that a catch is confirmed is tested with fewer."""
    assert len(SAMPLE) >= 40
    result = corpus("--once", "--json", "-k", " or ".join(SAMPLE), timeout=850)
    document = json.loads(result.out)
    assert sorted(document["caught"]) == sorted(SAMPLE), result.err
    assert {fault["trial"]["catch"]["tries"] for fault in document["faults"]} == {1}
    assert result.code == 0, result.err
