"""With which errors each system call of a loader can fail, other than for a fault of the loader itself.

Not those that say of the node what is not so: ENOENT of what is there, EEXIST of what is not, E2BIG of a map that has
room. The call that fails has not happened, and a loader may rely on what it was told.
"""

from __future__ import annotations

import errno

from lab.gates.call import RECEIVE, Call

_FILES = (errno.EIO, errno.ENOSPC, errno.EACCES)
_OF_CALLS = {
    "MAP_CREATE": (errno.ENOMEM, errno.EPERM),
    "PROG_LOAD": (errno.EACCES, errno.EAGAIN, errno.E2BIG, errno.ENOMEM),
    "BTF_LOAD": (errno.EINVAL, errno.ENOMEM),
    "MAP_UPDATE": (errno.ENOMEM, errno.EBUSY),
    "MAP_DELETE": (errno.EBUSY,),
    "MAP_LOOKUP": (errno.ENOMEM,),
    "MAP_GET_NEXT_KEY": (errno.ENOMEM,),
    "OBJ_PIN": (errno.ENOSPC, errno.EPERM),
    "OBJ_GET_INFO_BY_FD": (errno.ENOMEM,),
    "OBJ_GET": (errno.EACCES, errno.EMFILE),
    "MAP_GET_FD_BY_ID": (errno.EMFILE,),
    "PROG_GET_FD_BY_ID": (errno.EMFILE,),
    "LINK_CREATE": (errno.ENOMEM, errno.ERANGE),
    "LINK_GET_FD_BY_ID": (errno.EMFILE,),
    "rename": (errno.EIO, errno.EACCES),
    "link": _FILES,
    "unlink": (errno.EIO, errno.EACCES),
    "mkdir": _FILES,
    "rmdir": (errno.EIO, errno.EACCES),
    "open": (*_FILES, errno.EMFILE),
}
"""By the beginning of the call's name; the first that fits counts."""

_NETLINK = (errno.ENOBUFS, errno.ENOMEM)


def first_errno_of(call: Call) -> tuple[int, ...]:
    """Return the most likely of the errors that a call can fail with."""
    return errnos_of(call)[:1]


def errnos_of(call: Call) -> tuple[int, ...]:
    """Return the errors that a call can fail with; ENOMEM for one that is not known."""
    if call.name == RECEIVE:
        # The kernel had no room for the answer: what was asked for is done.
        return (errno.ENOBUFS,)
    if call.name.startswith("RTM_"):
        return _NETLINK
    exact = _OF_CALLS.get(call.name)
    if exact is not None:
        return exact
    return next((found for name, found in _OF_CALLS.items() if call.name.startswith(name)), (errno.ENOMEM,))
