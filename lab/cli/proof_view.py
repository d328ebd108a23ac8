"""What `reloadlab prove` and `reloadlab faults` print: calls and cases in which something went wrong, and sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.proof.cases import Case
from lab.proof.result import Gated, Proof
from lab.proof.sweep import SweepResult
from lab.proof.two import Meeting, Meetings
from lab.system.words import plural

ENDS = ("failed", "succeeded", "killed", "cancelled", "not reached")
"""How a case can end."""

_TOLD = 4
"""Of what does not hold at one case or meeting, so much is printed."""


def print_interrupted(console: Console, cases: Sequence[Case]) -> None:
    """Print how many cases of a sweep that was interrupted had been run; what failed was told at once."""
    survived = sum(case.survived for case in cases)
    console.print(
        f"\n{plural(len(cases), 'case')} until then, {survived} survived; nothing was checked at the end",
        highlight=False,
    )


def print_proof(console: Console, proof: Proof) -> None:
    """Print a line per reload, then each call with what does not hold there, then the sum."""
    reloads = Counter((gated.round, gated.what) for gated in proof.calls)
    for (round, what), calls in reloads.items():
        console.print(f"  round {round}: {escape(what)}, {plural(calls, 'call')}", highlight=False, soft_wrap=True)
    if beside := sum(bool(gated.under_way) for gated in proof.calls):
        console.print(f"  at {plural(beside, 'call')} another thread's was under way (--json)", highlight=False)
    for gated in dict.fromkeys(finding.gated for finding in proof.findings):
        console.print(f"\n[bold red]{escape(_title(gated))}[/]", highlight=False, soft_wrap=True)
        for finding in proof.findings:
            if finding.gated is gated:
                console.print(f"  {escape(str(finding.violation))}", highlight=False, soft_wrap=True)
    for gap in proof.gaps:
        console.print(f"not seen: {escape(gap)}", highlight=False, soft_wrap=True)
    _print_undecided(console, proof.undecided)
    found = plural(len(proof.findings), "finding") if proof.findings else "no finding"
    console.print(
        f"\n{plural(len(proof.calls), 'call')}, {plural(proof.sent, 'packet')}, {proof.lost} lost: {found}",
        highlight=False,
    )


def _title(gated: Gated | None) -> str:
    return "at no call in particular" if gated is None else f"round {gated.round}, {gated.title}"


def _print_undecided(console: Console, why: str) -> None:
    """Print why nothing can be said, if nothing can."""
    if why:
        console.print(f"[bold yellow]{escape(why)}[/]", highlight=False, soft_wrap=True)


def case_line(case: Case) -> str:
    """Return what is printed of a case that was not survived, with how to run it alone."""
    wrong = _few(case.wrong) or case.ended
    return f"{case.title}: {case.ended}: {wrong}\n    {case.command}"


def print_sweep(console: Console, result: SweepResult) -> None:
    """Print how the cases of each reload ended, and the sum."""
    table = Table("what", "cases", *ENDS, "survived", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for what in dict.fromkeys(case.what for case in result.cases):
        cases = [case for case in result.cases if case.what == what]
        ends = Counter(case.ended.partition(":")[0] for case in cases)
        numbers = (ends[how] for how in ENDS)
        table.add_row(what, str(len(cases)), *map(str, numbers), str(sum(case.survived for case in cases)))
    console.print(table)
    for violation in result.findings:
        console.print(f"at no case in particular: {violation}", markup=False, highlight=False, soft_wrap=True)
    for gap in result.gaps:
        console.print(f"not seen: {gap}", markup=False, highlight=False, soft_wrap=True)
    _print_undecided(console, result.undecided)
    if any(result.killed.values()):
        states = ", ".join(f"{number} {state}" for state, number in result.killed.items())
        console.print(f"state that killed processes have left: {states}", highlight=False)
    survived = sum(case.survived for case in result.cases)
    count = _of(len(result.cases), result.possible, "case")
    console.print(f"\n{count} in {result.seconds:.0f} s, {survived} survived", highlight=False)


def _of(number: int, possible: int, what: str) -> str:
    """Return how many there were, and, if only some were chosen, of how many."""
    return plural(number, what) if number == possible else f"{number} of {plural(possible, what)}"


def meeting_line(meeting: Meeting) -> str:
    """Return what is printed of a meeting at which something was wrong."""
    return f"{meeting.title}: {_few(meeting.wrong)}"


def _few(wrong: Sequence[str]) -> str:
    """Return the first of what does not hold, and how much more there is."""
    more = f"; and {len(wrong) - _TOLD} more (--json has all)" if len(wrong) > _TOLD else ""
    return "; ".join(wrong[:_TOLD]) + more


def print_meetings(console: Console, result: Meetings) -> None:
    """Print how many meetings of each pair there were, and the sum."""
    table = Table("reloads", "meetings", "one waited", "wrong", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for what in dict.fromkeys(meeting.what for meeting in result.meetings):
        meetings = [meeting for meeting in result.meetings if meeting.what == what]
        waited, wrong = sum(each.waited for each in meetings), sum(bool(each.wrong) for each in meetings)
        table.add_row(what, str(len(meetings)), str(waited), str(wrong))
    console.print(table)
    for violation in result.findings:
        console.print(f"at no meeting in particular: {violation}", markup=False, highlight=False, soft_wrap=True)
    for gap in result.gaps:
        console.print(f"not seen: {gap}", markup=False, highlight=False, soft_wrap=True)
    _print_undecided(console, result.undecided)
    wrong = sum(bool(meeting.wrong) for meeting in result.meetings)
    count = _of(len(result.meetings), result.possible, "meeting")
    console.print(f"\n{count} in {result.seconds:.0f} s, something was wrong at {wrong}", highlight=False)
