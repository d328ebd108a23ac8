"""Carrying the content of a map over into the one that replaces it, where the layout allows it."""

from __future__ import annotations

import errno

from datapath.base.bpftypes import HASH_TYPES, PERCPU_TYPES, MapType
from datapath.errors import BpfError
from datapath.kernel import bpf, progarray
from datapath.kernel.map import Map
from datapath.load.layout import is_compared, is_same_layout

_ARRAYS = frozenset((MapType.ARRAY, MapType.PERCPU_ARRAY))


def can_copy(old: Map, new: Map) -> bool:
    """Tell whether an entry of `old` means the same in `new`: same sizes and fields, and keys of the same kind."""
    kinds = (HASH_TYPES, _ARRAYS, frozenset((MapType.LPM_TRIE,)), frozenset((MapType.PROG_ARRAY,)))
    same_kind = any(old.info.type in kind and new.info.type in kind for kind in kinds)
    same_value = (old.info.type in PERCPU_TYPES) == (new.info.type in PERCPU_TYPES)
    sizes = (old.info.key_size, old.info.value_size) == (new.info.key_size, new.info.value_size)
    return (
        same_kind
        and same_value
        and sizes
        and (not is_compared(new.name) or is_same_layout(new.name, old.info, new.info))
    )


def copy(old: Map, new: Map) -> int:
    """Copy every entry; returns how many did not fit because `new` has room for fewer."""
    if old.info.type == MapType.PROG_ARRAY:
        return progarray.copy(old.fd, new.fd)
    return sum(not put(new, key, value) for key, value in old.items())


def put(target: Map, key: bytes, value: bytes, *, flags: int = bpf.BPF_ANY) -> bool:
    """Write an entry; False if there is no room for it. With BPF_NOEXIST, one that is there is left as it is."""
    try:
        target.update(key, value, flags=flags)
    except BpfError as error:
        if error.errno == errno.EEXIST:
            return True
        if error.errno not in (errno.E2BIG, errno.ENOSPC):
            raise
        return False
    return True
