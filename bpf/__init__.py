"""The C datapath. `LIBRARY` is the counterpart of Cilium's /var/lib/cilium/bpf; a checkout's bpf/ can replace it."""

from pathlib import Path

LIBRARY = Path(__file__).resolve().parent

OURS = ".ours"
"""A file in a copy of these sources that is held to all that they promise, whatever was changed in it."""


def is_ours(library: Path) -> bool:
    """Tell whether a directory has these sources or a copy that is held to the same, and not those of others."""
    return library == LIBRARY or (library / OURS).exists()
