"""What `prove`, `faults` and `upgrade` end with."""

from __future__ import annotations

import pytest

from lab.cli.proofs import Verdict, exit_code
from lab.gates.call import Call
from lab.proof.cases import Case, Place
from lab.proof.result import END, Finding, Gated, Proof
from lab.proof.sweep import SweepResult
from lab.proof.two import Meeting, Meetings
from lab.watch.violation import Violation

WRONG = Violation(7, "lost")
CALLS = [Gated(1, "reload", Call(1, name, "", "bpf", 1), 0) for name in ("PROG_LOAD", END)]
SURVIVED = Case("reload", Place("PROG_LOAD", 1), "ENOMEM", ended="succeeded")
WHY = "no verdict: no CPU"


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        (Proof(CALLS, [], 1, 0, []), 0),
        (Proof(CALLS, [Finding(WRONG, None)], 1, 1, [], WHY), 1),
        (Proof(CALLS, [], 1, 0, [], WHY), 3),
        (Proof(CALLS[1:], [], 1, 0, []), 3),
        (SweepResult([SURVIVED], [], [], 1.0, 1), 0),
        (SweepResult([SURVIVED], [WRONG], [], 1.0, 1, WHY), 1),
        (SweepResult([SURVIVED], [], [], 1.0, 1, WHY), 3),
        (Meetings([Meeting("two", None)], [], [], 1.0, 1), 0),
        (Meetings([Meeting("two", None, wrong=["lost"])], [], [], 1.0, 1, WHY), 1),
        (Meetings([Meeting("two", None)], [], [], 1.0, 1, WHY), 3),
    ],
)
def test_what_was_found_comes_before_what_could_not_be_seen(verdict: Verdict, code: int) -> None:
    assert exit_code(verdict) == code
