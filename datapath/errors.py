"""Everything that can go wrong in a reload. Each error carries its evidence in attributes; str() is one clear line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ReloadlabError(Exception):
    """Base of all errors that a user can cause or cure; the command line prints str() and exits with 1.

    All of them can be pickled, whatever their constructors take: str() and attributes come out as they went in. An
    attribute that cannot be pickled becomes its repr().
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, {name: _portable(value) for name, value in vars(self).items()})


def printable(name: str) -> str:
    """Return a name that the kernel gave (os.fsdecode) for a message, whatever bytes it has."""
    return name if name.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", name)


def _restore(kind: type[ReloadlabError], args: tuple[Any, ...], attributes: dict[str, Any]) -> ReloadlabError:
    error = kind.__new__(kind, *args)
    vars(error).update(attributes)
    return error


def _portable(value: Any) -> Any:
    import pickle  # only for errors that go from one process to another

    try:
        pickle.loads(pickle.dumps(value))
    except Exception:  # noqa: BLE001 - whatever a foreign class does when it is pickled
        return repr(value)
    return value


class ToolMissing(ReloadlabError):
    """A program or library that the machine lacks."""

    def __init__(self, tool: str, remedy: str) -> None:
        super().__init__(f"{tool} not found: {remedy}")
        self.tool = tool
        self.remedy = remedy


class ToolError(ReloadlabError):
    """A tool that ran and failed."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        last = stderr.strip().splitlines()
        super().__init__(f"{' '.join(argv)}: exit code {returncode}" + (f": {last[-1]}" if last else ""))
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr


class CompileError(ReloadlabError):
    """The compiler refused a source; `stderr` is its whole output, the first error line is in str()."""

    def __init__(self, output: str, argv: Sequence[str], stderr: str) -> None:
        lines = stderr.strip().splitlines()
        first = next((line for line in lines if "error:" in line), lines[0] if lines else "no message")
        super().__init__(f"failed to compile {output}: {first}")
        self.output = output
        self.argv = tuple(argv)
        self.stderr = stderr


class ObjectError(ReloadlabError):
    """An object file that cannot be used; says which program, map or section it stumbled over."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class ProgramNotFound(ObjectError):
    """The object lacks an entry program that the reload wants to attach."""

    def __init__(self, path: Path | str, program: str, available: Sequence[str]) -> None:
        super().__init__(path, f"no program {program} found; it has {', '.join(available) or 'none'}")
        self.program = program
        self.available = tuple(available)


@dataclass(frozen=True, slots=True)
class MapDifference:
    """One property in which a pinned map differs from what the object asks for."""

    map: str
    field: str
    pinned: int | str
    wanted: int | str

    def __str__(self) -> str:
        return f"{self.map}: {self.field} is {self.pinned}, wanted {self.wanted}"


class MapTooSmall(ReloadlabError):
    """A map without room for what it must hold: without some of it, programs would let pass what is to be denied."""

    def __init__(self, name: str, left_out: int, size: int) -> None:
        entries = "1 entry does" if left_out == 1 else f"{left_out} entries do"
        super().__init__(f"map {name} is too small: {entries} not fit into {size}")
        self.name = name
        self.left_out = left_out
        self.size = size


class TypesUnknown(ReloadlabError):
    """A map of sources that are not ours whose types the kernel cannot be told: nobody knows what its entries mean."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"map {name}: its entries have a layout that only types tell, and {reason}")
        self.name = name


class MapIncompatible(ReloadlabError):
    """Pinned maps that the object cannot reuse; `differences` lists every difference of every map."""

    def __init__(self, differences: Sequence[MapDifference]) -> None:
        super().__init__("incompatible pinned map: " + "; ".join(str(d) for d in differences))
        self.differences = tuple(differences)

    @property
    def maps(self) -> frozenset[str]:
        return frozenset(d.map for d in self.differences)


class VerifierError(ReloadlabError):
    """The kernel refused a program. `log` is the verifier's whole log, `summary` its last words.

    `source` is the line that the refused instruction was compiled from (file:line and text), None if nobody noted it.
    """

    def __init__(self, program: str, errno: int, instructions: int, log: str, *, source: object = None) -> None:
        lines = [line for line in log.strip().splitlines() if line.strip()]
        # The reason stands before the statistics, which the verifier prints last.
        reasons = [line for line in lines if not line.startswith(("processed ", "verification time ", "stack depth "))]
        summary = "; ".join(reasons[-2:]) if reasons else "no log"
        if source is not None:
            summary = f"at {source}: {summary}"
        super().__init__(f"program {program} ({instructions} instructions) refused by the verifier: {summary}")
        self.program = program
        self.errno = errno
        self.instructions = instructions
        self.summary = summary
        self.source = None if source is None else str(source)
        self.log = log


class BpfError(ReloadlabError):
    """A bpf(2) call that failed for another reason than the verifier; `errno` is kept."""

    def __init__(self, command: str, errno: int, detail: str) -> None:
        super().__init__(f"{command}: {detail}")
        self.command = command
        self.errno = errno


class NetlinkError(ReloadlabError):
    """A netlink request that the kernel refused; `errno` is kept, the kernel's own words are in str()."""

    def __init__(self, request: str, errno: int, detail: str) -> None:
        super().__init__(f"{request}: {detail}")
        self.request = request
        self.errno = errno


class LinkNotFound(ReloadlabError):
    """A missing interface."""

    def __init__(self, ifname: str) -> None:
        super().__init__(f"interface {printable(ifname)} does not exist")
        self.ifname = ifname


class LinkReplaced(LinkNotFound):
    """An interface that a reload is about is gone; one that came later has its name."""

    def __init__(self, ifname: str, found: int, wanted: int) -> None:
        super().__init__(ifname)
        self.args = (
            f"interface {printable(ifname)} has the index {found}, the one that was to be reloaded had {wanted}: "
            f"another has its name by now",
        )
        self.found = found
        self.wanted = wanted


class WrongCall(ReloadlabError):
    """Something was asked for that cannot be, whatever the machine is like; the command line exits with 2."""


class InvalidName(WrongCall):
    """A name that cannot become a path or an interface name."""

    def __init__(self, kind: str, name: str, rule: str) -> None:
        super().__init__(f"invalid {kind} {name!r}: {rule}")
        self.name = name


class PinPathError(ReloadlabError):
    """A pin path that does not lie on a bpffs."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is not on a BPF file system: mount one with `mount -t bpf bpf <directory>`")
        self.path = path


class SeveralErrors(ReloadlabError):
    """Several things were attempted and more than one failed; `errors` has all of them."""

    def __init__(self, errors: Sequence[Exception]) -> None:
        super().__init__("; ".join(str(error) for error in errors))
        self.errors = tuple(errors)


class Cancelled(ReloadlabError):
    """The reload was cancelled; what it had done is undone."""
