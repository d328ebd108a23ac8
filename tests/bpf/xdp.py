"""The prefilter of a loaded bpf_xdp.c."""

from __future__ import annotations

from lab.abi import layouts
from lab.agent import prefilter
from tests.bpf.loaded import Datapath


def deny_prefixes(datapath: Datapath, *prefixes: str) -> None:
    """Put prefixes into the maps of an object that is loaded."""
    for network in prefilter.parse(prefixes):
        datapath.map(prefilter.map_of(network)).update(layouts.cidr_key(network), bytes(1))
