"""A run as JUnit XML, which CI servers read: a test case per scenario, with its reloads, packets and findings.

Every case has a name of its own. What else decides on the exit code of a run is a case as well: the measurement of
parallel reloads, and whatever ended the run early.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import PurePosixPath
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from lab.report.wording import Document, ended_by, first_line, headline, visible
from lab.scenario.records import ERROR, FAILED, NOT_RUN, PASSED, RUNNING, SKIPPED

SUITE = "reloadlab"
"""Name of the test suite, and class of the cases that are no scenarios."""
THE_RUN, PARALLEL = "the run", "parallel reloads"
"""Names of the cases that are no scenarios."""

FINDINGS = 50
"""Findings of a case that are properties of their own; of more their number is told."""

_TAGS = {FAILED: "failure", ERROR: "error", RUNNING: "error", SKIPPED: "skipped", NOT_RUN: "skipped"}


def junit(run: Document) -> bytes:
    """Return the XML document for a run.json (docs/run-json.md)."""
    suite = Element("testsuite", name=SUITE)
    suite.extend(_cases(run))
    _make_unique(suite)
    tags = [child.tag for case in suite for child in case]
    counts = {"tests": len(suite), "failures": tags.count("failure"), "errors": tags.count("error")}
    totals = {name: str(value) for name, value in counts.items()} | {"time": f"{run['seconds']:.3f}"}
    suite.attrib |= totals | {"skipped": str(tags.count("skipped"))}
    if run["started"]:
        # The schema wants neither a zone nor parts of a second.
        suite.set("timestamp", run["started"][:19])
    suite.insert(0, _properties(_facts(run)))
    whole = Element("testsuites", {"name": SUITE, **totals})
    whole.append(suite)
    ElementTree.indent(whole)
    return bytes(ElementTree.tostring(whole, encoding="UTF-8", xml_declaration=True)) + b"\n"


def _facts(run: Document) -> dict[str, object]:
    """Return what the whole run was of."""
    told = {"loader": "built-in", "attach": "as each scenario says", "defines": "none"}
    machine = {name: value for name, value in run["machine"].items() if isinstance(value, str | int | float)}
    return {**machine, "version": run["version"], **told, **run["subject"], "complete": run["complete"]}


def _cases(run: Document) -> Iterator[Element]:
    for scenario in run["scenarios"]:
        yield _scenario(scenario, run["machine"]["kernel"])
    if run["parallel"] is not None:
        yield _parallel(run["parallel"])
    if reason := ended_by(run):
        yield _ended(Element("testcase", classname=SUITE, name=THE_RUN), "error", ERROR, first_line(reason), reason)


def _scenario(scenario: Document, kernel: str) -> Element:
    """Return the case of a scenario; `kernel` is that of the run, whose cases a server may mix with another run's."""
    path, _, name = scenario["name"].partition("::")
    module = ".".join(PurePosixPath(path).with_suffix("").parts)
    case = Element("testcase", classname=visible(module), name=visible(name) or "collection")
    case.set("time", f"{scenario['seconds']:.3f}")
    case.append(_properties(_numbers(scenario, kernel)))
    for finding in [*scenario["violations"][:FINDINGS], *_left_out(scenario)]:
        _add(case[0], "finding", finding)
    for gap in scenario["gaps"]:
        _add(case[0], "not checked", gap)
    outcome = scenario["outcome"]
    if outcome != PASSED:
        _ended(case, _TAGS[outcome], outcome, headline(scenario), scenario["message"])
    return case


def _numbers(scenario: Document, kernel: str) -> dict[str, object]:
    numbers = {name: scenario[name] for name in ("reloads", "sent", "lost", "denied")}
    # Of several machines: what did not run has neither.
    own = {name: scenario[name] for name in ("machine", "kernel") if scenario.get(name)}
    numbers |= {"kernel": kernel, **own}
    return numbers | {"findings": len(scenario["violations"])}


def _left_out(scenario: Document) -> list[str]:
    more = len(scenario["violations"]) - FINDINGS
    return [f"and {more} more"] if more > 0 else []


def _parallel(report: Document) -> Element:
    case = Element("testcase", classname=SUITE, name=PARALLEL)
    rates = {f"reloads per second, workers {w['workers']}": w["reloads_per_second"] for w in report["workers"]}
    case.append(_properties({name: report[name] for name in ("pods", "rounds", "sent", "lost")} | rates))
    wrong = [*report["failures"], *report["problems"]]
    if not report["passed"]:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        _ended(case, "failure", FAILED, f"{wrong[0]}{more}", "\n".join(wrong))
    return case


def _ended(case: Element, tag: str, kind: str, message: str, text: str) -> Element:
    """Say in a case how it ended, unless it passed; return the case."""
    SubElement(case, tag, type=kind, message=visible(message)).text = visible(text)
    return case


def _properties(values: Mapping[str, object]) -> Element:
    element = Element("properties")
    for name, value in values.items():
        _add(element, name, value)
    return element


def _add(properties: Element, name: str, value: object) -> None:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    SubElement(properties, "property", name=visible(name), value=visible(text))


def _make_unique(suite: Element) -> None:
    """Number the names of which there are several: names of files and tests can become the same in XML."""
    taken: set[tuple[str, str]] = set()
    for case in suite:
        place, name = case.get("classname", ""), case.get("name", "")
        numbered = (name if number == 1 else f"{name} ({number})" for number in count(1))
        chosen = next(each for each in numbered if (place, each) not in taken)
        taken.add((place, chosen))
        case.set("name", chosen)
