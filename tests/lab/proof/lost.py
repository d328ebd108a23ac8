"""At which calls a proof says that packets were lost."""

from __future__ import annotations

from collections import Counter

from lab.proof.result import Proof


def lost_at(proof: Proof) -> Counter[int]:
    """Return how many findings of lost packets there are at which call; each has one."""
    found = [finding.gated for finding in proof.findings if finding.violation.invariant == 7]
    assert None not in found
    return Counter(proof.calls.index(gated) for gated in found if gated is not None)


def assert_lost_behind(proof: Proof, text: str) -> None:
    """Hold a proof to it that packets were lost behind a call.

    A packet belongs to the call before which it was sent. That before the named one may be under way still, and on a
    busy machine one of some calls before that; of these there are few, and of those behind none.
    """
    at, named = lost_at(proof), next(n for n, gated in enumerate(proof.calls) if gated.call.text == text)
    assert proof.lost > 0
    assert at.keys() & {named, named + 1}
    behind = [str(each.violation) for each in proof.findings if each.gated in proof.calls[named + 2 :]]
    assert behind == []
    assert 2 * (at[named] + at[named + 1]) > at.total()
