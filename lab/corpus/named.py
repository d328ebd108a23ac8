"""Named faults: bugs that Cilium, or this lab's own loader, really had; numbered as in docs/corpus.md."""

from __future__ import annotations

from lab.corpus import named_agents, named_commit, named_content, named_hooks, named_links, named_maps, named_xdp

FAULTS = (
    *named_maps.FAULTS,
    *named_content.FAULTS,
    *named_commit.FAULTS,
    *named_hooks.FAULTS,
    *named_links.FAULTS,
    *named_xdp.FAULTS,
    *named_agents.FAULTS,
)

NOT_YET = {
    "B33": "missed tail calls in teardowns whose mechanism was never found: nothing to put back",
}
"""Entries of the corpus that do not apply to what the pipeline does today, each with the reason."""
