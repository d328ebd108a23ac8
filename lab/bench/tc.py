"""The same reload by tc: `exec bpf graft` fills the slots, `filter replace` attaches the entry programs.

tc as distributions build it uses libbpf, which refuses map definitions in the section `maps`, and with them the only
form in which tc itself fills slots. Our sources can be compiled without that section (-D FOR_LIBBPF). All requests are
one batch of one process; Cilium before 1.12 started one process for each direction, which filled the program arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from datapath.base.mapnames import is_calls_map
from datapath.errors import ToolError
from datapath.kernel.hooks import Direction
from datapath.kernel.netns import enter
from datapath.kernel.pins import PENDING
from datapath.object.spec import CollectionSpec
from lab.system import tools

BPFFS = Path("/sys/fs/bpf")
"""The bpffs that tc uses: its pins are in `tc/globals`."""


class Tc:
    """tc for one interface of a node. The caller has mounted the node's bpffs at /sys/fs/bpf.

    `path` is the object file for tc, `sections` are those of its programs by name; `spec` has the slots' contents.
    """

    def __init__(
        self,
        path: Path,
        sections: Mapping[str, str],
        spec: CollectionSpec,
        netns: Path,
        ifname: str,
        hooks: Mapping[Direction, str],
    ) -> None:
        self._path, self._sections, self._spec = path, sections, spec
        self._netns, self._ifname, self._hooks = netns, ifname, hooks
        self._pins = [BPFFS / "tc" / "globals" / name for name in spec.maps if is_calls_map(name)]

    def refusal(self) -> str | None:
        """Return tc's error message if it cannot load the object as a whole, None if it can."""
        try:
            for line in self._filters():
                self._tc(line.split(), None)
        except ToolError as error:
            return error.stderr.strip().splitlines()[0] if error.stderr.strip() else str(error)
        return None

    def replace(self) -> None:
        """Load and attach with one process per direction, for an object that tc can load as a whole."""
        self._repin()
        for line in self._filters():
            self._tc(line.split(), None)
        self._finalize()

    def graft(self) -> None:
        """Fill the slots and attach with one process, for an object that was compiled with FOR_LIBBPF."""
        lines = [
            f"exec bpf graft m:globals/{item.name} key {slot} object-file {self._path} "
            f"section {self._sections[program]}"
            for item in self._spec.maps.values()
            for slot, program in item.contents.items()
        ]
        self._repin()
        self._tc(["-batch", "-"], "\n".join([*lines, *self._filters()]) + "\n")
        self._finalize()

    def _filters(self) -> Sequence[str]:
        return [
            f"filter replace dev {self._ifname} {direction} prio 1 handle 1 bpf da object-file {self._path} "
            f"section {self._sections[program]}"
            for direction, program in self._hooks.items()
        ]

    def _repin(self) -> None:
        for pin in self._pins:
            if pin.exists():
                pin.rename(f"{pin}{PENDING}")

    def _finalize(self) -> None:
        for pin in self._pins:
            Path(f"{pin}{PENDING}").unlink(missing_ok=True)

    def _tc(self, arguments: Sequence[str], stdin: str | None) -> None:
        with enter(self._netns):
            tools.run(["tc", *arguments], stdin=stdin)
