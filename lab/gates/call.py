"""A system call that is about to happen, in words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

RECEIVE = "netlink-answer"
"""The name of a call that reads from a netlink socket."""

_READS = (
    RECEIVE,
    "MAP_LOOKUP",
    "MAP_GET_NEXT",
    "OBJ_GET",
    "PROG_QUERY",
    "PROG_GET",
    "LINK_GET",
    "BTF_GET",
    "MAP_GET",
    "RTM_GET",
)
"""How the names of calls begin that only look at something."""


_MAKES = frozenset(
    (
        *("MAP_CREATE", "PROG_LOAD", "BTF_LOAD", "MAP_FREEZE", "OBJ_PIN"),
        *("open", "openat", "openat2", "creat", "mkdir", "mkdirat", "symlink", "symlinkat", "link", "linkat"),
    )
)
"""The names of calls that make something new, and take nothing away."""

_OF_ONE_NODE = re.compile(r"\blxc(?=[0-9a-f]{12})[0-9a-f]+|/[^ ]*(?=/(state|bpf)/)")
"""Names that a node has by itself: its pods' interfaces, its directory."""

_CHOSEN = re.compile(r"(?<=\.)[a-z0-9_]{8}(?=$| )|(?<=:retired-)[0-9]+")
"""What tempfile.mkstemp() has chosen of a name, and the kernel for a replaced map (datapath.kernel.pins.RETIRED)."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call by which a process reads or changes a node: what it is (`name`), and of what (`subject`).

    `number` counts the calls of one supervised run from 1. `name` is the kernel's: a command of bpf(2) without BPF_ and
    _ELEM (MAP_UPDATE), a message of rtnetlink (RTM_NEWTFILTER), or the system call (renameat2). `syscall` and `thread`
    say how it was made. `subject` is a map with its slot, a program, a path, an interface with its hook, a route.
    """

    number: int
    name: str
    subject: str
    syscall: str
    thread: int

    @property
    def text(self) -> str:
        """The call as patterns see it, and as it is printed: MAP_UPDATE cilium_calls_00101[7]."""
        return f"{self.name} {self.subject}".rstrip()

    @property
    def map(self) -> str:
        """The map of which the call is about an element, by its key; empty for others, and for arrays of programs."""
        name, bracket, key = self.subject.partition("[")
        return name if bracket and self.name.startswith("MAP_") and not key[:-1].isdecimal() else ""

    @property
    def is_look_up(self) -> bool:
        """Whether it is a look-up of one element, or of the next key: loaders read tens of thousands."""
        return self.syscall == "bpf" and self.name in ("MAP_LOOKUP", "MAP_GET_NEXT_KEY")

    @property
    def series(self) -> str:
        """The map, if the call is likely to be one of many that differ in the key alone; empty for others."""
        return self.subject.partition("[")[0] if self.is_look_up else self.map

    @property
    def changes(self) -> bool:
        """Whether something may be another after the call than before it."""
        return not self.name.startswith(_READS) or self.name.startswith("MAP_LOOKUP_AND_DELETE")

    @property
    def only_adds(self) -> bool:
        """Whether it takes no pin away, and changes nothing that packets go through: hooks, and slots of programs."""
        return not self.changes or self.name in _MAKES

    @property
    def pattern(self) -> str:
        """A pattern that this call fits on every node: without interfaces of pods, ids, directories and keys."""
        subject = _CHOSEN.sub("*", _OF_ONE_NODE.sub("*", self.subject))
        if self.series and "[" in subject:
            subject = f"{self.series}[*]"
        return f"{self.name} {'*' if subject.isdecimal() else subject}".rstrip()

    def fits(self, pattern: str) -> bool:
        """Tell whether this is such a call: a pattern as the shell's, which [ and ] do not take part in."""
        return fnmatchcase(self.text, pattern.replace("[", "[[]"))
