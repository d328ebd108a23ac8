"""The same work by tc: the programs into their slots by `exec bpf graft`, the entry programs by `filter replace`.

tc as distributions build it uses libbpf, which refuses definitions in section `maps`; with them goes the only way in
which tc fills slots by itself. Our sources can be compiled into an object without (-D FOR_LIBBPF). All requests are
one batch: one process, where Cilium before 1.12 started one for each direction, with the program arrays filled by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from datapath.build import headers
from datapath.build.compile import compile_source, probe_compiler
from datapath.endpoint import DatapathConfig, Endpoint
from datapath.errors import ToolError
from datapath.kernel.hooks import Direction
from datapath.kernel.netns import enter
from datapath.kernel.pins import PENDING, is_calls_map
from datapath.object.spec import CollectionSpec
from lab.system import tools

BPFFS = Path("/sys/fs/bpf")
"""Where tc looks for pins: `tc/globals` below it."""


class Tc:
    """tc for one interface of one node. The node's bpffs is mounted at /sys/fs/bpf when it is used.

    `path` is the object file that tc gets, `sections` are those of its programs; `spec` says what stands in the slots.
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
        """Return in tc's own words why it cannot load the object as a whole, None if it can."""
        try:
            for line in self._filters():
                self._tc(line.split(), None)
        except ToolError as error:
            return error.stderr.strip().splitlines()[0] if error.stderr.strip() else str(error)
        return None

    def replace(self) -> None:
        """Attach by one process per direction, which loads everything (an object that tc takes as a whole)."""
        self._aside()
        for line in self._filters():
            self._tc(line.split(), None)
        self._let_go()

    def graft(self) -> None:
        """Fill the slots and attach, in one process (an object that was compiled with FOR_LIBBPF)."""
        lines = [
            f"exec bpf graft m:globals/{item.name} key {slot} object-file {self._path} "
            f"section {self._sections[program]}"
            for item in self._spec.maps.values()
            for slot, program in item.contents.items()
        ]
        self._aside()
        self._tc(["-batch", "-"], "\n".join([*lines, *self._filters()]) + "\n")
        self._let_go()

    def _filters(self) -> Sequence[str]:
        return [
            f"filter replace dev {self._ifname} {direction} prio 1 handle 1 bpf da object-file {self._path} "
            f"section {self._sections[program]}"
            for direction, program in self._hooks.items()
        ]

    def _aside(self) -> None:
        for pin in self._pins:
            if pin.exists():
                pin.rename(f"{pin}{PENDING}")

    def _let_go(self) -> None:
        for pin in self._pins:
            Path(f"{pin}{PENDING}").unlink(missing_ok=True)

    def _tc(self, arguments: Sequence[str], stdin: str | None) -> None:
        with enter(self._netns):
            tools.run(["tc", *arguments], stdin=stdin)


def compile_for_libbpf(config: DatapathConfig, endpoint: Endpoint, source: str, directory: Path) -> Path:
    """Compile an endpoint's object from our own sources in the form that tc and bpftool can load; CompileError."""
    for name, text in {
        "node_config.h": headers.node_header(config.node),
        "netdev_config.h": headers.netdev_header(config.node),
        "ep_config.h": headers.endpoint_header(endpoint),
    }.items():
        (directory / name).write_text(text)
    return compile_source(
        config.library / source,
        directory / "for_libbpf.o",
        includes=(directory, config.library, config.library / "include"),
        defines=(*config.defines, ("FOR_LIBBPF", "1")),
        compiler=probe_compiler(config.clang),
    )
