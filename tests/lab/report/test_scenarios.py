"""scenarios.py: what went wrong is first, and each finding has its place."""

from __future__ import annotations

from lab.report.scenarios import LISTED, open_scenario, outcomes, scenarios_of
from tests.lab.report.samples import LOST, MS, START, losing, outcome, record, run


def test_what_went_wrong_is_first() -> None:
    names = ("a", "b", "c", "d")
    ends = ("passed", "skipped", "error", "failed")
    scenarios = scenarios_of(run(*(record(name, outcome=end) for name, end in zip(names, ends, strict=True))))
    assert [scenario.outcome for scenario in scenarios] == ["failed", "error", "skipped", "passed"]
    assert list(outcomes(scenarios)) == [("failed", "✗", 1), ("error", "!", 1), ("skipped", "»", 1), ("passed", "✓", 1)]


def test_losses_are_told_by_their_places_the_most_frequent_first() -> None:
    (scenario,) = scenarios_of(run(losing()))
    (told,) = scenario.findings
    assert told.what == LOST
    assert told.places == [
        (2, "during attach ingress lxc1 of pod-1, generation 2", "+5.00 to +5.50 ms"),
        (1, "between attach ingress lxc1 and commit pod-1 of pod-1, generation 2", "+6.50 ms"),
    ]
    assert scenario.touched == {0: 3}


def test_violations_without_a_time_are_told_too() -> None:
    (scenario,) = scenarios_of(run(record(outcome="failed", violations=("invariant 5: no route",))))
    assert [(told.what, told.where) for told in scenario.findings] == [("invariant 5: no route", "")]


def test_of_an_exception_the_page_tells_what_it_says() -> None:
    message = """
def test_pod(scenario):
>       scenario.reload("pod1")
E       lab.node.node.UnknownTarget: lab demo has no endpoint pod1

test_fail.py:19: UnknownTarget"""
    made = run(record(outcome="failed", message=message))
    assert scenarios_of(made)[0].headline == "lab.node.node.UnknownTarget: lab demo has no endpoint pod1"


def test_the_steps_shown_first_are_those_of_the_reload_with_the_most_findings() -> None:
    reloads = tuple(
        {"node": 1, **outcome(generation=at, start=START + at * 9 * MS).to_json()} for at in range(LISTED + 50)
    )
    at = START + (LISTED + 40) * 9 * MS
    finding = {"what": LOST, "at_ns": [at, at + 1]}
    (scenario,) = scenarios_of(run(record(reloads=reloads, findings=(finding,))))
    opened = open_scenario(scenario)
    assert opened.first == LISTED + 40
    assert len(opened.listed) == LISTED
    assert [each.findings for each in opened.listed if each.findings] == [2]
    assert len(opened.waterfalls()) == LISTED + 50


def test_a_scenario_that_did_nothing_has_no_figure() -> None:
    (scenario,) = scenarios_of(run(record(outcome="skipped", reloads=(), traffic=())))
    opened = open_scenario(scenario)
    assert (opened.timeline, opened.flows, opened.listed, opened.nodes) == (None, None, [], [])
