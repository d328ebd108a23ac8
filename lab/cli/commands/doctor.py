"""`reloadlab doctor`: what the machine has of what the lab needs, a line each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lab.doctor.doctor import Finding, State, examine

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "doctor",
        description="Probe every requirement: ok, missing (needed), off (the lab works without it) or unknown.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings, each as soon as it is there; 1 if something needed is missing."""
    findings: list[Finding] = []
    for finding in examine():
        findings.append(finding)
        if not args.json:
            print(finding, flush=True)
    complete = all(finding.state is not State.MISSING for finding in findings)
    if args.json:
        print(json.dumps(_document(findings, complete=complete), indent=2))
    return 0 if complete else 1


def _document(findings: Sequence[Finding], *, complete: bool) -> dict[str, object]:
    rows = [{"name": f.name, "state": f.state.value, "detail": f.detail, "remedy": f.remedy} for f in findings]
    return {"ok": complete, "requirements": rows}
