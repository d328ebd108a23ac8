"""The filters that a step has taken from a clsact hook or put there, and how the hook becomes what it was."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace

from datapath.errors import NetlinkError
from datapath.kernel import hooks
from datapath.kernel.hooks import Filter, HookTaken
from datapath.reload.workspace import Workspace


@dataclass
class Replaced:
    """What an attach or a detach took away: filters with an open descriptor of their programs."""

    ifname: str
    ifindex: int
    attached: Filter | None = None
    filters: list[tuple[Filter, int]] = field(default_factory=list)


def put_back(work: Workspace, replaced: Replaced) -> None:
    """Make the hook what it was. An interface that is gone took its filters with it: nothing to do.

    A clsact qdisc stays, whoever made it: others may have attached filters to it meanwhile, which would go with it.
    Where somebody else's filter has the place by now, it stays (HookTaken); the old program then goes on in the place
    of the new one.
    """
    try:
        _put_back(work, replaced)
    except NetlinkError as error:
        if error.errno not in (errno.ENODEV, errno.EINVAL) or exists(work, replaced.ifindex):
            raise


def _put_back(work: Workspace, replaced: Replaced) -> None:
    new, by_priority = replaced.attached, dict[int, list[tuple[Filter, int]]]()
    for old, fd in replaced.filters:
        by_priority.setdefault(old.priority, []).append((old, fd))
    taken = _taken(work, replaced)
    if taken is not None:
        if new is not None and new in _present(work, new):
            _attach_again(work, new, replaced.filters[0][1])
        raise HookTaken(replaced.ifname, taken)
    for several in by_priority.values():
        if len(several) == 1:
            _attach_again(work, *several[0])
        else:
            _put_back_in_order(work, several)
    # It may never have come to be attached; and what took its place again needs no detaching.
    if new is not None and new in _present(work, new):
        hooks.detach(work.netlink, new)


def _taken(work: Workspace, replaced: Replaced) -> Filter | None:
    """Return somebody else's filter that is where one of ours was, if there is any."""
    foreign = (
        [found for found in _present(work, replaced.filters[0][0]) if not found.is_ours] if replaced.filters else ()
    )
    places = {(old.priority, old.handle) for old, _ in replaced.filters}
    return next((found for found in foreign if (found.priority, found.handle) in places), None)


def _present(work: Workspace, at: Filter) -> tuple[Filter, ...]:
    return hooks.filters(work.netlink, at.ifindex, at.direction)


def exists(work: Workspace, ifindex: int) -> bool:
    """Tell whether the interface is still there."""
    return any(link.ifindex == ifindex for link in work.netlink.interfaces().values())


def _put_back_in_order(work: Workspace, several: list[tuple[Filter, int]]) -> None:
    """Put back filters of one hook and priority, in their order: the first alone is run.

    The kernel puts a new filter before those of its priority. Until all are where they were, each runs the program of
    the first, so that no packet meets another one.
    """
    first, program = several[0]
    here = [f for f in _present(work, first) if f.priority == first.priority]
    guard = replace(first, handle=1 + max(f.handle for f in (*here, *(f for f, _ in several))))
    _attach_again(work, guard, program)
    handles = {f.handle for f, _ in several}
    for found in here:
        if found.handle in handles:
            hooks.detach(work.netlink, found)
    for old, _ in reversed(several):
        _attach_again(work, old, program)
    for old, fd in several:
        _attach_again(work, old, fd)
    hooks.detach(work.netlink, guard)


def _attach_again(work: Workspace, old: Filter, fd: int) -> None:
    """Attach a program where it was; a qdisc that somebody else has deleted comes back."""

    def attach() -> None:
        hooks.attach(
            work.netlink,
            old.ifindex,
            old.direction,
            program_fd=fd,
            name=old.name,
            priority=old.priority,
            handle=old.handle,
        )

    try:
        attach()
    except NetlinkError as error:
        if error.errno != errno.EINVAL or not hooks.ensure_clsact(work.netlink, old.ifindex):
            raise
        attach()
