"""What `corpus`, `faults` and `prove` found, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lab.report.documents import Document
from lab.report.figure import Table
from lab.scenario.records import short_name
from lab.system.words import plural

Json = Mapping[str, Any]

_GOOD = ("caught", "equivalent")


def sentence(document: Document) -> tuple[bool, str]:
    """Return whether all is well with a document of corpus, faults or prove, and what it says in a sentence."""
    of_kind = {"corpus": _corpus, "sweep": _sweep, "proof": _proof, "meetings": _meetings}
    good, said = of_kind[document.kind](document.content)
    # Documents of a corpus, and older ones, have none.
    undecided = document.content.get("undecided", "")
    return good and not undecided, f"{said}; {undecided}" if undecided else said


def tables(document: Document) -> list[Table]:
    """Return the tables of a document of corpus, faults or prove."""
    own = {"corpus": _faults, "sweep": _cases, "proof": _calls, "meetings": _pairs}[document.kind](document.content)
    gaps = document.content.get("gaps", [])
    return own + ([Table(("not seen",), [(gap,) for gap in gaps], caption="What could not be watched")] if gaps else [])


def _corpus(content: Json) -> tuple[bool, str]:
    counts = Counter(fault["outcome"] for fault in content["faults"])
    words = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    alarms = _alarms(content)
    good = content["complete"] and not alarms and all(outcome in _GOOD for outcome in counts)
    said = f"{plural(len(content['faults']), 'known bug')} put into the lab: {words or 'none tried'}"
    said += f"; {plural(len(alarms), 'scenario')} did not pass without a bug" if alarms else ""
    return good, said if content["complete"] else f"{said}; it was cut short"


def _alarms(content: Json) -> list[tuple[str, str]]:
    """Return the scenarios of the control that did not pass, and what came of them."""
    words = {False: "failed", None: "not known"}
    return [(each["scenario"], words[each["passed"]]) for each in content["control"] if each["passed"] is not True]


def _faults(content: Json) -> list[Table]:
    columns = ("fault", "kind", "outcome", "noticed by", "what it does", "sent")
    ordered = sorted(content["faults"], key=lambda fault: (fault["outcome"] in _GOOD, fault["outcome"], fault["fault"]))
    rows = [_fault(fault) for fault in ordered]
    alarms = _alarms(content)
    without = [Table(("scenario", "outcome"), alarms, caption="What did not pass without a bug")] if alarms else []
    return [Table(columns, rows, frozenset({5}), "Known bugs, those that were not caught first"), *without]


def _fault(fault: Json) -> tuple[str, ...]:
    trial, catch = fault["trial"], fault["trial"]["catch"]
    by = trial["error"] or ("-" if catch is None else short_name(catch["scenario"]))
    return fault["fault"], fault["kind"], fault["outcome"], by, fault["what"], f"{trial['sent']:,}"


def _sweep(content: Json) -> tuple[bool, str]:
    cases, survived = content["cases"], content["survived"]
    good = cases == survived and cases > 0 and not content["findings"]
    return good, f"{plural(cases, 'fault')} at system calls: {survived:,} survived, {cases - survived:,} not"


def _cases(content: Json) -> list[Table]:
    columns = ("reload", "fault", "ended", "what does not hold", "to run it alone")
    rows = [
        (case["what"], case["fault"], case["ended"], "; ".join(case["wrong"]) or "-", case["command"])
        for case in content["failures"]
    ]
    rows += [("no case in particular", "-", "-", found, "-") for found in content["findings"]]
    return [Table(columns, rows, caption="Cases that were not survived")] if rows else []


def _proof(content: Json) -> tuple[bool, str]:
    found = len(content["findings"])
    sent = f"{plural(content['sent'], 'packet')} sent, {content['lost']:,} lost"
    good = not found and bool(content["calls"])
    return good, f"packets at {plural(len(content['calls']), 'system call')}: {sent}, {plural(found, 'finding')}"


def _calls(content: Json) -> list[Table]:
    calls = content["calls"]
    rows = []
    for finding in content["findings"]:
        place = finding["call"]
        known = place is not None and 0 <= place < len(calls)
        call = calls[place] if known else None
        before = ("-", "no call in particular") if call is None else (str(call["number"]), call["call"])
        reload = "-" if call is None else f"{call['reload']}, round {call['round']}"
        rows.append((reload, *before, str(finding["invariant"]), finding["what"]))
    columns = ("reload", "call", "before", "invariant", "what does not hold")
    findings = [Table(columns, rows, frozenset({1, 3}), "Findings")] if rows else []
    reloads = Counter((call["round"], call["reload"]) for call in calls)
    sums = [(str(number), reload, f"{count:,}") for (number, reload), count in reloads.items()]
    return [*findings, Table(("round", "reload", "calls"), sums, frozenset({0, 2}), "System calls of each reload")]


def _meetings(content: Json) -> tuple[bool, str]:
    wrong = len(content["failures"])
    good = not wrong and not content["findings"] and content["meetings"] > 0
    return good, f"{plural(content['meetings'], 'meeting')} of two reloads: something was wrong at {wrong:,}"


def _pairs(content: Json) -> list[Table]:
    rows = [(each["what"], "; ".join(each["wrong"])) for each in content["failures"]]
    rows += [("no meeting in particular", found) for found in content["findings"]]
    caption = "Meetings at which something was wrong"
    return [Table(("meeting", "what does not hold"), rows, caption=caption)] if rows else []
