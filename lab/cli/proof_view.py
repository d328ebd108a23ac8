"""What `reloadlab prove` prints: the calls at which something went wrong, and how many there were."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape

from lab.cli.targets import plural
from lab.proof.result import Gated, Proof


def print_proof(console: Console, proof: Proof) -> None:
    """Print a line per reload, then each call with what does not hold there, then the sum."""
    reloads = Counter((gated.round, gated.what) for gated in proof.calls)
    for (round, what), calls in reloads.items():
        console.print(f"  round {round}: {escape(what)}, {plural(calls, 'call')}", highlight=False, soft_wrap=True)
    for gated in dict.fromkeys(finding.gated for finding in proof.findings):
        console.print(f"\n[bold red]{escape(_title(gated))}[/]", highlight=False, soft_wrap=True)
        for finding in proof.findings:
            if finding.gated is gated:
                console.print(f"  {escape(str(finding.violation))}", highlight=False, soft_wrap=True)
    for gap in proof.gaps:
        console.print(f"not seen: {escape(gap)}", highlight=False, soft_wrap=True)
    found = plural(len(proof.findings), "finding") if proof.findings else "no finding"
    console.print(
        f"\n{plural(len(proof.calls), 'call')}, {plural(proof.sent, 'packet')}, {proof.lost} lost: {found}",
        highlight=False,
    )


def _title(gated: Gated | None) -> str:
    return "at no call in particular" if gated is None else f"round {gated.round}, {gated.title}"
