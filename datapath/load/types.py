"""BTF of objects in the kernel: loaded once, its descriptor kept for every load of the same object."""

from __future__ import annotations

import errno
import os
import threading
from types import TracebackType
from typing import Self

from datapath.base.bpftypes import HASH_TYPES, MapType
from datapath.errors import BpfError, TypesUnknown
from datapath.kernel import bpf
from datapath.kernel.uapi import MapBtf, ProgBtf
from datapath.load.layout import is_compared
from datapath.object.spec import CollectionSpec, MapSpec, ProgramSpec

_ENOTSUPP = 524  # the kernel's own number
_DESCRIBED = HASH_TYPES | {MapType.LPM_TRIE}
"""Maps with keys of their own. Of an array the kernel wants no key but an integer, of most others no types at all."""
_REFUSALS = (errno.EINVAL, errno.E2BIG, _ENOTSUPP, errno.EOPNOTSUPP)
"""How a kernel says that it does not take the BTF; anything else, such as EPERM or ENOMEM, is another failure."""


class TypeStore:
    """The BTF of each object that was loaded, by its bytes. A context manager: leaving it closes the descriptors.

    A kernel that refuses an object's BTF loads the object without; `refusal` says what it said. Threads may share it.
    """

    def __init__(self, *, all_maps: bool = False) -> None:
        """Prepare; with `all_maps` the kernel is told the types of all hashes and tries that have some."""
        self._all_maps = all_maps
        self._lock = threading.Lock()
        self._fds: dict[bytes, int] = {}
        self._refused: dict[bytes, BpfError] = {}
        self.refused_programs: dict[str, str] = {}
        """Programs that were loaded without their records because the kernel refused those, and what it said."""

    def fd(self, spec: CollectionSpec) -> int:
        """Return the descriptor of an object's BTF; 0 if the object has none, or the kernel refused it."""
        if not spec.btf:
            return 0
        with self._lock:
            if spec.btf not in self._fds:
                try:
                    self._fds[spec.btf] = bpf.btf_load(spec.btf)
                except BpfError as error:
                    if error.errno not in _REFUSALS:
                        raise
                    self._refused[spec.btf] = error
                    self._fds[spec.btf] = 0
            return self._fds[spec.btf]

    def refusal(self, spec: CollectionSpec) -> BpfError | None:
        """Return the kernel's refusal of an object's BTF; None if it was not refused, or not loaded yet."""
        return self._refused.get(spec.btf)

    def of_map(self, spec: CollectionSpec, item: MapSpec) -> MapBtf | None:
        """Return the types that the kernel is told of a map; None if it has to know none.

        It has to know them for a spin lock or a timer in the value.
        """
        told = item.needs_types or (self._all_maps and item.key_type and item.value_type and item.type in _DESCRIBED)
        fd = self.fd(spec) if told else 0
        return MapBtf(fd, item.key_type, item.value_type) if fd else None

    def of_new_map(self, spec: CollectionSpec, item: MapSpec) -> MapBtf | None:
        """Do the same for a map that is about to be made.

        With `all_maps`, TypesUnknown for one that the control plane reads, if there are no types that the kernel takes.
        """
        told = self.of_map(spec, item)
        if told is None and self._all_maps and item.type in _DESCRIBED and is_compared(item.name):
            refused = self.refusal(spec)
            why = "its object has none" if refused is None else f"the kernel refuses those of its object: {refused}"
            raise TypesUnknown(item.name, why)
        return told

    def of_program(self, spec: CollectionSpec, program: ProgramSpec) -> ProgBtf | None:
        """Return where a program's instructions came from; None if nobody noted it, or the kernel refuses to know."""
        fd = self.fd(spec) if program.debug.func_info else 0
        return ProgBtf(fd, program.debug.func_info, program.debug.line_info) if fd else None

    def note_refusal(self, program: str, log: str) -> None:
        """Remember that the kernel refused a program's records."""
        self.refused_programs[program] = log.strip().splitlines()[0]

    def close(self) -> None:
        """Close every descriptor; what is loaded later loads its BTF again."""
        with self._lock:
            while self._fds:
                _, fd = self._fds.popitem()
                if fd:
                    os.close(fd)
            self._refused.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
