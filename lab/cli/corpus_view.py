"""What `reloadlab corpus` prints: a line per fault, the counts of every kind, and the same as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.corpus.fault import KINDS, Fault
from lab.corpus.verdict import Control, Outcome, Verdict
from lab.report.documents import CORPUS_FORMAT
from lab.scenario.records import short_name

_STYLES = {Outcome.CAUGHT: "green", Outcome.EQUIVALENT: "default"}


@dataclass(slots=True)
class Report:
    """The verdicts so far, and the control: what scenarios did without a fault in which one had failed.

    `complete` tells whether all faults were tried, and the control was run.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    control: list[Control] = field(default_factory=list)
    complete: bool = False

    @property
    def good(self) -> bool:
        """Whether every fault was caught or is equivalent, and every scenario of the control passed."""
        return all(each.good for each in self.verdicts) and not self.alarms

    @property
    def alarms(self) -> list[Control]:
        """Scenarios of the control that failed, or of which it is not known whether they pass."""
        return [each for each in self.control if not each.passed]

    def counts(self) -> dict[str, Counter[Outcome]]:
        """Return how many faults of each kind had which outcome."""
        return {kind: Counter(each.outcome for each in self.verdicts if each.kind == kind) for kind in KINDS}

    def to_json(self, seconds: float) -> dict[str, Any]:
        """Return the document that --json prints."""
        return {
            "format": CORPUS_FORMAT,
            "complete": self.complete,
            "seconds": round(seconds, 3),
            "faults": [each.to_json() for each in self.verdicts],
            **{
                outcome.replace(" ", "_"): [each.fault for each in self.verdicts if each.outcome is outcome]
                for outcome in Outcome
            },
            "control": [each.to_json() for each in self.control],
        }


def line(each: Verdict) -> str:
    """Return what is printed when a fault's trial has ended."""
    catch = each.trial.failure
    by = "" if catch is None else f" by {short_name(catch.scenario)}: {catch}"
    mark = each.outcome if each.good else each.outcome.upper()
    return f"{mark:8} {each.fault}{by} ({each.trial.seconds:.1f} s)"


def print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Print one line per fault."""
    table = Table("fault", "kind", "caught by", "invariant or error", "at", "sent", box=None, pad_edge=False)
    table.columns[-1].justify = "right"
    for each in verdicts:
        catch = each.trial.failure
        style = _STYLES.get(each.outcome, "bold red")
        unnamed = each.outcome if each.good else each.outcome.upper()
        by = "" if catch is None or each.trial.error else short_name(catch.scenario)
        if by and each.outcome not in (Outcome.CAUGHT, Outcome.REFUTED):
            by = f"{unnamed}: {by}"
        table.add_row(
            escape(each.fault),
            each.kind,
            f"[{style}]{escape(by or unnamed)}[/]",
            "" if catch is None else escape(catch.by),
            "" if catch is None else escape(catch.step),
            str(each.trial.sent) if each.trial.scenarios else "",
        )
    console.print(table)


def print_counts(console: Console, report: Report) -> None:
    """Print how many faults of each kind had which outcome, and what did not pass without any."""
    table = Table("kind", "faults", *Outcome, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, found in report.counts().items():
        table.add_row(kind, str(found.total()), *(str(found[outcome]) for outcome in Outcome))
    total = Counter(each.outcome for each in report.verdicts)
    table.add_row("all", str(total.total()), *(str(total[outcome]) for outcome in Outcome))
    console.print(table)
    for each in report.verdicts:
        if each.trial.error:
            console.print(
                f"{each.fault} could not be tried: {each.trial.error}", markup=False, style="bold red", soft_wrap=True
            )
    for control in report.alarms:
        told = f"without a fault, {control.scenario} {control.problem}"
        console.print(told, markup=False, style="bold red", soft_wrap=True)


def listed(fault: Fault) -> dict[str, Any]:
    """Return a fault as `--list --json` prints it; docs/corpus.md says what the keys mean."""
    return {
        "name": fault.name,
        "kind": fault.kind,
        "what": fault.what,
        "cites": list(fault.cites),
        "equivalent": fault.equivalent,
    }


def print_list(console: Console, faults: Sequence[Fault]) -> None:
    """Print what there is to try, without trying it."""
    for fault in faults:
        cited = f" [{', '.join(fault.cites)}]" if fault.cites else ""
        told = f"; equivalent: {fault.equivalent}" if fault.equivalent else ""
        console.print(
            f"{fault.name} ({fault.kind}): {fault.what}{cited}{told}", markup=False, highlight=False, soft_wrap=True
        )
