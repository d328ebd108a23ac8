"""Carrying the content of a map over into the one that replaces it, where the layout allows it."""

from __future__ import annotations

import errno

from datapath.base.bpftypes import HASH_TYPES, PERCPU_TYPES, MapType
from datapath.errors import BpfError
from datapath.kernel import bpf, progarray
from datapath.kernel.map import Map
from datapath.load.layout import is_compared, is_same_layout
from datapath.load.translation import Translate, translation

_ARRAYS = frozenset((MapType.ARRAY, MapType.PERCPU_ARRAY))


def translated(old: Map, new: Map) -> Translate | None:
    """Return what makes the value of an entry of `old` that of the same entry in `new`; None if there is no such thing.

    Keys are of the same kind and size. Values are as they are if they have the same size and fields; connections have
    their fields moved if they have others.
    """
    kinds = (HASH_TYPES, _ARRAYS, frozenset((MapType.LPM_TRIE,)), frozenset((MapType.PROG_ARRAY,)))
    same_kind = any(old.info.type in kind and new.info.type in kind for kind in kinds)
    same_value = (old.info.type in PERCPU_TYPES) == (new.info.type in PERCPU_TYPES)
    if not (same_kind and same_value):
        return None
    if is_compared(new.name) and not is_same_layout(old.info, new.info):
        return translation(new.name, old.info, new.info)
    sizes = (old.info.key_size, old.info.value_size) == (new.info.key_size, new.info.value_size)
    return _as_it_is if sizes else None


def _as_it_is(value: bytes) -> bytes:
    return value


def can_copy(old: Map, new: Map) -> bool:
    """Tell whether an entry of `old` means something in `new`."""
    return translated(old, new) is not None


def copy(old: Map, new: Map) -> int:
    """Copy every entry; returns how many did not fit because `new` has room for fewer. ValueError unless `can_copy`."""
    translate = translated(old, new)
    if translate is None:
        raise ValueError(f"{new.name}: what is in the old map means nothing in the new one")
    if old.info.type == MapType.PROG_ARRAY:
        return progarray.copy(old.fd, new.fd)
    return sum(not put(new, key, translate(value)) for key, value in old.items())


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
