"""Limits of the process on open files and locked memory: raised as far as they go, one line where that is too low."""

from __future__ import annotations

import resource

from datapath.errors import ReloadlabError

BASE_DESCRIPTORS = 128
"""File descriptors of a process that reloads or sends traffic, whatever the lab: those of 40 programs, say."""


class TooFewDescriptors(ReloadlabError):
    """The hard limit on open files (RLIMIT_NOFILE) is too low; `needed` and `limit` are numbers of descriptors."""

    def __init__(self, what: str, needed: int, limit: int) -> None:
        remedy = f"raise it as root: ulimit -n {needed} (systemd: LimitNOFILE={needed})"
        super().__init__(f"{what} needs {needed} file descriptors, the hard limit is {limit}; {remedy}")
        self.needed = needed
        self.limit = limit


def descriptors_of(pods: int) -> int:
    """Return how many file descriptors a process needs for a lab: with policies, the map of every pod is open."""
    return BASE_DESCRIPTORS + pods


def raise_limits() -> int:
    """Raise the soft limits on open files and locked memory; return the number of descriptors there may be now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    raise_locked_memory()
    return hard


def raise_locked_memory() -> int:
    """Raise the limits on locked memory (RLIMIT_MEMLOCK) and return the one that holds now, in bytes; -1: none.

    Kernels before 5.11 count the memory of BPF maps and programs so. Every process that makes any calls this first.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (PermissionError, ValueError):
        # Without CAP_SYS_RESOURCE, the hard limit is the end. ValueError is how Python tells the kernel's EPERM.
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        return hard
    return resource.RLIM_INFINITY


def require_descriptors(needed: int, what: str) -> None:
    """Raise the soft limits; TooFewDescriptors unless `needed` descriptors are allowed then, for `what`."""
    limit = raise_limits()
    if limit < needed:
        raise TooFewDescriptors(what, needed, limit)
